"""The sbatch commands of submit.sh, and its errors; neither needs Slurm."""

from __future__ import annotations

import shutil

import pytest

from command_line import make_run

BENCH = "arithmetic"


def names(commands):
    """Return the jobs by name, in order."""
    return [flag(command, "job-name") for command in commands]


def flag(command, name):
    """Return the value of an sbatch flag, or None."""
    values = [word.partition("=")[2] for word in command if word.startswith(f"--{name}=")]
    return values[-1] if values else None


def script_and_arguments(command):
    """Return the words after the flags."""
    at = next(index for index, word in enumerate(command) if word.endswith(".sbatch"))
    return [command[at].rpartition("/")[2], *command[at + 1 :]]


def finish(run, folder, shards, num_shards):
    """Create files that look like complete shards."""
    (run / folder).mkdir(parents=True, exist_ok=True)
    for shard in shards:
        for suffix in ("parquet", "json"):
            (run / folder / f"shard-{shard:05d}-of-{num_shards:05d}.{suffix}").touch()


@pytest.fixture(scope="module")
def fresh(tmp_path_factory):
    """An empty run whose path needs quoting."""
    return make_run(tmp_path_factory.mktemp("runs") / "100%x it's a run", "run.num_shards=4")


def test_the_jobs_of_all_iterations_form_a_chain(scripts, fresh):
    commands = scripts.dry_run(fresh)
    jobs = [f"{stage}-{k}" for k in (0, 1) for stage in ("draft", "select", "refine", "update")]
    assert names(commands) == jobs
    assert [flag(c, "dependency") for c in commands] == [None, *(f"afterok:{job}" for job in jobs[:-1])]
    assert [flag(c, "array") for c in commands] == ["0-3", None, "0-3", None] * 2
    assert all(("--kill-on-invalid-dep=yes" in c) == (flag(c, "dependency") is not None) for c in commands)
    assert [script_and_arguments(c) for c in commands[4:]] == [
        [f"{stage}.sbatch", str(fresh), "1"] for stage in ("draft", "select", "refine", "update")
    ]


@pytest.mark.parametrize(
    ("method", "jobs"),
    [
        (
            "igrpo",
            "draft-0 select-0:draft-0 refine-0:select-0 update-0:refine-0 "
            "draft-1:refine-0 select-1:draft-1 refine-1:select-1:update-0 update-1:refine-1:update-0 "
            "draft-2:refine-1:update-0 select-2:draft-2 refine-2:select-2:update-1 update-2:refine-2:update-1",
        ),
        (
            "grpo",
            "draft-0 update-0:draft-0 draft-1:draft-0 update-1:draft-1:update-0 draft-2:draft-1:update-0 "
            "update-2:draft-2:update-1",
        ),
    ],
)
def test_drafts_of_the_policy_before_do_not_wait_for_the_update(scripts, tmp_path, method, jobs):
    run = make_run(tmp_path / "run", "run.staleness=1", "run.num_iterations=3", f"run.method={method}")
    commands = scripts.dry_run(run)
    found = [(flag(c, "dependency") or "").removeprefix("afterok:") for c in commands]
    assert [":".join(filter(None, each)) for each in zip(names(commands), found, strict=True)] == jobs.split()


def test_logs_are_in_the_run_and_a_percent_sign_in_its_path_is_escaped(scripts, fresh):
    draft, select, *_ = scripts.dry_run(fresh)
    folder = str(fresh).replace("%", "%%")
    assert flag(draft, "output") == f"{folder}/slurm/%x-%A_%a.out"
    assert flag(select, "output") == f"{folder}/slurm/%x-%j.out"


def test_a_dry_run_writes_nothing(scripts, fresh):
    before = sorted(fresh.rglob("*"))
    scripts.dry_run(fresh, "--eval", BENCH)
    assert sorted(fresh.rglob("*")) == before


