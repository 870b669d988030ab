"""Progress of long work: what is said of it, when a log gets a line, and what a terminal shows."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
import time

import pytest

from igrpo_cli.ui import progress
from igrpo_cli.ui.console import QUIET, Console
from igrpo_cli.ui.progress import Progress, duration


class Clock:
    """`time.monotonic` that a test moves."""

    def __init__(self, monkeypatch):
        self.now = 1000.0
        monkeypatch.setattr(progress.time, "monotonic", lambda: self.now)


@pytest.fixture
def clock(monkeypatch):
    return Clock(monkeypatch)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0.0 s"),
        (4.24, "4.2 s"),
        (9.96, "10 s"),
        (59.4, "59 s"),
        (59.6, "1 min 0 s"),
        (200, "3 min 20 s"),
        (3599.7, "1 h 0 min"),
        (7500, "2 h 5 min"),
        (47.9 * 3600, "47 h 54 min"),
        (76 * 3600, "3 d 4 h"),
    ],
)
def test_a_duration_has_the_units_that_people_say(seconds, text):
    assert duration(seconds) == text


def test_what_is_done_how_fast_and_how_long_it_takes_still(clock):
    blocks = Progress("draft", 96, "blocks")
    clock.now += 10
    assert blocks.text() == "0 of 96 blocks, 10 s so far"
    blocks.advance(tokens=600)
    blocks.advance(tokens=600)
    clock.now += 10
    assert blocks.text() == "2 of 96 blocks, 60 tokens/s, 15 min 40 s left"
    blocks.advance(94)
    assert blocks.text() == "96 of 96 blocks, 60 tokens/s, in 20 s"


def test_what_was_done_before_says_nothing_of_the_pace(clock):
    blocks = Progress("draft", 96, "blocks")
    blocks.skip(90)
    clock.now += 10
    assert blocks.text() == "90 of 96 blocks, 10 s so far"
    blocks.advance(2)
    assert blocks.text() == "92 of 96 blocks, 20 s left"


def test_preparations_are_not_part_of_the_pace_but_later_breaks_are(clock):
    blocks = Progress("draft", 10, "blocks")
    clock.now += 300
    blocks.leave_out_preparations()
    clock.now += 5
    blocks.advance()
    assert blocks.text() == "1 of 10 blocks, 45 s left"
    clock.now += 5
    blocks.leave_out_preparations()
    assert blocks.text() == "1 of 10 blocks, 1 min 30 s left"


def test_completions_within_a_block_tell_the_time_left(clock):
    blocks = Progress("draft", 8, "blocks")
    clock.now += 10
    blocks.sample(0, completions=0, tokens=500, at_most=0.4)
    assert blocks.text() == "0 of 8 blocks, 50 tokens/s, at most 3 min 10 s left"
    clock.now += 10
    blocks.sample(0.5, completions=16, tokens=700, at_most=0.6)
    assert blocks.text() == "0 of 8 blocks, 16 completions, 60 tokens/s, 5 min 0 s left"
    blocks.sample(0.5, completions=16, tokens=0, at_most=0)
    blocks.advance()
    clock.now += 10
    # A block that is graded is counted once: 7 more at 30 s each.
    assert blocks.text() == "1 of 8 blocks, 32 completions, 40 tokens/s, 3 min 30 s left"
    assert blocks.reached == 1


def test_work_that_holds_other_work_says_how_long_it_takes_itself(clock):
    whole, part = Progress("run", 3, "iterations"), Progress("iteration 0", 4, "blocks")
    clock.now += 10
    assert whole.left_around(part) == ""
    part.advance()
    # 10 s of 40: the other two iterations take as long at least, and an update comes on top.
    assert whole.left_around(part) == "at least 1 min 50 s left"
    whole.seconds_per_unit = 50
    assert whole.text(part) == "0 of 3 iterations, 2 min 20 s left"
    clock.now += 50
    whole.advance()
    clock.now += 20
    assert whole.text(part) == "1 of 3 iterations, 1 min 40 s left"


def test_without_a_total_it_tells_what_is_done(clock):
    rows = Progress("grade", None, "rows")
    rows.advance(256, rows=256)
    clock.now += 2
    assert rows.text() == "256 rows, 128 rows/s, 2.0 s so far"


@pytest.fixture
def hasty(monkeypatch):
    """Lines after a tenth of a second."""
    monkeypatch.setattr(progress, "SECONDS_TO_FIRST_LINE", 0.1)


def test_a_log_gets_lines_while_nothing_advances_and_one_at_the_end(hasty, capsys):
    with Console().progress("draft", 2, "blocks") as work:
        time.sleep(0.25)
        work.advance(2)
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "draft: 0 of 2 blocks, 0.1 s so far"
    assert lines[-1].startswith("draft: 2 of 2 blocks, in 0.")


def test_a_line_names_the_work_and_what_it_is_at(hasty, capsys):
    console = Console()
    with console.progress("draft", 2, "blocks"), console.activity("starting the engine"):
        time.sleep(0.15)
    assert capsys.readouterr().err.splitlines()[0] == "draft: starting the engine: 0.1 s so far"


def test_a_line_ends_with_the_time_left_of_the_whole(hasty, capsys):
    console = Console()
    with console.progress("run", 2, "iterations") as whole, console.progress("iteration 0", 2, "blocks"):
        whole.seconds_per_unit = 3600
        time.sleep(0.15)
    line = capsys.readouterr().err.splitlines()[0]
    assert line.startswith("run: iteration 0: 0 of 2 blocks, 0.1 s so far; run: 2 h 0 min left")


def test_work_that_is_soon_done_leaves_no_line(capsys):
    with Console().progress("draft", 2, "blocks") as work:
        work.advance(2)
    assert capsys.readouterr().err == ""


def test_quiet_is_quiet(hasty, capsys):
    with Console(verbosity=QUIET).progress("draft", 2, "blocks") as work:
        time.sleep(0.2)
        work.advance(2)
    assert capsys.readouterr() == ("", "")


WORK = """
import sys, time
from igrpo_cli.ui.console import Console
console = Console()
with console.progress("draft", 4, "blocks") as work, console.activity("starting the engine"):
    time.sleep(0.5)
    work.advance(2, tokens=10)
    console.note("a note [bold]")
    print("data")
    time.sleep(0.5)
