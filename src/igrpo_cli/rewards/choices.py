"""Multiple choice: which letter an answer names.

An answer names its letter first, alone or before the text of the choice, or says that it is the answer ("Option B is
correct"). An answer that names several letters (`A or B`, `(A)(B)`, `A. 3 B. 4`) names none, so naming candidates earns
nothing. Neither does one that hedges (`(B) or the third option`) or asks (`B?`).
"""

from __future__ import annotations

import re
import unicodedata
from string import ascii_uppercase

_MARKUP = re.compile(
    r"\\(?:text\w*|mbox|math[a-z]+|operatorname|boxed|fbox|framebox|left|right|q?quad|bf|rm|bm|boldsymbol|large|Large)(?![a-z])"
    r"|\\[()\[\],;:!]|\\(?= )|[{}$*~`\"“”]|^#+ "
)
_REFERENCE = re.compile(r"\(([A-Z])\)")
_IT_IS = r"it(?: is|'s| must be| should be)"
_THINK = (
    r"(?:(?:so|thus|hence|therefore|then|well|clearly|finally)?,? ?"
    r"(?:i(?:'m| am)? (?:think|believe|would say|say|choose|pick|guess|sure)(?: that)?"
    rf"|{_IT_IS}|this is|we (?:choose|get|have|pick)|my answer is)? ?(?:{_IT_IS})? ?)"
)
_LEAD = (
    r"(?:(?:the |my )?(?:(?:best|correct|final|right) )?(?:answer|choice|letter|option)"
    r"(?: is| must be| would be| should be|:)?:? ?){0,2}"
)
_ENCLOSED = re.compile(rf"{_LEAD}{_THINK}{_LEAD}[(\[] ?([a-z]) ?[)\]](?=[ .,:;]|$)", re.IGNORECASE)
_LABEL = re.compile(rf"{_LEAD}{_THINK}{_LEAD}([a-z])(?=\)|[.:](?: |$)|[,;]?$)", re.IGNORECASE)
_CAPITAL = re.compile(
    rf"(?i:{_LEAD}{_THINK}{_LEAD})([A-Z])(?=,? (?:since|because|as|so|which|due|given|for)\b| [-–—:] ?| \()"
)
_IS_CORRECT = re.compile(
    r"(?i:(?:^|[,:] |\b(?:so|thus|hence|therefore|that|option|choice|answer|letter) ))(?:[(\[] ?([A-Z]) ?[)\]]|([A-Z]))"
    r"(?=[.:]?(?: [^.]{0,60})? (?:is|must be|should be) (?:(?:clearly|therefore|thus|indeed) )?"
    r"(?:the )?(?:correct|right|best|only|true|most likely|answer)\b"
    r"(?! (?:about|for|that))(?! [a-z]* ?(?:wrong|false)))"
)
_STATED = re.compile(
    r"\b(?i:(?:correct|best|right|final) (?:answer|choice|option|letter)|(?:answer|choice|option))"
    r"(?i: (?:is|must be|should be|would be):?|:) ?"
    r"(?i:option |choice |letter )?(?:[(\[] ?([A-Z]) ?[)\]]"
    r"|([A-Z])(?=$|[.,:;)]|,? (?i:since|because|as|so|which|due)\b| [-–—(]))"
)
_REASONED = re.compile(r"^(?:[(\[] ?([A-Z]) ?[)\]]|([A-Z])),? (?:since|because)\b")
_DENIED = re.compile(
    r"\b(?:not|never|neither|cannot|isn't|aren't|wasn't|can't"
    r"|wrong|incorrect|false|eliminat\w*|except|nor|unless|if)\b",
    re.I,
)

_HEDGED = re.compile(
    r"\?|\b(?:maybe|perhaps|possibly|alternatively|otherwise|either|(?:all|any|both|none|neither|each|most|some|two) of"
    r"|of the above|(?:second|third|fourth|fifth|last|next|other|another) (?:option|choice|answer|letter|one))\b"
    r"|^\W*(?:or|and|but|nor)\b",
    re.IGNORECASE,
)
_DENIED_FIRST = re.compile(
    rf"(?:(?:which|is|was|seems|looks|probably|clearly|surely)\W+)*{_DENIED.pattern}", re.IGNORECASE
)

