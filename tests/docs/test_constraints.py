"""The constraints files pin what pyproject.toml asks for, in versions that any machine can install."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
TESTED, OLDEST = "constraints.txt", "constraints-oldest.txt"


def pins(name: str) -> dict[str, str]:
    lines = [line for line in (ROOT / name).read_text("utf-8").splitlines() if line and not line.startswith("#")]
    return dict(line.split("==") for line in lines)


def requirements() -> list[Requirement]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    lines = [*project["dependencies"], *(line for extra in project["optional-dependencies"].values() for line in extra)]
    return [requirement for requirement in map(Requirement, lines) if requirement.name != "igrpo-cli"]


@pytest.mark.parametrize("name", [TESTED, OLDEST])
def test_every_direct_dependency_is_pinned_within_its_range(name):
    pinned = pins(name)
    for requirement in requirements():
        assert requirement.specifier.contains(pinned[canonicalize_name(requirement.name)]), requirement


def test_the_oldest_versions_are_the_lower_bounds():
    pinned = pins(OLDEST)
    for requirement in requirements():
        bounds = [each.version for each in requirement.specifier if each.operator in (">=", "==")]
        assert [bound.removesuffix(".*") for bound in bounds] == [pinned[canonicalize_name(requirement.name)]]


@pytest.mark.parametrize("name", [TESTED, OLDEST])
def test_every_pin_is_a_plain_public_version(name):
    for package, version in pins(name).items():
        assert re.fullmatch(r"[a-z0-9-]+", package), package
        assert re.fullmatch(r"[0-9]+(\.[0-9]+)*((a|b|rc)[0-9]+)?(\.post[0-9]+)?", version), (package, version)


def test_packages_that_follow_from_the_build_of_torch_are_not_pinned():
    assert not pins(TESTED).keys() & {"triton", "torchvision", "torchaudio", "torchcodec", "setuptools", "pip"}
