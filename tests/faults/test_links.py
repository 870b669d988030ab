"""Policies that lie elsewhere, behind links: nothing is deleted through one, and another file system is no obstacle."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

import pytest

from command_line import files_below, igrpo, make_run

SETTINGS = ("run.num_iterations=1", "data.problems_per_iteration=3", "draft.max_completion_length=8")


@pytest.fixture(scope="module")
def refined(tmp_path_factory):
    """A run whose update comes next."""
    run = make_run(tmp_path_factory.mktemp("runs") / "refined", *SETTINGS)
    for stage in ("draft", "select", "refine"):
        assert igrpo(stage, run).code == 0
    return run


@pytest.fixture(scope="module")
def updated(refined, tmp_path_factory):
    run = shutil.copytree(refined, tmp_path_factory.mktemp("runs") / "updated")
    assert igrpo("update", run).code == 0
    return run


def test_an_update_that_is_made_anew_leaves_the_archive_alone_that_its_policy_was_a_link_to(updated, tmp_path):
    run, archive = shutil.copytree(updated, tmp_path / "run"), tmp_path / "archive"
    (run / "policies/0001").rename(archive)
    (run / "policies/0001").symlink_to(archive)
    archived = files_below(archive)
    assert igrpo("update", run, "--overwrite", "--iteration", 0).code == 0
    assert files_below(archive) == archived
    assert not (run / "policies/0001").is_symlink()
    assert files_below(run) == files_below(updated)
    assert igrpo("verify", run).code == 0


def test_an_update_is_made_again_where_its_policy_is_a_link_to_nothing(updated, tmp_path):
    run = shutil.copytree(updated, tmp_path / "run")
    shutil.rmtree(run / "policies/0001")
    (run / "policies/0001").symlink_to(tmp_path / "nowhere")
    result = igrpo("update", run, "--iteration", 0)
    assert result.code == 0, result.stderr
    assert files_below(run) == files_below(updated)


@pytest.fixture
def policies_elsewhere(refined, tmp_path):
    """A run whose `policies/` is a link to another file system."""
    run = shutil.copytree(refined, tmp_path / "run")
    with tempfile.TemporaryDirectory(dir="/dev/shm" if os.path.isdir("/dev/shm") else None) as directory:
        if os.stat(directory).st_dev == run.stat().st_dev:
            pytest.skip("there is no second file system here")
        place = Path(shutil.move(run / "policies", directory))
        (run / "policies").symlink_to(place)
        yield run


def test_policies_may_lie_on_another_file_system(policies_elsewhere, updated):
    result = igrpo("update", policies_elsewhere)
    assert result.code == 0, result.stderr
    assert sorted(path.name for path in (policies_elsewhere / "policies").iterdir()) == ["0000", "0001"]
    assert not (policies_elsewhere / "iteration_0000/update/policy").exists()
    assert files_below(policies_elsewhere / "policies/0001") == files_below(updated / "policies/0001")
    assert igrpo("verify", policies_elsewhere).code == 0


def test_a_policy_that_was_published_there_and_not_withdrawn_here_is_withdrawn_by_the_next(policies_elsewhere):
    assert igrpo("update", policies_elsewhere).code == 0
    shutil.copytree(policies_elsewhere / "policies/0001", policies_elsewhere / "iteration_0000/update/policy")
    assert igrpo("update", policies_elsewhere, "--iteration", 0).code == 0
    assert not (policies_elsewhere / "iteration_0000/update/policy").exists()
    assert igrpo("verify", policies_elsewhere).code == 0
