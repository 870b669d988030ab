"""Record who made a shard, with what, where and when: the part of a manifest that results do not depend on."""

from __future__ import annotations

import platform
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from igrpo_cli import __version__
from igrpo_cli.config import RunConfig
from igrpo_cli.config.sections import SamplingSettings
from igrpo_cli.store.layout import RunDirectory
from igrpo_cli.store.manifest import DataFile, FileHash, Identity, Manifest, read_manifest, utc_now

PACKAGES = {"torch": "torch", "transformers": "transformers", "vllm": "vllm", "math_verify": "math-verify"}


@dataclass(frozen=True)
class Provenance:
    """Holds the time at which the work on a shard began; `manifest` is called when it is done."""

    started: str = field(default_factory=utc_now)
    clock: float = field(default_factory=time.monotonic)

    def manifest(
        self,
        identity: Identity,
        data: DataFile,
        *,
        device: str = "cpu",
        num_devices: int = 1,
        engine_versions: Mapping[str, str] | None = None,
        sampling: SamplingSettings | None = None,
        tokens: int = 0,
        counts: Mapping[str, float] | None = None,
        outputs: Sequence[FileHash] = (),
        **of_update: Any,
    ) -> Manifest:
        """Return the manifest of a shard that is done now. Time on a `device` other than "cpu…" counts as GPU time.

        `of_update` are the fields that only an update has.
        """
        seconds = round(time.monotonic() - self.clock, 3)
        return Manifest(
            identity=identity,
            data=data,
            sampling=None if sampling is None else sampling.model_dump(include=set(SamplingSettings.model_fields)),
            versions={**_installed(), **(engine_versions or {})},
            host=platform.node(),
            device=device,
            started=self.started,
            finished=utc_now(),
            seconds=seconds,
            tokens=tokens,
            gpu_seconds=0.0 if device.startswith("cpu") else round(seconds * num_devices, 3),
            counts=counts or {},
            outputs=outputs,
            **of_update,
        )


def recorded_config(run: RunDirectory, iteration: int, config: RunConfig) -> RunConfig:
    """Return `config` with the settings that the manifests of an iteration record, which may come from `--set`.

    `config` is that of the iteration. Values that a manifest adds, such as hashes, are left out.
    """
    shards = [run.shard(iteration, stage, 0, config.run.num_shards) for stage in ("draft", "select", "refine")]
    sections = {name: getattr(config, name) for name in type(config).model_fields if name != "changes"}
    for shard in (*shards, run.update(iteration).shard):
        if not shard.manifest.exists():
            continue
        for name, values in read_manifest(shard).identity.config.items():
            if name in sections:
                sections[name] = sections[name].with_recorded(values)
    return config.model_copy(update={**sections, "changes": []})


def environment_differences(manifest: Manifest, device: str) -> list[str]:
    """Return how this environment differs from that of a manifest, where that may change rounding."""
    now = _installed()
    pairs = {name: (manifest.versions.get(name), now.get(name)) for name in ("igrpo", "git", "torch", "transformers")}
    pairs |= {"device": (manifest.device, device), "host": (manifest.host, platform.node())}
    return [f"{name} {then} then, {here} now" for name, (then, here) in pairs.items() if then != here]


@cache
def _installed() -> dict[str, str]:
    found = {"igrpo": __version__}
    if commit := _git_commit():
        found["git"] = commit
    for name, package in PACKAGES.items():
        try:
            found[name] = version(package)
        except PackageNotFoundError:
            continue
    return found


def _git_commit() -> str | None:
    """Return the commit of the checkout that holds this file; None for an installed package."""
    root = Path(__file__).resolve().parents[3]
    if not (root / ".git").exists():
        return None
    try:
        command = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=12"]
        return subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.strip() or None
    except (OSError, subprocess.SubprocessError):
        return None
