"""Fixtures for all rooms."""

from __future__ import annotations

from pathlib import Path

import pytest

from command_line import make_run, run_to_end


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory) -> Path:
    """A finished small run that no test may change."""
    return run_to_end(make_run(tmp_path_factory.mktemp("runs") / "finished"))
