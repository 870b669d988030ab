"""What a command prints as its result."""

from __future__ import annotations

import json
import sys

import pytest

from igrpo_cli.ui.console import Console

HOSTILE = {"completion": "\u202e\u009b31m\x1b[2J é 解"}


@pytest.mark.parametrize("is_terminal", [True, False])
def test_json_is_the_same_object_and_leaves_a_terminal_alone(is_terminal, capsys, monkeypatch):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: is_terminal)
    Console(as_json=True).data(HOSTILE, "")
    printed = capsys.readouterr().out
    assert json.loads(printed) == HOSTILE
    assert printed.rstrip("\n").isascii() is is_terminal
    assert "\x1b" not in printed
