"""Sampling: prompt ids in, completions with their log-probs out. Importing this package loads no torch."""

from __future__ import annotations

from igrpo_cli.engines.base import ENGINE_NAMES, Engine, EngineSettings, create_engine

__all__ = ["ENGINE_NAMES", "Engine", "EngineSettings", "create_engine"]
