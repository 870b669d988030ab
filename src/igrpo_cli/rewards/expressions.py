"""A small reader of formulas: LaTeX, or plain text such as `pi/2`, becomes a tree that `values` computes.

It reads what most answers consist of: numbers, symbols, sums, products, fractions, powers, roots, factorials, binomials
and elementary functions. It returns no tree for anything else, and for what may be read in two ways (`1/2x`, `abc`,
`f(x)`). math-verify reads those. No text is evaluated as Python.
"""

from __future__ import annotations

import re
from fractions import Fraction
from functools import lru_cache
from typing import Any

Tree = tuple[Any, ...]
"""(kind, arguments…), of kind `num`, `symbol`, `constant`, `add`, `mul`, `div`, `frac`, `mixed`, `neg`, `pow`, `root`
or `call`."""

MAX_CHARACTERS = 1_000
_MAX_DEPTH = 40

_PLAIN_FUNCTIONS = {
    **{name: name for name in ("sin", "cos", "tan", "cot", "sec", "csc", "sinh", "cosh", "tanh", "ln", "exp", "abs")},
    **{name: name for name in ("arcsin", "arccos", "arctan")},
    "asin": "arcsin",
    "acos": "arccos",
    "atan": "arctan",
}
_GREEK = re.compile(
    "alpha|beta|gamma|delta|(?:var)?epsilon|zeta|eta|(?:var)?theta|iota|kappa|lambda|mu|nu|xi|rho|sigma|tau|upsilon"
    "|(?:var)?phi|chi|psi|omega|Gamma|Delta|Theta|Lambda|Xi|Pi|Sigma|Upsilon|Phi|Psi|Omega|ell|hbar"
)
_CALLED = frozenset(["f", "g", "h", "F", "G", "H", "P", r"\phi", r"\psi", r"\Gamma", r"\Phi"])
_TOKEN = re.compile(
    r"(?P<repeating>\d*\.\d*\\overline\s*\{\d+\}|\d*\.\d*\\dot\s*\{?\d\}?(?:\d*\\dot\s*\{?\d\}?)?"
    r"|\d*\.\d+(?:\.\.\.|\\l?dots))"
    r"|(?P<mixed>\d+ \d+/\d+(?![\d.]))|(?P<number>\d+(?:\.\d*)?|\.\d+)"
    r"|(?P<command>\\[A-Za-z]+|\\[{}|])|(?P<word>[A-Za-z]+)"
    r"|(?P<space>\s+|\\[,;: !]|~)|(?P<sign>\*\*|[-+*/^_!()\[\]{}|%])"
)
_DOTS = re.compile(r"\\dot\s*\{?(\d)\}?")
_CLOSING = {"(": ")", "{": "}", "[": "]", "|": "|", r"\lvert": r"\rvert", r"\lfloor": r"\rfloor", r"\lceil": r"\rceil"}
_ENCLOSED = {"|": "abs", r"\lvert": "abs", r"\lfloor": "floor", r"\lceil": "ceil"}


_DEGREE: Tree = ("frac", ("constant", "pi"), ("num", Fraction(180), False))


class _UnreadableError(Exception):
    """The text is no formula that this reader knows."""


@lru_cache(maxsize=4096)
def read_formula(text: str) -> Tree | None:
    """Return the tree of a formula, or None if it cannot be read or may be read in two ways."""
    if len(text) > MAX_CHARACTERS:
        return None
    try:
        reader = _Reader(_tokens(text))
        tree = reader.sum(0)
        return tree if reader.at_end() else None
    except _UnreadableError:
        return None


def _tokens(text: str) -> list[tuple[str, str]]:
    tokens: list[tuple[str, str]] = []
    position = 0
    while position < len(text):
        match = _TOKEN.match(text, position)
        if match is None:
            raise _UnreadableError
        position = match.end()
        kind = str(match.lastgroup)
        if kind == "word":
            tokens += _letters(match[0])
        elif kind != "space":
            tokens.append((kind, match[0]))
        elif tokens and tokens[-1][0] == "number" and text[position : position + 1].isdigit():
            _refuse_two_numbers(tokens)
    return tokens


