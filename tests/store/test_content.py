from __future__ import annotations

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from igrpo_cli.store.rows import table_of
from igrpo_cli.store.schema import ROLLOUTS
from igrpo_cli.store.tables import content_sha256
from sample_run import group, rollout

CHOICE = pa.dictionary(pa.int8(), pa.string())
LISTS = pa.list_(pa.field("element", pa.int32(), nullable=False))
SCHEMA = pa.schema({"stage": CHOICE, "text": pa.string(), "ids": LISTS, "seed": pa.int64(), "reward": pa.float32()})
CELL = {
    "stage": st.none() | st.sampled_from(["draft", "refine", ""]),
    "text": st.none() | st.text(st.characters(codec="utf-8"), max_size=4),
    "ids": st.none() | st.lists(st.integers(-3, 3), max_size=3),
    "seed": st.none() | st.integers(-(2**63), 2**63 - 1),
    "reward": st.none() | st.floats(width=32, allow_nan=False).map(lambda number: number + 0.0),
}
ROWS = st.lists(st.fixed_dictionaries(CELL), max_size=5)


def table(rows):
    return pa.Table.from_pylist(rows, schema=SCHEMA)


@settings(max_examples=100, deadline=None)
@given(ROWS, ROWS, st.integers(0, 5))
def test_the_form_of_the_values_does_not_count(rows, others, cut):
    whole = table(rows)
    expected = content_sha256(whole)
    assert content_sha256(pa.concat_tables([table(rows[:cut]), table([]), table(rows[cut:])])) == expected
    assert content_sha256(table([*others, *rows, *others]).slice(len(others), len(rows))) == expected
    plain = whole.set_column(0, "stage", whole["stage"].cast(pa.string()))
    assert content_sha256(plain) == expected
    longer = pa.chunked_array([pa.array(["refine", "eval", "", "draft"]).dictionary_encode().cast(CHOICE).slice(4)])
    chunks = [*longer.chunks, *whole["stage"].chunks]
    assert content_sha256(whole.set_column(0, "stage", pa.chunked_array(chunks, CHOICE))) == expected


@settings(max_examples=200, deadline=None)
@given(ROWS, ROWS)
def test_other_values_are_another_content(rows, others):
    one, other = table(rows), table(others)
    same = repr(one.to_pylist()) == repr(other.to_pylist())
    assert (content_sha256(one) == content_sha256(other)) == same


def test_neither_a_bitmap_without_nulls_nor_what_lies_under_a_null_counts():
    ones = pa.py_buffer(b"\xff")
    bare = pa.array(["ab", "c"])
    _, offsets, text = bare.buffers()
    full = pa.StringArray.from_buffers(2, offsets, text, ones)
    assert content_sha256(pa.table({"a": full})) == content_sha256(pa.table({"a": bare}))
    hidden = pa.StringArray.from_buffers(2, offsets, text, pa.py_buffer(b"\x02"))
    assert hidden.to_pylist() == [None, "c"]
    assert content_sha256(pa.table({"a": hidden})) == content_sha256(pa.table({"a": [None, "c"]}))


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"a": [1, 2]}, {"a": [1, 3]}),
        ({"a": [1, 0]}, {"a": [1, None]}),
        ({"a": ["x", ""]}, {"a": ["x", None]}),
        ({"a": ["xy", "z"]}, {"a": ["x", "yz"]}),
        ({"a": [[1], [2, 3]]}, {"a": [[1, 2], [3]]}),
        ({"a": [[], [1]]}, {"a": [None, [1]]}),
        ({"a": [[0], [1]]}, {"a": [[None], [1]]}),
        ({"a": [1, None, 2]}, {"a": [1, 2, None]}),
        ({"a": [0.0]}, {"a": [-0.0]}),
        ({"a": [1], "b": [2]}, {"a": [2], "b": [1]}),
        ({"a": [1], "b": [1]}, {"b": [1], "a": [1]}),
        ({"a": [1]}, {"b": [1]}),
        ({"a": [1]}, {"a": pa.array([1], pa.int32())}),
        ({"a": [1, 1]}, {"a": [1]}),
        ({"a": [0]}, {"a": pa.array([], pa.int64())}),
    ],
)
def test_every_difference_counts(one, other):
    assert content_sha256(pa.table(one)) != content_sha256(pa.table(other))


def test_every_column_of_a_rollout_counts():
    changes = {"prompt_ids": [5, 6, 1], "completion_ids": [7, 8, 9, 2], "sampling_logprobs": [-0.5, -0.25, -1.0, -0.1]}
    changes |= {"stage": "refine", "finish_reason": "length", "verdict": "ungraded", "draft_sample_id": 0}
    changes |= {"seed": 1, "extracted_answer": ""}
    tables = [table_of(ROLLOUTS, rows) for rows in (group(0)[:1], group(0)[:2], [])]
    tables += [table_of(ROLLOUTS, [rollout(**{name: value})]) for name, value in changes.items()]
    assert len({content_sha256(each) for each in tables}) == len(tables)


def test_a_kind_of_column_that_no_schema_has_is_refused():
    with pytest.raises(pa.ArrowException):
        content_sha256(pa.table({"a": [True, None]}))
