from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import sys
from pathlib import Path

import pytest

from igrpo_cli.errors import ConflictError, DamagedFileError, MissingInputError
from igrpo_cli.store import policies
from igrpo_cli.store.atomic import move_directory
from igrpo_cli.store.checksummed_json import checksummed_bytes
from igrpo_cli.store.layout import RunDirectory
from igrpo_cli.store.policies import (
    describe_directory,
    policy_id,
    promote_policy,
    read_policy,
    verify_policy,
    write_pointer,
    write_policy_manifest,
)
from sample_run import model_directory

FORK = multiprocessing.get_context("fork")


@pytest.fixture
def run(tmp_path):
    return RunDirectory(tmp_path / "run")


@pytest.fixture
def pointed(run):
    model_directory(run.root / "base")
    return write_pointer(run, "org/model", "main", Path("base"))


def published_update(run: RunDirectory, weights: bytes = b"new", iteration: int = 0):
    """An update as its one rename leaves it: the new policy is still inside."""
    staged = model_directory(run.update(iteration).policy, weights)
    return write_policy_manifest(staged, iteration + 1, "sha256:" + "a" * 64)


def test_the_id_is_a_hash_of_names_and_hashes_in_any_order():
    files = {"model.safetensors": "1" * 64, "config.json": "2" * 64}
    text = '{"config.json":"' + "2" * 64 + '","model.safetensors":"' + "1" * 64 + '"}'
    expected = "sha256:" + hashlib.sha256(text.encode()).hexdigest()
    assert policy_id(files) == policy_id(dict(reversed(files.items()))) == expected
    assert policy_id({"model.safetensors": "1" * 64, "config.json": "3" * 64}) != expected


def test_only_files_that_matter_count(tmp_path):
    directory = model_directory(tmp_path / "model")
    before = describe_directory(directory)
    assert sorted(before) == ["config.json", "model.safetensors"]
    for name in ("README.md", "training_args.bin", "optimizer.pt", "trainer_state.json", ".gitattributes"):
        (directory / name).write_text("x")
    (directory / "onnx").mkdir()
    assert describe_directory(directory) == before
    for name in ("tokenizer.json", "chat_template.jinja", "generation_config.json", "modeling_x.py"):
        (directory / name).write_text("x")
    assert set(describe_directory(directory)) - set(before) == {
        "tokenizer.json",
        "chat_template.jinja",
        "generation_config.json",
        "modeling_x.py",
    }


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "weights.pth", "policy.pkl", "x.ckpt"])
def test_pickled_weights_are_refused_by_name_even_beside_safetensors(tmp_path, name):
    directory = model_directory(tmp_path / "model")
    (directory / name).write_bytes(b"")
    with pytest.raises(DamagedFileError, match=f"{name} holds pickled weights") as caught:
        describe_directory(directory)
    assert "safetensors" in caught.value.hint


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
def test_a_directory_without_weights_or_config_is_no_policy(tmp_path, name):
    directory = model_directory(tmp_path / "model")
    (directory / name).unlink()
    with pytest.raises(DamagedFileError, match=name.replace("model", "")):
        describe_directory(directory)


def test_a_link_to_nothing_is_named(tmp_path):
    directory = model_directory(tmp_path / "model")
    (directory / "tokenizer.json").symlink_to(tmp_path / "blob")
    with pytest.raises(DamagedFileError, match=r"tokenizer\.json is a link to nothing"):
        describe_directory(directory)


def test_a_pointer_leads_to_the_model_wherever_the_run_moves(run, pointed, tmp_path):
    run.root.rename(tmp_path / "moved")
    policy = read_policy(RunDirectory(tmp_path / "moved"), 0)
    assert policy.directory == tmp_path / "moved" / "base"
    assert (policy.id, policy.model, policy.revision, policy.parent) == (pointed.id, "org/model", "main", None)
    verify_policy(policy)


def test_reading_an_id_hashes_nothing(run, pointed, monkeypatch):
    monkeypatch.setattr(policies, "sha256_files", lambda paths: pytest.fail(f"hashed {list(paths)}"))
    assert read_policy(run, 0).id == pointed.id


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda base: (base / "model.safetensors").write_bytes(b"weightt"), "model.safetensors has changed"),
        (lambda base: (base / "model.safetensors").rename(base / "x.safetensors"), "model.safetensors is gone"),
        (lambda base: (base / "config.json").unlink(), "config.json is gone"),
        (lambda base: (base / "chat_template.jinja").write_text("x"), "chat_template.jinja was not there"),
        (lambda base: (base / "pytorch_model.bin").write_text("x"), "pytorch_model.bin holds pickled weights"),
    ],
)
def test_every_change_of_a_policy_is_found_and_named(run, pointed, change, told):
    change(run.root / "base")
    with pytest.raises(DamagedFileError, match=told):
        verify_policy(read_policy(run, 0))


