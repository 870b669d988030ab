"""One run sent to each tracker and read back from the tracker's own files: the figures of `metrics.parquet`."""

from __future__ import annotations

import json
import shutil
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from read_back import read_trackio, tensorboard_curves, trackio_curves, wandb_curves, wandb_records

from command_line import ONE_THREAD, TRACKIO_DIRECTORY, Result, igrpo, igrpo_process, sets
from igrpo_cli.loggers import trackers
from igrpo_cli.records import Metric
from igrpo_cli.store.checksummed_json import write_sent
from igrpo_cli.store.layout import RunDirectory
from igrpo_cli.store.tables import read_records

pytestmark = pytest.mark.skipif(
    any(find_spec(name) is None for name in trackers.NAMES), reason="needs trackio, tensorboard and wandb"
)

KEY = "a" * 40
PROJECT = "read-back"


@pytest.fixture(scope="module")
def run(tmp_path_factory, finished_run) -> Path:
    """A finished run with two updates and two evaluations, sent to all trackers by one command."""
    path = tmp_path_factory.mktemp("logged") / "first"
    shutil.copytree(finished_run, path)
    for iteration in (0, 2):
        small = sets("eval.limit=4", "eval.repeats=2")
        assert igrpo("eval", path, "--bench", "arithmetic", "--iteration", iteration, *small).code == 0
    result = log(path, *trackers.NAMES)
    assert result.code == 0, result.stderr
    assert {name: len(each["sent"]) for name, each in result.json["trackers"].items()} == dict.fromkeys(
        trackers.NAMES, 4
    )
    return path


def log(path: Path, *names: str) -> Result:
    """`igrpo log`, offline."""
    to = [piece for name in names for piece in ("--to", name)]
    settings = sets(f"log.project={PROJECT}")
    env = {"WANDB_MODE": "offline", "WANDB_API_KEY": KEY}
    return igrpo("log", path, *to, *settings, "--json", env=env)


def trackio_rows(path: Path) -> list[tuple[int, dict]]:
    return read_trackio(Path(TRACKIO_DIRECTORY.name) / f"{PROJECT}.db", path.name)


def read_all(path: Path) -> dict[str, dict]:
    return {
        "trackio": trackio_curves(trackio_rows(path)),
        "tensorboard": tensorboard_curves(path / "log" / "tensorboard"),
        "wandb": wandb_curves(path / "log"),
    }


def recorded(path: Path) -> dict[str, list[tuple[int, float]]]:
    """The curves of `metrics.parquet`: metrics of stages by iteration, those of steps by step."""
    curves: dict[str, list[tuple[int, float]]] = {}
    for iteration in range(2):
        for metric in read_records(RunDirectory(path).update(iteration).metrics, Metric):
            name, x = (metric.name, iteration) if metric.step < 0 else (f"update/{metric.name}", metric.step)
            curves.setdefault(name, []).append((x, metric.value))
    return curves


@pytest.fixture(scope="module")
def read_back(run) -> dict[str, dict]:
    return read_all(run)


@pytest.mark.parametrize("tracker", trackers.NAMES)
def test_a_tracker_holds_exactly_what_the_updates_recorded(run, read_back, tracker):
    expected = recorded(run)
    assert len(expected) > 50
    found = {name: points for name, points in read_back[tracker].items() if not name.startswith(("train/", "eval/"))}
    if tracker == "tensorboard":
        expected = {name: [(x, float(np.float32(v))) for x, v in points] for name, points in expected.items()}
    assert found == expected


@pytest.mark.parametrize("tracker", trackers.NAMES)
def test_evaluations_stand_at_the_number_of_their_policy(run, read_back, tracker):
    points = read_back[tracker]["eval/arithmetic/avg_at_k"]
    summaries = [json.loads(RunDirectory(run).eval_summary("arithmetic", k).read_text()) for k in (0, 2)]
    assert points == [(0, summaries[0]["avg_at_k"]), (2, summaries[1]["avg_at_k"])]
    low = read_back[tracker]["eval/arithmetic/ci95_low"]
    assert [value for _, value in low] == pytest.approx([summary["ci95"][0] for summary in summaries])


@pytest.mark.parametrize("tracker", trackers.NAMES)
def test_what_trl_logs_is_there_under_its_names(read_back, tracker):
    curves = read_back[tracker]
    same = {
        "train/loss": "update/loss",
        "train/grad_norm": "update/grad_norm",
        "train/entropy": "update/entropy",
        "train/kl": "update/kl",
        "train/reward": "draft/reward_mean",
        "train/completions/mean_length": "draft/completion_length_mean",
        "train/completions/clipped_ratio": "draft/truncated",
    }
    assert {name: curves[name] for name in same} == {name: curves[ours] for name, ours in same.items()}
    active = [value for _, value in curves["draft/groups_with_gradient"]]
    assert curves["train/frac_reward_zero_std"] == [(0, 1 - active[0]), (1, 1 - active[1])]


