from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from igrpo_cli.errors import IgrpoError
from igrpo_cli.records import (
    FINISH_REASONS,
    ROLLOUT_STAGES,
    SELECTION_ACTIONS,
    VERDICTS,
    Metric,
    Problem,
    Rollout,
    Selection,
)
from igrpo_cli.store.rows import rows_of, storable, table_of
from igrpo_cli.store.schema import ADVANTAGES, METRICS, ROLLOUTS, SCHEMA_OF, SELECTIONS
from igrpo_cli.store.tables import count_rollouts, read_records, write_rows
from sample_run import rollout, selection

WILD = st.text(st.characters(), max_size=30) | st.sampled_from(["\ud800", "a\udfffb", "\0", "\ufeff", "😀", "a\r\nb"])
FLOAT = st.floats(allow_nan=False, allow_infinity=False, width=32)
LOGPROB = st.floats(max_value=0, width=32) | st.just(math.nan)
INT16, INT32 = st.integers(-(2**15), 2**15 - 1), st.integers(-(2**31), 2**31 - 1)
TOKENS = st.lists(st.tuples(INT32, LOGPROB), max_size=6)
PARTS = ("accuracy", "format", "judge")


@st.composite
def rollouts(draw):
    tokens = draw(TOKENS)
    return Rollout(
        iteration=draw(INT32),
        stage=draw(st.sampled_from(ROLLOUT_STAGES)),
        problem_id=draw(WILD),
        group_id=draw(INT32),
        sample_id=draw(INT16),
        draft_sample_id=draw(st.none() | INT16),
        prompt=draw(WILD),
        prompt_ids=draw(st.lists(INT32, max_size=5)),
        completion=draw(WILD),
        completion_ids=[token for token, _ in tokens],
        sampling_logprobs=[logprob for _, logprob in tokens],
        finish_reason=draw(st.sampled_from(FINISH_REASONS)),
        seed=draw(st.integers(-(2**63), 2**63 - 1)),
        reward=draw(FLOAT),
        reward_parts={name: draw(FLOAT) for name in PARTS},
        verdict=draw(st.sampled_from(VERDICTS)),
        extracted_answer=draw(st.none() | WILD),
    )


SELECTION = st.builds(
    Selection,
    iteration=INT32,
    group_id=INT32,
    problem_id=WILD,
    action=st.sampled_from(SELECTION_ACTIONS),
    draft_group_id=INT32,
    draft_sample_id=INT16,
    draft=WILD,
    draft_answer=WILD,
    draft_reward=FLOAT,
    num_tied=INT16,
    group_reward_mean=FLOAT,
    group_reward_std=FLOAT,
)
METRIC = st.builds(Metric, iteration=INT32, step=INT32, name=WILD, value=st.floats())
PROBLEM = st.builds(Problem, problem_id=WILD, problem=WILD, answer=WILD, source=WILD)


def as_stored(row):
    """The row with lone surrogates as their escapes; compared by repr, since NaN equals nothing."""
    texts = {f.name: storable(v) for f in dataclasses.fields(row) if isinstance(v := getattr(row, f.name), str)}
    return repr(dataclasses.replace(row, **texts))


@pytest.mark.parametrize(
    "rows", [rollouts(), SELECTION, METRIC, PROBLEM], ids=["rollout", "selection", "metric", "problem"]
)
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_rows_come_back_as_they_went_whatever_they_hold(tmp_path, rows, data):
    blocks = data.draw(st.lists(st.lists(rows, max_size=3), min_size=1, max_size=3).filter(any))
    record = type(next(row for block in blocks for row in block))
    path = Path(tmp_path, "file.parquet")
    write_rows(path, SCHEMA_OF[record], blocks, replace=True)
    assert list(map(repr, read_records(path, record))) == [as_stored(row) for block in blocks for row in block]


def test_lone_surrogates_become_their_escape_and_nothing_else_changes():
    assert storable("a\ud800b") == r"a\ud800b"
    assert storable("ä😀\0\\ud800") == "ä😀\0\\ud800"
    (row,) = rows_of(table_of(ROLLOUTS, [rollout(completion="\udcff", extracted_answer="\ud83d")]), Rollout)
    assert (row.completion, row.extracted_answer) == (r"\udcff", r"\ud83d")


def test_reward_parts_become_columns_and_parts_again():
    row = rollout(reward_parts={"judge": 0.5, "format": 1.0, "accuracy": 0.0})
    table = table_of(ROLLOUTS, [row])
    assert table["reward_judge"].to_pylist() == [0.5]
    assert rows_of(table, Rollout)[0].reward_parts == {"accuracy": 0.0, "format": 1.0, "judge": 0.5}


def test_critiques_are_further_columns_that_other_files_lack(tmp_path):
    assert "critique" not in table_of(ROLLOUTS, [rollout()]).schema.names
    rows = [
        rollout(0, 0, stage="refine", draft_sample_id=1, critique="a\ud800", critique_ids=[3, 4, 5]),
        rollout(0, 1, stage="refine", draft_sample_id=1, critique="a\ud800", critique_ids=[3, 4, 5]),
        rollout(1, 0, stage="refine", draft_sample_id=2, critique="", critique_ids=[6]),
        rollout(2, 0, stage="refine", critique="", critique_ids=[]),
    ]
    path = tmp_path / "file.parquet"
    write_rows(path, ROLLOUTS, [rows[:2], rows[2:]], replace=True)
    back = read_records(path, Rollout)
    assert [(row.critique, row.critique_ids) for row in back] == [(r"a\ud800", [3, 4, 5])] * 2 + [("", [6]), ("", [])]
    # 4 completions of 4 tokens, critiques of 3 and 1 tokens: each counts once for its group.
    counts = count_rollouts(path)
    assert {name: counts[name] for name in ("tokens", "critique_tokens", "critiques", "empty_critiques")} == {
        "tokens": 20,
        "critique_tokens": 4,
        "critiques": 2,
        "empty_critiques": 1,
    }
    with pytest.raises(IgrpoError, match="rollouts row 1 lacks the column critique"):
        table_of(ROLLOUTS, [rows[0], rollout()])
    with pytest.raises(IgrpoError, match="blocks with other columns"):
        write_rows(path, ROLLOUTS, [rows[:2], [rollout(1)]], replace=True)


