"""Measure the grader: agreement with recorded verdicts, hostile answers, references against themselves, load, speed.

Cases are JSONL rows with `gold`, `answer`, `expected` and `scope`. Hostile rows have `gold`, `must_score` (0: must not
be rewarded) and a text: `pred`, `pred_parts` ([[text, repeats], …]) or `pred_py` (an expression of literals, +, *,
`str.join`, `map(str, …)` and `range`). Golds are JSONL rows with an `answer`.

    python benchmarks/grader_agreement.py --cases cases.jsonl --hostile hostile.jsonl --golds *.jsonl --load 8

One pool with a worker per core grades everything. With `--load` all of it is graded again by that many times more
workers, by threads that share one pool, and by processes with one pool each; no verdict may change. Prints a line of
JSON for each part. Exits with 1 if a hostile answer or an empty reference was rewarded, or if a verdict changed.
"""

from __future__ import annotations

import argparse
import ast
import json
import multiprocessing
import os
import random
import resource
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

from igrpo_cli.config.rewards import RewardSection
from igrpo_cli.records import Grade
from igrpo_cli.rewards.grading_pool import GradingPool

Pair = tuple[str, str]
Verdicts = list[tuple[str, str | None]]

INTEGERS = [(f"<think>sum</think><answer>{n}</answer>", str(n + n % 2)) for n in range(20_000)]
FORMS = ("{}", r"\boxed{{{}}}", "<think>so</think><answer>{}</answer>", "The answer is ${}$.")
BLANKS = (
    *(
        "",
        " ",
        "\n",
        "\u00a0",
        "\u3000",
        "\u200b",
        "\ufeff",
        ".",
        "$$",
        "$ $",
        "{}",
        "~",
        r"\ ",
        r"\,",
        r"\;",
        r"\quad",
    ),
    *(r"\text{ }", r"\boxed", r"\boxed{}", r"\boxed{ }", r"$\boxed{}$", r"\boxed{\text{}}", r"\boxed{\,}"),
)
NUM_MIXED = 2_000


