"""`igrpo verify --replay`: policies that are computed again, their hashes, and what stands in the way."""

from __future__ import annotations

import shutil
from dataclasses import replace

import pytest

from command_line import igrpo, make_run
from igrpo_cli.store.layout import RunDirectory
from igrpo_cli.store.manifest import publish_manifest, read_manifest


def snapshot(run):
    return {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in run.rglob("*") if path.is_file()}


@pytest.fixture
def run(finished_run, tmp_path):
    """A copy of the finished run, to be changed."""
    shutil.copytree(finished_run, tmp_path / "run")
    return tmp_path / "run"


def rewrite(run, iteration, **changes):
    """Replace fields of the manifest of an update."""
    path = RunDirectory(run).update(iteration)
    publish_manifest(path.manifest, replace(read_manifest(path.shard), **changes), replace=True)


def test_every_update_has_the_recorded_hashes_and_the_run_is_untouched(finished_run):
    before = snapshot(finished_run)
    result = igrpo("verify", finished_run, "--replay", "0-1", "--json")
    assert result.code == 0, result.stderr
    assert (result.json["ok"], result.json["replayed"]) == (True, 2)
    for iteration, update in enumerate(result.json["updates"]):
        recorded = read_manifest(RunDirectory(finished_run).update(iteration).shard)
        assert (update["iteration"], update["policy"], update["result"]) == (iteration, iteration + 1, "equal")
        # All outputs, and metrics.parquet.
        assert (update["files"], update["differing"]) == (len(recorded.outputs) + 1, [])
    assert snapshot(finished_run) == before
    text = igrpo("verify", finished_run, "--replay", "1").stdout
    assert text.splitlines()[-1] == "1 of 1 updates have equal hashes"


def test_the_settings_are_those_of_the_update(tmp_path):
    changes = ("update.learning_rate=0.003", "update.num_minibatches=2", "update.loss_type=dapo")
    run = make_run(tmp_path / "run")
    assert igrpo("set", run, *changes, "--from-iteration", "1").code == 0
    assert igrpo("run", run).code == 0
    assert igrpo("verify", run, "--replay", "0-1").code == 0


def test_a_hash_that_differs_is_named_with_what_explains_it(run):
    manifest = read_manifest(RunDirectory(run).update(0).shard)
    outputs = [replace(each, sha256="0" * 64) if "safetensors" in each.path else each for each in manifest.outputs]
    rewrite(run, 0, outputs=outputs, versions={**manifest.versions, "torch": "1.0"})
    result = igrpo("verify", run, "--replay", "0")
    assert result.code == 1
    assert "iteration 0: policies/0001/model.safetensors differs" in result.stdout
    assert "differences are expected, because the update was made elsewhere: torch 1.0 then, " in result.stdout
    assert "hint: igrpo verify" in result.stderr
    rewrite(run, 0, outputs=outputs, versions=manifest.versions)
    result = igrpo("verify", run, "--replay", "0")
    assert "differences are expected with another number of CPU threads" in result.stdout


def test_an_optimiser_state_that_is_gone(run):
    shutil.rmtree(run / "iteration_0000/update/optimizer")
    alone = igrpo("verify", run, "--replay", "1", "--json")
    assert alone.code == 1
    (update,) = alone.json["updates"]
    assert (update["result"], update["files"]) == ("not replayed", 0)
    assert "the optimiser state of iteration 0 is gone" in update["reason"]
    assert "--replay 0-1" in igrpo("verify", run, "--replay", "1").stdout
    # The first update makes the state that the second one continues from.
    both = igrpo("verify", run, "--replay", "0,1", "--json")
    assert both.code == 0, both.stdout
    assert [each["result"] for each in both.json["updates"]] == ["equal", "equal"]


def test_inputs_that_changed_are_no_replay(run):
    shard = run / "iteration_0001/refine/shard-00000-of-00001.parquet"
    data = bytearray(shard.read_bytes())
    data[len(data) // 2] ^= 1
    shard.write_bytes(data)
    result = igrpo("verify", run, "--replay", "0-1", "--json")
    assert result.code == 1
    assert [each["result"] for each in result.json["updates"]] == ["equal", "not replayed"]
    assert str(shard) in result.json["updates"][1]["reason"]


def test_an_iteration_without_update(tmp_path, finished_run):
    beyond = igrpo("verify", finished_run, "--replay", "5")
    assert (beyond.code, beyond.stdout) == (2, "")
    assert beyond.stderr.splitlines() == ["error: iteration 5 of 2 does not exist", "hint: --replay 0, or --replay 0-1"]
    run = make_run(tmp_path / "run")
    result = igrpo("verify", run, "--replay", "0", "--json")
    assert (result.code, result.json["updates"][0]["result"]) == (1, "not replayed")
    assert igrpo("verify", tmp_path, "--replay", "0").code == 3


def test_an_update_computes_a_removed_optimiser_state_again(finished_run, tmp_path):
    """The states of both iterations are gone; the run continues to the same bytes."""
    for name in ("whole", "without"):
        shutil.copytree(finished_run, tmp_path / name)
        assert igrpo("extend", tmp_path / name, "--iterations", 3).code == 0
    state = tmp_path / "without/iteration_0001/update/optimizer"
    shutil.rmtree(tmp_path / "without/iteration_0000/update/optimizer")
    shutil.rmtree(state)
    result = igrpo("run", tmp_path / "without")
    assert result.code == 0, result.stderr
    assert "the optimiser state of iteration 1 does not exist; computing updates 0 to 1 again" in result.stderr
    assert igrpo("run", tmp_path / "whole").code == 0
    for file in ("policies/0003/model.safetensors", "iteration_0002/update/metrics.parquet"):
        assert (tmp_path / "without" / file).read_bytes() == (tmp_path / "whole" / file).read_bytes()
    assert state.is_dir()
    assert igrpo("verify", tmp_path / "without").code == 0


def test_a_state_that_comes_out_differently_is_refused(finished_run, tmp_path):
    shutil.copytree(finished_run, tmp_path / "run")
    run = tmp_path / "run"
    assert igrpo("extend", run, "--iterations", 3).code == 0
    shutil.rmtree(run / "iteration_0001/update/optimizer")
    manifest = read_manifest(RunDirectory(run).update(1).shard)
    metrics = replace(manifest.data, sha256="0" * 64)
    rewrite(run, 1, data=metrics, versions={**manifest.versions, "torch": "1.0"})
    result = igrpo("run", run)
    assert result.code == 4, result.stderr
    assert "update 1, computed again, has another " in result.stderr
    assert "torch 1.0 then" in result.stderr
