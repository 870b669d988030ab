"""Answers that could fit any reference: none of them is rewarded, whatever the reference looks like."""

from __future__ import annotations

import pytest

from igrpo_cli.rewards.grading import grade_answer

REFERENCES = [
    *("7", "-3", "0", "1", "2", "1024", "0.25", r"\frac{3}{4}", r"-\frac{5}{7}", r"2\frac{1}{3}", "3.6e-10", r"30\%"),
    *(r"\sqrt{2}", r"\pi", r"2\pi + 1", r"e^{3}", "3 + 4i", r"\ln 5", "x + 1", "2x^2 - 1", r"\frac{a}{b}", "n!", "f(x)"),
    *("(1, 2)", "[1, 2]", "[0, 3)", r"(-\infty, 4]", r"(-\infty, \infty)", r"\mathbb{R}", r"(0, 1) \cup (2, 3)"),
    *(r"\{1, 2, 3\}", "1, 2", "x = 1, y = 2", r"1 \pm \sqrt{3}", r"\emptyset", r"\{\}", r"\varnothing"),
    *("x > 2", r"-1 \le x < 5", r"x \ne 3", r"x < 1 \text{ or } x > 4", "1 < 2", r"5 \ne 6", r"x < \infty"),
    *("2 + 2 = 4", "1 = 1", "x = x", "x^2 + y^2 = 9", "y = 3x - 2", r"\text{even}", r"\text{no solution}", "true", "Friday"),
    *("(A)", "(C)", r"\text{(E)}", "3:4", "10:45", "2011_3", r"\begin{pmatrix} 1 \\ 2 \end{pmatrix}", r"\infty"),
]  # fmt: skip

