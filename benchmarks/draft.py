"""Compare `igrpo draft` with raw `LLM.generate`: tokens per second on the same prompts, seeds and settings.

    python benchmarks/draft.py MODEL [--problems 32] [--samples 4] [--repeats 3] [--set SECTION.KEY=VALUE …]

Each measurement runs in its own process, and the sides alternate. Ours measures the whole command except the start of
the engine: sampling, grading, writing. Theirs measures `generate` alone. The last line is JSON.
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
from pathlib import Path
from typing import Any

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
    command = [sys.executable, "-m", "igrpo_cli", "init", str(path), "--preset", "smollm2", "-q", *overrides]
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


def in_a_process(side: str, run: Path) -> dict[str, float]:
    """Make one measurement in a new process."""
    command = [sys.executable, __file__, str(run), "--measure", side]
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
    parser.add_argument("--measure", choices=("ours", "vllm"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        measure = measure_ours if arguments.measure == "ours" else measure_vllm
        print(json.dumps(measure(Path(arguments.model))))
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
