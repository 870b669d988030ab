r"""What touches a box in its formula is part of the answer: `-\boxed{42}` is -42, and `\boxed{42}` million is no 42."""

from __future__ import annotations

import pytest

from igrpo_cli.rewards.grading import grade_answer


@pytest.mark.parametrize(
    "completion",
    [
        r"\boxed{42} million",
        r"$\boxed{42}$ million",
        r"$\boxed{42}\text{ million}$",
        r"$-\boxed{42}$",
        r"-\boxed{42}",
        r"$x = -\boxed{42}$",
        r"$-\left(\boxed{42}\right)$",
        r"$2\cdot\boxed{42}$",
        r"2\cdot\boxed{42}",
        r"$2\boxed{42}$",
        r"$\frac{\boxed{42}}{2}$",
        r"$\sqrt{\boxed{42}}$",
        r"$\boxed{42}^2$",
        r"\boxed{42}^2",
        r"$\boxed{42}\times 10^3$",
        r"\boxed{42}\times 10^3",
        r"$\boxed{42}!$",
        r"$\boxed{42} + 1$",
        r"$1 + \boxed{42}$",
    ],
)
def test_what_touches_a_box_belongs_to_the_answer(completion):
    assert grade_answer(completion, "42").verdict == "wrong"


@pytest.mark.parametrize(
    ("completion", "reference"),
    [
        (r"$x = -\boxed{42}$", "-42"),
        (r"$\frac{\boxed{42}}{2}$", "21"),
        (r"$\boxed{4.2}\times 10^3$", "4200"),
        (r"$-\boxed{x + 1}$", "-x - 1"),
    ],
)
def test_the_answer_is_the_whole_product(completion, reference):
    assert grade_answer(completion, reference).verdict == "correct"


@pytest.mark.parametrize(
    "completion",
    [
        r"$x = \boxed{42}$",
        r"$2 + 40 = \boxed{42}$",
        r"$\boxed{42} = 6 \cdot 7$",
        r"$A = \frac12 \cdot 84 = \boxed{42}\text{ cm}^2$",
        r"$$\begin{aligned} a &= 40 + 2 \\ &= \boxed{42} \end{aligned}$$",
        r"$\boxed{42}$.",
        r"\boxed{42}.",
        r"$\boxed{42}\text{ cm}$",
        r"\boxed{42} cm",
        r"= \boxed{42}",
        r"$\boxed{42}$%",
        r"$\boxed{42}\%$",
        r"$\$\boxed{42}$",
        r"The angle is $\boxed{42}^\circ$.",
        r"This is the $\boxed{42}^{\text{nd}}$ term",
        r"$\Rightarrow \boxed{42}$",
        r"$\text{Answer: }\boxed{42}$",
        r"$\mathbf{\boxed{42}}$",
        r"$\color{red}{\boxed{42}}$",
        "- \\boxed{42}",
        "1. $\\boxed{42}$",
        r"(b) $\boxed{42}$ - this is it",
        r"The answer is \boxed{42}!",
        r"The answer is $\boxed{42}$!",
        r"\boxed{42}, that is 2*21",
        "\\boxed{42}\n\nOne more check: 6 * 7 = 42.",
    ],
)
def test_text_units_and_relations_do_not_change_a_box(completion):
    assert grade_answer(completion, "42").verdict == "correct"
