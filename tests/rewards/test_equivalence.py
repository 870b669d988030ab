"""Which answers state the same as a reference. Every row is a decision that docs/grading.md explains."""

from __future__ import annotations

import pytest

from igrpo_cli.rewards.equivalence import are_equal
from igrpo_cli.rewards.notation import is_blank


@pytest.mark.parametrize(
    ("answer", "reference"),
    [
        ("12", "12"),
        ("12.0", "12"),
        ("$12$", "12"),
        ("\\(12\\)", "12"),
        ("12.", "12"),
        ("12\\", "12"),
        ("**12**", "12"),
        ("012", "12"),
        ("12,345", "12345"),
        ("12{,}345", "12345"),
        ("12,\\!345", "12345"),
        ("12\\,345", "12345"),
        ("12 345", "12345"),
        ("\\$12", "12"),
        ("€12", "12"),
        ("−12", "-12"),
        ("１２", "12"),
        ("1.2e4", "1.2 \\times 10^{4}"),
        ("12000", "1.2e4"),
        ("0.75", "\\frac{3}{4}"),
        ("\\frac34", "0.75"),
        ("\\dfrac{3}{4}", "\\tfrac{3}{4}"),
        ("\\frac{6}{8}", "\\frac{3}{4}"),
        ("1\\frac{3}{4}", "\\frac{7}{4}"),
    ],
)
def test_numbers_may_be_spelled_in_many_ways(answer, reference):
    assert are_equal(answer, reference)


@pytest.mark.parametrize(
    ("answer", "reference"),
    [
        ("12 feet", "12"),
        ("12\\text{ feet}", "12"),
        ("12\\text{ ft}^2", "12"),
        ("12", "12 feet"),
        ("12 bright green apples", "12"),
        ("60^\\circ", "60"),
        ("60°", "60"),
        ("30\\%", "30"),
        ("30", "30\\%"),
        ("30 percent", "0.3"),
    ],
)
def test_units_and_percent_signs_are_forgiven(answer, reference):
    assert are_equal(answer, reference)


@pytest.mark.parametrize("answer", ["12 million", "12 pi", "12 dozen", "12 percent squared", "12x", "12 e"])
def test_words_that_change_the_value_are_no_unit(answer):
    assert not are_equal(answer, "12")


CHANGED = [
    "thirteen", "alternatively thirteen", "\\text{thirteen fourteen}", "twenty-fifths", "eighty", "one", "lakh",
    "crores", "gross", "score", "mil", "mio", "bn", "quintillion", "milliard", "tens", "tenths", "thirds",
    "ninths", "hundredths", "sixteenths", "pairs", "thrice", "tenfold", "doubled", "tripled", "halved",
    "negated", "inverted", "rounded", "increased", "less", "fewer", "apples fewer", "larger", "too many",
    "wrongly", "approximately", "probably", "unsure", "etc",
]  # fmt: skip
UNITS = [
    "km", "apples", "square feet", "cm^2", "minutes", "seconds", "tents", "tenants", "more apples",
    "years older", "times", "family members", "red balls", "colored pencils", "five-dollar bills",
    "dollars only", "miles daily", "cubes", "lilies", "scored goals", "pairs of shoes", "couples",
]  # fmt: skip


@pytest.mark.parametrize("words", CHANGED)
def test_numerals_operations_and_doubts_are_no_unit(words):
    assert not are_equal(f"12 {words}", "12")
    assert are_equal(f"12 {words}", f"12 {words}")


@pytest.mark.parametrize("words", UNITS)
def test_words_that_do_not_change_the_number_are_forgiven(words):
    assert are_equal(f"12 {words}", "12")


def test_a_word_before_the_number_may_name_it():
    assert are_equal("score = 12", "12")


