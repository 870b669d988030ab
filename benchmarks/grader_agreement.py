"""Measures the grader: agreement with recorded verdicts, hostile answers, golds against themselves, speed.

Cases are JSONL rows with `gold`, `answer`, `expected` and `scope`. Hostile rows have `gold`, `must_score` (0: never to
be rewarded) and a text: `pred`, `pred_parts` ([[text, repeats], …]) or `pred_py` (an expression of literals, +, *,
`str.join`, `map(str, …)` and `range`). Golds are JSONL rows with an `answer`. With `--pools N` the cases are graded by
N pools at once as well, which must not change a verdict.

    python benchmarks/grader_agreement.py --cases cases.jsonl --hostile hostile.jsonl --golds *.jsonl --pools 8
"""

from __future__ import annotations

import argparse
import ast
import json
import resource
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from igrpo_cli.records import Grade
from igrpo_cli.rewards.workers import GradingPool

INTEGERS = [(f"<think>sum</think><answer>{n}</answer>", str(n + n % 2)) for n in range(20_000)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=Path, help="JSONL with recorded verdicts")
    parser.add_argument("--hostile", type=Path, help="JSONL with hostile answers")
    parser.add_argument(
        "--golds", type=Path, nargs="*", default=[], help="JSONL files whose `answer` must equal itself"
    )
    parser.add_argument("--workers", type=int, default=2, help="processes of a pool (default 2)")
    parser.add_argument(
        "--pools", type=int, default=0, help="pools that grade the cases at the same time (default none)"
    )
    options = parser.parse_args()
    with GradingPool(options.workers) as pool:
        pool.grade([(r"\boxed{\sqrt{4}}", "2")] * 64)  # sympy is imported and warm
        if options.cases:
            report_cases(read_rows(options.cases), pool)
        for path in options.golds:
            report_golds(path, pool)
        _, seconds = timed(pool, INTEGERS)
        print(f"integers: {len(INTEGERS) / seconds / options.workers:.0f} answers per second and worker")
    if options.cases and options.pools:
        report_load(read_rows(options.cases), options.pools, options.workers)
    if options.hostile:
        report_hostile(read_rows(options.hostile), options.workers)


def report_cases(rows: Sequence[dict[str, Any]], pool: GradingPool) -> None:
    grades, seconds = timed(pool, [(row["answer"], row["gold"]) for row in rows])
    agreed: Counter[str] = Counter()
    for row, grade in zip(rows, grades, strict=True):
        if (grade.verdict == "correct") == row["expected"]:
            agreed[row["scope"]] += 1
        else:
            tail = json.dumps([row["gold"][-60:], row["answer"][-60:]], ensure_ascii=True)
            print(f"  differs: {row['id']} ({row['scope']}, options {row.get('options', {})}): {grade.verdict} {tail}")
    for scope, total in Counter(row["scope"] for row in rows).items():
        print(f"cases, {scope}: {agreed[scope]} of {total}")
    print(f"cases: {len(rows)} in {seconds:.1f} s, slowest {max(grade.seconds for grade in grades):.2f} s")


def report_golds(path: Path, pool: GradingPool) -> None:
    golds = [row["answer"] for row in read_rows(path)]
    forms = ("{}", r"\boxed{{{}}}", "<think>so</think><answer>{}</answer>", "The answer is ${}$.")
    pairs = [(form.format(gold), gold) for gold in golds for form in forms]
    grades, seconds = timed(pool, pairs)
    failed = [pair for pair, grade in zip(pairs, grades, strict=True) if grade.verdict != "correct"]
    print(
        f"{path.name}: {len(golds)} golds in {len(forms)} forms, {len(failed)} do not equal themselves, {seconds:.1f} s"
    )
    for completion, _ in failed:
        print(f"  {json.dumps(completion)}")


def report_load(rows: Sequence[dict[str, Any]], num_pools: int, num_workers: int) -> None:
    pairs = [(row["answer"], row["gold"]) for row in rows]
    with GradingPool(num_workers) as pool:
        alone = essence(pool.grade(pairs))
    start = time.perf_counter()
    with ExitStack() as stack:
        pools = [stack.enter_context(GradingPool(num_workers)) for _ in range(num_pools)]
        crowded = [essence(future.result()) for future in [pool.submit(pairs) for pool in pools]]
    differing = sum(grades != alone for grades in crowded)
    print(f"load: {num_pools} pools at once, {differing} with another verdict, {time.perf_counter() - start:.1f} s")


def report_hostile(rows: Sequence[dict[str, Any]], num_workers: int) -> None:
    pairs = [(hostile_text(row), row["gold"]) for row in rows]
    with GradingPool(num_workers) as pool:
        grades, seconds = timed(pool, pairs)
        reasons = dict(pool.ungraded_reasons)
    rewarded = [
        row["id"]
        for row, grade in zip(rows, grades, strict=True)
        if row["must_score"] == 0 and grade.verdict == "correct"
    ]
    peak_mb = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024
    print(f"hostile: {len(rows)} rows in {seconds:.1f} s, verdicts {dict(Counter(grade.verdict for grade in grades))}")
    print(f"hostile: rewarded against the rule {rewarded or 'none'}; ungraded because of {reasons}")
    longest = max(grade.seconds for grade in grades)
    print(f"hostile: longest row {longest:.1f} s, peak memory of a worker {peak_mb:.0f} MiB")


def timed(pool: GradingPool, pairs: Sequence[tuple[str, str]]) -> tuple[list[Grade], float]:
    start = time.perf_counter()
    grades = pool.grade(pairs)
    return grades, time.perf_counter() - start


def essence(grades: Iterable[Grade]) -> list[tuple[str, str | None]]:
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
    """The value of an expression of literals, +, *, `"…".join(…)`, `map(str, …)` and `range(…)`; runs nothing else."""
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
