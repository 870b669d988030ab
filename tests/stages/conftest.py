"""Fixtures: a folder for the stage scripts, and a real Slurm if this machine can run one."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path

import pytest
from slurm_cluster import SlurmCluster, why_not_here
from stage_scripts import Scripts

from command_line import ONE_THREAD


def _environment(folder: Path, name: str) -> Path:
    """Write an activate script that puts the programs of this environment first on the PATH and sets a variable."""
    programs = folder / name / "bin"
    programs.mkdir(parents=True)
    for program, module in (("igrpo", "igrpo_cli"), ("torchrun", "torch.distributed.run")):
        script = programs / program
        script.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -m {module} "$@"\n')
        script.chmod(0o755)
    activate = programs / "activate"
    activate.write_text(f"export PATH={shlex.quote(str(programs))}:$PATH IGRPO_ENVIRONMENT={name}\n")
    return activate


@pytest.fixture(scope="session")
def scripts(tmp_path_factory) -> Scripts:
    """The scripts without Slurm."""
    folder = tmp_path_factory.mktemp("two environments")
    environment = {
        **ONE_THREAD,
        "IGRPO_SAMPLING_ENV": str(_environment(folder, "sampling")),
        "IGRPO_TRAINING_ENV": str(_environment(folder, "training")),
    }
    return Scripts(folder, environment)


@pytest.fixture(scope="session")
def slurm(tmp_path_factory):
    """A running cluster of one node."""
    reason = why_not_here()
    if reason:
        pytest.skip(reason)
    cluster = SlurmCluster(tmp_path_factory.mktemp("slurm"))
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.stop()


@pytest.fixture(scope="session")
def submit(scripts, slurm) -> Scripts:
    """The scripts with access to the cluster."""
    return Scripts(scripts.folder, {**scripts.environment, "SLURM_CONF": slurm.environment["SLURM_CONF"]})