"""


def on_terminal(**environment):
    """What the terminal of stderr shows, and what stdout, which is a pipe, gets."""
    terminal, stderr = pty.openpty()
    with subprocess.Popen(
        [sys.executable, "-c", WORK], stdout=subprocess.PIPE, stderr=stderr, env={**os.environ, **environment}
    ) as process:
        os.close(stderr)
        shown = b""
        while piece := _read(terminal):
            shown += piece
        stdout = process.stdout.read()
    os.close(terminal)
    return shown.decode(), stdout.decode()


def _read(terminal):
    try:
        return os.read(terminal, 65536)
    except OSError:  # the other end is closed
        return b""


def test_a_terminal_gets_bars_and_stdout_what_belongs_there():
    shown, stdout = on_terminal(TERM="xterm", COLUMNS="80")
    assert stdout == "data\n"
    assert "2 of 4 blocks" in shown
    assert "starting the engine" in shown
    assert "a note [bold]" in shown
    assert "━" in shown
    assert "\x1b[1A" in shown  # the cursor goes up: it is drawn again in place


def test_no_color_means_no_color():
    shown, _ = on_terminal(TERM="xterm", COLUMNS="80", NO_COLOR="1")
    assert "2 of 4 blocks" in shown
    assert "\x1b[3" not in shown.replace("\x1b[?25", "")
    assert "\x1b[38" not in shown


def test_a_terminal_that_cannot_move_its_cursor_gets_lines():
    shown, stdout = on_terminal(TERM="dumb", COLUMNS="80")
    assert (shown, stdout) == ("a note [bold]\r\n", "data\n")
