"""The scripts on a real Slurm with one node: cancelled, killed and requeued tasks do not change the bytes of a run."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess

import pytest
from slurm_cluster import wait_until
from stage_scripts import STAGES

from command_line import files_below, igrpo, make_run

BENCH = "arithmetic"
TASK_STARTS, CHAIN_ENDS = 180, 900
"""Timeout in seconds, long enough for a busy machine."""


def jobs_of(result):
    """Return the table of submit.sh as {job name: (job id, shards)}."""
    assert result.code == 0, result.stderr
    rows = [re.split(r"\s{2,}", line.strip()) for line in result.stdout.splitlines()[1:]]
    return {f"{stage}-{iteration}": (job, shards) for job, stage, iteration, shards, _ in rows}


def run_locally(run):
    """Make the same run with single commands."""
    for iteration in (0, 1):
        for stage in ("draft", "select", "refine", "update"):
            result = igrpo(stage, run, "--iteration", iteration)
            assert result.code == 0, result.stderr
    assert igrpo("eval", run, "--bench", BENCH).code == 0


def logs(run, name):
    """Return the output of all tasks of a job."""
    return "".join(path.read_text() for path in sorted((run / "slurm").glob(f"{name}-*.out")))


@pytest.mark.slow
def test_a_chain_with_a_cancelled_and_a_killed_task_ends_as_a_local_run(tmp_path, slurm, submit):
    settings = ("run.num_shards=3", "eval.limit=3", "eval.repeats=1")
    run = make_run(tmp_path / "run of 100% care", *settings)
    local = shutil.copytree(run, tmp_path / "local")
    first = jobs_of(submit.call("submit.sh", run, "--eval", BENCH))
    assert list(first)[:5] == ["draft-0", "select-0", "refine-0", "update-0", "draft-1"]
    draft = first["draft-0"][0]
    cancelled, killed = f"{draft}_0", f"{draft}_1"
    wait_until(lambda: slurm.igrpo_process(killed), TASK_STARTS, "two tasks run")
    again = submit.call("submit.sh", run)
    assert (again.code, again.stdout) == (4, "")
    assert "error: jobs of this run are already in the queue" in again.stderr
    slurm.command("scancel", cancelled)
    os.kill(slurm.igrpo_process(killed), signal.SIGKILL)
    slurm.wait_until_idle(CHAIN_ENDS)
    assert (slurm.field(cancelled, "JobState"), slurm.field(cancelled, "Restarts")) == ("CANCELLED", "0")
    assert (slurm.field(killed, "JobState"), slurm.field(killed, "ExitCode")) == ("FAILED", "137:0")
    assert slurm.field(first["select-0"][0], "JobState") == "CANCELLED"
    assert igrpo("status", run, "--missing", "draft").stdout == "0-1\n"
    kept = run / "iteration_0000/draft/shard-00002-of-00003.parquet"
    written_at = kept.stat().st_mtime_ns

    # Submitted from a task of another array: the new jobs must not inherit its shard and restarts.
    inside = {"SLURM_ARRAY_JOB_ID": "1", "SLURM_ARRAY_TASK_ID": "1", "SLURM_RESTART_COUNT": "20"}
    second = jobs_of(submit.call("submit.sh", run, "--eval", BENCH, **inside))
    assert (second["draft-0"][1], second["refine-0"][1], second["eval-2"][1]) == ("0-1", "0-2", "0-2")
    run_locally(local)
    slurm.wait_until_idle(CHAIN_ENDS)

    assert files_below(run) == files_below(local)
    assert kept.stat().st_mtime_ns == written_at
    summary = f"eval/{BENCH}/policy_0002/summary.json"
    assert json.loads((run / summary).read_text()) == json.loads((local / summary).read_text())
    assert igrpo("verify", run).code == 0
    nothing = submit.call("submit.sh", run, "--eval", BENCH)
    assert (nothing.code, nothing.stdout, nothing.stderr) == (0, "", "nothing is missing\n")


@pytest.mark.slow
def test_a_task_near_its_time_limit_exits_75_is_requeued_and_completes(tmp_path, slurm, submit):
    settings = ("run.method=grpo", "run.num_shards=2", "draft.num_generations=4", "run.num_iterations=1")
    settings += ("data.problems_per_iteration=24", "engine.groups_per_block=1")
    run = make_run(tmp_path / "run", *settings)
    local = shutil.copytree(run, tmp_path / "local")
    jobs = jobs_of(submit.call("submit.sh", run))
    # The last task of an array has the id of the array itself: its requeue must not affect the others.
    task = f"{jobs['draft-0'][0]}_1"
    parts = run / "iteration_0000/draft/.parts/shard-00001-of-00002"
    wait_until(lambda: any(parts.glob("block-*.parquet")), TASK_STARTS, "the first block is there")
    slurm.command("scancel", "--batch", "--signal=USR1", task)
    slurm.wait_until_idle(CHAIN_ENDS)

    assert (slurm.field(task, "JobState"), slurm.field(task, "Restarts")) == ("COMPLETED", "1")
    assert slurm.field(f"{jobs['draft-0'][0]}_0", "Restarts") == "0"
    assert slurm.field(jobs["update-0"][0], "JobState") == "COMPLETED"
    log = logs(run, "draft-0")
    assert "error: stopped by SIGUSR1" in log
    assert "task.sh: exit 75, requeued" in log
    assert igrpo("verify", run).code == 0
    for stage in ("draft", "update"):
        assert igrpo(stage, local).code == 0
    assert files_below(run) == files_below(local)


@pytest.mark.slow
def test_an_update_uses_the_given_number_of_processes(tmp_path, slurm, submit):
    settings = ("run.method=grpo", "run.num_shards=1", "draft.num_generations=4", "run.num_iterations=1")
    run = make_run(tmp_path / "run", *settings, "data.problems_per_iteration=8")
    jobs = jobs_of(submit.call("submit.sh", run, IGRPO_UPDATE_PROCESSES="2"))
    slurm.wait_until_idle(CHAIN_ENDS)
    assert slurm.field(jobs["update-0"][0], "JobState") == "COMPLETED", logs(run, "update-0")
    manifest = json.loads((run / "iteration_0000/update/manifest.json").read_text())
    assert "2 ranks" in manifest["device"]
    assert igrpo("verify", run).code == 0


@pytest.mark.slow
def test_one_job_runs_all_stages_with_two_processes_and_goes_on_after_a_requeue(tmp_path, slurm, submit):
    settings = ("run.method=grpo", "draft.num_generations=4", "run.num_iterations=1", "engine.groups_per_block=1")
    run = make_run(tmp_path / "run", *settings, "data.problems_per_iteration=24", "engine.name=transformers")
    local = shutil.copytree(run, tmp_path / "local")
    variables = {**submit.environment, "IGRPO_UPDATE_PROCESSES": "2", "IGRPO_STAGES": str(STAGES)}
    words = [
        "sbatch",
        "--parsable",
        f"--output={tmp_path}/log",
        "--cpus-per-task=2",
        str(STAGES / "run.sbatch"),
        str(run),
    ]
    job = subprocess.run(words, env=variables, capture_output=True, text=True, check=True).stdout.strip()
    parts = run / "iteration_0000/draft/.parts"
    wait_until(lambda: any(parts.glob("*/*.parquet")), TASK_STARTS, "the first block is there")
    slurm.command("scancel", "--batch", "--signal=USR1", job)
    slurm.wait_until_idle(CHAIN_ENDS)

    log = (tmp_path / "log").read_text()
    assert (slurm.field(job, "JobState"), slurm.field(job, "Restarts")) == ("COMPLETED", "1"), log
    assert "task.sh: exit 75, requeued" in log
    manifest = json.loads((run / "iteration_0000/update/manifest.json").read_text())
    assert "2 ranks" in manifest["device"]
    assert igrpo("verify", run).code == 0
    assert igrpo("draft", local).code == 0
    assert files_below(run / "iteration_0000/draft") == files_below(local / "iteration_0000/draft")
