"""Which device an engine runs on, and in which dtype."""

from __future__ import annotations

import torch

from igrpo_cli.engines.base import Dtype
from igrpo_cli.errors import UsageError


def find_device(name: str) -> torch.device:
    """The device of `EngineSettings.device`. Raises UsageError for one that is not here."""
    if name == "auto":
        return torch.device("cuda:0" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise UsageError(f"torch knows no device {name!r}", hint="use auto, cpu, cuda or cuda:N") from error
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UsageError(f"there is no {name} here: torch sees {torch.cuda.device_count()} GPUs", hint="use auto")
    return device


def describe_device(device: torch.device) -> str:
    """In words, for the manifest."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{device.type} ({torch.get_num_threads()} threads)"


def resolve_dtype(dtype: Dtype, device: torch.device) -> Dtype:
    """`auto` is float32 on a CPU without AVX-512, where bfloat16 is emulated and several times slower."""
    slow = device.type == "cpu" and torch.backends.cpu.get_cpu_capability() in ("AVX2", "DEFAULT")
    return "float32" if dtype == "auto" and slow else dtype
