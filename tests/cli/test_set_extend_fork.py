"""Settings that change from an iteration on, longer runs, and runs that share a beginning."""

from __future__ import annotations

import json
import os
import shutil
import tomllib

import pyarrow.parquet as pq
import pytest

from command_line import files_below, igrpo, make_run, run_to_end, sets

SMALLER = ("data.problems_per_iteration=4",)
COSINE = ("update.lr_scheduler_type=cosine_with_min_lr", "update.warmup_ratio=0.0")


def weights(run, number):
    return (run / "policies" / f"{number:04d}" / "model.safetensors").read_bytes()


def shard(run, iteration, stage):
    return (run / f"iteration_{iteration:04d}" / stage / "shard-00000-of-00001.parquet").read_bytes()


def learning_rates(run):
    files = sorted(run.glob("iteration_*/update/metrics.parquet"))
    rows = [row for file in files for row in pq.read_table(file).to_pylist()]
    return [row["value"] for row in rows if row["name"] == "learning_rate"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A finished run of two iterations."""
    return run_to_end(make_run(tmp_path_factory.mktemp("changes") / "run", *SMALLER))


@pytest.fixture
def run(finished, tmp_path):
    return shutil.copytree(finished, tmp_path / "run")


@pytest.fixture(scope="module")
def worst_from_one(tmp_path_factory):
    """A run that shows the worst draft from iteration 1 on, as recorded before anything was sampled."""
    run = make_run(tmp_path_factory.mktemp("changes") / "worst", *SMALLER)
    assert igrpo("set", run, "select.strategy=worst", "--from-iteration", 1).code == 0
    return run_to_end(run)


def test_a_setting_that_no_iteration_is_left_for_is_recorded_with_a_hint(run):
    told = igrpo("set", run, "update.learning_rate=1e-6")
    assert told.code == 0
    assert f"`igrpo extend {run} --iterations 3` adds one" in told.stdout
    assert "extend" not in igrpo("set", run, "policy.keep=2").stdout
    assert "extend" not in igrpo("extend", run, "--iterations", 3).stdout


def test_a_finished_run_is_extended_and_equals_a_run_of_that_length(run, tmp_path):
    extended = igrpo("extend", run, "--iterations", 3, "--json")
    assert extended.json["from_iteration"] == 2
    assert extended.json["changed"] == {"run.num_iterations": [2, 3]}
    assert igrpo("status", run, "--json").json["unfinished"] == [2]
    run_to_end(run)
    longer = run_to_end(make_run(tmp_path / "longer", *SMALLER, "run.num_iterations=3"))
    assert weights(run, 3) == weights(longer, 3)
    assert igrpo("verify", run).code == 0
    assert igrpo("extend", run, "--iterations", 3).stdout == "the run has these settings already\n"
    shorter = igrpo("extend", run, "--iterations", 2)
    assert (shorter.code, "the run has 3 iterations, and 2 are fewer" in shorter.stderr) == (2, True)


def test_passes_over_the_problems_give_the_number_of_iterations(run):
    # 3,200 problems, 4 of them an iteration: half a pass takes 400 iterations.
    assert igrpo("extend", run, "--epochs", 0.5, "--json").json["changed"] == {"run.num_iterations": [2, 400]}
    assert igrpo("extend", run).code == 2
    assert igrpo("extend", run, "--epochs", 1, "--iterations", 5).code == 2


@pytest.mark.parametrize(
    # The cosine from 1e-4 to 1e-5 over 2 iterations has the rates 1e-4 and 5.5e-5, and 1e-5 after its end. Over 3
    # iterations, its third rate is 1e-5 + 9e-5 (1 + cos(2 pi / 3)) / 2.
    ("schedule", "last"),
    [("continue", 1e-5), ("stretch", 3.25e-5)],
)
def test_the_learning_rate_schedule_of_a_longer_run(tmp_path, schedule, last):
    run = run_to_end(make_run(tmp_path / "run", *SMALLER, *COSINE))
    flags = [] if schedule == "continue" else ["--schedule", schedule]
    extended = igrpo("extend", run, "--iterations", 3, *flags)
    assert extended.code == 0
    assert ("cosine_with_min_lr stays over 2 iterations" in extended.stderr) == (schedule == "continue")
    run_to_end(run)
    assert learning_rates(run) == pytest.approx([1e-4, 5.5e-5, last])
    assert igrpo("draft", run, "--iteration", 0).code == igrpo("update", run, "--iteration", 1).code == 0


def test_a_change_holds_for_all_commands_from_its_iteration_on(worst_from_one):
    run = worst_from_one
    select = [json.loads(each.read_text()) for each in sorted(run.glob("iteration_*/select/*.json"))]
    assert [each["identity"]["config"]["select"]["strategy"] for each in select] == ["best", "worst"]
    for stage in ("draft", "select", "refine", "update"):
        again = igrpo(stage, run, "--iteration", 1)
        assert (again.code, "already done" in again.stdout) == (0, True)
    assert tomllib.loads((run / "changes" / "0001.toml").read_text()) == {
        "from_iteration": 1,
        "settings": {"select": {"strategy": "worst"}},
    }
    assert igrpo("set", run).stdout == "from iteration 1: select.strategy = worst\n"
    assert "from iteration 1: select.strategy = worst" in igrpo("status", run).stdout
    assert igrpo("verify", run).code == 0
    # An option of one command counts more than a change.
    other = igrpo("select", run, "--iteration", 1, "--set", "select.strategy=random")
    assert (other.code, '"worst" on disk, "random" now' in other.stderr) == (4, True)


def test_a_change_begins_with_the_first_iteration_that_has_no_other_shards(run):
    for path in ("iteration_0001/update", "policies/0002"):
        shutil.rmtree(run / path)
    # The drafts of iteration 1 exist, its update does not.
    assert igrpo("set", run, "draft.temperature=0.7", "--json").json["from_iteration"] == 2
    assert igrpo("set", run, "update.learning_rate=0.001", "--json").json["from_iteration"] == 1
    assert igrpo("set", run, "update.learning_rate=0.001").stdout == "the run has these settings already\n"
    assert sorted(each.name for each in (run / "changes").iterdir()) == ["0001.toml", "0002.toml"]


def test_a_value_within_a_table_is_set_alone(run):
    result = igrpo("set", run, "reward.weights.format=0", "--json").json
    assert result["changed"] == {"reward.weights": [{"accuracy": 1.0, "format": 1.0}, {"accuracy": 1.0, "format": 0.0}]}
    no_table = igrpo("set", run, "draft.top_p.x=0")
    assert (no_table.code, "draft.top_p is no table" in no_table.stderr) == (2, True)


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["select.strategy=worst", "--from-iteration", 0], 4, "select of iteration 0 was made with other settings"),
        (["select.stratgy=worst"], 2, "the new settings: unknown key select.stratgy; did you mean select.strategy?"),
        (["run.seed=5"], 4, "run.seed was fixed when the run was created"),
        (["select.strategy"], 2, "'select.strategy' is not section.key=value"),
        (["update.optimizer_state=from_policy", "update.lora_r=4"], 2, "from_policy has no adapters to continue"),
    ],
)
def test_settings_that_cannot_be_set_leave_the_run_as_it_is(finished, arguments, code, message):
    before = files_below(finished)
    result = igrpo("set", finished, *arguments)
    assert (result.code, message in result.stderr) == (code, True), result.stderr
    assert files_below(finished) == before
    dry = igrpo("set", finished, "draft.temperature=0.5", "--dry-run")
    assert dry.stdout.startswith("from iteration 2: draft.temperature 1.0 -> 0.5\n")
    assert files_below(finished) == before


def test_a_change_that_was_edited_or_removed_is_named(run):
    for value in ("0.7", "0.8"):
        assert igrpo("set", run, f"draft.temperature={value}").code == 0
    first = run / "changes" / "0001.toml"
    sound = first.read_bytes()
    first.write_bytes(sound.replace(b"0.7", b"0.9"))
    for command, code in (("verify", 1), ("draft", 1)):
        result = igrpo(command, run)
        assert (result.code, f"{first} is not what igrpo wrote" in result.stdout + result.stderr) == (code, True)
    first.unlink()
    assert f"{first} is gone, though 0002.toml exists" in igrpo("verify", run).stdout


def test_a_fork_equals_a_run_with_these_settings_from_the_start(run, worst_from_one, tmp_path):
    new = tmp_path / "new"
    command = ("fork", run, new, "--from", 1, "--stage", "select", *sets("select.strategy=worst"))
    made = igrpo(*command, "--json").json
    assert (made["from_iteration"], made["stage"], made["bytes_copied"]) == (1, "select", 0)
    assert os.path.samefile(new / "problems.parquet", run / "problems.parquet")
    assert igrpo("status", new, "--json").json["stages"]["draft"]["done"] == 1
    before = files_below(run)
    run_to_end(new)
    assert files_below(run) == before
    for stage in ("draft", "select", "refine"):
        assert shard(new, 1, stage) == shard(worst_from_one, 1, stage)
    assert weights(new, 2) == weights(worst_from_one, 2) != weights(run, 2)
    assert igrpo("verify", new).code == 0
    assert f"forked from {run}, with its own select of iteration 1" in igrpo("status", new).stdout
    assert "The runs part after policy 1" in igrpo("diff", run, new).stdout
    igrpo("report", new)
    page = (new / "report.html").read_text()
    assert "From iteration 1: select.strategy = worst" in page
    assert '<path class="mark"' in page
    assert igrpo(*command).code == 0
    taken = igrpo(*command, *sets("select.ties=random"))
    assert (taken.code, f"{new} exists already" in taken.stderr) == (4, True)


def test_a_fork_keeps_the_length_of_its_run_and_names_later_changes_that_it_does_not_have(run, tmp_path):
    assert igrpo("extend", run, "--iterations", 4).code == 0
    assert igrpo("set", run, "select.strategy=worst", "--from-iteration", 3).code == 0
    new = tmp_path / "new"
    planned = igrpo("fork", run, new, "--from", 1, "--dry-run", "--json")
    made = igrpo("fork", run, new, "--from", 1, "--json")
    again = igrpo("fork", run, new, "--from", 1, "--json")
    assert planned.json == made.json
    assert made.json["bytes_shared"] > 0
    assert again.json == {**made.json, "exists": True, "bytes_shared": 0, "bytes_copied": 0}
    assert "not in the fork, since it was changed later: select.strategy = worst, from iteration 3" in made.stderr
    assert igrpo("run", new, "--dry-run", "--json").json["iterations"] == [1, 2, 3]


def test_a_fork_of_copies_shares_no_file(run, tmp_path):
    made = igrpo("fork", run, tmp_path / "new", "--from", 1, "--copy", "--json").json
    assert made["bytes_shared"] == 0
    assert not os.path.samefile(tmp_path / "new" / "problems.parquet", run / "problems.parquet")
    shutil.rmtree(run)
    assert igrpo("verify", tmp_path / "new").code == 0


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--from", 1, "--stage", "select", "--set", "draft.temperature=0.5"], 2, "draft.temperature decides draft"),
        (["--from", 7], 3, "policy 7"),
        (["--from", 1, "--set", "data.train=columns"], 4, "data.train was fixed"),
        (["--from", 2, "--stage", "select"], 3, "draft shard 0 of 1 is not finished"),
    ],
)
def test_a_fork_that_cannot_be_made_leaves_nothing(finished, tmp_path, arguments, code, message):
    result = igrpo("fork", finished, tmp_path / "new", *arguments)
    assert (result.code, message in result.stderr) == (code, True), result.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_fork_computes_an_optimiser_state_again_that_was_removed(run, tmp_path):
    shutil.rmtree(run / "iteration_0000" / "update" / "optimizer")
    forked = igrpo("fork", run, tmp_path / "new", "--from", 1)
    assert forked.code == 0, forked.stderr
    assert "the first update of the new run computes 0 again" in forked.stderr
    run_to_end(tmp_path / "new")
    assert weights(tmp_path / "new", 2) == weights(run, 2)
    assert igrpo("verify", tmp_path / "new").code == 0


def test_a_fork_without_the_optimiser_state_and_the_policy_says_what_that_means(run, tmp_path):
    for removed in ("iteration_0000/update/optimizer", "iteration_0001/update/optimizer", "policies/0001"):
        shutil.rmtree(run / removed)
    assert igrpo("extend", run, "--iterations", 3).code == 0
    refused = igrpo("fork", run, tmp_path / "new", "--from", 2)
    assert refused.code == 3
    assert "the optimiser state that the update of iteration 2 continues from does not exist" in refused.stderr
    assert "policies/0001 does not exist" in refused.stderr
    assert "--fresh-optimizer begins iteration 2 with zero moments" in refused.stderr
    assert not tmp_path.joinpath("new").exists()
    stopped = igrpo("run", run)
    assert stopped.code == 3
    assert "cannot be computed again: " in stopped.stderr
    assert "--set update.optimizer_state=from_policy" in stopped.stderr


def test_a_fork_with_a_fresh_optimiser(run, tmp_path):
    shutil.rmtree(run / "iteration_0000" / "update" / "optimizer")
    assert igrpo("fork", run, tmp_path / "new", "--from", 1, "--fresh-optimizer").code == 0
    assert igrpo("set", tmp_path / "new", "--json").json["changes"] == [
        {"from_iteration": 1, "settings": {"update": {"optimizer_state": "from_policy"}}},
        {"from_iteration": 2, "settings": {"update": {"optimizer_state": "carry"}}},
    ]
    run_to_end(tmp_path / "new")
    # Another first step, since Adam begins without moments; the samples before it are the same.
    assert shard(tmp_path / "new", 1, "draft") == shard(run, 1, "draft")
    assert weights(tmp_path / "new", 2) != weights(run, 2)


def test_a_parent_that_changed_is_noted(run, tmp_path):
    new = tmp_path / "new"
    assert igrpo("fork", run, new, "--from", 1).code == 0
    for path in ("iteration_0001", "policies/0001", "policies/0002"):
        shutil.rmtree(run / path)
    assert igrpo("update", run, "--iteration", 0, "--overwrite", *sets("update.learning_rate=0.01")).code == 0
    noted = igrpo("verify", new)
    assert noted.code == 0
    assert f"policy 1 of {run} is another one now" in noted.stdout + noted.stderr


def test_a_change_to_what_a_single_command_used_is_no_conflict(run, tmp_path):
    other = sets("select.strategy=worst")
    assert igrpo("select", run, "--iteration", 1, "--overwrite", "--cascade", *other).code == 0
    assert igrpo("set", run, "select.strategy=worst", "--from-iteration", 1).code == 0
    run_to_end(run)
    assert igrpo("verify", run).code == 0


def test_a_fork_of_what_a_single_command_used_needs_the_same_setting(run, tmp_path):
    made = igrpo("select", run, "--iteration", 1, "--overwrite", "--cascade", *sets("select.strategy=worst"))
    assert made.code == 0
    refused = igrpo("fork", run, tmp_path / "new", "--from", 1, "--stage", "refine")
    assert (refused.code, "select.strategy decides select" in refused.stderr) == (2, True)
    assert (
        igrpo("fork", run, tmp_path / "new", "--from", 1, "--stage", "refine", *sets("select.strategy=worst")).code == 0
    )
    run_to_end(tmp_path / "new")