@pytest.mark.parametrize(
    ("answer", "reference"),
    [
        ("(x+1)^2", "x^2 + 2x + 1"),
        ("x**2", "x^2"),
        ("2√3", "\\sqrt{12}"),
        ("π/3", "\\frac{\\pi}{3}"),
        ("k = 5", "5"),
        ("5", "k = 5"),
        ("2 + 3 = 5", "5"),
        ("9 \\bmod 4 = 1", "1"),
        ("x \\geq 2", "2 \\le x"),
        ("x \\geq 2", "[2, \\infty)"),
        ("[2, \\infty)", "x \\geq 2"),
        ("0.5 < x", "x > \\frac{1}{2}"),
        ("\\begin{bmatrix} 1 \\\\ 2 \\end{bmatrix}", "\\begin{pmatrix} 1 \\\\ 2 \\end{pmatrix}"),
        ("1 - i", "-i + 1"),
        ("\\varnothing", "\\emptyset"),
        ("f(x) = 0 \\text{ or } f(x) = 2", "f(t) = 2, f(t) = 0"),
    ],
)
def test_formulas_are_compared_by_value(answer, reference):
    assert are_equal(answer, reference)


@pytest.mark.parametrize(
    ("answer", "reference"),
    [
        ("5, 3", "3, 5"),
        ("\\{5, 3\\}", "3, 5"),
        ("3 \\text{ and } 5", "3, 5"),
        ("3 or 5", "3, 5"),
        ("x = 3 or x = 5", "x = 5, x = 3"),
        ("1 \\pm 2", "3, -1"),
        ("(3, 5)", "(3,5)"),
        ("(\\frac{1}{2}, 5)", "(0.5, 5)"),
        ("[3, 5)", "[3,5)"),
    ],
)
def test_bare_lists_are_sets_and_parentheses_keep_the_order(answer, reference):
    assert are_equal(answer, reference)


@pytest.mark.parametrize(
    ("answer", "reference"),
    [
        ("(5, 3)", "(3, 5)"),
        ("[3, 5]", "[3, 5)"),
        ("3", "3, 5"),
        ("3, 4, 5", "3, 5"),
        ("32, 349", "32349"),
        ("x = 3, x = 5", "5"),
        ("5 \\pm 1", "5"),
        ("x > 2", "x < 2"),
        ("x", "y"),
        ("f(s)", "f(t)"),
        ("0.33", "\\frac{1}{3}"),
        ("3.14", "\\pi"),
        ("-12", "12"),
        ("1 2", "12"),
        ("2 1/2", "21/2"),
        ("NaN", "12"),
        ("\\infty", "12"),
    ],
)
def test_other_values_are_other_answers(answer, reference):
    assert not are_equal(answer, reference)


@pytest.mark.parametrize("reference", ["17", "18", "19"])
@pytest.mark.parametrize(
    "answer",
    [
        "17 or 18 or 19",
        "17, 18, 19",
        "17 \\text{ or } 18 \\text{ or } 19",
        "17 \\text{ or 18 or 19}",
        "17 \\text{ or } \\text{18, 19}",
        "\\{17, 18, 19\\}",
        "x = 17, x = 18, x = 19",
        "18 \\pm 1, 18",
        "17or18or19",
        "17/18/19",
        "17 \\lor 18 \\lor 19",
    ],
)
def test_alternatives_are_none_of_their_members(answer, reference):
    assert not are_equal(answer, reference)


@pytest.mark.parametrize("answer", ["7 * 8", "7 \\times 8", "7 × 8", "x = 7 * 8", "50 + 6", "112 ÷ 2"])
def test_an_echo_of_the_question_is_no_answer_to_it(answer):
    assert not are_equal(answer, "56")
    assert are_equal(f"{answer} = 56", "56")


@pytest.mark.parametrize(
    ("answer", "reference", "equal"),
    [
        ("-" * 4000 + "42", "42", True),
        ("-" * 4001 + "42", "42", False),
        ("- - - 42", "-42", True),
        ("x --- 1", "x - 1", True),
        ("x - + - 1", "x + 1", True),
    ],
)
def test_a_chain_of_signs_is_one_sign(answer, reference, equal):
    assert are_equal(answer, reference) is equal


@pytest.mark.parametrize(("answer", "reference"), [("2^3", "8"), ("\\sqrt{64}", "8"), ("\\frac{16}{2}", "8")])
def test_powers_roots_and_typeset_fractions_are_numbers(answer, reference):
    assert are_equal(answer, reference)


