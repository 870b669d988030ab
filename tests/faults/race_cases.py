"""Several writers of one shard at the same time: one wins, nobody fails, the bytes are those of one."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

from fault_cases import lost, require, same_as_undisturbed
from forked import COMMANDS, Fork, WarmRun

from igrpo_cli.store.completion import commit_shard, open_input
from igrpo_cli.store.layout import RunDirectory
from igrpo_cli.store.parts import PartStore
from sample_run import group, identity_of, manifest_of

NUM_BLOCKS = 3


def command_races(warm: WarmRun, num_tasks: int, tries: int) -> Iterator[str | None]:
    """Each command by so many tasks at the same moment, as after a requeue: all end well, with the same bytes."""
    for name in COMMANDS:
        for n in range(tries):
            warm.reset(name)
            tasks = [Fork(*warm.command(name)) for _ in range(num_tasks)]
            codes = [task.wait() for task in tasks]
            said = [task.stderr for task, code in zip(tasks, codes, strict=True) if code]
            yield lost(lambda c=name, s=said: _all_well(warm, c, s), f"race {n} of {num_tasks} tasks of {name}")


def _all_well(warm: WarmRun, name: str, said: list[str]) -> None:
    require(not said, f"{len(said)} failed: {said}")
    same_as_undisturbed(warm, name)


def races(directory: Path, num_writers: int, tries: int) -> Iterator[str | None]:
    """Writers that begin at the same moment, each doing what a task does: claims, parts, data, manifest, clean-up."""
    alone = directory / "alone"
    _write(alone)
    expected = _shard(alone).data.read_bytes()
    for n in range(tries):
        root = directory / f"{num_writers}-writers-{n}"
        yield lost(lambda r=root: _race(r, num_writers, expected), f"race {n} of {num_writers} writers")
        shutil.rmtree(root)


def _race(root: Path, num_writers: int, expected: bytes) -> None:
    root.mkdir(parents=True)
    gate, opener = os.pipe()
    pids = [_writer(root, gate, opener) for _ in range(num_writers)]
    os.close(gate)
    os.close(opener)
    codes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]
    require(codes == [0] * num_writers, f"the writers exit {codes}")
    open_input(_shard(root))
    require(_shard(root).data.read_bytes() == expected, "other bytes than one writer makes")
    left = {path for path in root.rglob("*") if path.is_file()} - {_shard(root).data, _shard(root).manifest}
    require(not left, f"left behind: {left}")


def _writer(root: Path, gate: int, opener: int) -> int:
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            os.close(opener)
            os.read(gate, 1)  # returns when the last opener is closed
            _write(root)
            code = 0
        except BaseException:
            sys.excepthook(*sys.exc_info())
        finally:
            os._exit(code)
    return pid


def _write(root: Path) -> None:
    path = _shard(root)
    identity = identity_of(path)
    parts = PartStore(path.parts, identity.sha256())
    for block in range(NUM_BLOCKS):
        if not parts.has(block):
            parts.claim(block)
            parts.write(block, group(block))
    commit_shard(
        path,
        identity,
        lambda replace: parts.assemble(path.data, range(NUM_BLOCKS), replace),
        lambda data: manifest_of(identity, data),
    )
    parts.clear()


def _shard(root: Path):
    return RunDirectory(root).shard(0, "draft", 3, 8)
