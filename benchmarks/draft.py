"""Compare `igrpo draft` with raw `LLM.generate`, or refinements with and without speculative decoding: tokens/s.

    python benchmarks/draft.py MODEL [--problems 32] [--samples 4] [--repeats 3] [--set SECTION.KEY=VALUE …]
    python benchmarks/draft.py MODEL --speculate '{num_speculative_tokens = 5}' [--sequences 1 8 64] [--preset NAME] …

Each measurement runs in its own process, and the sides alternate. Ours measures the whole command except the start of
the engine: sampling, grading, writing. Theirs measures `generate` alone. The last line is JSON.

With `--speculate`, the value of `engine.speculative_config`, both sides are `igrpo refine` on the same drafts, with and
without it. Each of `--sequences` is the number of completions that are sampled at the same time.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

SIDES = ("without", "with")
SHARED = ("run.num_iterations=1", "engine.name=vllm", "engine.max_model_len=512")


def make_run(arguments: argparse.Namespace, path: Path) -> Path:
    """Make a run without drafts."""
    settings = [
        *SHARED,
        f'policy.model="{Path(arguments.model).resolve()}"',
        f"data.problems_per_iteration={arguments.problems}",
        f"draft.num_generations={arguments.samples}",
        *arguments.set,
    ]
    overrides = [part for setting in settings for part in ("--set", setting)]
    command = [sys.executable, "-m", "igrpo_cli", "init", str(path), "--preset", arguments.preset, "-q", *overrides]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return path


def measure_ours(run: Path) -> dict[str, float]:
    """Draft one iteration with engine and graders already started."""
    from igrpo_cli.commands.stage import perform
    from igrpo_cli.pipeline.session import StageRequest, open_session
    from igrpo_cli.ui.console import QUIET, Console

    with open_session(run, [], Console(as_json=True, verbosity=QUIET)) as session:
        session.engine(session.policy(0))
        session.grader().grade([("\\boxed{1}", "1")] * 16)
        started = time.perf_counter()
        report = perform(session, "draft", StageRequest(0, (0,)))
        return {"tokens": report.tokens, "seconds": time.perf_counter() - started}


def measure_vllm(run: Path) -> dict[str, float]:
    """Run `LLM.generate` on the prompts, seeds and settings of the draft stage."""
    from igrpo_cli.commands.draft import plan
    from igrpo_cli.engines.vllm import VllmEngine, set_environment
    from igrpo_cli.pipeline.session import open_session
    from igrpo_cli.prompts import prompt_without_draft
    from igrpo_cli.ui.console import QUIET, Console

    set_environment(False)

    class Unstarted(VllmEngine):
        def _start(self, directory: Path) -> Any:
            return llm_of(self._engine_arguments(directory)).llm_engine

    def llm_of(arguments: dict[str, Any]) -> Any:
        from vllm import LLM

        made.append(LLM(**arguments))
        return made[0]

    made: list[Any] = []
    with open_session(run, [], Console(as_json=True, verbosity=QUIET)) as session:
        config = session.config
        engine = Unstarted(session.policy(0).directory, config.engine)
        sampling = plan(session, 0).sampling
        from vllm import TokensPrompt

        prompts, parameters = [], []
        for group_id, problem in enumerate(session.problems_of_iteration(0)):
            ids = engine.tokenizer.encode_prompt(prompt_without_draft(problem, config.prompts))[1]
            for sample in range(config.draft.num_generations):
                prompts.append(TokensPrompt(prompt_token_ids=ids))
                parameters.append(engine.sampling_parameters(sampling.seed_of(group_id, sample), sampling.sampling))
        started = time.perf_counter()
        outputs = made[0].generate(prompts, parameters, use_tqdm=False)
        seconds = time.perf_counter() - started
    return {"tokens": sum(len(output.outputs[0].token_ids) for output in outputs), "seconds": seconds}


def measure_refine(run: Path, overrides: list[str]) -> dict[str, float]:
    """Refine the selected drafts with engine and graders already started."""
    from igrpo_cli.commands.stage import perform
    from igrpo_cli.pipeline.session import StageRequest, open_session
    from igrpo_cli.records import SamplingGroup
    from igrpo_cli.ui.console import QUIET, Console

    with open_session(run, overrides, Console(as_json=True, verbosity=QUIET)) as session:
        engine = session.engine(session.policy(0))
        # The first proposals and the first check of them compile code.
        repeats_itself = SamplingGroup([*range(5, 15)] * 3, range(session.config.engine.max_num_seqs))
        engine.submit("warm-up", [repeats_itself], session.config.refine)
        while engine.num_unfinished:
            engine.step()
        session.grader().grade([("\\boxed{1}", "1")] * 16)
        started = time.perf_counter()
        report = perform(session, "refine", StageRequest(0, (0,)))
        seconds = time.perf_counter() - started
    proposals = {name: report.details.get(f"{name}_tokens", 0) for name in ("proposed", "accepted")}
    return {"tokens": report.tokens, "seconds": seconds, **proposals}


def compare_speculation(arguments: argparse.Namespace, scratch: Path) -> None:
    """Measure refinements with and without speculative decoding, and print a table of medians."""
    drafted = make_run(arguments, scratch / "drafted")
    for stage in ("draft", "select"):
        command = [sys.executable, "-m", "igrpo_cli", stage, str(drafted), "--iteration", "0", "-q"]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    print("| sequences | tokens/s without | tokens/s with | ratio | accepted of proposed |\n|---|---|---|---|---|")
    figures = []
    for number in arguments.sequences:
        rates: dict[str, list[float]] = {side: [] for side in SIDES}
        share = 0.0
        for repeat in range(arguments.repeats):
            for side in SIDES if repeat % 2 == 0 else reversed(SIDES):
                run = Path(shutil.copytree(drafted, scratch / f"{number}-{side}-{repeat}"))
                overrides = [f"engine.max_num_seqs={number}"]
                if side == "with":
                    overrides.append(f"engine.speculative_config={arguments.speculate}")
                result = in_a_process("refine", run, overrides)
                rates[side].append(result["tokens"] / result["seconds"])
                if result["proposed"]:
                    share = result["accepted"] / result["proposed"]
        without, with_it = (statistics.median(rates[side]) for side in SIDES)
        ratio = statistics.median(b / a for a, b in zip(*(rates[side] for side in SIDES), strict=True))
        print(f"| {number} | {without:.1f} | {with_it:.1f} | {ratio:.2f} | {share:.1%} |", flush=True)
        figures.append({"sequences": number, "without": without, "with": with_it, "ratio": ratio, "accepted": share})
    print(json.dumps(figures))


def in_a_process(side: str, run: Path, overrides: Sequence[str] = ()) -> dict[str, float]:
    """Make one measurement in a new process."""
    more = [part for override in overrides for part in ("--set", override)]
    command = [sys.executable, __file__, str(run), "--measure", side, *more]
    lines = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines()
    result: dict[str, float] = json.loads(lines[-1])
    return result


def main() -> None:
    """Measure both sides alternately and print medians."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="model directory")
    parser.add_argument("--problems", type=int, default=32)
    parser.add_argument("--samples", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--set", action="append", default=[])
    parser.add_argument("--preset", default="smollm2")
    parser.add_argument("--speculate", metavar="TABLE")
    parser.add_argument("--sequences", type=int, nargs="+", default=[1, 8, 64])
    parser.add_argument("--measure", choices=("ours", "vllm", "refine"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure == "refine":
        print(json.dumps(measure_refine(Path(arguments.model), arguments.set)))
        return
    if arguments.measure:
        measure = measure_ours if arguments.measure == "ours" else measure_vllm
        print(json.dumps(measure(Path(arguments.model))))
        return
    if arguments.speculate:
        with tempfile.TemporaryDirectory() as scratch:
            compare_speculation(arguments, Path(scratch))
        return
    rates: dict[str, list[float]] = {"ours": [], "vllm": []}
    with tempfile.TemporaryDirectory() as scratch:
        blank = make_run(arguments, Path(scratch) / "blank")
        for repeat in range(arguments.repeats):
            for side in ("ours", "vllm") if repeat % 2 == 0 else ("vllm", "ours"):
                run = Path(shutil.copytree(blank, Path(scratch) / f"{side}-{repeat}"))
                result = in_a_process(side, run)
                rates[side].append(result["tokens"] / result["seconds"])
                print(f"{side}: {result['tokens']:,} tokens in {result['seconds']:.1f} s, {rates[side][-1]:.1f}/s")
    ours, vllm = statistics.median(rates["ours"]), statistics.median(rates["vllm"])
    ratio = statistics.median(a / b for a, b in zip(rates["ours"], rates["vllm"], strict=True))
    print(json.dumps({"igrpo_tokens_s": ours, "vllm_tokens_s": vllm, "ratio": ratio}))


if __name__ == "__main__":
    main()
