"""Sampling: prompt ids in, completions with their log-probs out. Importing this package loads no torch."""

from __future__ import annotations

from igrpo_cli.engines.base import Engine, EngineSettings
from igrpo_cli.engines.factory import ENGINE_NAMES, create_engine

__all__ = ["ENGINE_NAMES", "Engine", "EngineSettings", "create_engine"]
