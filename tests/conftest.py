"""Fixtures for all rooms."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from command_line import make_run, run_to_end

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # Started in the background of a script: what the tests start would inherit that Ctrl-C means nothing.
    signal.signal(signal.SIGINT, signal.default_int_handler)

# Tests state no speed: a busy machine must not fail them.
settings.register_profile("igrpo", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("igrpo")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with slow tests first: begun last, one of them would keep a single worker busy at the end."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory) -> Path:
    """A finished small run that no test may change."""
    return run_to_end(make_run(tmp_path_factory.mktemp("runs") / "finished"))
