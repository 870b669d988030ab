"""kill -9 in the middle of a stage: the same command finishes it, and the bytes are those of an undisturbed run."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from command_line import ONE_THREAD, files_below, igrpo, make_run, run_to_end
from igrpo_cli.store.parts import CONTENT_KEY, PartStore
from igrpo_cli.store.tables import content_sha256

STAGES = ("draft", "select", "refine", "update")
SETTINGS = ("run.num_iterations=1", "engine.groups_per_block=1", "update.num_minibatches=4")
MARKERS = {
    "draft": "iteration_0000/draft/.parts/*/block-000002.parquet",
    "update": "iteration_0000/.*update*",
}
"""What exists when a stage is in the middle of its work."""


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    return run_to_end(make_run(tmp_path_factory.mktemp("runs") / "undisturbed", *SETTINGS))


def stop_in_the_middle(run, stage, number):
    """Send signal `number` as soon as `stage` is in the middle of its work; returns the exit status."""
    command = [sys.executable, "-m", "igrpo_cli", stage, str(run), "--iteration", "0", "-q"]
    process = subprocess.Popen(command, env=ONE_THREAD, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while process.poll() is None and time.monotonic() < deadline:
        if any(run.glob(MARKERS[stage])):
            process.send_signal(number)
            break
        time.sleep(0.0005)
    _, stderr = process.communicate(timeout=60)
    return process.returncode, stderr


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["draft", "update"])
def test_a_killed_stage_is_finished_by_the_same_command(tmp_path, undisturbed, stage):
    run = make_run(tmp_path / "run", *SETTINGS)
    for name in STAGES[: STAGES.index(stage)]:
        assert igrpo(name, run, "--iteration", 0).code == 0
    code, _ = stop_in_the_middle(run, stage, signal.SIGKILL)
    # The update may die between its two renames, or have finished: it must come out whole too.
    assert code in (-signal.SIGKILL, 0)
    assert not list(run.rglob("policies/0001/model.safetensors")) or stage == "update"
    for name in STAGES[STAGES.index(stage) :]:
        result = igrpo(name, run, "--iteration", 0)
        assert result.code == 0, result.stderr
    assert files_below(run) == files_below(undisturbed)
    assert igrpo("verify", run).code == 0


@pytest.mark.slow
def test_finished_blocks_of_a_killed_shard_are_not_sampled_again(tmp_path):
    run = make_run(tmp_path / "run", *SETTINGS)
    code, _ = stop_in_the_middle(run, "draft", signal.SIGKILL)
    assert code == -signal.SIGKILL
    (first, *_) = sorted((run / "iteration_0000/draft/.parts").rglob("block-*.parquet"))
    changed = _with_other_text(first)
    assert igrpo("draft", run, "--iteration", 0).code == 0
    (shard,) = (run / "iteration_0000/draft").glob("*.parquet")
    # The kept block is in the shard as it lay there, though sampling it again would have undone the change.
    assert pq.read_table(shard)["completion"][0].as_py() == changed


@pytest.mark.slow
def test_a_kept_block_with_a_flipped_bit_in_its_footer_is_sampled_again(tmp_path, undisturbed):
    run = make_run(tmp_path / "run", *SETTINGS)
    code, _ = stop_in_the_middle(run, "draft", signal.SIGKILL)
    assert code == -signal.SIGKILL
    (first, *_) = sorted((run / "iteration_0000/draft/.parts").rglob("block-*.parquet"))
    _make_silently_short(first)
    result = igrpo("draft", run, "--iteration", 0)
    assert result.code == 0, result.stderr
    assert files_below(run / "iteration_0000/draft") == files_below(undisturbed / "iteration_0000/draft")


def _make_silently_short(part):
    """Flip the first bit of the footer that makes rows go away without a word from pyarrow."""
    whole = part.read_bytes()
    num_rows = pq.read_table(part).num_rows
    footer = len(whole) - 8 - int.from_bytes(whole[-8:-4], "little")
    for bit in range(8 * footer, 8 * len(whole)):
        damaged = bytearray(whole)
        damaged[bit // 8] ^= 1 << bit % 8
        with suppress(pa.ArrowException, OSError, ValueError):
            if pq.read_table(pa.BufferReader(bytes(damaged)), page_checksum_verification=True).num_rows < num_rows:
                part.write_bytes(damaged)
                return
    raise AssertionError("no bit makes the part short")


def test_a_block_that_lacks_a_row_keeps_its_shard_from_being_published(tmp_path, undisturbed):
    run = make_run(tmp_path / "run", *SETTINGS)
    write = PartStore.write
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            PartStore,
            "write",
            lambda store, block, rows, *proposals: write(store, block, rows[: 2 if block == 5 else 3], *proposals),
        )
        result = igrpo("draft", run, "--iteration", 0)
    assert result.code == 1
    assert "draft shard 0 of 1 is not published" in result.stderr
    assert "block 5 is not what was asked for: sample 2 of group 5 is missing" in result.stderr
    assert "hint: `igrpo draft" in result.stderr
    assert not [path for path in (run / "iteration_0000/draft").iterdir() if path.name != ".parts"]
    assert igrpo("draft", run, "--iteration", 0).code == 0
    assert files_below(run / "iteration_0000/draft") == files_below(undisturbed / "iteration_0000/draft")


def _with_other_text(part):
    """Change the first completion of a part file, as no sampling would; returns its new text."""
    file = pq.read_table(part)
    texts = ["kept from the first try", *file["completion"].to_pylist()[1:]]
    index = file.schema.get_field_index("completion")
    field = file.schema.field("completion")
    changed = file.set_column(index, field, [texts])
    metadata = {**changed.schema.metadata, CONTENT_KEY.encode(): content_sha256(changed)}
    pq.write_table(changed.replace_schema_metadata(metadata), part, write_page_checksum=True)
    return texts[0]


@pytest.mark.slow
def test_sigterm_exits_75_and_the_same_command_goes_on(tmp_path, undisturbed):
    run = make_run(tmp_path / "run", *SETTINGS)
    code, stderr = stop_in_the_middle(run, "draft", signal.SIGTERM)
    assert code == 75, stderr
    assert "stopped by SIGTERM" in stderr
    assert "hint: run the same command again" in stderr
    assert igrpo("draft", run, "--iteration", 0).code == 0
    assert files_below(run / "iteration_0000/draft") == files_below(undisturbed / "iteration_0000/draft")


@pytest.mark.slow
def test_ctrl_c_exits_130(tmp_path):
    run = make_run(tmp_path / "run", *SETTINGS)
    code, stderr = stop_in_the_middle(run, "draft", signal.SIGINT)
    assert code == 130
    assert "Traceback" not in stderr


def test_two_tasks_on_one_shard_are_safe(tmp_path, undisturbed):
    run = make_run(tmp_path / "run", *SETTINGS)
    command = [sys.executable, "-m", "igrpo_cli", "draft", str(run), "--iteration", "0", "-q"]
    tasks = [subprocess.Popen(command, env=ONE_THREAD, stdout=subprocess.DEVNULL) for _ in range(2)]
    assert [task.wait(timeout=120) for task in tasks] == [0, 0]
    assert files_below(run / "iteration_0000/draft") == files_below(undisturbed / "iteration_0000/draft")


def test_a_task_stops_sampling_when_its_twin_has_finished_the_shard(tmp_path, undisturbed, monkeypatch):
    run = make_run(tmp_path / "run", *SETTINGS)
    sampled = []
    write = PartStore.write

    def twin_finishes_meanwhile(store, block, rows, *proposals):
        sampled.append(block)
        if len(sampled) == 2:
            shutil.copytree(undisturbed / "iteration_0000/draft", run / "iteration_0000/draft", dirs_exist_ok=True)
        write(store, block, rows, *proposals)

    monkeypatch.setattr(PartStore, "write", twin_finishes_meanwhile)
    result = igrpo("draft", run, "--iteration", 0)
    assert result.code == 0, result.stderr
    assert sampled[:2] == [0, 1]
    assert len(sampled) < 8
    assert files_below(run / "iteration_0000/draft") == files_below(undisturbed / "iteration_0000/draft")


@pytest.mark.slow
def test_a_non_finite_gradient_keeps_the_policy_and_exits_1(tmp_path, undisturbed):
    run = tmp_path / "run"
    shutil.copytree(undisturbed, run)
    result = igrpo("update", run, "--iteration", 0, "--overwrite", "--set", "update.learning_rate=1e38")
    assert result.code == 1
    assert "error: " in result.stderr
    assert files_below(run) == files_below(undisturbed)
    assert igrpo("verify", run).code == 0
