"""Which device engines and trainers run on, and where bfloat16 is fast."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from igrpo_cli.errors import IgrpoError, UsageError


def find_device(name: str) -> torch.device:
    """`auto` (the first GPU if there is one, else the CPU) or torch's own name. Raises UsageError for one not here."""
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


def has_fast_bfloat16(device: torch.device) -> bool:
    """Not on a CPU without AVX-512, where bfloat16 products are emulated, many times slower than float32."""
    return device.type != "cpu" or torch.backends.cpu.get_cpu_capability() not in ("AVX2", "DEFAULT")


@contextmanager
def memory_for(what: str, hint: str) -> Iterator[None]:
    """Turns a failed allocation, of the accelerator or of the machine, into an IgrpoError; also a decorator."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        # For the machine's own memory torch has no class of error.
        if not (isinstance(error, torch.OutOfMemoryError | MemoryError) or "DefaultCPUAllocator" in str(error)):
            raise
        raise IgrpoError(f"there is no memory for {what} ({str(error).partition(chr(10))[0]})", hint=hint) from error