def test_sending_again_sends_nothing(run, read_back):
    result = log(run, *trackers.NAMES)
    assert [each["sent"] for each in result.json["trackers"].values()] == [[], [], []]
    assert read_all(run) == read_back


def test_wandb_is_told_the_axes_the_settings_and_nothing_of_the_machine(run):
    records = {kind: [] for kind in ("metric", "run")}
    for record in wandb_records(run / "log"):
        records.setdefault(record.WhichOneof("record_type"), []).append(record)
    axes = {each.metric.glob_name: each.metric.step_metric for each in records["metric"] if each.metric.glob_name}
    by_iteration = ("draft/*", "select/*", "refine/*", "eval/*")
    assert axes == dict.fromkeys(by_iteration, "iteration") | dict.fromkeys(
        ("update/*", "train/*"), "train/global_step"
    )
    told = records["run"][0].run
    assert (told.project, told.display_name, told.host) == (PROJECT, "first", "")
    assert {item.key for item in told.config.update} >= {"run", "draft", "update", "engine"}
    assert "endpoints" not in "".join(item.value_json for item in told.config.update if item.key == "engine")


def test_no_file_of_the_run_holds_a_key(run):
    files = [file for file in run.rglob("*") if file.is_file()]
    assert any(file.suffix == ".wandb" for file in files)
    assert not [file for file in files if KEY.encode() in file.read_bytes()]


def test_a_verified_run_stays_sound(run):
    assert igrpo("verify", run).code == 0


@pytest.fixture(scope="module")
def half_sent(tmp_path_factory, run) -> Path:
    """The run as it was when it had one update, sent then; it goes on when its second iteration is copied."""
    path = tmp_path_factory.mktemp("half") / "half"
    shutil.copytree(run, path, ignore=shutil.ignore_patterns("log", "eval", "iteration_0001"))
    assert log(path, *trackers.NAMES).code == 0
    shutil.copytree(run / "iteration_0001", path / "iteration_0001")
    return path


def test_a_run_that_goes_on_continues_its_record(run, half_sent):
    for name, each in log(half_sent, *trackers.NAMES).json["trackers"].items():
        assert each["sent"] == ["iteration_0001/update"], name
    curves = read_all(half_sent)
    assert curves["trackio"] == curves["wandb"]
    assert curves["trackio"]["draft/reward_mean"] == recorded(run)["draft/reward_mean"]
    assert [x for x, _ in curves["tensorboard"]["update/loss"]] == [0, 1]
    records = [record.run for record in wandb_records(half_sent / "log") if record.WhichOneof("record_type") == "run"]
    assert len(records) == 2
    assert len({each.run_id for each in records}) == 1


def test_what_was_sent_but_not_noted_is_sent_again_and_says_the_same(run, half_sent):
    """Killed between sending and noting: no other figure appears anywhere, and TensorBoard has none twice."""
    log(half_sent, *trackers.NAMES)
    for tracker in ("trackio", "wandb"):
        note = half_sent / "log" / f"{tracker}.json"
        write_sent(note, json.loads(note.read_text())["run_id"], [], replace=True)
    assert log(half_sent, *trackers.NAMES).code == 0
    curves = read_all(half_sent)
    expected = recorded(run)["draft/reward_mean"]
    assert [x for x, _ in curves["tensorboard"]["draft/reward_mean"]] == [0, 1]
    for tracker in ("trackio", "wandb"):
        assert curves[tracker]["draft/reward_mean"] == [*expected, *expected]


@pytest.mark.parametrize("how", ["environment", "settings"])
def test_a_disabled_wandb_leaves_every_entry_to_a_later_command(run, tmp_path, monkeypatch, how):
    path = tmp_path / "quiet"
    shutil.copytree(run, path, ignore=shutil.ignore_patterns("log"))
    if how == "settings":
        (tmp_path / "wandb").mkdir()
        (tmp_path / "wandb/settings").write_text("[default]\nmode = disabled\n")
    else:
        monkeypatch.setitem(ONE_THREAD, "WANDB_MODE", "disabled")
    # wandb keeps the mode of a process, so this needs one of its own.
    result = igrpo_process("log", path, "--to", "wandb", "--json", cwd=tmp_path)
    assert result.code == 0, result.stderr
    sent = result.json["trackers"]["wandb"]
    assert sent["sent"] == []
    assert sent["where"].startswith("wandb is disabled")
    assert not (path / "log/wandb").exists()
    assert len(log(path, "wandb").json["trackers"]["wandb"]["sent"]) == 4
