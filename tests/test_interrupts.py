from __future__ import annotations

import os
import signal

import pytest

from igrpo_cli.errors import IgrpoError, Interrupted
from igrpo_cli.interrupts import clean_interrupts


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
