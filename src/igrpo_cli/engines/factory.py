"""An engine by its name. Each is imported when it is made, so that a command loads the libraries of one."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from pathlib import Path

from igrpo_cli.engines.base import Engine, EngineSettings
from igrpo_cli.errors import UsageError


def _create_auto(policy_directory: Path, settings: EngineSettings) -> Engine:
    from igrpo_cli.engines.availability import vllm_fits

    create = _create_vllm if vllm_fits(settings.device) else _create_transformers
    return create(policy_directory, settings)


def _create_transformers(policy_directory: Path, settings: EngineSettings) -> Engine:
    from igrpo_cli.engines.transformers import TransformersEngine

    return TransformersEngine(policy_directory, settings)


def _create_vllm(policy_directory: Path, settings: EngineSettings) -> Engine:
    from igrpo_cli.engines.vllm import VllmEngine

    return VllmEngine(policy_directory, settings)


def _create_server(policy_directory: Path, settings: EngineSettings) -> Engine:
    from igrpo_cli.engines.server import ServerEngine

    engine: Engine = ServerEngine(policy_directory, settings)
    return engine


_FACTORIES: dict[str, Callable[[Path, EngineSettings], Engine]] = {
    "auto": _create_auto,
    "transformers": _create_transformers,
    "vllm": _create_vllm,
    "server": _create_server,
}
ENGINE_NAMES = tuple(_FACTORIES)


def create_engine(name: str, policy_directory: Path, settings: EngineSettings) -> Engine:
    """The engine called `name` (one of `ENGINE_NAMES`), with the policy of a Hugging Face model directory in it."""
    if name not in _FACTORIES:
        nearest = difflib.get_close_matches(name, ENGINE_NAMES, n=1, cutoff=0.0)[0]
        raise UsageError(
            f"there is no engine {name!r} (there are {', '.join(ENGINE_NAMES)})", hint=f"did you mean {nearest!r}?"
        )
    return _FACTORIES[name](policy_directory, settings)
