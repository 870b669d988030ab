"""A run in Python: what the tables hold, that reading is checked, and that errors say what exists."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest

import igrpo_cli
from command_line import igrpo, make_run, sets
from igrpo_cli.errors import DamagedFileError, MissingInputError, UsageError
from igrpo_cli.inspection.opened_run import Run

PAGE = (Path(__file__).parents[2] / "docs/python-api.md").read_text("utf-8")


@pytest.fixture
def run(finished_run):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield igrpo_cli.open_run(finished_run)


@pytest.fixture
def copy(finished_run, tmp_path) -> Path:
    return Path(shutil.copytree(finished_run, tmp_path / "copy"))


def flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 3] ^= 1
    path.write_bytes(content)


def test_the_tables_have_the_rows_of_the_run(run):
    # 2 iterations of 8 problems, 3 drafts and 3 refinements of each.
    assert (run.iterations, run.policies) == ([0, 1], [0, 1, 2])
    assert run.rollouts().num_rows == 2 * 8 * (3 + 3)
    assert run.rollouts(iteration=1).num_rows == 8 * (3 + 3)
    refinements = run.rollouts(iteration=1, stage="refine")
    assert set(refinements["stage"].to_pylist()) == {"refine"}
    assert set(refinements["iteration"].to_pylist()) == {1}
    assert run.selections(iteration=0).num_rows == 8
    assert run.advantages(0).num_rows == 8 * (3 + 3)
    assert run.problems(["problem_id"]).num_rows > 8
    assert run.rollouts(columns=["reward", "verdict"]).column_names == ["reward", "verdict"]


def test_pandas_gets_the_values_that_the_update_recorded(run):
    metrics = run.metrics(iteration=1).to_pandas()
    recorded = metrics.query("name == 'refine/reward_mean' and step == -1")["value"].item()
    rollouts = run.rollouts(iteration=1, stage="refine", columns=["reward"]).to_pandas()
    assert rollouts["reward"].mean() == pytest.approx(recorded)


def test_settings_are_those_of_the_run_and_of_an_iteration(copy):
    assert igrpo("set", copy, "update.learning_rate=1e-6", "--from-iteration", "2").code in (0, 2)
    run = igrpo_cli.open_run(str(copy))
    assert run.settings.draft.num_generations == 3
    assert run.settings_of(0).update.learning_rate == 1e-4


def test_a_policy_is_a_directory_whose_files_were_hashed(copy):
    run = igrpo_cli.open_run(copy)
    assert run.policy() == run.policy(2) == copy / "policies/0002"
    assert (run.policy(0) / "config.json").exists()
    flip_a_bit(copy / "policies/0002/model.safetensors")
    with pytest.raises(DamagedFileError, match=r"model\.safetensors has changed since policy"):
        run.policy(2)
    with pytest.raises(MissingInputError, match="has no policy 7; it has 0-2"):
        run.policy(7)


def test_what_is_missing_is_named_with_what_exists(run, tmp_path):
    with pytest.raises(MissingInputError, match="no refine shard in iteration 9; iterations 0-1 have one"):
        run.rollouts(iteration=9, stage="refine")
    with pytest.raises(MissingInputError, match="no complete update in iteration 9; iterations 0-1 have one"):
        run.metrics(iteration=9)
    with pytest.raises(UsageError, match="no column 'rewards'; they have iteration, stage, "):
        run.rollouts(columns=["rewards"])
    with pytest.raises(UsageError, match="'refined' is not a stage with completions"):
        run.rollouts(stage="refined")
    with pytest.raises(MissingInputError, match="has no scores 'short'; it has none"):
        run.scores("short")
    with pytest.raises(TypeError):
        run.rollouts(iteration="1")
    with pytest.raises(MissingInputError, match="is not a run directory"):
        igrpo_cli.open_run(tmp_path)


def test_damaged_pages_are_an_error_and_never_rows(copy):
    flip_a_bit(next((copy / "iteration_0001/draft").glob("*.parquet")))
    run = igrpo_cli.open_run(copy)
    with pytest.raises(DamagedFileError):
        run.rollouts(iteration=1)
    assert run.rollouts(iteration=0).num_rows == 8 * (3 + 3)


def test_a_reward_part_that_some_files_lack_is_null_there(copy):
    assert igrpo("grade", copy, "--stage", "draft", "--iteration", "0", "--reward", "length", "--scores", "s").code == 0
    assert igrpo("grade", copy, "--stage", "draft", "--iteration", "1", "--reward", "format", "--scores", "s").code == 0
    scores = igrpo_cli.open_run(copy).scores("s", stage="draft")
    by_iteration = dict(zip((0, 1), np.split(np.array(scores["reward_length"].to_pylist(), float), 2), strict=True))
    assert np.isfinite(by_iteration[0]).all()
    assert np.isnan(by_iteration[1]).all()
    with pytest.raises(MissingInputError, match="it has s"):
        igrpo_cli.open_run(copy).scores("t")


def test_an_incomplete_stage_gives_its_complete_shards_and_a_warning(tmp_path):
    path = make_run(tmp_path / "run", "run.num_shards=4")
    run = igrpo_cli.open_run(path)
    with pytest.raises(MissingInputError, match="no draft shard in iteration 0, and no other iteration has one"):
        run.rollouts(iteration=0, stage="draft")
    assert run.rollouts().num_rows == 0
    assert igrpo("draft", path, "--shard", "1").code == 0
    with pytest.warns(UserWarning, match="draft of iteration 0: 1 of 4 shards are complete") as warned:
        assert run.rollouts(iteration=0).num_rows == 2 * 3
    assert warned[0].filename == __file__


def test_evaluations_are_the_figures_of_eval(copy):
    evaluated = igrpo("eval", copy, "--bench", "arithmetic", "--samples", "2", *sets("eval.limit=3"), "--json")
    (found,) = igrpo_cli.open_run(copy).evaluations()
    assert (found["bench"], found["policy"], found["with_draft"]) == ("arithmetic", 2, None)
    assert found["avg_at_k"] == evaluated.json["avg_at_k"]


def test_nothing_is_written(copy):
    before = {path: path.stat().st_mtime_ns for path in copy.rglob("*")}
    run = igrpo_cli.open_run(copy)
    for read in (run.problems, run.rollouts, run.selections, run.advantages, run.metrics, run.policy, run.evaluations):
        read()
    assert {path: path.stat().st_mtime_ns for path in copy.rglob("*")} == before


def test_importing_and_opening_loads_nothing_heavy(finished_run):
    heavy = "torch", "transformers", "pyarrow", "numpy", "duckdb", "datasets"
    code = (
        f"import sys, igrpo_cli\nrun = igrpo_cli.open_run({str(finished_run)!r})\n"
        f"print(run.iterations, [name for name in {heavy!r} if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[0, 1] []\n"


def test_the_page_lists_every_method():
    table = PAGE.partition("| of `run` | result |")[2].partition("\n\n")[0]
    listed = {name for row in table.splitlines()[2:] for name in re.findall(r"`(\w+)", row.split("|")[1])}
    assert listed == {name for name in vars(Run) if not name.startswith("_")}
