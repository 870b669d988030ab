"""`igrpo grade RUN --from-file`: rewards of a file rank drafts and leave refinements out, between two stages."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import igrpo_cli
from command_line import igrpo, make_run
from igrpo_cli.records import Score
from igrpo_cli.store.tables import read_records


@pytest.fixture(scope="module")
def drafted(tmp_path_factory) -> Path:
    """A run of two shards with drafts: 8 problems, 3 drafts of each."""
    run = make_run(tmp_path_factory.mktemp("scores") / "run", "run.num_iterations=1", "run.num_shards=2")
    assert igrpo("draft", run).code == 0
    return run


def grade(run, stage, file, *flags):
    return igrpo("grade", run, "--stage", stage, "--iteration", "0", "--from-file", file, *flags)


def write(path: Path, rewards: dict[tuple[int, int], object]) -> Path:
    rows = [{"group_id": group, "sample_id": sample, "reward": reward} for (group, sample), reward in rewards.items()]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_rewards_of_a_file_select_and_completions_without_a_row_are_not_trained_on(drafted, tmp_path):
    every = [(group, sample) for group in range(8) for sample in range(3)]
    # The last draft is the best, whatever its recorded reward.
    ranked = write(tmp_path / "mine.jsonl", {key: key[1] for key in every})
    assert grade(drafted, "draft", ranked, "--json").json["reward_mean_after"] == 1.0
    assert igrpo("select", drafted, "--scores", "mine").code == 0
    run = igrpo_cli.open_run(drafted)
    assert set(run.selections(0)["draft_sample_id"].to_pylist()) == {2}

    assert igrpo("refine", drafted).code == 0
    kept = write(tmp_path / "kept.jsonl", {(group, sample): 1 - sample for group, sample in every if sample < 2})
    told = grade(drafted, "refine", kept, "--scores", "mine")
    assert told.code == 0, told.stderr
    assert "8 of 24 left out; mean of the other 16: 0.5000, 8 of 24 verdicts flipped" in told.stdout
    wrong = igrpo("update", drafted, "--scores", "mine", "--set", "reward.ungraded=wrong")
    assert wrong.code == 4
    assert 'leaves 4 completions out, but reward.ungraded = "wrong" counts them' in wrong.stderr
    assert igrpo("update", drafted, "--scores", "mine").code == 0
    used = [row for row in run.advantages(0).to_pylist() if row["stage"] == "refine"]
    # Of the rewards 1 and 0 the mean is 0.5 and the sample deviation 0.70711: 0.5 / (0.70711 + 1e-4) = 0.70701.
    expected = {0: 0.70701, 1: -0.70701, 2: 0.0}
    assert len(used) == 24
    assert all(row["advantage"] == pytest.approx(expected[row["sample_id"]], abs=1e-5) for row in used)
    assert igrpo("verify", drafted).code == 0


def test_another_file_under_the_same_name_is_a_conflict_until_overwrite(drafted, tmp_path):
    file = write(tmp_path / "again.jsonl", {(0, 0): 1.0})
    assert grade(drafted, "draft", file).code == 0
    assert grade(drafted, "draft", file, "--json").json["skipped"] == 2
    write(file, {(0, 0): 0.5})
    assert grade(drafted, "draft", file).code == 4
    assert grade(drafted, "draft", file, "--overwrite").code == 0
    wrong = igrpo("what-if", drafted, "--set", "select.scores=again", "--set", "reward.ungraded=wrong")
    assert (wrong.code, "completions out, but reward.ungraded" in wrong.stderr) == (4, True), wrong.stderr
    scores = read_records(drafted / "iteration_0000/draft/scores/again/shard-00000-of-00002.parquet", Score)
    assert [score.reward for score in scores] == [0.5, *[0.0] * 11]
    assert not any(any(score.reward_parts.values()) for score in scores[1:])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"group_id": 1, "sample_id": 3, "reward": 1}', "draft 0 has no sample 3 of group 1"),
        ('{"group_id": 8, "sample_id": 0, "reward": 1}', "draft 0 has no sample 0 of group 8"),
        ('{"group_id": 1, "reward": 1}', "row 1 has no numbers group_id, sample_id and reward"),
        ('{"group_id": 1, "sample_id": 0, "reward": "nan"}', "row 1 has no numbers"),
        ('{"group_id": 1, "sample_id": 0, "reward": 1}\n' * 2, "row 2 has no numbers"),
        ('{"group_id": -1, "sample_id": 0, "reward": 1}', "row 1 has no numbers"),
        ('{"group_id": 1.7, "sample_id": 0, "reward": 1}', "row 1 has no numbers"),
        ('{"group_id": 1, "sample_id": 0, "reward": null}', "has no reward for any completion"),
        ("", "has no reward for any completion"),
        ("{", "row 1"),
    ],
)
def test_a_file_that_does_not_fit_is_an_error_and_makes_no_scores(drafted, tmp_path, content, message):
    (tmp_path / "bad.jsonl").write_text(content)
    result = grade(drafted, "draft", tmp_path / "bad.jsonl")
    assert result.code == 1
    assert message in result.stderr
    assert "hint:" in result.stderr
    assert not list((drafted / "iteration_0000/draft/scores/bad").glob("shard-00001*.json"))


def test_a_missing_file_and_a_reward_besides_the_file_are_refused(drafted, tmp_path):
    assert grade(drafted, "draft", tmp_path / "none.csv").code == 3
    file = write(tmp_path / "one.jsonl", {(0, 0): 1.0})
    assert grade(drafted, "draft", file, "--reward", "accuracy").code == 2
