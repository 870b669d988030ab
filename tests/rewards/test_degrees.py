"""A degree is a unit at the end of an answer, and pi/180 in a function."""

from __future__ import annotations

import pytest

from igrpo_cli.rewards.grading import grade_answer


@pytest.mark.parametrize(
    ("reference", "answer"),
    [
        (r"\tan 45^\circ", "1"),
        (r"\sin 30^\circ", "0.5"),
        (r"\sin 30^{\circ}", r"\frac12"),
        (r"\frac{\sqrt3}{2}", r"\cos(30^\circ)"),
        (r"\sin 1^\circ", r"\sin \frac{\pi}{180}"),
        (r"\sin 1^\circ", "sin 1°"),
        (r"2\sin 10^\circ", r"2\cos(80^\circ)"),
        (r"\sin^2 20^\circ", r"1 - \cos^2 20^\circ"),
        (r"\sin(30^\circ + x)", r"\sin(x + 30^\circ)"),
        ("60", r"60^\circ"),
        (r"\theta = 30^\circ", "30"),
        (r"30^\circ, 60^\circ", "30, 60"),
    ],
)
def test_degrees_are_read(reference, answer):
    assert grade_answer(rf"\boxed{{{answer}}}", reference).verdict == "correct"


@pytest.mark.parametrize(
    ("reference", "answer"),
    [
        (r"\tan 45^\circ", "1.61977519054"),
        (r"\sin 30^\circ", r"\sin 30"),
        (r"\sin 1", r"\sin 1^\circ"),
        (r"\cos 20^\circ", r"\cos 20"),
        (r"\cos 20^\circ", r"\cos{20}"),
        (r"2\sin 10^\circ", r"2\sin 10"),
        (r"\sin(x^\circ)", r"\sin(x)"),
        (r"\sin(30^\circ + x)", r"\sin(30 + x)"),
        (r"\sin(A + B)^\circ", r"\sin(A + B)"),
        (r"\sin 30", r"\sin 30 \text{ degrees}"),
        (r"\int \sin 30^\circ dx", r"\int \sin 30 dx"),
    ],
)
def test_degrees_in_a_function_are_no_radians(reference, answer):
    assert grade_answer(rf"\boxed{{{answer}}}", reference).verdict == "wrong"
