"""Text of models on the terminal and in Markdown: wild text acts on neither, and nothing is lost without a count."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from igrpo_cli.ui.console import printable
from igrpo_cli.ui.quoting import MAX_PIECES, MAX_SHOWN, fenced, in_line, markdown_escaped, quoted, shortened

HOSTILE = "\x1b]0;owned\x07\x9b31m\u202eevil\u2066\u200b\u200f\ufeff\u3164\ufe0f\U000e0041\ud800\x00\r\x85\u2028"


def test_what_a_terminal_would_obey_or_hide_is_shown_as_its_escape():
    assert printable(HOSTILE) == (
        r"\x1b]0;owned\x07\x9b31m\u202eevil\u2066\u200b\u200f\ufeff\u3164\ufe0f\U000e0041\ud800\x00\r\x85\u2028"
    )


def test_readable_text_of_any_language_stays():
    text = "Größe\t= 3\u00a0cm\n\u3000\u4e09\u500d \u05d0\u05d1 \U0001f642 e\u0301"
    assert printable(text) == text


@given(st.text())
def test_printable_text_can_be_encoded_and_holds_no_control(text):
    shown = printable(text)
    shown.encode("utf-8")
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200b-\u200f\u2028-\u202e\u2060-\u206f\ud800-\udfff]", shown)
    assert printable(shown) == shown


@given(st.text(alphabet=st.sampled_from("ab│\n\r\x1b\u2028 ") | st.characters()))
def test_every_line_of_a_quotation_has_its_bar(text):
    assert all(line.startswith("│") for line in quoted([("same", text)]).split("\n"))
    assert len(quoted([("same", text)]).splitlines()) == text.count("\n") + 1


def test_changes_are_marked_where_there_are_no_colours():
    assert quoted([("same", "2+2="), ("removed", "5"), ("added", "4")]) == "│ 2+2=[-5-]{+4+}"


@given(st.text(alphabet=st.sampled_from("`~\n a<")))
def test_no_text_closes_its_fence(text):
    opening, *inside, closing = fenced([("same", text)]).split("\n")
    assert opening == f"{closing}text"
    assert "\n".join(inside) == text
    assert not any(line.strip().startswith(closing) for line in inside)


def test_html_and_markdown_are_escaped():
    assert markdown_escaped("<script>a|b</script> [x](y) *b* `c` &amp;") == (
        r"&lt;script&gt;a&#124;b&lt;/script&gt; \[x\](y) \*b\* \`c\` &amp;amp;"
    )


@pytest.mark.parametrize("length", [MAX_SHOWN, MAX_SHOWN + 1, 100_000])
def test_long_texts_lose_their_middle_with_a_count(length):
    text = "x" * length
    ((_, shown),) = shortened([("same", text)])
    counted = re.search(r" \[…([\d,]+) characters…\] ", shown)
    left_out = int(counted[1].replace(",", "")) if counted else 0
    assert shown.count("x") + left_out == length
    assert (left_out == 0) == (length <= MAX_SHOWN)


def test_many_pieces_end_with_a_count():
    pieces = [("added", "abc")] * (MAX_PIECES + 2)
    assert shortened(pieces)[-1] == ("same", " […6 characters…]")
    assert len(shortened(pieces)) == MAX_PIECES + 1


def test_a_text_in_a_line():
    assert in_line("a\nb\x1b") == r"a\nb\x1b"
    assert in_line("y" * 100) == "y" * 80 + "…"
