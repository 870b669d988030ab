"""Trackers beside training: told of each update, and never able to stop or delay it for long."""

from __future__ import annotations

import fcntl
import os
import shutil
import sys
import textwrap
import time
from pathlib import Path

import pytest

from command_line import igrpo, make_run, run_to_end, sets
from igrpo_cli.loggers import trackers
from igrpo_cli.loggers.background import BackgroundTrackers


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """A run of one iteration that was to be sent to TensorBoard while it trained."""
    pytest.importorskip("tensorboard")
    report_to = 'log.report_to=["tensorboard"]'
    return run_to_end(make_run(tmp_path_factory.mktemp("trained") / "first", "run.num_iterations=1", report_to))


@pytest.fixture
def run(trained, tmp_path) -> Path:
    """The same run before anything was sent."""
    path = tmp_path / "first"
    shutil.copytree(trained, path, ignore=shutil.ignore_patterns("log"))
    return path


def sent_to_tensorboard(run: Path) -> list[str]:
    return sorted(file.name.split(".")[-1] for file in (run / "log" / "tensorboard").glob("*tfevents*"))


@pytest.fixture
def tracker(tmp_path, monkeypatch):
    """Makes a trackio that does what a test wants, for the processes that are started."""

    def make(code: str) -> None:
        (tmp_path / "fake" / "trackio").mkdir(parents=True)
        (tmp_path / "fake" / "trackio" / "__init__.py").write_text(textwrap.dedent(code))
        monkeypatch.syspath_prepend(tmp_path / "fake")

    return make


def test_a_run_is_sent_while_it_trains(trained):
    assert sent_to_tensorboard(trained) == ["iteration_0000-update"]


def test_report_to_is_no_conflict_and_a_finished_update_is_caught_up_with(run):
    result = igrpo("update", run, *sets("log.report_to=tensorboard"))
    assert (result.code, result.stderr) == (0, "")
    assert "already done" in result.stdout
    assert sent_to_tensorboard(run) == ["iteration_0000-update"]


def test_a_tracker_that_hangs_is_ended_after_the_timeout(run, tracker, tmp_path):
    pid = tmp_path / "pid"
    tracker(f"""
        import os, pathlib, time
        pathlib.Path({str(pid)!r}).write_text(str(os.getpid()))
        time.sleep(3600)
    """)
    notes: list[str] = []
    beside = BackgroundTrackers(run, {"report_to": ["trackio"], "timeout": 0.2}, notes.append)
    beside.wake()
    while not (pid.exists() and pid.read_text()):
        time.sleep(0.05)
    beside.wake()
    assert notes == []
    beside.close()
    assert notes == [
        "some metrics were not sent to trackio: it took too long (log.timeout); "
        f"igrpo log {run} --to trackio sends the rest"
    ]
    with pytest.raises(ProcessLookupError):
        os.kill(int(pid.read_text()), 0)


def test_a_tracker_that_fails_is_one_line_and_exit_0(run, tracker):
    tracker("def init(*args, **settings): raise RuntimeError('no room\\nfor more')")
    result = igrpo("update", run, *sets("log.report_to=trackio"))
    assert result.code == 0
    assert result.stderr.splitlines() == [
        f"some metrics were not sent to trackio: trackio: no room for more; igrpo log {run} --to trackio sends the rest"
    ]
    assert "iteration_0000/update" not in (run / "log" / "trackio.json").read_text()


def test_a_warning_of_trackio_that_rows_are_lost_is_a_failure(run, tracker):
    tracker("""
        import warnings
        class Run:
            def log(self, values, step): pass
        def init(*args, **settings): return Run()
        def finish(): warnings.warn("trackio failed to flush metric logs")
    """)
    result = igrpo("update", run, *sets("log.report_to=trackio"))
    assert "trackio failed to flush metric logs" in result.stderr
    assert "iteration_0000/update" not in (run / "log" / "trackio.json").read_text()


def test_a_folder_that_cannot_be_written_stops_nothing(run, tmp_path):
    (tmp_path / "file").write_text("")
    result = igrpo("update", run, *sets("log.report_to=tensorboard", f"log.logging_dir={tmp_path / 'file'}"))
    assert result.code == 0
    assert len(result.stderr.splitlines()) == 1
    assert "some metrics were not sent to tensorboard" in result.stderr


@pytest.mark.parametrize("command", ["draft", "update", "run", "eval"])
def test_a_tracker_that_is_not_installed_is_an_error_before_any_work(run, monkeypatch, command):
    monkeypatch.setitem(sys.modules, "wandb", None)
    shutil.rmtree(run / "iteration_0000")
    bench = ["--bench", "arithmetic"] if command == "eval" else []
    result = igrpo(command, run, *bench, *sets("log.report_to=wandb"))
    assert result.code == 2
    assert result.stderr.splitlines() == [
        "error: log.report_to = wandb needs the package wandb, which is not installed",
        "hint: pip install 'igrpo-cli[wandb]'",
    ]
    assert not (run / "iteration_0000").exists()
    assert not (run / "eval").exists()


def test_only_the_first_process_of_an_update_reports(run):
    ranks = {"TORCHELASTIC_RUN_ID": "x", "RANK": "1", "WORLD_SIZE": "2"}
    assert igrpo("update", run, env=ranks).code == 0
    assert not (run / "log").exists()


def test_one_process_at_a_time_sends_to_a_tracker(run, monkeypatch):
    monkeypatch.setattr(trackers, "MAX_WAIT_SECONDS", 0.1)
    (run / "log").mkdir()
    with (run / "log" / "tensorboard.lock").open("w") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        result = igrpo("log", run)
        assert result.code == 1
        assert "another process is sending this run to tensorboard" in result.stderr
    assert sent_to_tensorboard(run) == []
    assert igrpo("log", run).code == 0
    assert sent_to_tensorboard(run) == ["iteration_0000-update"]


def test_what_is_asked_for_wrongly_is_a_usage_error(run):
    nobody = igrpo("log", run, *sets("log.report_to=[]"))
    assert (nobody.code, nobody.stderr.splitlines()[0]) == (2, "error: no tracker is named")
    unknown = igrpo("log", run, "--to", "mlflow")
    assert unknown.code == 2
    assert "'trackio', 'tensorboard' or 'wandb'" in unknown.stderr
    model = igrpo("eval", "--model", "tiny", "--bench", "arithmetic", *sets("log.report_to=wandb"))
    assert model.code == 2
    assert "belongs to no run" in model.stderr
    assert igrpo("log", run / "log", "--to", "tensorboard").code == 3