@pytest.mark.parametrize(
    ("answer", "reference", "equal"),
    [
        ("Even", "\\text{even}", True),
        ("(c)", "\\text{(C)}", True),
        ("Thursday", "thursday", True),
        ("vene", "even", False),
        ("oddd", "odd", False),
        ("(B)", "(C)", False),
    ],
)
def test_words_are_compared_as_words(answer, reference, equal):
    assert are_equal(answer, reference) is equal


def test_tiny_numbers_do_not_equal_zero():
    assert not are_equal("0.0", "10^{-12}")
    assert not are_equal("0.0", "\\frac{3}{10^{12}}")
    assert are_equal("3 \\times 10^{-12}", "\\frac{3}{10^{12}}")


BLANK = [
    "",
    "  ",
    "$ $",
    "\\boxed{}",
    "\\boxed",
    "\\(\\)",
    "{}",
    ".",
    "\n",
    "\u200b",
    "\ufeff",
    "\\,",
    "\\quad",
    "\\boxed{\\;}",
]


@pytest.mark.parametrize("text", BLANK)
def test_what_holds_no_answer_is_blank(text):
    assert is_blank(text)
    assert not are_equal(text, text)


@pytest.mark.parametrize("text", ["0", "x", "\\emptyset", "\\{\\}", "-", "解", "\\,x", "\\quadratic"])
def test_what_holds_one_is_not(text):
    assert not is_blank(text)


@pytest.mark.parametrize("text", ["x_{0} \\cos t$ $+ v", "05\\!:\\!00", "no such thing", "\\weird{3}", "a \\ b", "{3"])
def test_an_answer_equals_itself_whatever_it_means(text):
    assert are_equal(text, text)


@pytest.mark.parametrize(
    ("answer", "reference"),
    [
        ("13", "1+2+\\ldots+10"),
        ("1+2+...+10", "13"),
        ("1+2+\\dotsb+10", "13"),
        ("n(n-1)", "n(n-1)\\ldots 1"),
        ("1,2,10", "1,2,\\ldots,10"),
        ("1, 2, .., 10", "1,2,10"),
        ("1, 2, \\text{...}, 10", "1,2,10"),
        ("\\{0,2,4\\}", "\\{0,2,4,\\ldots\\}"),
        ("\\{1,2,3,\\ldots\\}", "\\{1,2,3\\}"),
        ("2,4,6", "2,4,6,\\ldots"),
        ("2,4,6, . . .", "2,4,6"),
        ("0.5+0.25\\ldots", "0.75"),
        ("12...", "12"),
        ("5?", "5"),
    ],
)
def test_what_is_left_out_is_not_ignored(answer, reference):
    assert not are_equal(answer, reference)


@pytest.mark.parametrize("dots", ["...", "…", "\\ldots", "\\dots", "\\cdots ", "\\dotsb ", ". . ."])
def test_an_ellipsis_may_be_spelled_in_many_ways(dots):
    assert are_equal(f"1+2+{dots}+10", "1+2+\\ldots+10")
    assert are_equal(f"\\{{0, 2, 4, {dots}\\}}", "\\{0,2,4,\\dots\\}")


@pytest.mark.parametrize(
    ("answer", "reference"),
    [
        ("0.333\\ldots", "\\frac{1}{3}"),
        ("x = 0.1666…", "\\frac{1}{6}"),
        ("3.14159265...", "\\pi"),
        ("3.14159\\ldots", "3.14159..."),
    ],
)
def test_a_decimal_may_continue(answer, reference):
    assert are_equal(answer, reference)


@pytest.mark.parametrize(
    ("answer", "reference"),
    [
        ("x=8=7", "7"),
        ("x=1=2=3=4=5=6=7", "7"),
        ("x=y=8=7", "7"),
        ("8=7", "7"),
        ("x=8\\text{ cm}=7\\text{ cm}", "7"),
        ("x=7.4=7", "7"),
        ("x=[8]=7", "7"),
        ("f(3)=8=7", "7"),
        ("x=8=7 \\approx 7", "7"),
        ("x=8=7", "x=7"),
        ("x=8=1,y=2", "1,2"),
    ],
)
def test_a_chain_that_contradicts_itself_states_nothing(answer, reference):
    assert not are_equal(answer, reference)


