"""`igrpo study`: its files after a kill and with two processes, its tables and its conflicts."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from command_line import ONE_THREAD, files_below, igrpo

FILE = """
name = "small"
preset = "arithmetic"
seeds = [0, 1]
baseline = "grpo"
eval_every = 3
keep_policies = "evaluated"

[set]
run.num_iterations = 3
data.problems_per_iteration = 4
draft.num_generations = 2
refine.num_generations = 2
engine.groups_per_block = 2
eval.limit = 6
reward.num_workers = 1

[arms.grpo]
run.method = "grpo"
draft.num_generations = 4

[arms.published]
update.train_on = "refinements"

[reported]
grpo = 41.5
"""


@pytest.fixture(scope="module")
def study_file(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("study") / "small.toml"
    path.write_text(FILE)
    return path


@pytest.fixture(scope="module")
def complete(study_file):
    """The directory of the study after one undisturbed process, which no test may change, and its result."""
    directory = study_file.parent / "complete"
    result = igrpo("study", study_file, "--output", directory, "--json")
    assert result.code == 0, result.stderr
    return directory, result.json


def results_of(directory):
    """The bytes of all data, summaries and figures. Other JSON files and the figures over seconds hold times."""
    found = files_below(directory, (".parquet", ".safetensors", ".json", ".svg"))
    return {
        name: content
        for name, content in found.items()
        if name.endswith((".parquet", ".safetensors", "summary.json", ".svg")) and not name.endswith("by-seconds.svg")
    }


def started(file, directory, *arguments):
    command = [sys.executable, "-m", "igrpo_cli", "study", file, "--output", directory, "--json", "-q", *arguments]
    return subprocess.Popen([*map(str, command)], env=ONE_THREAD, stdout=subprocess.PIPE, text=True)


def without_costs(payload):
    """The result without what depends on the clock and on the directory."""
    text = json.dumps({**payload, "output": "", "page": "", "figures": []})
    kept = json.loads(text)
    for arm in kept["arms"].values():
        arm["spent"], arm["cost_of_target"] = arm["spent"]["tokens"], arm["cost_of_target"]["tokens"]
    return kept


@pytest.mark.slow
def test_a_study_ends_with_tables_a_page_and_figures(complete, study_file):
    directory, payload = complete
    assert payload["baseline"] == "grpo"
    assert {name: arm["complete"] for name, arm in payload["arms"].items()} == {"grpo": [0, 1], "published": [0, 1]}
    for arm in payload["arms"].values():
        assert [each["at"] for each in arm["curves"]["eval/without_draft"]] == [0, 3]
        assert arm["scores"]["final"]["value"] == arm["curves"]["eval/without_draft"][-1]["value"]
        low, high = arm["scores"]["final"]["ci95"]
        assert 0 <= low <= arm["scores"]["final"]["value"] <= high <= 1
        assert len(arm["curves"]["draft/groups_with_gradient"]) == 3
    scores = {name: arm["scores"]["final"]["value"] for name, arm in payload["arms"].items()}
    final = next(each for each in payload["comparisons"] if each["score"] == "final")
    assert (final["arm"], final["seeds"]) == ("published", 2)
    assert final["difference"] == pytest.approx(scores["published"] - scores["grpo"])
    assert (final["p_value"], final["p_corrected"]) == (None, None)  # of two seeds
    page = (directory / "study.html").read_text("utf-8")
    assert "Differences from grpo" in page
    assert "41.5" in page
    assert "http" not in page.replace("http-equiv", "").replace("http://www.w3.org", "")
    assert {"eval-without-draft-by-iteration.svg", "eval-without-draft-by-tokens.svg"} <= {
        Path(each).name for each in payload["figures"]
    }
    text = igrpo("study", study_file, "--output", directory, "--report", "--markdown")
    assert "| published | 2 of 2 |" in text.stdout


@pytest.mark.slow
def test_a_cell_is_a_run_for_other_commands_and_keeps_the_evaluated_policies(complete):
    run = complete[0] / "published" / "seed-1"
    assert igrpo("verify", run).code == 0
    assert sorted(path.name for path in (run / "policies").iterdir()) == ["0000", "0002", "0003"]
    assert igrpo("run", run, "--json").json["iterations"] == []
    assert igrpo("report", run, "--output", run.parent.parent.parent / "report.html").code == 0


@pytest.mark.slow
def test_cells_share_what_has_the_same_identity(complete):
    directory, _ = complete
    shard = "eval/arithmetic/policy_0000/shard-00000-of-00001.json"
    manifests = {
        (directory / arm / f"seed-{seed}" / shard).read_bytes() for arm in ("grpo", "published") for seed in (0, 1)
    }
    assert len(manifests) == 1
    drafts = "iteration_0000/draft/shard-00000-of-00001.parquet"
    assert (directory / "grpo/seed-0" / drafts).read_bytes() != (directory / "published/seed-0" / drafts).read_bytes()


@pytest.mark.slow
def test_a_killed_study_is_continued_to_the_same_bytes(complete, study_file, tmp_path):
    directory = tmp_path / "killed"
    marker = directory / "published/seed-0/iteration_0000/refine"
    process = started(study_file, directory)
    while process.poll() is None and not marker.exists():
        time.sleep(0.02)
    assert process.poll() is None, "it ended before it could be killed"
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    assert not (directory / "study.html").exists()
    result = igrpo("study", study_file, "--output", directory, "--json")
    assert result.code == 0, result.stderr
    assert results_of(directory) == results_of(complete[0])
    assert without_costs(result.json) == without_costs(complete[1])


@pytest.mark.slow
def test_two_processes_share_the_cells_and_write_the_same_bytes(complete, study_file, tmp_path):
    directory = tmp_path / "two"
    processes = [started(study_file, directory) for _ in range(2)]
    results = [json.loads(process.communicate(timeout=500)[0]) for process in processes]
    assert [process.returncode for process in processes] == [0, 0]
    assert results_of(directory) == results_of(complete[0])
    for result in results:
        assert without_costs(result) == without_costs(complete[1])


@pytest.mark.slow
def test_a_changed_file_conflicts_with_existing_cells_and_names_the_key(complete, study_file, tmp_path):
    file = tmp_path / "small.toml"
    file.write_text(FILE.replace('"refinements"', '"both"'))
    before = results_of(complete[0])
    result = igrpo("study", file, "--output", complete[0], "--seed", 0)
    assert result.code == 4
    assert "published/seed-0 is already a run" in result.stderr
    assert "update.train_on 'refinements' on disk, 'both' now" in result.stderr
    assert "hint: undo the change in" in result.stderr
    assert results_of(complete[0]) == before


@pytest.mark.slow
def test_a_part_of_a_study_can_be_reported(complete, study_file, tmp_path):
    for arm in ("grpo", "published"):
        shutil.copytree(complete[0] / arm / "seed-0", tmp_path / "part" / arm / "seed-0")
    result = igrpo("study", study_file, "--output", tmp_path / "part", "--report")
    assert (result.code, "2 of 4 cells are not complete" in result.stdout) == (0, True)
    plan = igrpo("study", study_file, "--output", tmp_path / "part", "--dry-run", "--json").json
    assert (plan["open_cells"], [cell["complete"] for cell in plan["cells"]]) == ("2-3", [True, True, False, False])


def test_the_plan_counts_cells_and_tokens_and_writes_nothing(study_file, tmp_path):
    plan = igrpo("study", study_file, "--output", tmp_path / "new", "--dry-run", "--json").json
    assert [(cell["arm"], cell["seed"]) for cell in plan["cells"]] == [
        *(("grpo", 0), ("published", 0)),
        *(("grpo", 1), ("published", 1)),
    ]
    first = plan["cells"][0]
    # 3 iterations x 4 problems x 4 drafts x 40 tokens; 2 policies x 2 kinds x 6 problems x 2 samples x 40 tokens.
    assert (first["max_tokens_sampled"], first["max_eval_tokens"]) == (1920, 1920)
    assert plan["open_cells"] == "0-3"
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("arguments", "env", "message", "hint"),
    [
        (["--arm", "both"], {}, "has no arm both", "its arms: grpo, published"),
        (["--seed", "7"], {}, "has no seed 7", "its seeds: 0, 1"),
        (["--seed", "0,2-4"], {}, "has no seed 2-4", "its seeds: 0, 1"),
        (["--seed", "first"], {}, "has no seed first", "its seeds: 0, 1"),
        (["--cell", "4"], {}, "cell 4 of 4 does not exist", "for example --cell 0"),
        ([], {"SLURM_ARRAY_TASK_ID": "9"}, "cell 9 of 4 does not exist", "it has 4 cells, counted from 0"),
        (["--set", "draft.temprature=1"], {}, "did you mean draft.temperature", ""),
    ],
)
def test_wrong_usage_is_refused_before_anything_is_run(study_file, tmp_path, arguments, env, message, hint):
    result = igrpo("study", study_file, "--output", tmp_path / "new", *arguments, env=env)
    assert result.code == 2
    assert message in result.stderr
    assert hint in result.stderr
    assert not (tmp_path / "new").exists()


@pytest.mark.slow
def test_a_cell_that_fails_leaves_the_others_to_be_run_and_is_the_error_at_the_end(study_file, tmp_path):
    drafts, file = tmp_path / "drafts.jsonl", tmp_path / "small.toml"
    drafts.write_text('{"problem_id": "another", "draft": "7"}\n')
    head = FILE.partition("[arms.grpo]")[0].replace("num_iterations = 3", "num_iterations = 1")
    outside = f'[arms.outside]\nselect.strategy = "external"\nselect.external = "{drafts}"\n'
    file.write_text(f'{head}{outside}[arms.grpo]\nrun.method = "grpo"\ndraft.num_generations = 4\n')
    result = igrpo("study", file, "--output", tmp_path / "study", "--seed", "0-1")
    assert result.code != 0
    assert "2 of 4 cells failed; the first, outside, seed 0: " in result.stderr
    assert "grpo     2 of 2" in result.stdout


def test_without_results_there_is_nothing_to_report(study_file, tmp_path):
    result = igrpo("study", study_file, "--output", tmp_path / "new", "--report")
    assert result.code == 3
    assert "has no results yet" in result.stderr
    assert "hint: igrpo study" in result.stderr


@pytest.mark.slow
def test_an_arm_without_evaluations_with_draft_is_compared_in_the_others(tmp_path):
    arms = """
