"""Problems are kept as they were read, and where from."""

from __future__ import annotations

import pytest

from igrpo_cli.errors import ConflictError
from igrpo_cli.pipeline.frozen_problems import freeze_problems
from igrpo_cli.records import Problem
from igrpo_cli.store.completion import read_problems
from igrpo_cli.store.layout import RunDirectory
from igrpo_cli.store.manifest import read_manifest

PROBLEMS = [Problem("p0", "1+1=?", "2", "sums:1")]
MADE_FROM = {"bench": {"sha256": "3" * 64}}


def test_the_commit_is_recorded_and_a_later_one_with_the_same_problems_is_no_conflict(tmp_path):
    path = RunDirectory(tmp_path).eval_problems("sums")
    freeze_problems(path, PROBLEMS, MADE_FROM, {"kept": 1}, revision="a" * 40)
    assert read_manifest(path).versions["problems"] == "a" * 40
    freeze_problems(path, PROBLEMS, MADE_FROM, {"kept": 1}, revision="b" * 40)
    assert read_manifest(path).versions["problems"] == "a" * 40, "the problems on disk came from the first"
    assert read_problems(path) == PROBLEMS


def test_local_files_have_no_commit_and_other_content_is_a_conflict(tmp_path):
    path = RunDirectory(tmp_path).eval_problems("sums")
    freeze_problems(path, PROBLEMS, MADE_FROM, {"kept": 1})
    assert "problems" not in read_manifest(path).versions
    with pytest.raises(ConflictError):
        freeze_problems(path, PROBLEMS, {"bench": {"sha256": "4" * 64}}, {"kept": 1})
