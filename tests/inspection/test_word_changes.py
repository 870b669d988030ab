"""Changes word by word: by hand, and that nothing is lost or invented, whatever the texts."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from igrpo_cli.inspection.stories import MAX_WORDS, word_changes


def test_by_hand():
    assert word_changes("2+2=5, so 5", "2+2=4, so 4") == [
        ("same", "2+2="),
        ("removed", "5"),
        ("added", "4"),
        ("same", ", so"),
        ("removed", " 5"),
        ("added", " 4"),
    ]


def test_tags_and_commands_are_words():
    assert word_changes("<think>a</think>", "<answer>a</answer>") == [
        ("removed", "<think>"),
        ("added", "<answer>"),
        ("same", "a"),
        ("removed", "</think>"),
        ("added", "</answer>"),
    ]
    assert word_changes(r"\frac 1", r"\sqrt 1") == [("removed", r"\frac"), ("added", r"\sqrt"), ("same", " 1")]


def test_equal_and_empty_texts():
    assert word_changes("one two", "one two") == [("same", "one two")]
    assert word_changes("", "one") == [("added", "one")]
    assert word_changes("", "") == []


def test_texts_that_are_too_long_are_not_matched():
    assert word_changes("a " * (MAX_WORDS + 1), "a") is None
    assert word_changes("a", "a " * (MAX_WORDS + 1)) is None


TEXTS = st.text(alphabet=st.sampled_from("ab1<>/\\ \n\x1b\u202e=") | st.characters(), max_size=60)


@given(TEXTS, TEXTS)
def test_both_texts_come_back(before, after):
    changes = word_changes(before, after)
    assert changes is not None
    assert "".join(text for kind, text in changes if kind != "added") == before
    assert "".join(text for kind, text in changes if kind != "removed") == after
    assert all(text for _, text in changes)