_OTHER_ENCLOSED = re.compile(r"(?<!\w)[(\[] ?([A-Z]) ?[)\]](?![-\w])")
_OTHER_LABEL = re.compile(r"(?<![\w(\[])([A-Z])(?=\)|[.:] )")
_OTHER_LISTED = re.compile(
    r"(?:\b(?i:and|or|nor|answer|choice|letter|option)\b|[,;&|]| /)(?i: is)? ?([A-Z])(?![\w'’-])"
)
# Small letters are also symbols, units and articles: `x = 5, g = 9.8`, `60 km/h`, `HCl (g)`, `2(a + c)`, `or a cell`.
_SMALL_ENCLOSED = re.compile(r"(?<!\w)(?<![A-Z] )(?<![A-Z][a-z\d] )[(\[] ?([a-z]) ?[)\]](?![-\w])")
_SMALL_LABEL = re.compile(r"(?<![\w(\[])([a-j])(?=\)|[.:] )")
_SMALL_LISTED = re.compile(
    r"\b(?:and|or|nor|so is|choice|letter|option) (?:([b-j])(?![\w'’-]| ?[=<>^])|(a)(?=$|[,;.)]| or\b| and\b))"
    r"|(?:[,;&|]| /) ?([a-j])(?=$|[,;.)&|]| (?:or|and)\b)"
)
_BALANCED = re.compile(r"\([^()]{2,}\)")
_SPECIES = re.compile(r"[A-Z](?=\. [a-z]{3})")
_ONLY_LETTERS = re.compile(r"(?:\W*\b[A-Za-j]\b)+\W*")


def reference_choice(reference: str) -> str | None:
    """Return the letter of a reference such as `(B)` or `\\text{(B)}`; None for anything else, also for `B` alone."""
    match = _REFERENCE.fullmatch(_plain(reference))
    return match[1] if match else None


def named_choice(answer: str) -> str | None:
    """Return the only letter that an answer names, in upper case; None if it names none or several."""
    plain = _plain(answer)
    match = _ENCLOSED.match(plain)
    is_label = match is None
    match = match or _LABEL.match(plain) or _CAPITAL.match(plain)
    if match is None:
        return stated_choice(plain)
    text = plain[match.end() :].lstrip(").:-–— ").rstrip(".,:; ")
    letter = match[1].upper()
    if text.strip(" ()").upper() == f"OR ({letter}":  # (B) or (b)
        return letter
    others = _letters_in(text.upper() if match[1].islower() else text, is_label)
    if _DENIED_FIRST.match(text) or _HEDGED.search(text):
        return None
    return letter if others <= {letter} else None


def stated_choice(sentence: str) -> str | None:
    """Return the letter of a sentence such as "Therefore, (B) is the correct answer."; None without exactly one.

    A sentence that denies anything names none.
    """
    plain = _plain(sentence)[-1_000:]
    matches = list(_IS_CORRECT.finditer(plain)) or list(_STATED.finditer(plain)) or list(_REASONED.finditer(plain))
    if not matches or _DENIED.search(plain) or _HEDGED.search(plain):
        return None
    named = {match[1] or match[2] for match in matches}
    start, end = matches[0].start(1) if matches[0][1] else matches[0].start(2), matches[0].end()
    others = _letters_in(plain[end:].lstrip(").: "), True) | _letters_before(plain[:start])
    return named.pop() if len(named) == 1 and others <= {matches[0][1] or matches[0][2]} else None


def _letters_before(text: str) -> set[str]:
    return set(_OTHER_ENCLOSED.findall(text)) | set(re.findall(r"(?<![\w'’-])([B-H])(?![\w'’-])", text))


def _letters_in(text: str, is_label: bool) -> set[str]:
    """Return the further choices in the text after a letter; a unit as in `5 J` or a symbol as in `f(A)` is none.

    `(A) E. coli` names one choice: the name of a species has one such label, and only behind another kind of label.
    """
    if _ONLY_LETTERS.fullmatch(text):
        return set(text.upper()) & set(ascii_uppercase)
    found = {letter for pattern in (_OTHER_ENCLOSED, _OTHER_LISTED) for letter in pattern.findall(text)}
    found |= set(_OTHER_LABEL.findall(text if is_label else _SPECIES.sub("", text, count=1)))
    outside = _BALANCED.sub(" ", text)
    small = [*_SMALL_ENCLOSED.finditer(text), *_SMALL_LABEL.finditer(outside), *_SMALL_LISTED.finditer(text)]
    return found | {match[match.lastindex or 0].upper() for match in small}


def _plain(text: str) -> str:
    """Return `text` on one line without LaTeX and Markdown marks, with plain letters for bold and full-width ones."""
    return " ".join(_MARKUP.sub(" ", unicodedata.normalize("NFKC", text).rstrip("\\. \n")).split())
