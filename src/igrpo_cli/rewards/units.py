"""Units behind a number. They are forgiven, as in all the public graders, unless they change the value."""

from __future__ import annotations

import re

_KNOWN = (
    r"cm|mm|km|nm|dm|kg|mg|lb|lbs|oz|ml|mL|dL|kJ|kN|kW|kV|kPa|MPa|Pa|Hz|kHz|MHz|GHz|eV|keV|MeV|GeV|ft|in|yd|mi|hr|hrs|min|mins"
    r"|sec|secs|ms|ns|kmh|mph|kph|rpm|mol|cal|kcal|rad|deg|sq|cu|cc|ha|GB|MB|KB|kB|TB|dB|US|USD|EUR|Rs|Å|dollars?"
)
_NO_UNIT = r"(?:pi|or|and|sin|cos|tan|log|ln|exp|sqrt|mod|if|for|infinity|percent|pct)\b"
_EXPONENT = r"(?:\s*\^\s*(?:\{\s*-?\d\s*\}|-?\d)|[23](?!\d))?"
_TEXT = r"\\(?:text\w*|mbox|mathrm|operatorname)\s*\{[^{}\d]*\}"
_ATOM = rf"(?:{_TEXT}|\\frac\s*\{{\s*{_TEXT}{_EXPONENT}\s*\}}\s*\{{\s*{_TEXT}{_EXPONENT}\s*\}}){_EXPONENT}"
_JOIN = r"(?:\s|\\[,;:! ]|~|/|\\cdot|\\times|\*|-|\.)*"
_TEXT_UNIT = re.compile(rf"{_JOIN}(?:{_ATOM}{_JOIN})+$")
_PLAIN_ATOM = rf"(?!{_NO_UNIT})(?:(?:{_KNOWN})\b|[A-Za-z]{{3,}}){_EXPONENT}"
_PLAIN_UNIT = re.compile(
    rf"(?<=[\d}})])(?:\s|\\[,; ]|~)+(?!{_NO_UNIT}){_PLAIN_ATOM}"
    rf"(?:(?:\s+per\s+|\s*/\s*|[ -]+|\s*\*\s*)(?:{_PLAIN_ATOM}|[a-zA-Z]{_EXPONENT}(?![A-Za-z])|of|at|a|an|on|by))*$"
)
_GLUED_UNIT = re.compile(rf"(?<=\d)(?:{_KNOWN}|m(?=\^?2)|m(?=\^?3)){_EXPONENT}(?:/(?:{_KNOWN}|[sh]){_EXPONENT})?$")
_SPEED = re.compile(rf"(?<=\d)(?:\s|\\[,; ]|~)*(?:m|g|L|l)\s*/\s*(?:{_KNOWN}|[sLlh]){_EXPONENT}$")
_LETTER_UNIT = re.compile(
    r"(?<=[\d})])(?:\s|\\[,; ]|~)+(?:[KJNWVCFLAmgsh]|\\Omega|\\mu\s*m)(?:\s*\^\s*\{?\s*-?[23]\s*\}?)?$"
)
_DEGREES = re.compile(r"\s*\^\s*(?:\{\s*\\circ\s*\}|\\circ)\s*(?:\\text\s*\{\s*)?\s*[CFK]?\s*\}?$")
_ANGLE = re.compile(r"\\?(?:sin|cos|tan|cot|sec|csc)(?![a-z])|\\circ.*\\circ")
_DEGREES_IN_FUNCTION = re.compile(
    r"\\?(?:arc)?(?:sin|cos|tan|cot|sec|csc|log|ln|exp)h?(?![a-z])[^,;=<>]*(?:\^\s*\{?\s*\\circ|degrees?\b|\\deg(?![a-z]))"
)
_PERCENT = re.compile(
    r"\s*(?:\\text\w*\s*\{\s*)?(?<![A-Za-z])(?:percent|per cent|pct|percentage)\b\s*\}?"
    r"|\s*(?:\\text\s*\{\s*)?\\?%\s*\}?$"
)
_CURRENCY = re.compile(r"^([-+]?)\s*(?:\\\$|[$€£¥₹₽₩]|\\(?:pounds|yen|euro)(?![a-z]))\s*|\s*(?:\\\$|[€£¥₹₽₩])$")
_QUANTITY = re.compile(r"\s*(?:,|and\b)?\s*(-?\d[\d.,/]*)\s*([A-Za-z]{1,}\.?)(?![A-Za-z])")


def has_degrees_in_function(text: str) -> bool:
    """Return True for `\\sin 30^\\circ`, where degrees are no unit that can be left out."""
    return _DEGREES_IN_FUNCTION.search(text) is not None


def with_percent_sign(text: str) -> str:
    """Return `30%` for `30 percent`, `30\\%` and `30\\text{ pct}`."""
    return _PERCENT.sub("%", text)


def without_unit(text: str, *, is_reference: bool = False) -> str:
    """Return `text` without a currency sign or the unit at its end.

    A letter alone counts as a unit only in an answer and behind a space: in a reference it may be an unknown.
    """
    text = _CURRENCY.sub(lambda match: match[1] or "", text)
    if _ANGLE.search(text):
        return text
    patterns = (_DEGREES, _TEXT_UNIT, _PLAIN_UNIT, _GLUED_UNIT, _SPEED)
    for pattern in patterns if is_reference else (*patterns, _LETTER_UNIT):
        match = pattern.search(text)
        if match and match.start() > 0:
            return without_unit(text[: match.start()], is_reference=is_reference).strip()
    return text


def quantities(text: str) -> list[tuple[str, str]] | None:
    """Return the numbers and units of `2 hours and 30 minutes`, in order; None if it is not two or more of them."""
    plain = re.sub(_TEXT, lambda match: " " + match[0].partition("{")[2][:-1] + " ", text)
    found = []
    position = 0
    while match := _QUANTITY.match(plain, position):
        found.append((match[1].rstrip(".,"), match[2].rstrip(".").lower().rstrip("s")))
        position = match.end()
    return found if len(found) > 1 and not plain[position:].strip(" .") else None
