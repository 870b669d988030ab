from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest

from igrpo_cli.cli.signals import clean_interrupts
from igrpo_cli.errors import IgrpoError, Interrupted


def fail_to_clean_up():
    try:
        os.kill(os.getpid(), signal.SIGTERM)
    finally:
        raise RuntimeError("release unlocked lock")


def wrap_ctrl_c():
    try:
        raise KeyboardInterrupt
    except KeyboardInterrupt as error:
        raise IgrpoError("something broke") from error


def test_a_signal_in_the_middle_of_a_clean_up_that_then_fails_is_still_an_interrupt():
    with pytest.raises(Interrupted, match="stopped by SIGTERM"), clean_interrupts():
        fail_to_clean_up()


def test_ctrl_c_that_was_wrapped_in_another_error_is_still_ctrl_c():
    with pytest.raises(KeyboardInterrupt), clean_interrupts():
        wrap_ctrl_c()


def test_other_errors_pass_as_they_are():
    with pytest.raises(IgrpoError, match="something broke"), clean_interrupts():
        raise IgrpoError("something broke")


def test_afterwards_signals_do_what_they_did_before():
    numbers = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT, signal.SIGALRM)
    before = [signal.getsignal(number) for number in numbers]
    with pytest.raises(Interrupted), clean_interrupts():
        os.kill(os.getpid(), signal.SIGUSR1)
    assert [signal.getsignal(number) for number in numbers] == before


PROCESS = """
import os, signal, sys, time
from igrpo_cli.cli import signals

def send(number):
    os.kill(os.getpid(), number)

class Finalised:
    def __del__(self):
        send(signal.SIGTERM)

signals.CLEAN_UP_SECONDS = 0.2
signals.exit_on_signal()
with signals.clean_interrupts():
    {}
    time.sleep(60)
"""
SWALLOWED = "try: send(signal.SIGTERM)\n    except Exception: pass"
CTRL_C_TWICE = "try: send(signal.SIGINT)\n    finally: send(signal.SIGINT)"
SIGTERM_THEN_CTRL_C = "try: send(signal.SIGTERM)\n    finally: send(signal.SIGINT)"
CTRL_C_THEN_SIGTERM = "try: send(signal.SIGINT)\n    except KeyboardInterrupt: send(signal.SIGTERM)"


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        (SWALLOWED, 75),
        ("Finalised()", 75),
        (CTRL_C_TWICE, 130),
        (SIGTERM_THEN_CTRL_C, 75),
        (CTRL_C_THEN_SIGTERM, 130),
    ],
    ids=["swallowed", "in a finaliser", "Ctrl-C twice", "SIGTERM, Ctrl-C", "Ctrl-C, SIGTERM"],
)
def test_an_interrupt_that_gets_lost_and_a_clean_up_that_lasts_end_with_the_process(code, expected):
    done = subprocess.run([sys.executable, "-c", PROCESS.format(code)], capture_output=True, text=True, timeout=30)
    assert done.returncode == expected
    assert [line.split(":")[0] for line in done.stderr.splitlines()] == ["error", "hint"], done.stderr