def _refuse_two_numbers(tokens: list[tuple[str, str]]) -> None:
    """Refuse `1 2`; the first number of `\\log_2 8` is a subscript, and that of `\\sin^2 8` an exponent."""
    if len(tokens) < 2 or tokens[-2][1] not in ("_", "^"):
        raise _UnreadableError


def _letters(word: str) -> list[tuple[str, str]]:
    """Return the tokens of a run of letters: a known name, or one or two symbols."""
    if word in _PLAIN_FUNCTIONS or word in ("pi", "sqrt"):
        return [("command", "\\" + word)]
    if len(word) > 2:
        raise _UnreadableError
    return [("letter", letter) for letter in word]


def repeating_decimal(text: str) -> Fraction:
    """Return the value of `0.1\\overline{6}`, `0.\\dot{3}` or `0.333...`. Raises _UnreadableError without a period."""
    if "overline" in text:
        start, block = re.split(r"\\overline\s*", text)
        return _with_period(start, block.strip("{}"))
    if _DOTS.search(text):
        first, last = text.index("\\dot"), text.rindex("\\dot")
        block = _DOTS.sub(r"\1", text[first:])
        return _with_period(text[:first], block if first != last or len(block) == 1 else "")
    digits = re.sub(r"\.\.\.|\\l?dots", "", text)
    places = digits.partition(".")[2]
    for length in range(1, len(places) // 2 + 1):
        block, repeats = places[-length:], 3 if length == 1 else 2
        if places.endswith(block * repeats):
            return _with_period(digits.removesuffix(block), block)
    raise _UnreadableError


def _with_period(start: str, block: str) -> Fraction:
    if not block:
        raise _UnreadableError
    places = len(start.partition(".")[2])
    head = Fraction(start.rstrip(".") or 0) if start not in ("", ".") else Fraction(0)
    return head + Fraction(int(block), (10 ** len(block) - 1) * 10**places)


class _Reader:
    """A recursive descent over tokens."""

    def __init__(self, tokens: list[tuple[str, str]]) -> None:
        self._tokens = tokens
        self._next = 0
        self._num_open_bars = 0
        self._num_functions = 0  # around the next token
        self._symbol = ("", -1)  # the last symbol and where it ended

    def at_end(self) -> bool:
        return self._next == len(self._tokens)

    def sum(self, depth: int) -> Tree:
        if depth > _MAX_DEPTH:
            raise _UnreadableError
        tree = self._product(depth)
        while self._text() in ("+", "-"):
            sign = self._take()[1]
            term = self._product(depth)
            tree = ("add", tree, term if sign == "+" else ("neg", term))
        return tree

    def _product(self, depth: int) -> Tree:
        tree = self._signed(depth)
        is_quotient = False
        while not self.at_end():
            text = self._text()
            if text in ("*", "/", r"\cdot", r"\times", r"\div", r"\ast"):
                self._take()
                is_quotient = text in ("/", r"\div")
                tree = ("div" if is_quotient else "mul", tree, self._signed(depth))
            elif self._starts_factor():
                self._refuse_call()
                if is_quotient:  # 1/2x: x may belong to either side
                    raise _UnreadableError
                tree = self._juxtaposed(tree, self._power(depth))
            else:
                break
        return tree

    def _refuse_call(self) -> None:
        """Refuse `f(x)`, a function rather than a product; `n(n + 1)` is a product."""
        name, end = self._symbol
        if end != self._next or self._text() != "(":
            return
        depth, texts = 0, []
        for _, text in self._tokens[self._next :]:
            depth += (text in ("(", "{")) - (text in (")", "}"))
            if depth == 1:
                texts.append(text)
            if depth == 0:
                break
        if name.partition("_")[0] in _CALLED or not {"+", "-"} & set(texts):
            raise _UnreadableError

    def _juxtaposed(self, tree: Tree, factor: Tree) -> Tree:
        """Return the product of two neighbours, or the sum of a mixed number such as `2\\frac{1}{3}`."""
        is_fraction = factor[0] == "frac" and all(_is_integer(part) for part in factor[1:])
        if _is_integer(tree) and is_fraction:
            return ("mixed", tree, factor)
        if tree[0] == "neg" and _is_integer(tree[1]) and is_fraction:
            return ("neg", ("mixed", tree[1], factor))
        if factor[0] == "num":
            raise _UnreadableError
        return ("mul", tree, factor)

    def _signed(self, depth: int) -> Tree:
        if depth > _MAX_DEPTH:
            raise _UnreadableError
        text = self._text()
        if text in ("+", "-"):
            self._take()
            tree = self._signed(depth + 1)
            return ("neg", tree) if text == "-" else tree
        return self._power(depth)

    def _power(self, depth: int) -> Tree:
        base = self._postfix(self._primary(depth))
        if self._num_functions and self._take_degree():
            base = ("mul", base, _DEGREE)
        if self._text() in ("^", "**"):
            self._take()
            if self._text() == r"\circ":  # a unit
                raise _UnreadableError
            is_braced = self._text() == "{"
            sign = self._take()[1] if self._text() == "-" else ""
            exponent = self._primary(depth + 1)
            if not is_braced and self._text() == "!":
                raise _UnreadableError
            base = self._postfix(("pow", base, ("neg", exponent) if sign else exponent))
            if self._text() in ("^", "**"):
                raise _UnreadableError
        return base

    def _take_degree(self) -> bool:
        """Take `^\\circ` or `^{\\circ}`, if it comes next."""
        texts = [text for _, text in self._tokens[self._next : self._next + 4]]
        length = 2 if texts[:2] == ["^", r"\circ"] else 4 if texts == ["^", "{", r"\circ", "}"] else 0
        self._next += length
        return bool(length)

    def _postfix(self, tree: Tree) -> Tree:
        while self._text() == "!":
            self._take()
            if self._text() == "!":
                raise _UnreadableError
            tree = ("call", "factorial", tree)
        if self._text() == "_":
            raise _UnreadableError
        return tree

    def _primary(self, depth: int) -> Tree:
        kind, text = self._take()
        if kind == "number":
            return ("num", Fraction(text.rstrip(".") or 0), "." in text)
        if kind == "repeating":
            return ("num", repeating_decimal(text), False)
        if kind == "mixed":
            whole, over, under = re.split("[ /]", text)
            return ("mixed", _integer(whole), ("frac", _integer(over), _integer(under)))
        if kind == "letter":
            return self._named(text)
        if text in _CLOSING:
            return self._enclosed(text, depth)
        if kind == "command":
            return self._command(text[1:], depth)
        raise _UnreadableError

    def _enclosed(self, opening: str, depth: int) -> Tree:
        is_bar = opening == "|"
        self._num_open_bars += is_bar
        tree = self.sum(depth + 1)
        self._expect(_CLOSING[opening])
        self._num_open_bars -= is_bar
        return ("call", _ENCLOSED[opening], tree) if opening in _ENCLOSED else tree

    def _named(self, name: str) -> Tree:
        """Return a symbol with its subscript, or a constant."""
        tree = self._subscripted(name)
        self._symbol = (name, self._next)
        return tree

    def _subscripted(self, name: str) -> Tree:
        if self._text() == "_":
            self._take()
            kind, text = self._take()
            if text == "{":
                parts = []
                while self._text() != "}":
                    parts.append(self._take()[1])
                self._take()
                text = "".join(parts)
            elif kind not in ("letter", "number", "command") or (kind == "number" and len(text) > 1):
                raise _UnreadableError
            return ("symbol", f"{name}_{text}")
        return ("constant", name) if name in ("e", "i") else ("symbol", name)

    def _command(self, name: str, depth: int) -> Tree:
        if name == "pi":
            return ("constant", "pi")
        if _GREEK.fullmatch(name):
            return self._named("\\" + name)
        if name in ("frac", "dfrac", "tfrac", "cfrac"):
            return ("frac", self._argument(depth), self._argument(depth))
        if name == "binom":
            return ("call", "binom", self._argument(depth), self._argument(depth))
        if name == "sqrt":
            index = _integer("2")
            if self._text() == "[":
                self._take()
                index = self.sum(depth + 1)
                self._expect("]")
            return ("root", self._argument(depth, is_whole=True), index)
        if name in _PLAIN_FUNCTIONS:
            return self._function(_PLAIN_FUNCTIONS[name], depth)
        if name == "log":
            self._expect("_")
            base = self._argument(depth)
            value = self._applied(depth)
            return ("frac", ("call", "ln", value), ("call", "ln", base))
        raise _UnreadableError

    def _function(self, name: str, depth: int) -> Tree:
        power: Tree | None = None
        if self._text() == "^":
            self._take()
            power = self._argument(depth)
        self._num_functions += 1
        argument = self._applied(depth)
        self._num_functions -= 1
        if power == ("neg", ("num", Fraction(1), False)):
            inverse = {"sin": "arcsin", "cos": "arccos", "tan": "arctan"}.get(name)
            if inverse is None:
                raise _UnreadableError
            return ("call", inverse, argument)
        tree: Tree = ("call", name, argument)
        return tree if power is None else ("pow", tree, power)

    def _applied(self, depth: int) -> Tree:
        """Return the argument of a function: a group, or the product up to the next sign or function."""
        if depth > _MAX_DEPTH:
            raise _UnreadableError
        if self._text() in ("(", "{", "|"):
            return self._power(depth + 1)
        tree = self._power(depth + 1)
        ends = {"(", "[", r"\log", *("\\" + name for name in _PLAIN_FUNCTIONS)}
        while self._starts_factor() and self._text() not in ends:
            tree = self._juxtaposed(tree, self._power(depth + 1))
        if self._text() in ("/", "*"):  # sin x/2
            raise _UnreadableError
        return tree

    def _argument(self, depth: int, *, is_whole: bool = False) -> Tree:
        """Return the argument of a command: a group, or one digit or letter as in `\\frac12`."""
        if depth > _MAX_DEPTH:
            raise _UnreadableError
        kind, text = self._tokens[self._next] if not self.at_end() else ("", "")
        if kind == "number" and len(text) > 1 and not is_whole and text.isdigit():
            self._tokens[self._next : self._next + 1] = [("number", text[0]), ("number", text[1:])]
        return self._primary(depth + 1)

    def _starts_factor(self) -> bool:
        if self.at_end():
            return False
        kind, text = self._tokens[self._next]
        if text == "|":
            return self._num_open_bars == 0
        return (
            kind in ("number", "letter", "repeating")
            or text in ("(", "{")
            or (kind == "command" and not text.startswith((r"\r", r"\}")) and text[1:] not in ("{", "}", "|"))
            or text == r"\rho"
        )

    def _text(self) -> str:
        return "" if self.at_end() else self._tokens[self._next][1]

    def _take(self) -> tuple[str, str]:
        if self.at_end():
            raise _UnreadableError
        self._next += 1
        return self._tokens[self._next - 1]

    def _expect(self, text: str) -> None:
        if self._take()[1] != text:
            raise _UnreadableError


def _integer(digits: str) -> Tree:
    return ("num", Fraction(digits), False)


def _is_integer(tree: Tree) -> bool:
    return tree[0] == "num" and tree[1].denominator == 1 and not tree[2]


def is_echo(tree: Tree) -> bool:
    """Return True for a sum, product or plain quotient of nothing but numbers, such as `7(8)` or `7 \\cdot 8`."""
    return tree[0] in ("add", "mul", "div") and _has_only_numbers(tree)


def _has_only_numbers(tree: Tree) -> bool:
    if tree[0] == "num":
        return True
    return tree[0] in ("add", "mul", "div", "neg", "mixed") and all(_has_only_numbers(part) for part in tree[1:])
