"""How the directories of evaluations are called, and what their names say."""

from __future__ import annotations

import re
from pathlib import Path

_NAME = re.compile(r"(?:policy_([0-9]{4,})|.+?)(_conditioned(?:_(majority|best))?)?")
"""Policy of the run, whether conditioned, `eval.selection` unless it is `each`."""


def eval_name(policy: int | str, conditioned: str | None) -> str:
    """`policy_0003`, `policy_0003_conditioned`, `SmolLM2_conditioned_best`; `conditioned` is the `eval.selection`."""
    name = policy if isinstance(policy, str) else f"policy_{policy:04d}"
    if conditioned is None:
        return name
    return f"{name}_conditioned" if conditioned == "each" else f"{name}_conditioned_{conditioned}"


def eval_iteration(directory: Path) -> int:
    """The iteration of the policy that was evaluated; 0 for other models."""
    return int(_parts(directory)[0] or 0)


def read_eval_name(name: str) -> tuple[int | str, str | None]:
    """What `eval_name` made the name of a directory from: policy of the run or name of a model, and how conditioned."""
    policy, conditioned, selection = _parts(Path(name))
    model = name.removesuffix(conditioned or "")
    return (model if policy is None else int(policy)), (selection or "each") if conditioned else None


def eval_flags(directory: Path) -> str:
    """The flags of `igrpo eval` that lead to these results."""
    policy, conditioned, selection = _parts(directory)
    bench = f"--bench {directory.parent.name}"
    flags = [f"--model MODEL {bench}" if policy is None else f"{bench} --iteration {int(policy)}"]
    flags += ["--conditioned"] if conditioned else []
    flags += [f"--set eval.selection={selection}"] if selection else []
    return " ".join(flags)


def _parts(directory: Path) -> tuple[str | None, ...]:
    match = _NAME.fullmatch(directory.name)
    return match.groups() if match else (None, None, None)