FOLDED = [
    *("1 < 2", "0 < 1", "3 > 2", "2 < 1", r"1 \le 1", r"1 \ne 2", r"5 \ne 5", r"0 \leq 0", "1 = 2", "0 = 0", "3 = 3", "1 + 1 = 3"),
    *(r"x < \infty", r"x > -\infty", r"-\infty < x", r"-\infty < x < \infty", r"x \le \infty", r"\infty > x", "x < x", "y = y"),
    *(r"x \ne x", r"x \le x", r"x \ge x", "x - x = 0", "0x = 0", "0 x = 1", "x + 1 = x + 1", "x = x + 0", "2x = x + x"),
    *("x^2 = x^2", "x^2 \\ge 0", "x^2 + 1 > 0", "|x| \\ge 0", r"|x| < 0", r"x^2 < 0", r"\sin x \le 1", r"\sin^2 x + \cos^2 x = 1"),
    *("1 < x < 1", "2 < x < 1", "x > 1 and x < 0", r"x < 1 \land x > 2", "x < 0 or x > -1", r"x \ge 0 \text{ or } x \le 0"),
    *("True", "False", "true or false", r"\top", r"\bot", r"\text{True}", r"\text{False}", "1 = 1 = 1", "0 = 0, 0 = 0"),
    *(r"x \in \mathbb{C}", r"x \in \emptyset", r"\forall x", r"\exists x", r"x \in S", "x : x = x", r"\{x \mid x = x\}"),
]  # fmt: skip
EMPTY = [
    *("()", "[]", "{}", "( )", "[ ]", "(,)", "[,]", r"\{,\}", "(1, 1)", "(0, 0)", "[2, 1]", "(5, 3)", "[3, 3)", "(3, 3]"),
    *(r"(\infty, -\infty)", r"(\infty, \infty)", r"[1, 0] \cup [3, 2]", r"(1,1) \cup (2,2)", r"(0,1) \cap (2,3)"),
    *(r"\{x \mid x < x\}", r"\{x : 1 < 0\}", r"\{\emptyset\}", r"\emptyset \cup \emptyset", r"\emptyset, \emptyset", r"\mathbb{N} \setminus \mathbb{N}"),
    *(r"\{\{\}\}", r"\mathbb{R} \setminus \mathbb{R}", r"\phi", "null", "none", "nothing", "empty", "-", "--", "/", "?", "*", "..."),
]  # fmt: skip
UNDEFINED = [
    *("0/0", r"\frac{0}{0}", "1/0", r"\frac{1}{0}", "0^0", "0^{-1}", r"\infty - \infty", r"\frac{\infty}{\infty}", r"0 \cdot \infty"),
    *("NaN", "nan", "inf", "oo", "zoo", r"\pm \infty", r"\mp\infty", r"-\infty, \infty", r"\infty, -\infty", r"\{-\infty, \infty\}"),
    *(r"\log 0", r"\ln 0", r"\sqrt[0]{1}", r"\tan \frac{\pi}{2}", r"\lim_{x \to 0} \frac{1}{x}", r"\sum_{n=1}^{\infty} 1", r"(-1)!"),
    *("x/x", r"\frac{x}{x} x", r"\frac{x - x}{x - x}", r"\int 0 dx", r"\binom{0}{5}!", r"\frac{1}{x - x}", r"\boxed", "undefined", "DNE"),
]  # fmt: skip
VAGUE = [
    *("any", "any number", "anything", "all", "all real numbers", "everything", "some number", "the answer", "the correct answer"),
    *("answer", "yes", "yes and no", "correct", "right", "unknown", "it depends", "see above", "as above", "as given", "the reference"),
    *("A B C D", "ABCDE", "(A)(B)(C)(D)(E)", "A or C", "A, C, E", "all of the above", "none of the above", "(A) or (C) or (E)"),
    *("x", "y", "z", "n", "k", "S", "?", "X", "\\alpha", "\\square", "\\ldots", "\\cdot", "\\text{}", "\\text{ }", "_", "^"),
    *("1, 2, 3, 4, 5, 6, 7", "0 or 1 or 2", "7 or -3 or 0", "0, 1, 2, 7, 1024", "1 or 2 or 7", r"\{0, 1, 2, 7\}", "0 to 1024", "0-9"),
    *("not 7", "not 1", "more than 1", "at least 0", "less than 7", "more than 2", "7 or more", "about everything", "1 million"),
    *("x = 1 or x = 2 or x = 7", "x = 0, 1, 2, 7", r"7 \pm 7", r"1 \pm 1", r"0 \le x \le 1024", "[0, 1024]", r"[-\infty, \infty]"),
    *("7 - 0 = 1", "7 = 0", "0 = 7 = 1 = x", r"7 \approx 0 \approx y", "7 = -3 = w", "1:1:1", "0:0", "1:1", "00:00", "24:60", "1_2", "0_1"),
    *(r"\begin{pmatrix} \end{pmatrix}", r"\begin{pmatrix} x \\ y \end{pmatrix}", r"\vec{v}", r"\begin{cases} 1 \\ 2 \end{cases}"),
]  # fmt: skip
UNIVERSAL = list(dict.fromkeys([*FOLDED, *EMPTY, *UNDEFINED, *VAGUE]))

RIGHT = {
    ("x/x", "1"), (r"\binom{0}{5}!", "1"), (r"\int 0 dx", "0"), ("oo", r"\infty"), ("{}", r"\{\}"),
    ("True", "true"), (r"\text{True}", "true"),
    *((r"x \in \emptyset", empty) for empty in (r"\emptyset", r"\{\}", r"\varnothing")),
}  # fmt: skip
"""Pairs that are equal: a text and itself, and values that an odd answer really has."""


def test_the_matrix_is_large_enough():
    assert len(UNIVERSAL) >= 150
    assert len(set(REFERENCES)) >= 50


@pytest.mark.parametrize("reference", REFERENCES)
def test_no_answer_fits_every_reference(reference):
    graded = {answer: grade_answer(f"\\boxed{{{answer}}}", reference).verdict for answer in UNIVERSAL}
    rewarded = {answer for answer, verdict in graded.items() if verdict == "correct"}
    assert rewarded <= {answer for answer, its_reference in RIGHT if its_reference == reference} | {reference}


@pytest.mark.parametrize("reference", [r"\emptyset", r"\varnothing", r"\{\}"])
@pytest.mark.parametrize("answer", [r"\emptyset", r"\varnothing", "∅", r"\{\}", r"\{ \}"])
def test_an_empty_set_equals_an_empty_set(answer, reference):
    assert grade_answer(f"\\boxed{{{answer}}}", reference).verdict == "correct"
