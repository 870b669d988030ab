"""Answers that could fit any reference: none of them is rewarded, whatever the reference looks like."""

from __future__ import annotations

import pytest

from igrpo_cli.rewards.grading import grade_answer


def _texts(block: str) -> list[str]:
    """Return the texts of a block, which stand in lines and between double semicolons."""
    return [text.strip() for line in block.strip().splitlines() for text in line.split(";;")]


REFERENCES = _texts(
    r"""
    7 ;; -3 ;; 0 ;; 1 ;; 2 ;; 1024 ;; 0.25 ;; \frac{3}{4} ;; -\frac{5}{7} ;; 2\frac{1}{3} ;; 3.6e-10 ;; 30\%
    \sqrt{2} ;; \pi ;; 2\pi + 1 ;; e^{3} ;; 3 + 4i ;; \ln 5 ;; x + 1 ;; 2x^2 - 1 ;; \frac{a}{b} ;; n! ;; f(x)
    (1, 2) ;; [1, 2] ;; [0, 3) ;; (-\infty, 4] ;; (-\infty, \infty) ;; \mathbb{R} ;; (0, 1) \cup (2, 3)
    \{1, 2, 3\} ;; 1, 2 ;; x = 1, y = 2 ;; 1 \pm \sqrt{3} ;; \emptyset ;; \{\} ;; \varnothing ;; x > 2
    -1 \le x < 5 ;; x \ne 3 ;; x < 1 \text{ or } x > 4 ;; 1 < 2 ;; 5 \ne 6 ;; x < \infty ;; 2 + 2 = 4 ;; 1 = 1
    x = x ;; x^2 + y^2 = 9 ;; y = 3x - 2 ;; \text{even} ;; \text{no solution} ;; true ;; Friday ;; (A) ;; (C)
    \text{(E)} ;; 3:4 ;; 10:45 ;; 2011_3 ;; \begin{pmatrix} 1 \\ 2 \end{pmatrix} ;; \infty
    """
)

FOLDED = _texts(
    r"""
    1 < 2 ;; 0 < 1 ;; 3 > 2 ;; 2 < 1 ;; 1 \le 1 ;; 1 \ne 2 ;; 5 \ne 5 ;; 0 \leq 0 ;; 1 = 2 ;; 0 = 0 ;; 3 = 3
    1 + 1 = 3 ;; x < \infty ;; x > -\infty ;; -\infty < x ;; -\infty < x < \infty ;; x \le \infty ;; \infty > x
    x < x ;; y = y ;; x \ne x ;; x \le x ;; x \ge x ;; x - x = 0 ;; 0x = 0 ;; 0 x = 1 ;; x + 1 = x + 1
    x = x + 0 ;; 2x = x + x ;; x^2 = x^2 ;; x^2 \ge 0 ;; x^2 + 1 > 0 ;; |x| \ge 0 ;; |x| < 0 ;; x^2 < 0
    \sin x \le 1 ;; \sin^2 x + \cos^2 x = 1 ;; 1 < x < 1 ;; 2 < x < 1 ;; x > 1 and x < 0 ;; x < 1 \land x > 2
    x < 0 or x > -1 ;; x \ge 0 \text{ or } x \le 0 ;; True ;; False ;; true or false ;; \top ;; \bot
    \text{True} ;; \text{False} ;; 1 = 1 = 1 ;; 0 = 0, 0 = 0 ;; x \in \mathbb{C} ;; x \in \emptyset ;; \forall x
    \exists x ;; x \in S ;; x : x = x ;; \{x \mid x = x\}
    """
)

EMPTY = _texts(
    r"""
    () ;; [] ;; {} ;; ( ) ;; [ ] ;; (,) ;; [,] ;; \{,\} ;; (1, 1) ;; (0, 0) ;; [2, 1] ;; (5, 3) ;; [3, 3)
    (3, 3] ;; (\infty, -\infty) ;; (\infty, \infty) ;; [1, 0] \cup [3, 2] ;; (1,1) \cup (2,2)
    (0,1) \cap (2,3) ;; \{x \mid x < x\} ;; \{x : 1 < 0\} ;; \{\emptyset\} ;; \emptyset \cup \emptyset
    \emptyset, \emptyset ;; \mathbb{N} \setminus \mathbb{N} ;; \{\{\}\} ;; \mathbb{R} \setminus \mathbb{R}
    \phi ;; null ;; none ;; nothing ;; empty ;; - ;; -- ;; / ;; ? ;; * ;; ...
    """
)

UNDEFINED = _texts(
    r"""
    0/0 ;; \frac{0}{0} ;; 1/0 ;; \frac{1}{0} ;; 0^0 ;; 0^{-1} ;; \infty - \infty ;; \frac{\infty}{\infty}
    0 \cdot \infty ;; NaN ;; nan ;; inf ;; oo ;; zoo ;; \pm \infty ;; \mp\infty ;; -\infty, \infty
    \infty, -\infty ;; \{-\infty, \infty\} ;; \log 0 ;; \ln 0 ;; \sqrt[0]{1} ;; \tan \frac{\pi}{2}
    \lim_{x \to 0} \frac{1}{x} ;; \sum_{n=1}^{\infty} 1 ;; (-1)! ;; x/x ;; \frac{x}{x} x ;; \frac{x - x}{x - x}
    \int 0 dx ;; \binom{0}{5}! ;; \frac{1}{x - x} ;; \boxed ;; undefined ;; DNE
    """
)

VAGUE = _texts(
    r"""
    any ;; any number ;; anything ;; all ;; all real numbers ;; everything ;; some number ;; the answer
    the correct answer ;; answer ;; yes ;; yes and no ;; correct ;; right ;; unknown ;; it depends ;; see above
    as above ;; as given ;; the reference ;; A B C D ;; ABCDE ;; (A)(B)(C)(D)(E) ;; A or C ;; A, C, E
    all of the above ;; none of the above ;; (A) or (C) or (E) ;; x ;; y ;; z ;; n ;; k ;; S ;; ? ;; X ;; \alpha
    \square ;; \ldots ;; \cdot ;; \text{} ;; \text{ } ;; _ ;; ^ ;; 1, 2, 3, 4, 5, 6, 7 ;; 0 or 1 or 2
    7 or -3 or 0 ;; 0, 1, 2, 7, 1024 ;; 1 or 2 or 7 ;; \{0, 1, 2, 7\} ;; 0 to 1024 ;; 0-9 ;; not 7 ;; not 1
    more than 1 ;; at least 0 ;; less than 7 ;; more than 2 ;; 7 or more ;; about everything ;; 1 million
    x = 1 or x = 2 or x = 7 ;; x = 0, 1, 2, 7 ;; 7 \pm 7 ;; 1 \pm 1 ;; 0 \le x \le 1024 ;; [0, 1024]
    [-\infty, \infty] ;; 7 - 0 = 1 ;; 7 = 0 ;; 0 = 7 = 1 = x ;; 7 \approx 0 \approx y ;; 7 = -3 = w ;; 1:1:1
    0:0 ;; 1:1 ;; 00:00 ;; 24:60 ;; 1_2 ;; 0_1 ;; \begin{pmatrix} \end{pmatrix}
    \begin{pmatrix} x \\ y \end{pmatrix} ;; \vec{v} ;; \begin{cases} 1 \\ 2 \end{cases}
    """
)
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