[arms.both]
update.train_on = "both"

[arms.verdicts]
update.train_on = "both"
reward.refinements = "verdict"
select.strategy = "random"
"""
    file = tmp_path / "small.toml"
    head = FILE.partition("[arms.grpo]")[0].replace("num_iterations = 3", "num_iterations = 1")
    file.write_text(head.replace('"grpo"', '"both"').replace("[0, 1]", "[0]") + arms)
    command = ("study", file, "--output", tmp_path / "study")
    plan = igrpo(*command, "--dry-run", "--json").json
    # 2 policies x 1 or 2 kinds x 6 problems x 2 samples x 40 tokens.
    assert [cell["max_eval_tokens"] for cell in plan["cells"]] == [1920, 960]
    result = igrpo(*command, "--json")
    assert result.code == 0, result.stderr
    verdicts = result.json["arms"]["verdicts"]
    assert verdicts["complete"] == [0]
    assert verdicts["scores"]["final_with_draft"] is None
    assert verdicts["scores"]["final"]["value"] == verdicts["curves"]["eval/without_draft"][-1]["value"]
    assert len(verdicts["curves"]["verify/verdict_correct"]) == 1
    assert "refine/verdict_correct" not in verdicts["curves"]
    compared = {each["score"] for each in result.json["comparisons"]}
    assert compared == {"final", "mean", "equal_tokens"}
    text = igrpo(*command, "--report", "--markdown").stdout
    assert "| accuracy of verdicts on drafts | verdicts |" in text
    assert igrpo(*command, "--dry-run", "--json").json["open_cells"] == ""
