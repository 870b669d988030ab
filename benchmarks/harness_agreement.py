"""Compare the scores of other harnesses with those of igrpo on the same completions, and list every disagreement.

A harness needs its own environment (`pip install 'lm-eval[math]'` or `lighteval[math]`), because its dependencies
differ from ours. The work is therefore split into two commands that exchange a JSONL file:

    python benchmarks/harness_agreement.py export SOURCE… OUT.jsonl
    HARNESS/bin/python benchmarks/harness_agreement.py score OUT.jsonl --task gsm8k|math500 --harness lm-eval|lighteval

`export` reads evaluations (`igrpo eval`) with their verdicts, and JSONL files whose rows have `problem`, `answer` and
`solution` (a correct completion). `--gold` selects another reference: `next` is the reference of the next row, so that
hardly any completion is correct; `extracted` is the answer that igrpo extracts, so that a harness agrees if it extracts
an equal answer. `score` runs the tasks of the harness on these completions, with their filters, metrics and settings
and without downloads. It prints a row per scorer and a line of JSON per disagreement.

For gsm8k, lm-eval has one task with two filters. For math500 it has `hendrycks_math500` (compares the whole text, or
the text between the first and the last $) and `minerva_math500` (`exact_match` of the text after "Final Answer: The
final answer is", `math_verify` of any answer). `aime24` belongs to another task and is added because it is the only
scorer that compares the last box as text. lighteval has one metric for each.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

TASKS = {"gsm8k": ("gsm8k",), "math500": ("hendrycks_math500", "minerva_math500", "aime24")}
COMPARISONS = {"is_equiv": "exact_match", "verify": "math_verify"}
"""The comparison functions of lm-eval's tasks, and the metric that each one gives."""

Row = dict[str, Any]
Scores = dict[str, dict[str, tuple[bool, str]]]
"""By scorer and row: True if the harness accepts the answer, and the answer that it compared."""


