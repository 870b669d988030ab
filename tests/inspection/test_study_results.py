"""The results of a study: what they are over, and what a damaged or incomplete run does to them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from command_line import igrpo
from igrpo_cli.config import RunConfig
from igrpo_cli.config.files import write_config
from igrpo_cli.config.study import Cell, Study, read_study
from igrpo_cli.inspection.study import WITH_DRAFT, WITHOUT_DRAFT, ArmResults, CellResults, StudyResults
from igrpo_cli.records import Metric, Rollout
from igrpo_cli.store.atomic import remove_directory
from igrpo_cli.store.checksummed_json import read_summary, write_summary
from igrpo_cli.store.manifest import read_manifest
from igrpo_cli.store.schema import METRICS, ROLLOUTS
from igrpo_cli.store.settings import checksummed_settings
from igrpo_cli.store.tables import read_records, write_rows
from made_evaluation import make_evaluation, make_problems
from sample_run import make_run

NAN = float("nan")
FILE = """
name = "small"
preset = "arithmetic"
seeds = [0]
eval_every = 2
keep_policies = "evaluated"

[set]
run.num_iterations = 2
run.num_shards = 2

[arms.best]
update.train_on = "both"
"""


def results_of(arms: dict[str, list[list[list[float]]]], **keys: int) -> StudyResults:
    """Results from {arm: accuracies by seed, policy and problem}, with 10 tokens before each further policy."""
    found = []
    for name, of_seeds in arms.items():
        cells = []
        for seed, of_policies in enumerate(of_seeds):
            correct = {policy: np.array(values) for policy, values in enumerate(of_policies)}
            spent = {axis: [10.0 * each for each in correct] for axis in ("tokens", "seconds", "gpu_seconds")}
            both = {WITHOUT_DRAFT: correct, WITH_DRAFT: correct}
            cells.append(CellResults(Cell(name, seed, RunConfig()), both, {}, spent, [], None))
        found.append(ArmResults(name, cells, cells))
    study = Study(name="s", seeds=[0, 1], arms={name: {} for name in arms}, **keys)
    return StudyResults(study, found)


def test_the_baseline_reaches_its_own_final_accuracy_where_a_seed_has_ungraded_problems():
    # The last problem of seed 1 is ungraded: both are over the first two, 0.5 at the end.
    results = results_of({"base": [[[0, 0, 0], [1, 0, 0]], [[0, 0, 0], [1, 0, NAN]]]})
    assert results.target == 0.5
    assert results.cost_of_target("base") == {"tokens": 10.0, "gpu_seconds": 10.0, "seeds": 2}


def test_a_policy_without_a_problem_that_all_seeds_have_is_left_out_of_the_cost():
    results = results_of({"base": [[[0, NAN], [0, 0], [1, 1]], [[NAN, 0], [0, 0], [1, 1]]]})
    assert results.cost_of_target("base") == {"tokens": 20.0, "gpu_seconds": 20.0, "seeds": 2}


def test_arms_are_compared_at_the_tokens_that_the_file_names():
    arms = {"base": [[[0, 0], [0, 0], [1, 1]]] * 2, "fast": [[[0, 0], [1, 1], [1, 1]]] * 2}
    for keys, gained in (({}, 0.0), ({"compare_at_tokens": 10}, 1.0), ({"compare_at_tokens": 50}, 0.0)):
        comparisons = results_of(arms, **keys).comparisons
        assert next(each for each in comparisons if each.score == "equal_tokens").difference.value == gained


def test_p_values_are_corrected_for_all_arms_of_the_file_and_not_only_for_those_with_results():
    better = [[[0.5, 0, 0.5, 0], [1, 0, 1, 0.5]]] * 2 + [[[0.5, 0, 0.5, 0], [1, 0.5, 1, 0.5]]]
    worse = [[[0.5, 0, 0.5, 0], [0.5, 0, 0.5, 0]]] * 2 + [[[0.5, 0, 0.5, 0], [0.5, 0, 1, 0]]]
    comparisons = results_of({"base": worse, "best": better, "late": [], "later": []}).comparisons
    final = next(each for each in comparisons if each.score == "final")
    assert final.arm == "best"
    assert final.corrected == pytest.approx(min(1, 3 * final.p_value))
    with_two_seeds = results_of({"base": worse[1:], "best": better[1:]}).comparisons
    assert {(each.p_value, each.corrected) for each in with_two_seeds} == {(None, None)}


@pytest.fixture
def study(tmp_path):
    """A study of one cell, with both iterations and all evaluations, made by hand."""
    file, root = tmp_path / "small.toml", tmp_path / "out"
    file.write_text(FILE)
    _, (cell,) = read_study(file)
    run = make_run(root / cell.path)
    run.run_toml.write_bytes(checksummed_settings(write_config(cell.config)))
    make_problems(run.root, "arithmetic", 2)
    for policy in (0, 2):
        for kind in (None, "each"):
            paths = make_evaluation(
                run, "arithmetic", policy, ["!4", "5"], ["!4", "!4"], num_shards=2, conditioned=kind
            )
            shards = [read_manifest(path).data.sha256 for path in paths]
            write_summary(run.eval_summary("arithmetic", policy, conditioned=kind), {"shards": shards})
    return file, root, run


def reported(study, *arguments):
    return igrpo("study", study[0], "--output", study[1], "--report", "--json", *arguments)


def test_an_intact_study_is_reported_with_its_settings_and_those_of_the_command_line(study):
    run = study[2]
    result = reported(study)
    assert result.code == 0, result.stderr
    assert result.json["arms"]["best"]["complete"] == [0]
    assert result.json["arms"]["best"]["scores"]["final"]["value"] == 0.75
    file = study[0]
    config = read_study(file, ["draft.temperature=0.8"])[1][0].config
    run.run_toml.write_bytes(checksummed_settings(write_config(config)))
    assert reported(study, "--set", "draft.temperature=0.8").code == 0
    page = (study[1] / "study.html").read_text("utf-8")
    assert "--set draft.temperature=0.8" in page
    assert "temperature = 0.8" in page


@pytest.mark.parametrize(
    ("name", "command"),
    [
        ("iteration_0001/update/metrics.parquet", "igrpo update {run} --iteration 1"),
        ("iteration_0000/update/manifest.json", "igrpo update {run} --iteration 0"),
        ("iteration_0001/update/manifest.json", "igrpo update {run} --iteration 1"),
        ("run.toml", "igrpo study {file} --output {root}"),
        ("problems.parquet", "igrpo init {run} --config {run}/run.toml"),
        ("problems.json", "igrpo init {run} --config {run}/run.toml"),
        ("eval/arithmetic/problems.parquet", "igrpo eval {run} --bench arithmetic"),
        ("eval/arithmetic/policy_0002/shard-00001-of-00002.parquet", "--iteration 2 --shard 1"),
    ],
)
def test_a_missing_file_of_a_cell_is_named_with_the_command_that_makes_it_again(study, name, command):
    file, root, run = study
    (run.root / name).unlink()
    result = reported(study)
    assert result.code == 3
    assert str(run.root / name) in result.stderr
    assert command.format(file=file, root=root, run=run.root) in result.stderr
    plan = igrpo("study", file, "--output", root, "--dry-run", "--json").json
    assert plan["open_cells"] == ("" if "shard" in name else "0")


def test_the_hint_does_not_name_an_update_that_cannot_be_made_again(study):
    run = study[2]
    run.update(1).metrics.unlink()
    remove_directory(run.policy(1))
    assert "restore the file, or remove" in reported(study).stderr


def test_another_valid_file_in_the_place_of_a_shard_is_refused(study):
    run = study[2]
    shard = run.eval_shard("arithmetic", 2, 0, 2)
    rows = read_records(shard.data, Rollout)
    write_rows(shard.data, ROLLOUTS, [[replace(row, completion="other") for row in rows]], replace=True)
    result = reported(study)
    assert result.code == 1
    assert f"{shard.data} " in result.stderr
    assert "--overwrite" in result.stderr


def test_shards_that_were_made_again_do_not_go_with_the_old_summary(study):
    run = study[2]
    summary = run.eval_summary("arithmetic", 2, conditioned="each")
    write_summary(summary, {**read_summary(summary), "shards": ["0" * 64, "1" * 64]})
    result = reported(study)
    assert result.code == 1
    assert f"{summary} is of other shards" in result.stderr


def test_other_metrics_than_the_manifest_describes_are_refused(study):
    run = study[2]
    write_rows(run.update(1).metrics, METRICS, [[Metric(1, -1, "loss", 0.25)]], replace=True)
    result = reported(study)
    assert result.code == 1
    assert f"igrpo update {run.root} --iteration 1 --overwrite" in result.stderr


def test_evaluations_of_removed_policies_are_refused_before_anything_is_run(study):
    file, root, run = study
    remove_directory(run.policy(1))
    file.write_text(FILE.replace("eval_every = 2", "eval_every = 1"))
    for flags in ([], ["--dry-run"]):
        result = igrpo("study", file, "--output", root, *flags)
        assert result.code == 4
        assert "the policies 1 of best, seed 0 cannot be evaluated: they were removed" in result.stderr
        assert "hint: give eval_every the value it had" in result.stderr
    assert not (run.root / "eval/arithmetic/policy_0001").exists()
