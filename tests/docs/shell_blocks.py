"""Read the shell blocks of a Markdown file, and run them as a reader would type them."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from command_line import ONE_THREAD, Result, igrpo, sets

_FENCE = re.compile(r"^```([^\n]*)\n(.*?)^```$", re.M | re.S)
_FILE = re.compile(r"# (\S+\.\w+)\n")
SMALLER = ("data.problems_per_iteration=4", "eval.limit=8", "reward.num_workers=1")
"""Settings that make every run of the guides smaller."""
FEWER_ITERATIONS = "run.num_iterations=1"


@dataclass(frozen=True)
class Block:
    """A fenced block."""

    kind: str
    """Language of the block: `sh`, `text`, `python`, …"""
    note: str
    """Rest of the opening line: `no-run: reason` for commands that the tests do not run."""
    text: str


def blocks(markdown: str) -> list[Block]:
    """Return all fenced blocks in order."""
    found = ((info.partition(" "), text) for info, text in _FENCE.findall(markdown))
    return [Block(kind, note, text) for (kind, _, note), text in found]


class Shell:
    """Runs the blocks of one file in a directory; `cd` also affects later blocks."""

    def __init__(self, directory: Path, commands: Path) -> None:
        """Create `igrpo` in the folder `commands`, which is put on the PATH."""
        self._here = directory
        self._path = f"{commands}{os.pathsep}{os.environ['PATH']}"
        launcher = commands / "igrpo"
        launcher.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m igrpo_cli "$@"\n')
        launcher.chmod(0o755)

    def run(self, block: Block) -> Iterator[tuple[str, Result]]:
        """Yield the commands of a shell block with their results. A block that names a file is written to it."""
        if named := _FILE.match(block.text):
            (self._here / named[1]).write_text(block.text)
        if block.kind == "sh":
            for line in block.text.replace("\\\n", " ").splitlines():
                for command in _commands(line):
                    yield command, self._call(command)

    def _call(self, command: str) -> Result:
        words = shlex.split(command)
        if words[0] == "cd":
            self._here = self._here / words[1]
            return Result(0, "", "")
        if words[0] == "pip":
            return Result(0, "", "")  # another test checks the names of the packages
        if words[0] == "igrpo" and not _needs_a_shell(command):
            return igrpo(*_smaller(words[1:]), cwd=self._here)
        environment = {**ONE_THREAD, "PATH": self._path}
        done = subprocess.run(
            ["bash", "-c", command], cwd=self._here, env=environment, capture_output=True, text=True, timeout=120
        )
        return Result(done.returncode, done.stdout, done.stderr)


def _smaller(words: list[str]) -> list[str]:
    if words[0] not in ("init", "quickstart", "study"):
        return words
    fewer = [] if any("run.num_iterations" in word for word in words) else [FEWER_ITERATIONS]
    return [*words, *sets(*SMALLER, *fewer)]


def _needs_a_shell(command: str) -> bool:
    return bool({"|", ">", "<", ";"} & set(shlex.shlex(command, posix=True, punctuation_chars=True))) or "$(" in command


def _commands(line: str) -> list[str]:
    """Return the commands of a line, split at `&&`, without its comment and with their quotes."""
    found, words = [], _tokens(line)
    while "&&" in words:
        place = words.index("&&")
        found.append(words[:place])
        words = words[place + 1 :]
    return [" ".join(command) for command in (*found, words) if command]


def _tokens(line: str) -> list[str]:
    """Return the words with their quotes, up to a comment."""
    pattern = re.compile(r"""(?:[^\s'"\\]|\\.|'[^']*'|"(?:[^"\\]|\\.)*")+""")
    words = pattern.findall(line)
    return words[: next((i for i, word in enumerate(words) if word.startswith("#")), len(words))]
