"""Mistakes in settings and names: the exit code, and a hint for each that can be typed."""

from __future__ import annotations

import shlex
import shutil

import numpy as np
import pyarrow as pa
import pytest

from command_line import igrpo, igrpo_process
from igrpo_cli.config import RunConfig
from igrpo_cli.store.schema import ROLLOUTS


@pytest.mark.parametrize(
    ("arguments", "code", "message", "hint"),
    [
        ("draft RUN --set run.nmu_shards=2", 2, "did you mean run.num_shards?", "`igrpo init"),
        ("draft RUN --engine nosuch", 2, "engine.name", "`igrpo init RUN --dry-run`"),
        ("log RUN --to nosuch", 2, "log.report_to", "`igrpo init RUN --dry-run`"),
        ("init new --config .", 2, "cannot read .", "give a TOML file"),
        ("eval RUN --bench aime42 --bench-dir /dev/null", 3, "/dev/null is not a folder", "name the folder"),
        ("init new --set data.train=/dev/null", 3, "is neither a file nor a folder", "name a file (.jsonl"),
        ("init new --set data.train=no/where.jsonl", 3, "does not exist", "--set data.train=PATH"),
        ("eval RUN --bench x --compare 0", 2, "requires 2 arguments", "igrpo eval --help"),
        ("eval RUN --bench arithmetic --samples 4 --set eval.repeats=8", 2, "set the same key", "use one of them"),
        ("draft RUN --set draft.num_generations=32768", 2, "draft.num_generations", "`igrpo init"),
        ("eval RUN --bench arithmetic --samples 32768", 2, "eval.repeats", "`igrpo init"),
        ("draft RUN --set reward.cpu_seconds=1e30", 2, "reward.cpu_seconds", "`igrpo init"),
        ("draft RUN --set reward.memory_mb=99999999999999999", 2, "reward.memory_mb", "`igrpo init"),
    ],
)
def test_a_mistake_has_its_exit_code_and_a_hint(finished_run, tmp_path, arguments, code, message, hint):
    words = [str(finished_run) if word == "RUN" else word for word in shlex.split(arguments)]
    result = igrpo(*words, cwd=tmp_path)
    assert (result.code, result.stdout) == (code, "")
    error, hint_line = result.stderr.splitlines()
    assert message in error
    assert hint_line.startswith(f"hint: {hint}")


def test_as_many_samples_are_allowed_as_shards_can_number():
    most = np.iinfo(ROLLOUTS.field("sample_id").type.to_pandas_dtype()).max
    assert ROLLOUTS.field("sample_id").type == pa.int16()
    RunConfig.model_validate({"draft": {"num_generations": int(most)}, "eval": {"repeats": int(most)}})


def test_a_damaged_problems_file_can_be_made_again_as_the_hint_says(finished_run, tmp_path):
    run = shutil.copytree(finished_run, tmp_path / "a run")
    data = run / "problems.parquet"
    before = data.read_bytes()
    data.write_bytes(before[:-9])
    result = igrpo("verify", run, cwd=tmp_path)
    assert result.code == 1
    hint = result.stderr.splitlines()[-1].removeprefix("hint: ")
    assert hint.startswith(f"igrpo init '{run}' --config ")
    assert igrpo(*shlex.split(hint)[1:]).code == 0
    assert data.read_bytes() == before


def test_a_run_that_lost_its_settings_is_damaged_not_absent(finished_run, tmp_path):
    run = shutil.copytree(finished_run, tmp_path / "run")
    (run / "run.toml").unlink()
    assert igrpo("verify", run).code == 1


def test_the_first_help_has_an_example():
    assert "Example: igrpo quickstart" in igrpo_process("--help").stdout