def main() -> None:
    """Run the selected measurements."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=Path, help="JSONL with recorded verdicts")
    parser.add_argument("--hostile", type=Path, help="JSONL with hostile answers")
    parser.add_argument(
        "--golds", type=Path, nargs="*", default=[], help="JSONL files whose `answer` must equal itself"
    )
    parser.add_argument("--cores", type=int, default=os.cpu_count(), help="workers of a pool (default: the cores)")
    parser.add_argument(
        "--load", type=int, default=0, help="factor of oversubscription for grading everything again (default: skip)"
    )
    options = parser.parse_args()
    cases = read_rows(options.cases) if options.cases else []
    hostile = read_rows(options.hostile) if options.hostile else []
    golds = {path.stem: [row["answer"] for row in read_rows(path)] for path in options.golds}
    mixed = mixed_pairs([gold for answers in golds.values() for gold in answers])
    parts = []
    with GradingPool(RewardSection(num_workers=options.cores)) as pool:
        pool.grade([(r"\boxed{\sqrt{4}}", "2")] * 64)  # imports sympy and fills its caches
        parts += report_cases(cases, pool)
        parts += [report_blank_golds([*BLANKS, *(row["answer"] for row in cases)], pool)]
        parts += [report_golds(name, answers, pool, options.cores) for name, answers in golds.items()]
        parts += [report_speed("integers", INTEGERS, pool, options.cores)]
        parts += [report_speed("mixed golds", mixed, pool, options.cores)] if mixed else []
    parts += report_hostile(hostile, options.cores)
    if options.load:
        pairs = [(hostile_text(row), row["gold"]) for row in hostile]
        pairs += [(row["answer"], row["gold"]) for row in cases]
        pairs += mixed
        pairs += [pair for answers in golds.values() for pair in gold_pairs(answers)]
        parts += report_load(pairs, options.cores, options.load)
    for part in parts:
        print(json.dumps(part))
    sys.exit(any(part.get("failed") for part in parts))


def report_cases(rows: Sequence[dict[str, Any]], pool: GradingPool) -> list[dict[str, Any]]:
    """Report agreement with the recorded verdicts by scope, for us and, if recorded, for math-verify."""
    grades, seconds = timed(pool, [(row["answer"], row["gold"]) for row in rows])
    parts: dict[str, dict[str, Any]] = {
        scope: {"part": f"cases, {scope}", "rows": total, "agreed": 0, "math_verify_agreed": 0, "differing": []}
        for scope, total in Counter(row["scope"] for row in rows).items()
    }
    for row, grade in zip(rows, grades, strict=True):
        part = parts[row["scope"]]
        part["math_verify_agreed"] += row.get("math_verify_0_9_0") == row["expected"]
        if (grade.verdict == "correct") == row["expected"]:
            part["agreed"] += 1
        else:
            part["differing"].append([row["id"], grade.verdict])
            tail = json.dumps([row["gold"][-60:], row["answer"][-60:]], ensure_ascii=True)
            print(f"  differs: {row['id']} ({row['scope']}, options {row.get('options', {})}): {grade.verdict} {tail}")
    for part in parts.values():
        print(f"{part['part']}: {part['agreed']} of {part['rows']}; math-verify {part['math_verify_agreed']}")
    if rows:
        print(f"cases: {len(rows)} in {seconds:.1f} s, slowest {max(grade.seconds for grade in grades):.2f} s")
    return list(parts.values())


def report_blank_golds(answers: Sequence[str], pool: GradingPool) -> dict[str, Any]:
    """Grade every answer against every empty reference; none may be rewarded."""
    pairs = [(answer, blank) for blank in BLANKS for answer in answers]
    rewarded = [pair for pair, grade in zip(pairs, pool.grade(pairs), strict=True) if grade.verdict == "correct"]
    print(f"blank golds: {len(pairs)} pairs, rewarded {len(rewarded)} {rewarded[:9] or ''}")
    return {"part": "blank golds", "pairs": len(pairs), "rewarded": len(rewarded), "failed": bool(rewarded)}


def gold_pairs(golds: Sequence[str]) -> list[Pair]:
    """Return every reference as an answer to itself, in all forms."""
    return [(form.format(gold), gold) for gold in golds for form in FORMS]


def mixed_pairs(golds: Sequence[str]) -> list[Pair]:
    """Return boxed references paired with those of other problems; most pairs need algebra, as their texts differ."""
    draw = random.Random(0)
    return [(rf"\boxed{{{draw.choice(golds)}}}", draw.choice(golds)) for _ in range(NUM_MIXED)] if golds else []


def report_golds(name: str, golds: Sequence[str], pool: GradingPool, cores: int) -> dict[str, Any]:
    """Report the references that do not equal themselves in all forms."""
    pairs = gold_pairs(golds)
    grades, seconds = timed(pool, pairs)
    failed = [pair for pair, grade in zip(pairs, grades, strict=True) if grade.verdict != "correct"]
    rate = len(pairs) / seconds / cores
    print(f"{name}: {len(golds)} golds in {len(FORMS)} forms, {len(failed)} do not equal themselves, {seconds:.1f} s")
    for completion, _ in failed:
        print(f"  {json.dumps(completion)}")
    return {"part": f"golds, {name}", "golds": len(golds), "not_themselves": len(failed), "per_second_and_core": rate}


def report_speed(name: str, pairs: Sequence[Pair], pool: GradingPool, cores: int) -> dict[str, Any]:
    """Report graded answers per second and core."""
    grades, seconds = timed(pool, pairs)
    rate, counts = len(pairs) / seconds / cores, dict(Counter(grade.verdict for grade in grades))
    print(f"{name}: {rate:.0f} answers per second and core, {counts}")
    slowest = max(grade.seconds for grade in grades)
    return {"part": f"speed, {name}", "per_second_and_core": rate, "slowest_s": slowest, "verdicts": counts}


def report_hostile(rows: Sequence[dict[str, Any]], cores: int) -> list[dict[str, Any]]:
    """Report seconds and peak memory of each hostile row, each in its own pool."""
    pairs = [(hostile_text(row), row["gold"]) for row in rows]
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(cores, mp_context=spawn, max_tasks_per_child=1) as processes:
        found = list(processes.map(grade_alone, pairs))
    parts = []
    for row, figures in zip(rows, found, strict=True):
        failed = row["must_score"] == 0 and figures["verdict"] == "correct"
        parts.append({"part": "hostile", "id": row["id"], "must_score": row["must_score"], **figures, "failed": failed})
    if rows:
        rewarded = [part["id"] for part in parts if part["failed"]]
        print(f"hostile: {len(rows)} rows, {dict(Counter(part['verdict'] for part in parts))}")
        print(f"hostile: rewarded against the rule {rewarded or 'none'}")
        print(f"hostile: longest {max(part['seconds'] for part in parts):.1f} s of a row")
        print(f"hostile: peak memory {max(part['peak_mb'] for part in parts):.0f} MiB of a worker")
    return parts


def grade_alone(pair: Pair) -> dict[str, Any]:
    """Return verdict, seconds and peak memory (MiB) of one pair. Runs in a process without other children."""
    with GradingPool(RewardSection(num_workers=1)) as pool:
        grade = pool.grade([pair])[0]
        reasons = list(pool.ungraded_reasons)
    peak_mb = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024
    return {"verdict": grade.verdict, "reason": (reasons or [None])[0], "seconds": grade.seconds, "peak_mb": peak_mb}


def report_load(pairs: Sequence[Pair], cores: int, load: int) -> list[dict[str, Any]]:
    """Compare verdicts and answers of one pool with those of three oversubscribed ways of grading the same pairs."""
    slices = [pairs[first::load] for first in range(load)]
    ways: dict[str, Callable[[], list[Verdicts]]] = {
        f"one pool of {load * cores} workers": lambda: [grade_in_pool(load * cores, pairs)],
        f"{load} threads, one pool of {cores}": lambda: grade_in_threads(cores, slices),
        f"{load} processes, a pool of {cores} each": lambda: grade_in_processes(cores, slices),
    }
    alone = grade_in_pool(cores, pairs)
    parts = []
    for name, grade in ways.items():
        start = time.perf_counter()
        graded = grade()
        changed = [
            (pair, was, became)
            for first, became_slice in enumerate(graded)
            for pair, was, became in zip(
                pairs[first :: len(graded)], alone[first :: len(graded)], became_slice, strict=True
            )
            if was != became
        ]
        print(f"load, {name}: {len(pairs)} rows, {len(changed)} changed, {time.perf_counter() - start:.0f} s")
        for (completion, gold), was, became in changed:
            print(f"  {json.dumps([completion[-60:], gold[-60:], was[0], became[0]])}")
        parts.append({"part": f"load, {name}", "rows": len(pairs), "changed": len(changed), "failed": bool(changed)})
    return parts


def grade_in_pool(num_workers: int, pairs: Sequence[Pair]) -> Verdicts:
    """Return the grades of a new pool."""
    with GradingPool(RewardSection(num_workers=num_workers)) as pool:
        return verdicts(pool.grade(pairs))


def grade_in_threads(num_workers: int, slices: Sequence[Sequence[Pair]]) -> list[Verdicts]:
    """Return the grades of one pool that several threads use at once, none of them the main thread."""
    with GradingPool(RewardSection(num_workers=num_workers)) as pool, ThreadPoolExecutor(len(slices)) as threads:
        return [verdicts(grades) for grades in threads.map(pool.grade, slices)]


def grade_in_processes(num_workers: int, slices: Sequence[Sequence[Pair]]) -> list[Verdicts]:
    """Return the grades of several processes that run at once, each with its own pool."""
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(len(slices), mp_context=spawn) as processes:
        return list(processes.map(partial(grade_in_pool, num_workers), slices))


def timed(pool: GradingPool, pairs: Sequence[Pair]) -> tuple[list[Grade], float]:
    """Return the grades of `pairs` and their wall time."""
    start = time.perf_counter()
    grades = pool.grade(pairs)
    return grades, time.perf_counter() - start


def verdicts(grades: Sequence[Grade]) -> Verdicts:
    """Return the part of the grades that must not depend on the machine."""
    return [(grade.verdict, grade.extracted_answer) for grade in grades]


def read_rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text("utf-8").split("\n") if line]


def hostile_text(row: dict[str, Any]) -> str:
    if "pred" in row:
        return str(row["pred"])
    if "pred_parts" in row:
        return "".join(text * repeats for text, repeats in row["pred_parts"])
    return str(build(ast.parse(row["pred_py"], mode="eval").body))


def build(node: ast.expr) -> Any:
    """Evaluate an expression of literals, +, *, `"…".join(…)`, `map(str, …)` and `range(…)`, and nothing else."""
    match node:
        case ast.Constant(value=str() | int() as value):
            return value
        case ast.BinOp(left=left, op=ast.Add(), right=right):
            return build(left) + build(right)
        case ast.BinOp(left=left, op=ast.Mult(), right=right):
            return build(left) * build(right)
        case ast.Call(func=ast.Name(id="range"), args=arguments, keywords=[]):
            return range(*map(build, arguments))
        case ast.Call(func=ast.Name(id="map"), args=[ast.Name(id="str"), values], keywords=[]):
            return map(str, build(values))
        case ast.Call(func=ast.Attribute(value=separator, attr="join"), args=[values], keywords=[]):
            return build(separator).join(build(values))
    raise ValueError(f"not an expression that this benchmark builds: {ast.unparse(node)}")


if __name__ == "__main__":
    main()