@pytest.mark.parametrize(
    ("answer", "reference"),
    [
        ("x+8=7", "7"),
        ("x+y=7", "7"),
        ("xy=7", "7"),
        ("2x=7", "7"),
        ("x^2=7", "7"),
        ("\\sqrt{x}=7", "7"),
        ("\\frac{x}{2}=7", "7"),
        ("f(x)+8=7", "7"),
        ("2f(3)=7", "7"),
        ("n!=7", "7"),
        ("x+1=1,y=2", "1,2"),
        ("(x+8=7, 2)", "x=7,y=2"),
        ("x+y=a+1", "a+1"),
    ],
)
def test_an_equation_of_a_sum_product_or_power_is_not_its_right_side(answer, reference):
    assert not are_equal(answer, reference)


@pytest.mark.parametrize(
    ("answer", "reference"),
    [
        ("f(3)=7", "7"),
        ("x_1=7", "7"),
        ("|AB|=7", "7"),
        ("AB=7", "7"),
        ("[ABC]=7", "7"),
        ("\\text{Area}=7", "7"),
        ("\\angle A=7", "7"),
        ("P(A)=1/2", "\\frac{1}{2}"),
        ("\\sin\\theta=1/2", "\\frac{1}{2}"),
        ("\\frac{dy}{dx}=1/2", "\\frac{1}{2}"),
        ("x=y=7", "7"),
        ("x=3+4=7", "7"),
        ("S=\\sum_{k=1}^{7} 1=7", "7"),
        ("x=7.0=7", "7"),
        ("x=\\frac12=50\\%", "0.5"),
        ("x=1/3=0.33", "0.33"),
        ("x=10^3=1,000", "1000"),
        ("x=5+5+1=7=11", "x=11"),
        ("(x+1)^2=x^2+2x+1", "x^2+2x+1"),
        ("x+y=7", "y+x=7"),
    ],
)
def test_a_label_and_a_working_are_read(answer, reference):
    assert are_equal(answer, reference)


@pytest.mark.parametrize(
    ("answer", "reference"),
    [
        ("x=y", "y=x"),
        ("2x>4", "x>2"),
        ("-2x<-4", "x>2"),
        ("x+1>3", "x>2"),
        ("x>2", "2x>4"),
        ("-x \\ge -2", "x \\le 2"),
        ("c>b>a", "a<b<c"),
        ("c>b\\ge a", "a\\le b<c"),
        ("[1,3]\\setminus\\{2\\}", "[1,2)\\cup(2,3]"),
        ("[1,2)\\cup(2,3]", "[1,3] \\backslash \\{2\\}"),
        ("[1,3]\\setminus\\{1,3,5\\}", "(1,3)"),
        ("(-\\infty,4)\\setminus\\{1,3\\}", "(-\\infty,1)\\cup(1,3)\\cup(3,4)"),
    ],
)
def test_relations_and_sets_may_be_turned_around(answer, reference):
    assert are_equal(answer, reference)


@pytest.mark.parametrize(
    ("answer", "reference"),
    [
        ("x=z", "y=x"),
        ("y=-x", "y=x"),
        ("x=2y", "y=2x"),
        ("2x<4", "x>2"),
        ("-2x>-4", "x>2"),
        ("2x\\ge 4", "x>2"),
        ("2y>4", "x>2"),
        ("x^2>4", "x>2"),
        ("0x>0", "x>2"),
        ("x-2>x-2", "x>2"),
        ("c<b<a", "a<b<c"),
        ("a\\le b<c", "a<b<c"),
        ("a<a<a", "a<b<c"),
        ("[1,3]\\setminus\\{2.5\\}", "[1,2)\\cup(2,3]"),
        ("[1,3]\\setminus\\{2\\}", "[1,3]"),
        ("\\mathbb{R}\\setminus\\mathbb{R}", "\\emptyset"),
    ],
)
def test_other_relations_and_sets_are_other_answers(answer, reference):
    assert not are_equal(answer, reference)
