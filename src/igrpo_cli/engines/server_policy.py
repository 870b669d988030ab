"""Which policy a server must have, and whether the model that it was started with can be, or become, that policy."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from igrpo_cli.errors import IgrpoError

_SHAPE_KEYS = (
    "architectures",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "vocab_size",
)


@dataclass(frozen=True, slots=True)
class PolicyFiles:
    """The policy that a server must have."""

    directory: Path
    """Absolute, symlinks resolved: the path under which the servers must see it too."""
    fingerprint: str
    """Of its weights: the same for the same bytes, wherever and whenever they were written."""
    ties_embeddings: bool
    """Whether the output matrix is the embedding."""

    @classmethod
    def of(cls, directory: Path) -> PolicyFiles:
        """Look at a model directory, and read its weights once."""
        resolved = directory.resolve()
        config = json.loads((resolved / "config.json").read_text())
        return cls(resolved, _fingerprint(resolved), bool(config.get("tie_word_embeddings")))


def _fingerprint(directory: Path) -> str:
    digest = hashlib.sha256()
    for path in sorted(directory.glob("*.safetensors")):
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()[:16]


def require_root(url: str, root: str, policy: PolicyFiles) -> None:
    """Raise unless a server that cannot load weights serves the very directory of the policy."""
    path = Path(root)
    if path.is_absolute() and path.resolve() == policy.directory:
        return
    raise IgrpoError(
        f"{url} serves {root}, not the policy {policy.directory}, and cannot load another one",
        hint=f"start it again: vllm serve {policy.directory}; or, on GPUs, start it with VLLM_SERVER_DEV_MODE=1, "
        "then weights are loaded into it",
    )


def require_same_shape(url: str, root: str, policy: PolicyFiles) -> None:
    """A server loads weights of another shape in part, with a warning in its log: so look before."""
    served, asked = _shape(Path(root)), _shape(policy.directory)
    for key in served.keys() & asked.keys():
        if served[key] != asked[key]:
            raise IgrpoError(
                f"{url} was started with a model of another shape ({root} has {key} {served[key]}, "
                f"{policy.directory} has {asked[key]})",
                hint=f"start it again: vllm serve {policy.directory}",
            )


def _shape(directory: Path) -> dict[str, Any]:
    """The sizes of a model; nothing where the directory cannot be seen from here, or is a name of the Hub."""
    try:
        config = json.loads((directory / "config.json").read_text())
    except (OSError, ValueError):
        return {}
    return {key: config[key] for key in _SHAPE_KEYS if config.get(key) is not None}
