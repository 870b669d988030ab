from __future__ import annotations

import shutil

import pytest

from igrpo_cli.store.layout import RunDirectory
from sample_run import make_run


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory):
    return make_run(tmp_path_factory.mktemp("finished") / "run")


@pytest.fixture
def run(finished_run, tmp_path):
    shutil.copytree(finished_run.root, tmp_path / "run")
    return RunDirectory(tmp_path / "run")
