"""The spelling of an answer: one line of LaTeX without delimiters, fonts and sizes, whatever signs it was written with.

`tidy` keeps everything that may carry meaning. `canonical` goes further: two answers with the same canonical spelling
are the same answer, even if no program can read them.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Sequence
from functools import lru_cache

_SIGNS = {
    "−": "-", "–": "-", "×": r"\times ", "·": r"\cdot ", "÷": r"\div ", "±": r"\pm ", "√": r"\sqrt ",
    "π": r"\pi ", "∞": r"\infty ", "≤": r"\leq ", "≥": r"\geq ", "≠": r"\neq ", "∪": r"\cup ", "≈": r"\approx ",
    "∩": r"\cap ", "∈": r"\in ", "∅": r"\emptyset ", "°": r"^\circ ", "²": "^2", "³": "^3", "⁄": "/", "∨": r"\lor ",
    "∧": r"\land ", "θ": r"\theta ", "ℝ": r"\mathbb{R}", "′": "'", "’": "'", "∶": ":",
    **{chr(0x2080 + digit): f"_{{{digit}}}" for digit in range(10)},
}  # fmt: skip
_FULL_WIDTH = {chr(code): chr(code - 0xFEE0) for code in range(0xFF01, 0xFF5F)}
_VULGAR = {
    sign: rf"\frac{{{over}}}{{{under}}}"
    for sign in "½⅓⅔¼¾⅕⅖⅗⅘⅙⅚⅛⅜⅝⅞⅐⅑⅒"
    for over, under in [unicodedata.normalize("NFKC", sign).split("⁄")]
}
_AS_LATEX = str.maketrans({**_SIGNS, **_FULL_WIDTH, **_VULGAR})

_DELIMITER = re.compile(r"(?<!\\)\$|(?<!\\)\\[()]|(?<!\\)\\[\[\]](?!\d*(?:pt|em|ex|mm)\])|\\\"")
_ESCAPED_TWICE = re.compile(r"\\(?=\\[A-Za-z])")
_ROW_GAP = re.compile(r"(\\\\)\s*\[[^\[\]]{1,8}\]")
_THOUSANDS = re.compile(r"(?<=\d)(?:,\\!\s*|\s?\{\s?,\s?\}\s?|\\,)(?=\d{3}(?!\d))")
_SPELLINGS: list[tuple[re.Pattern[str], str | Callable[[re.Match[str]], str]]] = [
    (re.compile(r"\{\s*([:=,<>])\s*\}"), r"\1"),
    (re.compile(r"\\l[bg]race(?![a-z])|\\lbrace(?![a-z])"), r"\\{"),
    (re.compile(r"\\rbrace(?![a-z])"), r"\\}"),
    (re.compile(r"\\(?:varnothing|empty)(?![a-z])"), r"\\emptyset"),
    (re.compile(r"\\(?:le|leqslant|leqq|lesseq)(?![a-z])|<=|=<"), r"\\leq"),
    (re.compile(r"\\(?:ge|geqslant|geqq)(?![a-z])|>="), r"\\geq"),
    (re.compile(r"\\lt(?![a-z])"), "<"),
    (re.compile(r"\\gt(?![a-z])"), ">"),
    (re.compile(r"\\(?:ne|not\s*=)(?![a-z])|!="), r"\\neq"),
    (re.compile(r"\\vee(?![a-z])"), r"\\lor"),
    (re.compile(r"\\backslash(?![a-z])"), r"\\setminus"),
    (re.compile(r"\\wedge(?![a-z])"), r"\\land"),
    (re.compile(r"\\bar\s*(?=\{?\d)|\\overline\s+"), r"\\overline"),
    (re.compile(r"((?:\d\u0305)+)"), lambda match: r"\overline{" + match[1].replace("\u0305", "") + "}"),
    (re.compile(r"(?<=\d) (?=(?:\. ?){3}|…|\\[lc]?dots)"), ""),
    (
        re.compile(
            r"\\(?:[lch]?dots[bcimo]?|(?:math|text)ellipsis)(?![a-z])|[…⋯]|(?:\\cdot\s*){3,}"
            r"|(?:\.(?:\s|\\[,;:!])*){3,}|(?<=[,;+*\-])\s*\.(?:\s?\.)+|\.\.(?=\s*[,;+*\-\d])"
        ),
        r"\\ldots ",
    ),
    (re.compile(r"\\[dt]binom(?![a-z])"), r"\\binom"),
    (re.compile(r"\\(?:degree|degrees)(?![a-z])"), r"^\\circ"),
]
_FONTS = (
    r"boldsymbol|bm|pmb|mathbf|mathit|mathsf|mathtt|mathnormal|mathrm|textcolor\s*\{[^{}]*\}|color\s*\{[^{}]*\}"
    r"|colorbox\s*\{[^{}]*\}|mathop|emph|underline|hbox"
)
_FONT = re.compile(rf"\\(?:{_FONTS})\s*\{{([^{{}}]*)\}}")
_FONT_OF_GROUPS = re.compile(r"\\(?:boldsymbol|bm|pmb|mathbf|textcolor\s*\{[^{}]*\})(?![a-z])")
_SWITCH = re.compile(
    r"\\(?:bf|it|rm|sf|tt|bfseries|itshape|tiny|scriptsize|footnotesize|small|normalsize|[lL]arge|LARGE|[hH]uge"
    r"|displaystyle|textstyle|scriptstyle|limits|left|right|[bB]igg?[lrm]?|middle|mathstrut|strut)(?![a-zA-Z])"
    r"|\\color\s*\{[^{}]*\}|\\!|\\q?quad(?![a-z])"
)
_LEAD = re.compile(
    r"^\s*(?:\\(?:text\w*|mbox)\s*\{\s*)?(?:the\s+)?(?:final\s+)?answer(?:\s+is\b\s*:?|\s*[:=])\s*\}?\s*(?=\S)", re.I
)
_TEXT = re.compile(r"\\(?:text\w*|mbox|mathrm|mathbf|mathit|operatorname)\s*\{([^{}]*)\}")
_SEPARATED = re.compile(r"\d|\b(?:and|or)\b", re.IGNORECASE)
_GLUED = re.compile(r"(?<=\d)(or|and)(?=[A-Z\d(\\-])")
_SPACE = re.compile(r"\s+")
# One sign at a time, math-verify takes seconds for a long chain: then the load of the machine would decide.
_INTERVAL = re.compile(r"([\[\](])([^\[\]()]+,[^\[\]()]+)([\[\])])")
_INTERVALS = re.compile(rf"\s*{_INTERVAL.pattern}(?:\s*\\cup\s*{_INTERVAL.pattern})*[\s.]*")
_ZERO_WIDTH = "\u200b\u200c\u200d\u2060\ufeff"
_SIGN_CHAIN = re.compile(r"[-+](?:\s*[-+]){2,}")

_INVISIBLE = re.compile(r"\\(?:left|right|displaystyle|limits)(?![a-zA-Z])|\\!")
_LATEX_SPACE = re.compile(r"\\[,;: ]|~|\\q?quad(?![a-z])")
_SPACE_OUTSIDE_NUMBERS = re.compile(r"(?<!\d)\s+|\s+(?!\d)")
_FRACTION = re.compile(r"\\[dtc]frac(?![a-zA-Z])")
_EMPTY = re.compile(r"\\(?:boxed|fbox|framebox|quad|qquad)(?![a-zA-Z])|\\[,;:! ]")
_MIN_WORD_LETTERS = 3
_NAME = re.compile(r"\\[A-Za-z]+|(?<![A-Za-z\\])[A-Za-z]{1,2}(?![A-Za-z])")

_WORD = re.compile(r"[A-Za-z]+(?:'t)?")
_CHANGING = re.compile(
    "no|not|never|none|neither|nor|isnt|wrong|incorrect(?:ly)?|false|untrue|yes|true|except|excluding|without|unless"
    "|over|under|above|below|beyond|negative|minus|plus|maybe|perhaps|possibly|either|nearly|almost|opposite|reciprocal"
    "|(?:hundred|thousand|million|billion|trillion|quarter)s?|dozens?|half|halves|twice|double|triple|squared|cubed"
    "|factorial|least|most|than|to|from|between|through|until|versus"
)
_CARDINAL = (
    "zero|ones?|twos?|threes?|fours?|fives?|six(?:es)?|sevens?|eights?|nines?|tens?|elevens?|twelves?"
    "|(?:thir|four|fif|six|seven|eigh|nine)teens?|(?:twent|thirt|fort|fift|sixt|sevent|eight|ninet)(?:y|ies)"
)
NUMERAL = (
    f"{_CARDINAL}|thirds?|(?:four|fif|six|seven|eigh|nin|ten|eleven|twelf|(?:thir|four|fif|six|seven|eigh|nine)teen"
    "|(?:twent|thirt|fort|fift|sixt|sevent|eight|ninet)ie|hundred|thousand|[a-z]*illion|dozen)ths?"
    "|[a-z]*(?:[mbrtdnx]illion|milliard)s?|hundreds?|thousands?|lakhs?|crores?|dozens?|gross|scores?|myriads?|googols?"
    r"|pairs?(?! of\b)|couple|mil|mio|mln|bn|mrd|[a-z]*fold|thrice"
)
_CHANGED = (
    "(?:doubl|tripl|quadrupl|quintupl|halv|squar|cub|negat|invert|revers|round|truncat|multipli|divid|add|subtract|increas"
    "|decreas|reduc|rais|diminish|scal|shift|swapp|minus)ed|minus|inverses?|reciprocals?|etc|cetera|unsure|uncertain|approx|circa"
)
_ADVERB = (
    "(?!(?:on|exact|precise|equal|respective|correct|year|month|week|dai|hour|quarter|annual|night|ear|elder|friend|love"
    "|cur|fami|butterf|dragonf|f|gadf|jel|bel|li|assemb|supp|rep|ita|ju|bul|ral|al|hol|dol|love|wool|trol|monopo)ly\\b)[a-z]+ly"
)
SCALING = rf"(?:{NUMERAL}|{_CHANGED}|{_ADVERB})\b"
"""The words behind a number that change or doubt it: numerals, multiples, parts, operations and adverbs."""

_BEHIND = re.compile(rf"{SCALING}|less|lesser|fewer|greater|larger|bigger|smaller|higher|lower|too")
_COMPOUND = re.compile(rf"\b(?:{_CARDINAL})-(?!(?:{NUMERAL})\b)(?=[a-z])|\bpairs?(?= of\b)")  # five-dollar bills
_OR_MORE = re.compile(r"\bor\s+(?:more|less|fewer|greater|higher|lower|so)\b")
_DIGIT = re.compile(r"\d")
_NAMED_BASE = re.compile(r"_\s*\{\s*\\text\s*\{[^{}]*\}\s*\}")
_UNIT_SQUARED = re.compile(r"(?<=[a-z])\s+(?:squared|cubed)\b", re.IGNORECASE)
_COMMAND = re.compile(r"\\(?:text\w*|mbox|math\w+|operatorname)|\\[A-Za-z]+")

BRACKETS = {"(": ")", "[": "]", "{": "}", r"\{": r"\}", r"\langle": r"\rangle"}
_CLOSING = frozenset(BRACKETS.values())
_ELLIPSIS = re.compile(r"\\[a-z]?dots(?![a-z])|⋮|⋱")
_CONTINUED_DECIMAL = re.compile(r"^(?:[^,;]*=)?\s*-?\s*(?:\\?\$)?\d*\.\d+\s?\\ldots(?=[^\d,;+*/=^_(-]*$)")
_PART = re.compile(
    r"\\(?:begin|end)\s*\{[a-z]*\*?\}|\\[A-Za-z]+|\\.|[()\[\]{}|,;<>=&]|(?:\b(?:or|and)\b)|[^\\()\[\]{}|,;<>=&oa]+|.",
    re.S,
)


@lru_cache(maxsize=4096)
def tidy(text: str) -> str:
    """Return `text` on one line, with LaTeX for Unicode signs, without delimiters, fonts and final punctuation."""
    if text.isascii() and text.isalnum():
        return text
    text = _DELIMITER.sub(" ", text.translate(_AS_LATEX).strip(_ZERO_WIDTH))
    if r"\begin" not in text:  # where a doubled backslash is the end of a row
        text = _ESCAPED_TWICE.sub("", text)
    text = _with_plain_brackets(_without_fonts(_ROW_GAP.sub(r"\1", _THOUSANDS.sub("", text))))
    for pattern, spelling in _SPELLINGS:
        text = pattern.sub(spelling, text)
    text = _TEXT.sub(lambda match: f" {match[1]} " if _SEPARATED.search(match[1]) else match[0], text)
    text = _SIGN_CHAIN.sub(lambda chain: "-" if chain[0].count("-") % 2 else "+", text)
    text = _GLUED.sub(r" \1 ", text)
    text = _SPACE.sub(" ", _LEAD.sub("", text))
    return text.rstrip("\\ .,;*`").lstrip(" *`")


def _with_plain_brackets(text: str) -> str:
    """Return `[0, 1)` for `[0, 1[`, if a text is one interval or a union of them."""
    if not _INTERVALS.fullmatch(text):
        return text
    return _INTERVAL.sub(lambda match: match[1].replace("]", "(") + match[2] + match[3].replace("[", ")"), text)


def _without_fonts(text: str) -> str:
    """Return `text` without commands that only change how it looks. Unknown letters in `\\mathrm` stay text."""
    if "\\" not in text:
        return text
    text = _SWITCH.sub(" ", text)
    for _ in range(3):  # fonts in fonts
        plain = _FONT.sub(_unwrapped, text)
        if plain == text:
            break
        text = plain
    return _FONT_OF_GROUPS.sub("", text)


def _unwrapped(match: re.Match[str]) -> str:
    """Return the content of a font command; words stay text, as `\\mathrm{cm}` is a unit."""
    is_word = re.fullmatch(r"\s*[A-Za-z][A-Za-z ./-]+\s*", match[1])
    return rf"\text{{{match[1]}}}" if is_word else f" {match[1]} "


def canonical(text: str) -> str:
    """Return a spelling of a tidy text that is equal for texts that differ only in their notation."""
    text = _INVISIBLE.sub("", _FRACTION.sub(r"\\frac", _TEXT.sub(r"\1", text)))
    text = _SPACE_OUTSIDE_NUMBERS.sub("", _LATEX_SPACE.sub(" ", text)).rstrip(".")
    letters = text.strip("()")
    if not letters.isalpha():
        return text
    return letters if len(letters) < _MIN_WORD_LETTERS and letters.casefold() != "no" else letters.casefold()


def differ_in_case(first: str, second: str) -> bool:
    """Return True if a name of one tidy text stands in the other in another case: `n` and `N`, `\\pi` and `\\Pi`."""
    ours, theirs = (set(_NAME.findall(text)) for text in (first, second))
    return not {name.casefold() for name in ours - theirs}.isdisjoint(name.casefold() for name in theirs - ours)


def is_word(spelling: str) -> bool:
    """Return True if a canonical spelling is a word, or several, rather than a formula."""
    return spelling.isalpha() and len(spelling) >= _MIN_WORD_LETTERS


def is_blank(text: str) -> bool:
    """Return True if `text` has no visible character besides white space, delimiters and empty boxes."""
    if text.isascii() and text.isalnum():
        return False
    left = canonical(tidy(_EMPTY.sub("", text))).strip("{}")
    return not any(character.isprintable() and not character.isspace() for character in left)


def is_open(text: str) -> bool:
    """Return True if a tidy text leaves something out or asks: `1 + \\ldots + 10`, `5?`; not `0.333\\ldots`."""
    return "?" in text or bool(_ELLIPSIS.search(_CONTINUED_DECIMAL.sub("", text)))


def changing_words(text: str) -> list[str]:
    """Return the words in `text` that change the meaning of a number (not, million, more, wrong, …), sorted."""
    if not any(map(str.isalpha, text)):
        return []
    text = _UNIT_SQUARED.sub("", _COMMAND.sub(" ", _NAMED_BASE.sub("", text)).replace("’", "'"))
    words = [word.casefold() for word in _WORD.findall(text)]
    changing = [word.replace("'", "") for word in words if word.endswith("'t") or _CHANGING.fullmatch(word)]
    if number := _DIGIT.search(text):
        behind = _WORD.findall(_COMPOUND.sub("", text[number.end() :].casefold()))
        changing += [word for word in behind if _BEHIND.fullmatch(word) and not _CHANGING.fullmatch(word)]
    return sorted([*changing, *_OR_MORE.findall(text.casefold())])


def split(text: str, separators: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return the parts of `text` between `separators` outside brackets, and the separators. One part if unbalanced."""
    parts, found, expected = [""], [], []
    for match in _PART.finditer(text):
        token = match[0]
        if token in BRACKETS:
            expected.append(BRACKETS[token])
        elif token in _CLOSING:
            # ] closes ( and ) closes [ in half-open intervals.
            is_interval = expected and token in ")]" and expected[-1] in ")]"
            if not expected or (expected[-1] != token and not is_interval):
                return [text], []
            expected.pop()
        if token in separators and not expected:
            parts.append("")
            found.append(token)
        else:
            parts[-1] += token
    return (parts, found) if not expected else ([text], [])