def test_a_model_directory_that_went_away_is_a_missing_input(run, pointed):
    (run.root / "base").rename(run.root / "elsewhere")
    with pytest.raises(MissingInputError, match="base does not exist"):
        verify_policy(read_policy(run, 0))


@pytest.mark.parametrize(
    ("iteration", "hint"),
    [
        (0, "igrpo init {0} --config {0}/run.toml"),
        (1, "igrpo update {0} --iteration 0"),
        (3, "igrpo status {0}"),
    ],
)
def test_a_policy_that_is_not_made_yet_names_the_command(run, iteration, hint):
    if iteration:
        run.policy(0).mkdir(parents=True)
    with pytest.raises(MissingInputError, match=f"policy {iteration} does not exist") as caught:
        read_policy(run, iteration)
    assert caught.value.hint == hint.format(run.root)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"policy_id": "0" * 64}, "policy_id must be"),
        ({"policy_id": 1}, "policy_id must be"),
        ({"files": {"../x": "1" * 64}}, "name of a file of the directory"),
        ({"files": {"config.json": "x"}}, "files.config.json must be"),
        ({"path": None}, "path must be"),
        ({"more": 1}, "unknown key more"),
        ({"policy_version": 3}, "newer igrpo"),
    ],
)
def test_a_pointer_is_read_strictly(run, pointed, changes, told):
    file = run.policy(0) / "pointer.json"
    facts = {**json.loads(file.read_text()), **changes}
    del facts["checksum"]
    file.write_bytes(checksummed_bytes(facts))
    with pytest.raises(DamagedFileError, match=told):
        read_policy(run, 0)


def test_settling_moves_the_policy_once_and_is_quiet_ever_after(run):
    assert promote_policy(run, 0) is False
    made = published_update(run)
    assert promote_policy(run, 0) is True
    assert promote_policy(run, 0) is False
    policy = read_policy(run, 1)
    verify_policy(policy)
    assert (policy.id, policy.parent, policy.iteration) == (made.id, "sha256:" + "a" * 64, 1)
    assert not run.update(0).policy.exists()


def test_the_same_policy_made_again_is_dropped_and_another_one_refused(run):
    published_update(run)
    promote_policy(run, 0)
    published_update(run)
    assert promote_policy(run, 0) is False
    assert not run.update(0).policy.exists()
    published_update(run, weights=b"other")
    with pytest.raises(ConflictError, match="0001 holds another policy") as caught:
        promote_policy(run, 0)
    assert "0001" in caught.value.hint
    assert run.update(0).policy.is_dir()


def test_a_policy_settled_by_another_process_in_between_is_no_failure(run, monkeypatch):
    published_update(run)

    def beaten(source, final):
        move_directory(source, final)
        raise ConflictError(f"{final} exists already")

    monkeypatch.setattr(policies, "move_directory", beaten)
    assert promote_policy(run, 0) is False
    verify_policy(read_policy(run, 1))


def test_a_policy_without_its_record_is_not_dropped_for_one_that_has_it(run):
    published_update(run)
    promote_policy(run, 0)
    published_update(run)
    (run.update(0).policy / "manifest.json").unlink()
    with pytest.raises(MissingInputError):
        promote_policy(run, 0)
    assert (run.update(0).policy / "model.safetensors").exists()


def test_a_policy_in_the_wrong_place_is_refused(run):
    published_update(run)
    promote_policy(run, 0)
    run.policy(1).rename(run.policy(2))
    with pytest.raises(DamagedFileError, match="iteration is 1, but it lies where 2 belongs"):
        read_policy(run, 2)


def _settle(root, barrier, trials):
    moved = 0
    for trial in range(trials):
        barrier.wait(30)
        moved |= promote_policy(RunDirectory(root / f"{trial}"), 0) << trial
    (root / f"moved-{os.getpid()}").write_text(str(moved))
    sys.exit(0)


@pytest.mark.parametrize("again", [False, True], ids=["first", "made again"])
def test_processes_that_settle_at_once_move_the_policy_exactly_once(tmp_path, again):
    trials = 20
    for trial in range(trials):
        run = RunDirectory(tmp_path / f"{trial}")
        published_update(run)
        if again:
            promote_policy(run, 0)
            published_update(run)
    barrier = FORK.Barrier(3)
    processes = [FORK.Process(target=_settle, args=(tmp_path, barrier, trials)) for _ in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
        assert process.exitcode == 0
    moved = [int(path.read_text()) for path in tmp_path.glob("moved-*")]
    assert sum(value.bit_count() for value in moved) == (0 if again else trials)
    for trial in range(trials):
        run = RunDirectory(tmp_path / f"{trial}")
        verify_policy(read_policy(run, 1))
        assert not run.update(0).policy.exists()
        assert [path.name for path in run.policies.iterdir()] == ["0001"]