def test_only_missing_work_is_submitted(scripts, tmp_path):
    blocks = ("data.problems_per_iteration=16", "engine.groups_per_block=1")
    run = make_run(tmp_path / "run", "run.num_shards=16", "run.num_iterations=4", *blocks)
    (run / "iteration_0000/update").mkdir(parents=True)
    (run / "iteration_0000/update/manifest.json").touch()
    finish(run, "iteration_0001/draft", set(range(16)) - {3, 7, 12, 13, 14, 15}, 16)
    finish(run, "iteration_0002/draft", range(16), 16)
    finish(run, "iteration_0002/select", range(16), 16)
    finish(run, f"eval/{BENCH}/policy_0001", set(range(16)) - {2, 3}, 16)
    commands = scripts.dry_run(run, "--iterations", "2", "--eval", BENCH, "--eval-each")
    assert list(zip(names(commands), (flag(c, "array") for c in commands), strict=True)) == [
        ("eval-1", "2-3"),
        ("draft-1", "3,7,12-15"),
        ("select-1", None),
        ("refine-1", "0-15"),
        ("update-1", None),
        ("eval-2", "0-15"),
        ("refine-2", "0-15"),
        ("update-2", None),
        ("eval-3", "0-15"),
    ]
    after = {flag(c, "job-name"): flag(c, "dependency") for c in commands}
    assert (after["eval-1"], after["draft-1"]) == (None, None)
    assert (after["eval-2"], after["refine-2"]) == ("afterok:update-1", "afterok:update-1")


def test_a_complete_run_only_needs_its_evaluation(scripts, finished_run):
    assert scripts.dry_run(finished_run) == []
    (job,) = scripts.dry_run(finished_run, "--eval", BENCH)
    assert script_and_arguments(job) == ["eval.sbatch", str(finished_run), BENCH, "--iteration", "2"]
    assert flag(job, "dependency") is None


def test_a_plain_grpo_run_has_drafts_and_updates(scripts, tmp_path):
    run = make_run(tmp_path / "run", "run.method=grpo", "draft.num_generations=4")
    assert names(scripts.dry_run(run)) == ["draft-0", "update-0", "draft-1", "update-1"]


def test_flags_for_sbatch_go_to_every_job_or_to_some_stages(scripts, fresh):
    site = ("--partition=my part", "--time=2:00:00")
    some = ("--on", "draft,refine", "--gpus=1", "--on", "update", "--gpus=8")
    commands = scripts.dry_run(fresh, "--iterations", "1", *some, "--", *site)
    assert [flag(c, "partition") for c in commands] == ["my part"] * 4
    assert [flag(c, "time") for c in commands] == ["2:00:00"] * 4
    assert [flag(c, "gpus") for c in commands] == ["1", None, "1", "8"]


@pytest.mark.parametrize(
    ("arguments", "code", "message", "hint"),
    [
        ([], 2, "no run directory given", "stages/submit.sh --help"),
        (["RUN", "--iteration", "1"], 2, "no option --iteration", "flags for sbatch come after --"),
        (["RUN", "--iterations", "0"], 2, "--iterations 0 is not a number above 0", "stages/submit.sh --help"),
        (["RUN", "--iterations"], 2, "--iterations needs a value", "stages/submit.sh --help"),
        (["RUN", "other"], 2, "one run at a time", "stages/submit.sh --help"),
        (["RUN", "--eval-each"], 2, "--eval-each needs a benchmark", "--eval-each --eval arithmetic"),
        (["RUN", "--on", "drafts", "--gpus=1"], 2, "--on drafts names no stages", "as in --on draft,refine --gpus=1"),
        (["/nowhere at all"], 3, "/nowhere at all is not a run directory", "igrpo init"),
    ],
)
def test_invalid_arguments_are_rejected_before_anything_is_submitted(scripts, fresh, arguments, code, message, hint):
    result = scripts.call("submit.sh", *[fresh if word == "RUN" else word for word in arguments])
    assert (result.code, result.stdout) == (code, "")
    assert message in result.stderr.splitlines()[0]
    assert result.stderr.splitlines()[1].startswith("hint: ")
    assert hint in result.stderr


def test_help_names_every_option(scripts):
    result = scripts.call("submit.sh", "--help")
    assert (result.code, result.stderr) == (0, "")
    for option in ("--iterations", "--eval BENCH", "--eval-each", "--on STAGES", "--dry-run", "IGRPO_TRAINING_ENV"):
        assert option in result.stdout


def test_a_machine_without_slurm_is_an_error(scripts, fresh, tmp_path):
    for tool in ("bash", "cat", "dirname", "sed"):
        (tmp_path / tool).symlink_to(shutil.which(tool) or tool)
    result = scripts.call("submit.sh", fresh, PATH=str(tmp_path))
    assert (result.code, result.stdout) == (3, "")
    assert "error: sbatch does not exist" in result.stderr
