from __future__ import annotations

import pytest

from igrpo_cli.errors import DamagedFileError
from igrpo_cli.records import Rollout
from igrpo_cli.store.schema import ROLLOUTS, SELECTIONS
from igrpo_cli.store.tables import read_records, write_rows
from igrpo_cli.store.views import NO_DRAFT, concatenated, read_rollout_columns, read_selection_columns
from sample_run import drafts, rollout, selection


def test_columns_say_what_the_records_say(tmp_path):
    path = tmp_path / "rows.parquet"
    odd = rollout(2, 0, completion="", completion_ids=[], sampling_logprobs=[], draft_sample_id=1)
    cut = rollout(2, 1, finish_reason="length", verdict="ungraded", completion_ids=[1], sampling_logprobs=[-2.5])
    write_rows(path, ROLLOUTS, [*drafts(0, 1), [odd, cut]])
    rows, columns = read_records(path, Rollout), read_rollout_columns(path)
    for name in ("group_id", "sample_id", "completion", "reward"):
        assert list(getattr(columns, name)) == [getattr(row, name) for row in rows]
    assert columns.draft_sample_id.tolist() == [NO_DRAFT] * 6 + [1, NO_DRAFT]
    assert columns.num_tokens.tolist() == [4] * 6 + [0, 1]
    assert columns.logprob_sum.tolist() == [-1.75] * 6 + [0.0, -2.5]
    assert columns.is_truncated.tolist() == [False] * 7 + [True]
    for verdict in ("correct", "wrong", "no_answer", "ungraded"):
        assert columns.is_verdict(verdict).tolist() == [row.verdict == verdict for row in rows]


def test_a_log_prob_that_is_no_number_stays_in_its_row(tmp_path):
    path = tmp_path / "rows.parquet"
    broken = rollout(0, 0, sampling_logprobs=[float("nan"), 0.0, 0.0, 0.0])
    write_rows(path, ROLLOUTS, [[broken, rollout(0, 1)]])
    assert read_rollout_columns(path).logprob_sum.tolist() == [pytest.approx(float("nan"), nan_ok=True), -1.75]


def test_shards_are_joined_in_order_and_an_empty_one_adds_nothing(tmp_path):
    for name, groups in (("a", (0,)), ("b", ()), ("c", (1, 2))):
        write_rows(tmp_path / name, ROLLOUTS, drafts(*groups))
    columns = concatenated([read_rollout_columns(tmp_path / name) for name in "abc"])
    assert columns.group_id.tolist() == [0] * 3 + [1] * 3 + [2] * 3
    assert len(columns.completion) == 9


def test_selections_as_columns(tmp_path):
    path = tmp_path / "rows.parquet"
    write_rows(path, SELECTIONS, [[selection(0, num_tied=3)], [selection(1, draft_group_id=0)]])
    columns = read_selection_columns(path)
    assert columns.num_tied.tolist() == [3, 1]
    assert columns.draft_group_id.tolist() == [0, 0]


def test_a_damaged_file_is_said_so(tmp_path):
    path = tmp_path / "rows.parquet"
    write_rows(path, ROLLOUTS, drafts(0))
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(DamagedFileError, match=r"rows\.parquet"):
        read_rollout_columns(path)
