"""Policies that are stored as differences: the same bytes come back, and nothing else does."""

from __future__ import annotations

import shutil

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from igrpo_cli.errors import ConflictError, DamagedFileError, MissingInputError
from igrpo_cli.store import deltas
from igrpo_cli.store.deltas import restore_policy, verify_delta, write_delta
from igrpo_cli.store.layout import RunDirectory
from igrpo_cli.store.policies import write_policy_manifest


def write_policy(run, iteration, weights, parent=None, **others):
    """Write a policy of which only the hashes of its files are looked at."""
    directory = run.policy(iteration)
    directory.mkdir(parents=True)
    (directory / "config.json").write_text("{}")
    (directory / "model.safetensors").write_bytes(weights)
    for name, content in others.items():
        (directory / f"{name}.jinja").write_bytes(content)
    return write_policy_manifest(directory, iteration, parent)


def contents(directory):
    return {path.name: path.read_bytes() for path in directory.iterdir()}


def made(tmp_path, *weights):
    """A run with a policy for each of `weights`, all but the first and the last stored as differences."""
    run, parent = RunDirectory(tmp_path / "run"), None
    policies = []
    for iteration, each in enumerate(weights):
        policy = write_policy(run, iteration, each, parent)
        policies.append(contents(policy.directory))
        parent = policy.id
    for iteration in range(1, len(weights)):
        write_delta(run, iteration)
    for iteration in range(1, len(weights) - 1):
        shutil.rmtree(run.policy(iteration))
    return run, policies


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.binary(max_size=70), min_size=3, max_size=6))
def test_any_bytes_come_back(tmp_path_factory, monkeypatch, weights):
    monkeypatch.setattr(deltas, "_CHUNK", 16)
    run, policies = made(tmp_path_factory.mktemp("any"), *weights)
    for iteration in range(1, len(weights) - 1):
        restore_policy(run, iteration, run.root / f"restored-{iteration}")
        assert contents(run.root / f"restored-{iteration}") == policies[iteration]
        verify_delta(run, iteration)


def test_a_changed_byte_takes_little_room(tmp_path):
    before = bytes(range(256)) * 2**15
    after = bytearray(before)
    after[5_000_000] ^= 1
    run, policies = made(tmp_path, before, bytes(after), before)
    assert sum(path.stat().st_size for path in run.delta(1).iterdir()) < len(before) / 1000
    assert contents(restore_policy(run, 1, tmp_path / "restored").directory) == policies[1]


def test_a_file_that_only_a_later_policy_has_is_stored_whole(tmp_path):
    run = RunDirectory(tmp_path / "run")
    first = write_policy(run, 0, b"one")
    second = write_policy(run, 1, b"two", first.id, chat_template=b"{{ messages }}")
    expected = contents(second.directory)
    write_delta(run, 1)
    shutil.rmtree(second.directory)
    assert contents(restore_policy(run, 1, second.directory).directory) == expected


def test_a_damaged_delta_restores_nothing(tmp_path):
    run, _ = made(tmp_path, b"a" * 99, b"b" * 99, b"c" * 99, b"d" * 99)
    stored = run.delta(1) / "model.safetensors.zst"
    sound = stored.read_bytes()
    shutil.copy(run.delta(2) / "model.safetensors.zst", stored)
    with pytest.raises(DamagedFileError, match=r"0002.delta/model.safetensors is damaged"):
        restore_policy(run, 2, tmp_path / "restored")
    assert not (tmp_path / "restored").exists()
    with pytest.raises(DamagedFileError, match=r"0001.delta/model.safetensors.zst is damaged"):
        verify_delta(run, 1)
    stored.write_bytes(sound)
    stored.with_name("more").touch()
    with pytest.raises(DamagedFileError, match="more was not there"):
        verify_delta(run, 1)


def test_a_policy_that_changed_after_it_was_recorded_becomes_no_delta(tmp_path):
    run = RunDirectory(tmp_path / "run")
    first = write_policy(run, 0, b"one")
    second = write_policy(run, 1, b"two", first.id)
    for directory in (second.directory, first.directory):
        sound = (directory / "model.safetensors").read_bytes()
        (directory / "model.safetensors").write_bytes(b"six")
        with pytest.raises(DamagedFileError, match=r"model\.safetensors is damaged"):
            write_delta(run, 1)
        assert not run.delta(1).exists()
        (directory / "model.safetensors").write_bytes(sound)
    write_delta(run, 1)


def test_a_chain_with_a_gap_or_of_another_policy_is_an_error(tmp_path):
    run, _ = made(tmp_path, b"aaa", b"bbb", b"ccc", b"ddd")
    other, _ = made(tmp_path / "other", b"aaa", b"eee", b"fff", b"ggg")
    moved = tmp_path / "moved"
    run.delta(1).rename(moved)
    with pytest.raises(MissingInputError, match=r"neither policy 1 nor its difference.*the run has 0,2-3"):
        restore_policy(run, 2, tmp_path / "restored")
    shutil.copytree(other.delta(1), run.delta(1))
    with pytest.raises(ConflictError, match="another policy 1"):
        restore_policy(run, 2, tmp_path / "restored")


def test_a_policy_that_was_made_again_gets_a_new_delta(tmp_path):
    run = RunDirectory(tmp_path / "run")
    first = write_policy(run, 0, b"one")
    write_policy(run, 1, b"two", first.id)
    write_delta(run, 1)
    shutil.rmtree(run.policy(1))
    again = contents(write_policy(run, 1, b"six", first.id).directory)
    write_delta(run, 1)
    shutil.rmtree(run.policy(1))
    assert contents(restore_policy(run, 1, run.policy(1)).directory) == again
