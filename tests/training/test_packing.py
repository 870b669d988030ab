"""Rows by hand, and for any groups: every completion token predicted once, from its own past only."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from igrpo_cli.errors import IgrpoError
from igrpo_cli.records import TrainingGroup
from igrpo_cli.training.packing import RowLimits, attention_mask, flatten_groups, pack_rows, pad_row, padded_length

CPU = torch.device("cpu")
SHARED = RowLimits(group_tokens=1000, joined_tokens=1000)
SINGLE = RowLimits(group_tokens=0, joined_tokens=0)


def group(prompt_ids, completion_ids, group_id=0, **changes):
    fields = {
        "stage": "refine",
        "group_id": group_id,
        "problem_id": "p",
        "prompt_ids": prompt_ids,
        "temperatures": [1.0] * len(completion_ids),
        "completion_ids": completion_ids,
        "sampling_logprobs": [[-1.0] * len(ids) for ids in completion_ids],
        "rewards": [0.0] * len(completion_ids),
        "advantages": [1.0] * len(completion_ids),
        "is_masked": [False] * len(completion_ids),
        "max_completion_length": 10,
    }
    return TrainingGroup(**(fields | changes))


def test_a_row_by_hand():
    batch = flatten_groups([group([1, 2], [[3, 4, 5], [6], [7, 8]])], vocab_size=10)
    (row,) = pack_rows(batch, [0], SHARED)
    # The last token of each completion is predicted and predicts nothing: 5, 6 and 8 do not stand in the row.
    assert row.input_ids.tolist() == [1, 2, 3, 4, 7]
    assert row.position_ids.tolist() == [0, 1, 2, 3, 2]
    assert batch.token_ids[row.token].tolist() == [3, 4, 5, 6, 7, 8]
    assert row.predictor.tolist() == [1, 2, 3, 1, 1, 4]
    assert attention_mask(row, CPU).int().tolist() == [
        [1, 0, 0, 0, 0],
        [1, 1, 0, 0, 0],
        [1, 1, 1, 0, 0],
        [1, 1, 1, 1, 0],
        [1, 1, 0, 0, 1],
    ]


def test_each_token_has_the_temperature_of_its_completion():
    batch = flatten_groups([group([1], [[2, 3], [4]], temperatures=[0.5, 2.0]), group([5], [[6, 7]])], vocab_size=10)
    assert batch.temperatures.tolist() == [0.5, 0.5, 2.0, 1.0, 1.0]


def test_two_groups_in_a_row_do_not_see_each_other():
    batch = flatten_groups([group([1], [[2, 3]]), group([4], [[5, 6], [7, 8]])], vocab_size=10)
    (row,) = pack_rows(batch, [0, 1], SHARED)
    assert row.input_ids.tolist() == [1, 2, 4, 5, 7]
    assert row.position_ids.tolist() == [0, 1, 0, 1, 1]
    assert row.predictor.tolist() == [0, 1, 2, 3, 2, 4]
    assert attention_mask(row, CPU).int().tolist() == [
        [1, 0, 0, 0, 0],
        [1, 1, 0, 0, 0],
        [0, 0, 1, 0, 0],
        [0, 0, 1, 1, 0],
        [0, 0, 1, 0, 1],
    ]


def test_a_plain_sequence_needs_no_mask():
    batch = flatten_groups([group([1, 2], [[3, 4, 5]])], vocab_size=10)
    (row,) = pack_rows(batch, [0], SHARED)
    assert attention_mask(row, CPU) is None


def test_a_group_over_the_limit_repeats_its_prompt():
    batch = flatten_groups([group([1, 2], [[3, 4, 5], [6, 7], [8, 9]])], vocab_size=10)
    rows = pack_rows(batch, [0], RowLimits(group_tokens=5, joined_tokens=5))
    assert [row.input_ids.tolist() for row in rows] == [[1, 2, 3, 4, 6], [1, 2, 8]]


def test_one_completion_over_the_limit_gets_its_row_all_the_same():
    batch = flatten_groups([group([1, 2], [[3], [4, 5, 6, 7], [8]])], vocab_size=10)
    rows = pack_rows(batch, [0], RowLimits(group_tokens=3, joined_tokens=3))
    assert [row.input_ids.tolist() for row in rows] == [[1, 2], [1, 2, 4, 5, 6], [1, 2]]


def test_without_sharing_every_row_is_one_prompt_with_one_completion():
    batch = flatten_groups([group([1], [[2, 3], [], [4]]), group([5], [[6]])], vocab_size=10)
    rows = pack_rows(batch, [0, 1], SINGLE)
    assert [row.input_ids.tolist() for row in rows] == [[1, 2], [1], [5]]
    assert [batch.token_ids[row.token].tolist() for row in rows] == [[2, 3], [4], [6]]


def test_blocks_join_in_order_up_to_a_number_of_tokens():
    batch = flatten_groups([group([1, 1], [[2, 3]]) for _ in range(5)], vocab_size=10)
    rows = pack_rows(batch, range(5), RowLimits(group_tokens=100, joined_tokens=7))
    assert [len(row.input_ids) for row in rows] == [6, 6, 3]


IDS = st.integers(0, 9)
GROUPS = st.lists(
    st.builds(
        group,
        st.lists(IDS, min_size=1, max_size=6),
        st.lists(st.lists(IDS, max_size=6), min_size=1, max_size=5),
    ),
    min_size=1,
    max_size=5,
).filter(lambda groups: any(any(group.completion_ids) for group in groups))


@given(groups=GROUPS, block=st.integers(0, 30), joined=st.integers(0, 40))
def test_every_token_is_predicted_once_from_exactly_its_own_past(groups, block, joined):
    batch = flatten_groups(groups, vocab_size=10)
    rows = pack_rows(batch, range(len(groups)), RowLimits(block, joined))
    assert sorted(np.concatenate([row.token for row in rows]).tolist()) == list(range(len(batch.token_ids)))
    for row in rows:
        mask = attention_mask(row, CPU)
        mask = torch.ones(len(row.input_ids), len(row.input_ids)).tril().bool() if mask is None else mask
        for token, predictor in zip(row.token, row.predictor, strict=True):
            sequence = batch.sequence[token]
            own = groups[batch.group[sequence]]
            before = batch.token_ids[batch.first_token[sequence] : token].tolist()
            seen = np.flatnonzero(mask[predictor].numpy())
            assert row.input_ids[seen].tolist() == [*own.prompt_ids, *before]
            assert row.position_ids[seen].tolist() == list(range(len(seen)))
        assert row.num_pairs == mask.sum()


@given(groups=GROUPS, block=st.integers(0, 30), joined=st.integers(0, 40))
def test_rows_keep_their_limits_unless_they_hold_a_single_completion(groups, block, joined):
    batch = flatten_groups(groups, vocab_size=10)
    for row in pack_rows(batch, range(len(groups)), RowLimits(block, joined)):
        completions = len(np.unique(batch.sequence[row.token]))
        assert len(row.input_ids) <= max(block, joined) or completions == 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"prompt_ids": []}, "empty prompt"),
        ({"completion_ids": [], "sampling_logprobs": [], "advantages": []}, "no completions"),
        ({"advantages": [1.0]}, "1 advantages for 2 completions"),
        ({"advantages": [1.0, float("nan")]}, "advantage that is not finite"),
        ({"sampling_logprobs": [[-1.0, -1.0], []]}, "sampling log-probs of other lengths"),
        ({"sampling_logprobs": [[-1.0, float("-inf")], [-1.0]]}, "sampling log-prob that is not finite"),
        ({"temperatures": [0.7, 0.0]}, "temperature 0.0"),
        ({"temperatures": [1.0]}, "1 temperatures for 2 completions"),
        ({"completion_ids": [[2, 10], [3]]}, "outside the vocabulary of 10"),
        ({"prompt_ids": [-1]}, "outside the vocabulary of 10"),
    ],
)
def test_a_group_that_cannot_be_trained_on_is_named(changes, message):
    good = group([1], [[2, 3], [4]])
    bad = group(**{"prompt_ids": [1], "completion_ids": [[2, 3], [4]], "group_id": 17} | changes)
    with pytest.raises(IgrpoError, match=f"refine group 17 .*{message}"):
        flatten_groups([good, bad], vocab_size=10)


def test_a_batch_without_a_token_is_refused():
    with pytest.raises(IgrpoError, match="nothing to train on"):
        flatten_groups([group([1], [[], []])], vocab_size=10)
    with pytest.raises(IgrpoError, match="nothing to train on"):
        flatten_groups([], vocab_size=10)


def test_padded_lengths_by_hand():
    lengths = [1, 128, 129, 1000, 1024, 1025, 2048, 2049, 4096, 4097, 20_000]
    assert [padded_length(length) for length in lengths] == [
        *(128, 128, 256, 1024, 1024, 1152),
        *(2048, 2304, 4096, 4608, 20_480),
    ]


@given(st.integers(1, 10**6))
def test_padded_lengths_are_few_and_near(length):
    padded = padded_length(length)
    assert padded >= length
    assert padded % 128 == 0
    assert padded - length < max(128, length / 8)
    assert padded_length(padded) == padded


def test_padding_sees_nothing_and_is_seen_by_nothing():
    batch = flatten_groups([group([1, 2], [[3, 4, 5], [6], [7, 8]])], vocab_size=10)
    (row,) = pack_rows(batch, [0], SHARED)
    padded, length = pad_row(row), len(row.input_ids)
    mask = attention_mask(padded, CPU)
    assert mask.shape == (128, 128)
    assert torch.equal(mask[:length, :length], attention_mask(row, CPU))
    assert not mask[:length, length:].any()
    assert not mask[length:, :length].any()
    assert padded.predictor is row.predictor
    assert padded.token is row.token
    assert pad_row(padded).input_ids.tolist() == padded.input_ids.tolist()