def test_arrays_and_their_numbers_are_welcome():
    row = rollout(
        prompt_ids=np.array([1, 2]),
        completion_ids=(np.int64(3), 4),
        sampling_logprobs=np.array([-0.5, -1.0], np.float32),
        reward=np.float32(0.5),
        iteration=np.int32(7),
    )
    (back,) = rows_of(table_of(ROLLOUTS, [row]), Rollout)
    assert (back.prompt_ids, back.completion_ids) == ([1, 2], [3, 4])
    assert (back.sampling_logprobs, back.reward, back.iteration) == ([-0.5, -1.0], 0.5, 7)


def test_dicts_are_rows_too_and_come_back_as_dicts():
    row = dict.fromkeys(ADVANTAGES.names, 1) | {"stage": "refine", "problem_id": "p"}
    row |= {"old_logprob_mean": math.nan, "policy_entropy_mean": 0.25}
    (back,) = rows_of(table_of(ADVANTAGES, [row]), dict)
    assert back["policy_entropy_mean"] == 0.25
    assert math.isnan(back["old_logprob_mean"])


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"iteration": None}, "column iteration: expected an integer, got NoneType None"),
        ({"iteration": True}, "column iteration: expected an integer, got bool True"),
        ({"iteration": 1.0}, "column iteration: expected an integer, got float 1.0"),
        ({"iteration": "1"}, "column iteration: expected an integer, got str '1'"),
        ({"sample_id": 2**15}, "column sample_id: 32768 does not fit into int16"),
        ({"seed": 2**63}, "column seed: 9223372036854775808 does not fit into int64"),
        ({"problem_id": None}, "column problem_id: expected text, got NoneType None"),
        ({"prompt": b"bytes"}, "column prompt: expected text, got bytes"),
        ({"stage": "select"}, "column stage: expected one of draft, refine, eval, got str 'select'"),
        ({"verdict": None}, "column verdict: expected one of"),
        ({"extracted_answer": 7}, "column extracted_answer: expected text, got int 7"),
        ({"reward": math.nan}, "column reward: expected a finite number, got nan"),
        ({"reward": 1e39}, "column reward: 1e.39 does not fit into float"),
        ({"reward": "1"}, "column reward: expected a number, got str '1'"),
        ({"reward_parts": {"accuracy": math.inf, "format": 0.0}}, "column reward_accuracy: expected a finite"),
        ({"prompt_ids": [1, 2.5]}, "column prompt_ids: expected integral elements, got float 2.5 at 1"),
        ({"prompt_ids": [1, True]}, "column prompt_ids: expected integral elements, got bool True at 1"),
        ({"prompt_ids": [None]}, "column prompt_ids: expected integral elements, got NoneType None at 0"),
        ({"prompt_ids": [1, 2**31]}, "column prompt_ids: 2147483648 does not fit into int32"),
        ({"prompt_ids": None}, "column prompt_ids: expected a list, got NoneType"),
        ({"prompt_ids": "12"}, "column prompt_ids: expected a list, got str"),
        ({"prompt_ids": {1, 2}}, "column prompt_ids: expected a list, got set"),
        ({"prompt_ids": np.zeros((1, 2), int)}, "column prompt_ids: expected integral elements, got list"),
        ({"sampling_logprobs": [-1.0, None, 0.0, 0.0]}, "column sampling_logprobs: expected real elements"),
        ({"sampling_logprobs": [-1.0]}, "column sampling_logprobs: 1 log-probs for 4 tokens"),
    ],
)
def test_a_wrong_value_names_column_row_and_kind(changes, told):
    with pytest.raises(IgrpoError, match=f"rollouts row 1, {told}"):
        table_of(ROLLOUTS, [rollout(), rollout(1, **changes)])


def test_missing_unknown_and_uneven_columns_are_named():
    whole = dataclasses.asdict(selection())
    with pytest.raises(IgrpoError, match="selections row 1 lacks the column num_tied"):
        table_of(SELECTIONS, [whole, {key: value for key, value in whole.items() if key != "num_tied"}])
    with pytest.raises(IgrpoError, match="metrics row 0 has an unknown column unit"):
        table_of(METRICS, [{"iteration": 0, "step": 0, "name": "loss", "value": 1.0, "unit": "nats"}])
    with pytest.raises(IgrpoError, match="rollouts row 0 lacks the column reward_format"):
        table_of(ROLLOUTS, [rollout(reward_parts={"accuracy": 1.0})])
    with pytest.raises(IgrpoError, match="rollouts row 1 has an unknown column reward_judge"):
        table_of(ROLLOUTS, [rollout(), rollout(reward_parts={"accuracy": 1.0, "format": 1.0, "judge": 1.0})])
