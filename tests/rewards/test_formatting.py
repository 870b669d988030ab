"""The format part of the reward cannot be had by anything but the format."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from igrpo_cli.errors import UsageError
from igrpo_cli.rewards.scorer import format_reward, soft_overlong_reward, weighted_reward


@pytest.mark.parametrize(
    "completion",
    [
        "<think>a</think><answer>b</answer>",
        " \n<think>\na\n\nb\n</think>\n\n<answer>\n5 < 6 and {x}\n</answer>\n ",
        "<think><b>bold</b></think> <answer>\\boxed{1}</answer>",
    ],
)
def test_think_then_answer_is_rewarded(completion):
    assert format_reward(completion) == 1.0


@pytest.mark.parametrize(
    "completion",
    [
        "",
        "18",
        "<think>a</think>",
        "<answer>b</answer>",
        "<answer>b</answer><think>a</think>",
        "<think>a<answer>b</answer></think>",
        "<think>a</think><answer>b",
        "a</think><answer>b</answer>",
        "<think></think><answer>b</answer>",
        "<think> \n</think><answer>b</answer>",
        "<think>a</think><answer> </answer>",
        "<think>\u200b</think><answer>b</answer>",
        "<think>a</think><answer>\0</answer>",
        "<think>a</think>then<answer>b</answer>",
        "Sure! <think>a</think><answer>b</answer>",
        "<think>a</think><answer>b</answer>.",
        "<think>a</think><answer>b</answer><answer>c</answer>",
        "<think>a</think><think>a</think><answer>b</answer>",
        "<think>a<think>b</think></think><answer>c</answer>",
        "<think>a</think><answer><answer>b</answer></answer>",
        "<think>a</think><answer>b</answer>" * 2,
        "<think>a <answer> b</think><answer>c</answer>",
        "<think>a</think><answer>b <think> c</answer>",
        "<THINK>a</THINK><ANSWER>b</ANSWER>",
        "< think>a</ think><answer>b</answer>",
    ],
)
def test_anything_else_is_not(completion):
    assert format_reward(completion) == 0.0


TAGS = ["<think>", "</think>", "<answer>", "</answer>"]


@given(st.lists(st.sampled_from([*TAGS, "a", " "]), max_size=12))
def test_a_rewarded_text_has_each_tag_once_and_in_order(pieces):
    text = "".join(pieces)
    expected = [piece for piece in pieces if piece in TAGS] == TAGS
    contents = text.replace("</think>", "|").replace("<answer>", "|").replace("<think>", "|").replace("</answer>", "|")
    if expected:
        before, thought, between, answer, after = contents.split("|")
        expected = bool(thought.strip() and answer.strip()) and not (before + between + after).strip()
    assert format_reward(text) == float(expected)


def test_parts_are_weighted_and_summed():
    assert weighted_reward({"accuracy": 1.0, "format": 0.5}, {"format": 0.2, "accuracy": 2.0}) == pytest.approx(2.1)
    assert weighted_reward({"accuracy": 1.0}, {"accuracy": 0.0}) == 0.0
    assert weighted_reward({"accuracy": 1.0, "format": 1.0}, {"format": 0.5}) == 0.5


def test_the_sum_does_not_depend_on_the_order_of_its_parts():
    parts = {"a": 1e16, "b": 1.0, "c": -1e16}
    ones = dict.fromkeys(parts, 1.0)
    assert weighted_reward(parts, ones) == weighted_reward(dict(reversed(parts.items())), ones) == 1.0


@pytest.mark.parametrize(
    ("parts", "weights"),
    [
        ({"accuracy": 1.0}, {"accuracy": 1.0, "format": 1.0}),
        ({"accuracy": float("nan")}, {"accuracy": 1.0}),
        ({"accuracy": 1.0}, {"accuracy": float("inf")}),
    ],
)
def test_weights_without_a_part_and_rewards_that_are_no_number_are_refused(parts, weights):
    with pytest.raises(UsageError):
        weighted_reward(parts, weights)


@pytest.mark.parametrize(
    ("length", "max_length", "cache", "reward"),
    [
        (0, 100, 20, 0.0),
        (80, 100, 20, 0.0),
        (81, 100, 20, -0.05),
        (90, 100, 20, -0.5),
        (100, 100, 20, -1.0),
        (101, 100, 20, -1.0),
        (5, 10, 50, -0.5),
        (10, 10, 50, -1.0),
    ],
)
def test_the_length_penalty_falls_in_a_straight_line_over_the_last_tokens(length, max_length, cache, reward):
    assert soft_overlong_reward(length, max_length, cache) == pytest.approx(reward)
