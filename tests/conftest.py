"""Fixtures for all rooms."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from command_line import make_run, run_to_end

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # Started in the background of a script: what the tests start would inherit that Ctrl-C means nothing.
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory) -> Path:
    """A finished small run that no test may change."""
    return run_to_end(make_run(tmp_path_factory.mktemp("runs") / "finished"))
