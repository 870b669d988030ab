"""`just faults`: every fault, how often it was tried, and what was lost. Ends with one JSON line.

Progress and what was lost, a line each, go to stderr. Exit code 1 when anything was lost.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path

sys.path += [str(Path(__file__).parents[1] / room) for room in ("", "faults", "shards")]

import damage_cases
import fault_cases
from forked import COMMANDS, WarmRun
from race_cases import races

from igrpo_cli.console import table

Tries = Iterator[str | None]


def faults(warm: WarmRun, small: bool) -> dict[str, Callable[[], Tries]]:
    """All of them by name; each try yields None, or what was lost. `small` is a sample of each."""
    # Far apart; the update has the most kinds of operations.
    steps = {name: 47 if name == "update" else 61 for name in COMMANDS} if small else dict.fromkeys(COMMANDS, 1)
    found: dict[str, Callable[[], Tries]] = {}
    for kind in ("kill", "eio", "enospc"):
        for name in COMMANDS:
            found[f"{kind} at operation n of {name}"] = lambda k=kind, n=name: fault_cases.every_operation(
                warm, n, k, steps[n]
            )
    found["kill at a random time of run"] = lambda: fault_cases.random_kills(warm, 2 if small else 200)
    for times in (1, 2):
        for name in ("draft", "update"):
            key = f"SIGTERM, SIGUSR1, SIGINT in {name}, {'once' if times == 1 else 'twice'}"
            found[key] = lambda t=times, n=name: islice(fault_cases.signals(warm, n, t), 1 if small else None)
    found["full disk of 1 MB"] = lambda: fault_cases.full_disks(warm, (8,) if small else (0, 4, 16, 64, 256, 900))
    for name in COMMANDS:
        sizes = (2048,) if small else (64, 1024, 4096, 16384, 1 << 20)
        found[f"file size limit in {name}"] = lambda n=name, s=sizes: fault_cases.file_size_limits(warm, n, s)
    for kind in damage_cases.KINDS:
        found[f"bit flip: {kind}"] = lambda k=kind: damage_cases.bit_flips(warm, k, 6 if small else 600)
        found[f"truncation: {kind}"] = lambda k=kind: damage_cases.truncations(warm, k)
    for writers in (2, 8):
        number = 3 if small else 75
        found[f"{writers} writers of one shard"] = lambda w=writers, n=number: races(warm.directory / "races", w, n)
    for name in ("draft", "update"):
        found[f"late twin in {name}"] = lambda n=name: fault_cases.late_twins(warm, n, steps[n])
    found["files of 1970 and 2100"] = lambda: damage_cases.file_times(warm, (0.0,) if small else (0.0, 4102444800.0))
    found["clock a day off"] = lambda: damage_cases.clocks(warm, (-1,) if small else (-1, 1))
    found["no hard links"] = lambda: damage_cases.without_hard_links(warm)
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--small", action="store_true", help="a sample of each fault, as the tests run it")
    parser.add_argument("--only", default="", help="faults whose name holds this text")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        warm = WarmRun(Path(directory))
        rows = []
        for name, tries in faults(warm, arguments.small).items():
            if arguments.only in name:
                results = list(_told(tries()))
                num_lost = sum(result is not None for result in results)
                rows.append((name, len(results), len(results) - num_lost, num_lost))
                print(*rows[-1], file=sys.stderr)
    totals = [sum(row[column] for row in rows) for column in (1, 2, 3)]
    print(table(("fault", "tries", "survived", "lost"), rows))
    print(json.dumps(dict(zip(("faults", "tries", "survived", "lost"), (len(rows), *totals), strict=True))))
    return 1 if totals[2] else 0


def _told(tries: Tries) -> Tries:
    for result in tries:
        if result is not None:
            print(f"lost: {result}", file=sys.stderr)
        yield result


if __name__ == "__main__":
    code = main()
    sys.stdout.flush()
    # Torch and its libraries have much to say about being taken down after so many forks.
    os._exit(code)