def main() -> None:
    """Run `export` or `score`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    halves = parser.add_subparsers(dest="half", required=True)
    exporting = halves.add_parser("export", help="write completions as JSONL; needs igrpo")
    exporting.add_argument("sources", type=Path, nargs="+", help="directories of evaluations, JSONL files of solutions")
    exporting.add_argument("out", type=Path, help="JSONL to write")
    exporting.add_argument("--gold", choices=("recorded", "next", "extracted"), default="recorded")
    exporting.add_argument(
        "--grade-again", action="store_true", help="grade again instead of using the verdicts of the evaluation"
    )
    scoring = halves.add_parser("score", help="score this JSONL; needs the harness")
    scoring.add_argument("rows", type=Path, help="JSONL written by export")
    scoring.add_argument("--task", choices=TASKS, required=True)
    scoring.add_argument("--harness", choices=("lm-eval", "lighteval"), default="lm-eval")
    options = parser.parse_args()
    if options.half == "export":
        export(options.sources, options.out, options.gold, options.grade_again)
    else:
        rows = read_rows(options.rows)
        judge = score_with_lm_eval if options.harness == "lm-eval" else score_with_lighteval
        report(rows, judge(rows, options.task))


def export(sources: list[Path], out: Path, gold: str = "recorded", grade_again: bool = False) -> None:
    """Write a row per completion: id, problem, gold, completion, verdict, answer."""
    rows = [
        {**row, "id": f"{number}/{row['id']}"}
        for number, path in enumerate(sources)
        for row in (completions(path) if path.is_dir() else solutions(path))
    ]
    if gold == "next":
        references = [row["gold"] for row in rows]
        shifted = references[1:] + references[:1]
        rows = [{**row, "gold": reference} for row, reference in zip(rows, shifted, strict=True)]
    elif gold == "extracted":
        grade(rows)
        rows = [{**row, "gold": row["answer"]} for row in rows if row["answer"] is not None]
    if grade_again or gold != "recorded" or not all("verdict" in row for row in rows):
        grade(rows)
    out.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    print(f"{out}: {len(rows)} completions, {sum(row['verdict'] == 'correct' for row in rows)} correct")


def completions(evaluation: Path) -> list[Row]:
    """Yield the rows of an evaluation in order."""
    import pyarrow.parquet as pq

    table = pq.read_table(evaluation.parent / "problems.parquet").to_pylist()
    problems = {problem["problem_id"]: problem for problem in table}
    shards = sorted(evaluation.glob("shard-*.parquet"))
    return [
        {
            "id": f"{rollout['problem_id']}/{rollout['sample_id']}",
            "problem": problems[rollout["problem_id"]]["problem"],
            "gold": problems[rollout["problem_id"]]["answer"],
            "completion": rollout["completion"],
            "verdict": rollout["verdict"],
            "answer": rollout["extracted_answer"],
        }
        for shard in shards
        for rollout in pq.read_table(shard).to_pylist()
    ]


def solutions(path: Path) -> list[Row]:
    """Yield the rows of a file that have a solution, in order."""
    return [
        {"id": row["id"], "problem": row["problem"], "gold": row["answer"], "completion": row["solution"]}
        for row in read_rows(path)
        if row.get("solution")
    ]


def grade(rows: list[Row]) -> None:
    """Grade the rows and add verdicts and answers."""
    from igrpo_cli.config.rewards import RewardSection
    from igrpo_cli.rewards.grading_pool import GradingPool

    with GradingPool(RewardSection()) as pool:
        grades = pool.grade([(row["completion"], row["gold"]) for row in rows])
    for row, found in zip(rows, grades, strict=True):
        row |= {"verdict": found.verdict, "answer": found.extracted_answer}


def report(rows: list[Row], scores: Scores) -> None:
    """Print the agreement of each scorer with our verdicts, and every disagreement."""
    print("| scorer | both right | both wrong | only igrpo | only the harness | agreement |\n|---|---|---|---|---|---|")
    differing = []
    for scorer, scored in scores.items():
        counts = {(ours, theirs): 0 for ours in (True, False) for theirs in (True, False)}
        for row in rows:
            ours, (theirs, their_answer) = row["verdict"] == "correct", scored[row["id"]]
            counts[ours, theirs] += 1
            if ours != theirs:
                verdicts = {"theirs": theirs, "ours": row["verdict"]}
                answers = {"their_answer": their_answer, "our_answer": row["answer"]}
                differing.append({"scorer": scorer, "id": row["id"], "gold": row["gold"], **verdicts, **answers})
        columns = (counts[True, True], counts[False, False], counts[True, False], counts[False, True])
        agreement = (columns[0] + columns[1]) / len(rows)
        print(f"| {scorer} | {' | '.join(map(str, columns))} | {agreement:.3f} |")
    for line in differing:
        print(json.dumps(line))


def score_with_lm_eval(rows: list[Row], task: str) -> Scores:
    """Run the evaluation of lm-eval with a model that returns the recorded completions."""
    import datasets
    from lm_eval.api.model import LM
    from lm_eval.evaluator import evaluate
    from lm_eval.tasks import TaskManager

    class RecordedModel(LM):
        """Returns recorded completions."""

        def generate_until(self, requests: list[Any]) -> list[str]:
            return [request.doc["completion"] for request in requests]

        def loglikelihood(self, requests: list[Any]) -> list[tuple[float, bool]]:
            raise NotImplementedError

        def loglikelihood_rolling(self, requests: list[Any]) -> list[float]:
            raise NotImplementedError

    def dataset(**_: Any) -> Any:
        table = datasets.Dataset.from_list([as_document(row, task) for row in rows])
        return {"train": table, "test": table}

    members = [{"task": name, "custom_dataset": dataset, "num_fewshot": 0} for name in TASKS[task]]
    loaded = TaskManager().load({"group": "recorded", "task": members})
    compared: dict[tuple[str, str, str], str] = {}
    for name, loaded_task in loaded["tasks"].items():
        if loaded_task.config.process_results:
            loaded_task.config.process_results = watched(loaded_task.config.process_results, name, compared)
    results = evaluate(lm=RecordedModel(), task_dict=loaded, log_samples=True, bootstrap_iters=0)
    scores: Scores = {}
    for name, samples in results["samples"].items():
        for sample in samples:
            row_id = sample["doc"]["id"]
            for metric in sample["metrics"]:
                scorer = f"{name}, {sample['filter'] if sample['filter'] != 'none' else metric}"
                answer = compared.get((name, row_id, metric), str(sample["filtered_resps"][0]))
                scores.setdefault(scorer, {})[row_id] = (bool(sample[metric] == 1), answer)
    return scores


def score_with_lighteval(rows: list[Row], task: str) -> Scores:
    """Compute the metrics of lighteval's tasks on documents made from our rows."""
    from lighteval.metrics import dynamic_metrics
    from lighteval.models.model_output import ModelResponse
    from lighteval.tasks.tasks import gsm8k, math_500

    config = gsm8k.gsm8k if task == "gsm8k" else math_500.math_500
    seen: dict[str, str] = {}
    dynamic_metrics.compare_gold_target = noting(dynamic_metrics.compare_gold_target, seen, "answer", argument=1)
    scores: Scores = {}
    for row in rows:
        document = config.prompt_function(as_document(row, task), task_name=config.name)
        for metric in config.metrics:
            seen.clear()
            found = metric.compute_sample(doc=document, model_response=ModelResponse(text=[row["completion"]]))
            for name, value in found.items():
                scored = scores.setdefault(f"lighteval {config.name}, {name}", {})
                scored[row["id"]] = bool(value == 1), seen.get("answer", "")
    return scores


def as_document(row: Row, task: str) -> Row:
    """Return a row in the format of the datasets of the tasks."""
    document = {"id": row["id"], "completion": row["completion"], "problem": row["problem"]}
    if task == "gsm8k":
        return {**document, "question": row["problem"], "answer": f"#### {row['gold']}"}
    solution = rf"\boxed{{{row['gold']}}}"
    return {**document, "solution": solution, "answer": row["gold"], "Problem": row["problem"], "Answer": row["gold"]}


def watched(
    process_results: Callable[..., Row], name: str, compared: dict[tuple[str, str, str], str]
) -> Callable[..., Row]:
    """Wrap `process_results` of a task so that `compared` records the answer of each comparison."""
    seen: dict[str, str] = {}
    module = process_results.__globals__
    for function, metric in COMPARISONS.items():
        if function in module:
            module[function] = noting(module[function], seen, metric)

    def noted(document: Row, results: list[str]) -> Row:
        seen.clear()
        metrics = process_results(document, results)
        compared.update({(name, document["id"], metric): answer for metric, answer in seen.items()})
        return metrics

    return noted


def noting(function: Callable[..., Any], seen: dict[str, str], name: str, argument: int = 0) -> Callable[..., Any]:
    """Wrap `function` so that `seen` records the answer of each call: `target`, or a positional argument."""

    def noted(*args: Any, **kwargs: Any) -> Any:
        seen[name] = str(kwargs["target"] if "target" in kwargs else args[argument])
        return function(*args, **kwargs)

    return noted


def read_rows(path: Path) -> list[Row]:
    """Return the rows of a JSONL file."""
    return [json.loads(line) for line in path.read_text("utf-8").split("\n") if line]


if __name__ == "__main__":
    main()
