from __future__ import annotations

import shutil

import pytest
from sample_run import make_run

from igrpo_cli.store.layout import RunDirectory


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory):
    return make_run(tmp_path_factory.mktemp("finished") / "run")


@pytest.fixture
def run(finished_run, tmp_path):
    shutil.copytree(finished_run.root, tmp_path / "run")
    return RunDirectory(tmp_path / "run")
