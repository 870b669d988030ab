"""New scores of existing completions, and the stages that use them."""

from __future__ import annotations

import json

import pyarrow.parquet as pq
import pytest

from command_line import files_below, igrpo, make_run, sets

MODULE = """
def parity(group_id=None, num_tokens=0):
    return float(num_tokens % 2)

def shortest(num_tokens, max_completion_length):
    return 1 - num_tokens / max_completion_length

def breaks(num_tokens):
    return 1 / (num_tokens - num_tokens)
"""
SHORTEST = 'reward.functions={shortest="own_rewards:shortest"}'


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run of two shards, drafts and refinements done, in a folder with reward functions."""
    folder = tmp_path_factory.mktemp("scores")
    (folder / "own_rewards.py").write_text(MODULE)
    run = make_run(folder / "run", "run.num_shards=2")
    for stage in ("draft", "select", "refine"):
        assert igrpo(stage, run).code == 0
    return run


def grade(run, *arguments):
    return igrpo("grade", run, "--iteration", 0, *arguments, cwd=run.parent)


def rows_of(run, *place):
    folder = run.joinpath("iteration_0000", *place)
    return [row for file in sorted(folder.glob("*.parquet")) for row in pq.read_table(file).to_pylist()]


def test_scores_stand_beside_the_shards_and_the_shards_stay_as_they_are(run):
    before = files_below(run)
    result = grade(
        run, "--stage", "draft", "--reward", "format=2", "--reward", "length=0.5", "--scores", "other", "--json"
    )
    assert result.code == 0, result.stderr
    after = files_below(run)
    new = sorted(after.keys() - before.keys())
    assert new == [f"iteration_0000/draft/scores/other/shard-0000{n}-of-00002.parquet" for n in (0, 1)]
    assert {name: after[name] for name in before} == before
    drafts, scores = rows_of(run, "draft"), rows_of(run, "draft", "scores", "other")
    assert len(scores) == len(drafts) == 24 == result.json["rows"]
    for draft, score in zip(drafts, scores, strict=True):
        for key in ("iteration", "stage", "problem_id", "group_id", "sample_id", "verdict", "extracted_answer"):
            assert score[key] == draft[key]
        assert score["reward_format"] == draft["reward_format"]
        assert score["reward_length"] == pytest.approx(1 - len(draft["completion_ids"]) / longest(run))
        assert score["reward"] == pytest.approx(2 * score["reward_format"] + 0.5 * score["reward_length"])
    assert result.json["flipped"] == {}, "the same grader gives the same verdicts"
    assert result.json["stage"] == "scores"
    assert (result.json["of"], result.json["scores"], result.json["skipped"]) == ("draft", "other", 0)
    again = grade(
        run, "--stage", "draft", "--reward", "format=2", "--reward", "length=0.5", "--scores", "other", "--json"
    )
    assert (again.code, again.json["skipped"]) == (0, 2)
    assert igrpo("verify", run).code == 0


def longest(run):
    manifest = json.loads((run / "iteration_0000/draft/shard-00000-of-00002.json").read_text())
    return manifest["sampling"]["max_completion_length"]


def test_scores_of_that_name_with_other_weights_are_refused(run):
    assert grade(run, "--stage", "draft", "--reward", "accuracy", "--scores", "strict").code == 0
    result = grade(run, "--stage", "draft", "--reward", "accuracy=2", "--scores", "strict")
    assert result.code == 4
    assert "scores shard 0 of 2 was made with another config (reward.weights" in result.stderr
    assert "--overwrite" in result.stderr


def test_select_and_update_go_by_the_scores_that_they_are_told(run):
    weights = ("--reward", "shortest", "--scores", "short", *sets(SHORTEST))
    for stage in ("draft", "refine"):
        result = grade(run, "--stage", stage, *weights)
        assert result.code == 0, result.stderr
    assert igrpo("select", run, "--scores", "short", "--overwrite").code == 0
    lengths = {(row["group_id"], row["sample_id"]): len(row["completion_ids"]) for row in rows_of(run, "draft")}
    for row in rows_of(run, "select"):
        group = [length for (group_id, _), length in lengths.items() if group_id == row["group_id"]]
        assert lengths[row["group_id"], row["draft_sample_id"]] == min(group)
        assert row["draft_reward"] == pytest.approx(1 - min(group) / longest(run))
    assert igrpo("refine", run, "--overwrite").code == 0
    missing = igrpo("update", run, "--scores", "short")
    assert missing.code == 4
    assert "refine/scores/short/shard-00000-of-00002.parquet scores rows that are no longer there" in missing.stderr
    assert grade(run, "--stage", "refine", *weights, "--overwrite").code == 0
    assert igrpo("update", run, "--scores", "short").code == 0
    advantages = pq.read_table(run / "iteration_0000/update/advantages.parquet").to_pylist()
    scores = {
        (row["stage"], row["group_id"], row["sample_id"]): row["reward"]
        for stage in ("draft", "refine")
        for row in rows_of(run, stage, "scores", "short")
    }
    assert advantages
    for row in advantages:
        assert row["reward"] == scores[row["stage"], row["group_id"], row["sample_id"]]
    assert igrpo("verify", run).code == 0


def test_scores_that_do_not_exist_are_named_with_the_command_that_makes_them(run):
    result = igrpo("select", run, "--scores", "absent", "--overwrite", "--iteration", 0)
    assert result.code == 3
    assert f"hint: igrpo grade {run} --stage draft --iteration 0 --scores absent --shard 0" in result.stderr


def test_verify_finds_scores_that_were_changed(run, tmp_path):
    assert grade(run, "--stage", "draft", "--reward", "accuracy", "--scores", "spoilt").code == 0
    path = run / "iteration_0000/draft/scores/spoilt/shard-00001-of-00002.parquet"
    sound = path.read_bytes()
    path.write_bytes(sound[:200] + bytes([sound[200] ^ 1]) + sound[201:])
    result = igrpo("verify", run)
    assert result.code == 1
    assert "draft/scores/spoilt/shard-00001-of-00002.parquet: is damaged" in result.stdout + result.stderr
    path.write_bytes(sound)


def test_a_function_that_fails_is_named_with_its_rows_and_the_stage_fails(run):
    broken = 'reward.functions={breaks="own_rewards:breaks"}'
    result = grade(run, "--stage", "draft", "--reward", "breaks", *sets(broken))
    assert result.code == 1
    assert "sample 0 of group 0 (problem " in result.stderr
    assert "is ungraded: the reward function breaks (own_rewards:breaks) raised ZeroDivisionError" in result.stderr
    assert "24 of 24 completions of scores could not be graded" in result.stderr
    allowed = grade(run, "--stage", "draft", "--reward", "breaks", *sets(broken, "reward.max_ungraded_share=1"))
    assert allowed.code == 0
    assert "ungraded" in allowed.stdout


def test_a_wrong_signature_is_said_before_the_run_exists_and_before_anything_is_sampled(tmp_path):
    (tmp_path / "own_rewards.py").write_text("def mine(token_ids): return 0.0")
    settings = sets('reward.functions={mine="own_rewards:mine"}', "reward.weights={accuracy=1, mine=1}")
    run = make_run(tmp_path / "run")
    for arguments in (["init", tmp_path / "new", "--preset", "arithmetic"], ["draft", run]):
        result = igrpo(*arguments, *settings, cwd=tmp_path)
        assert result.code == 2
        assert "the reward function mine (own_rewards:mine) has the parameter 'token_ids'" in result.stderr
    assert not (tmp_path / "new" / "run.toml").exists()
    assert not list(run.glob("iteration_0000/draft/*.parquet"))


def test_a_reward_of_ones_own_is_drafted_with_and_another_source_is_another_shard(tmp_path, monkeypatch):
    (tmp_path / "own_rewards.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    run = make_run(tmp_path / "run", SHORTEST, "reward.weights={accuracy=1, shortest=0.5}")
    assert igrpo("draft", run).code == 0
    for row in rows_of(run, "draft"):
        assert row["reward"] == pytest.approx(row["reward_accuracy"] + 0.5 * row["reward_shortest"])
    assert igrpo("draft", run).code == 0
    (tmp_path / "own_rewards.py").write_text(MODULE.replace("1 - ", "2 - "))
    result = igrpo("draft", run)
    assert result.code == 4
    assert "reward.function_sources" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--stage", "update"], "grading a run needs the stage: --stage draft or refine"),
        ([], "grading a run needs the stage"),
        (["--stage", "draft", "--reward", "acuracy"], "there are accuracy, format, overlong, length, copy, judge"),
        (["--stage", "draft", "--reward", "format=much"], "'much' is no weight"),
        (["--stage", "draft", "--scores", "../up"], "'../up' cannot name a set of scores"),
    ],
)
def test_what_makes_no_sense_is_refused(run, arguments, said):
    result = grade(run, *arguments)
    assert result.code == 2
    assert said in result.stderr
    file = igrpo("grade", run / "run.toml", "--stage", "draft")
    assert file.code == 2
    assert "is not a run" in file.stderr
