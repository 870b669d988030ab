"""The device of engines and trainers, and errors for its memory."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from igrpo_cli.errors import IgrpoError, UsageError


def find_device(name: str) -> torch.device:
    """Return the device called `name`: `auto` (the first GPU, or the CPU if there is none) or a name of torch.

    Raises UsageError for a device that does not exist.
    """
    if name == "auto":
        return torch.device("cuda:0" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise UsageError(f"torch knows no device {name!r}", hint="use auto, cpu, cuda or cuda:N") from error
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UsageError(f"there is no device {name}: torch finds {torch.cuda.device_count()} GPUs", hint="use auto")
    return device


def describe_device(device: torch.device) -> str:
    """Return a description of the device for manifests."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{device.type} ({torch.get_num_threads()} threads)"


def has_fast_bfloat16(device: torch.device) -> bool:
    """Return False for a CPU without AVX-512, where bfloat16 products are emulated and much slower than float32."""
    return device.type != "cpu" or torch.backends.cpu.get_cpu_capability() not in ("AVX2", "DEFAULT")


@contextmanager
def memory_for(what: str, hint: str) -> Iterator[None]:
    """Raise IgrpoError for a failed allocation of memory, on the accelerator or the host. Also works as a decorator."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        # torch has no exception class for host memory.
        if not (isinstance(error, torch.OutOfMemoryError | MemoryError) or "DefaultCPUAllocator" in str(error)):
            raise
        raise IgrpoError(f"there is no memory for {what} ({str(error).partition(chr(10))[0]})", hint=hint) from error
