"""`just faults`: every fault, how often it was tried, and what was lost. Ends with one JSON line.

Progress and what was lost, a line each, go to stderr. Exit code 1 when anything was lost.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from itertools import islice
from pathlib import Path
from xml.etree import ElementTree

sys.path += [str(Path(__file__).parents[1] / room) for room in ("", "faults")]

import damage_cases
import fault_cases
from forked import AGAIN, COMMANDS, FEW_OPERATIONS, OVERWRITING, WarmRun
from race_cases import command_races, races

from igrpo_cli.ui.console import table

Tries = Iterator[str | None]
TESTS = Path(__file__).parents[1]


TESTED = {
    "NaN, Inf, no memory at step k": "faults/test_numbers_and_memory.py",
    "shard missing, doubled, foreign, short": "faults/test_inputs_of_stages.py",
    "recreated, mixed, overwritten": "faults/test_chains.py faults/test_shards_of_one_stage.py "
    "faults/test_overwrite.py",
    "init repeated, links, leftovers": "faults/test_repeated_init.py faults/test_links.py faults/test_leftovers.py",
    "signals from the start to the end of a process": "faults/test_signals.py",
    "bits of parts and small records": "store/test_parts.py store/test_checksummed_json.py rewards/test_judge_cache.py",
    "policy damaged or foreign": "faults/test_foreign_policies.py",
    "malformed problems": "problems",
    "hostile completions and drafts": "faults/test_hostile_texts.py",
    "engine short, wrong, hung or dead": "faults/test_engine_faults.py engines/test_server_engine.py",
    "more work than CPUs": "faults/test_oversubscription.py",
    "odd paths and directories": "faults/test_odd_paths.py",
    "forbidden calls, secrets": "faults/test_security.py",
}
"""Faults that are tests of the suite; each test is a try."""
IN_THE_MIDDLE = 11
"""The operation where a sample begins: a shard or a policy is half made."""


MAY_NOT_BE_TRIED = "full disk of 1 MB"
"""Without the right to mount."""


def faults(warm: WarmRun, small: bool) -> dict[str, Callable[[], Tries]]:
    """All of them by name; each try yields None, or what was lost."""
    first = IN_THE_MIDDLE if small else 1
    found: dict[str, Callable[[], Tries]] = {}
    for kind in ("kill", "eio", "enospc"):
        for name in COMMANDS:
            begin = min(first, FEW_OPERATIONS.get(name, first))
            found[f"{kind} at operation n of {name}"] = partial(fault_cases.every_operation, warm, name, kind, begin)
    for name in [f"{name}{AGAIN}" for name in OVERWRITING]:
        found[f"kill at operation n of {name}"] = partial(fault_cases.every_operation, warm, name, "kill", first)
    found["kill at a random time of run"] = partial(fault_cases.random_kills, warm, 200)
    for times, often in ((1, "once"), (2, "twice")):
        for name in COMMANDS:
            found[f"SIGTERM, SIGUSR1, SIGINT in {name}, {often}"] = partial(fault_cases.signals, warm, name, times)
    found[MAY_NOT_BE_TRIED] = partial(fault_cases.full_disks, warm, (16, 0, 4, 64, 256, 900))
    for name in COMMANDS:
        sizes = (1024, 64, 4096, 16384, 1 << 20)
        found[f"file size limit in {name}"] = partial(fault_cases.file_size_limits, warm, name, sizes)
    for kind in damage_cases.KINDS:
        found[f"bit flip: {kind}"] = partial(damage_cases.bit_flips, warm, kind, 600)
        found[f"truncation: {kind}"] = partial(damage_cases.truncations, warm, kind)
    for name in damage_cases.READERS:
        found[f"bit flip before {name}"] = partial(damage_cases.flips_before, warm, name, 60)
    for writers in (2, 8):
        found[f"{writers} writers of one shard"] = partial(races, warm.directory / "races", writers, 75)
        found[f"{writers} tasks of one command"] = partial(command_races, warm, writers, 5)
    for name in COMMANDS:
        begin = min(first, FEW_OPERATIONS.get(name, first))
        found[f"late twin in {name}"] = partial(fault_cases.late_twins, warm, name, begin)
    found["files of 1970 and 2100"] = partial(damage_cases.file_times, warm, (0.0, 4102444800.0))
    found["clock a day off"] = partial(damage_cases.clocks, warm, (-1, 1))
    found["no hard links"] = partial(damage_cases.without_hard_links, warm)
    return found


def tests_of(files: str) -> Tries:
    """A try for each test of `files`, in a process of its own; one that is skipped is none."""
    with tempfile.TemporaryDirectory() as directory:
        report = Path(directory, "report.xml")
        command = [
            sys.executable,
            "-m",
            "pytest",
            "-n",
            "0",
            "-m",
            "",
            "-p",
            "no:cacheprovider",
            f"--junitxml={report}",
        ]
        subprocess.run([*command, *(str(TESTS / file) for file in files.split())], stdout=subprocess.DEVNULL)
        cases = list(ElementTree.parse(report).iter("testcase"))
    for case in cases:
        outcomes = {outcome.tag: outcome.get("message", "") for outcome in case}
        if "skipped" not in outcomes:
            bad = outcomes.get("failure", outcomes.get("error"))
            yield None if bad is None else f"{case.get('name')}: {bad}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--small", action="store_true", help="one try of each fault, as the tests run it")
    parser.add_argument("--only", default="", help="faults whose name holds this text")
    arguments = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as directory:
        found = faults(WarmRun(Path(directory)), arguments.small)
        if not arguments.small:
            found |= {name: partial(tests_of, files) for name, files in TESTED.items()}
        for name, tries in found.items():
            if arguments.only in name:
                results = list(_told(islice(tries(), 1) if arguments.small else tries()))
                if not results and name != MAY_NOT_BE_TRIED:
                    results = list(_told(iter([f"{name}: nothing was tried"])))
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
