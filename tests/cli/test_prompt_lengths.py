"""`igrpo init` counts tokens: prompts against their limit, and prompt, draft and completion against the context."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from command_line import igrpo, sets
from igrpo_cli.config import RunConfig
from igrpo_cli.engines.tokenization import PolicyTokenizer
from igrpo_cli.errors import IgrpoError
from igrpo_cli.pipeline.prompt_lengths import PromptLengths, short_enough
from igrpo_cli.problems.sources import packaged_data
from igrpo_cli.prompts import prompt_without_draft
from igrpo_cli.records import ChatPrompt, Problem

LENGTHS = (1, 7, 30)


@pytest.fixture
def data(tmp_path) -> Path:
    """Three sums of `LENGTHS` ones. A prompt of the tiny policy has a token per character and some of its template."""
    path = tmp_path / "sums.jsonl"
    rows = [{"problem": "+".join("1" * number) + "=?", "answer": str(number)} for number in LENGTHS]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def create(run: Path, data: Path, *overrides: str, flags: tuple[str, ...] = ()):
    return igrpo("init", run, "--preset", "arithmetic", *sets(f"data.train={data}", *overrides), *flags)


def test_a_run_that_fits_exactly_is_created_and_one_token_more_is_refused(tmp_path, data):
    quick = ("draft.max_completion_length=100", "prompts.max_draft_tokens=60")
    refused = create(tmp_path / "run", data, *quick, "refine.max_completion_length=500")
    assert refused.code == 2
    error, hint = refused.stderr.splitlines()
    assert error.startswith("error: refine may need ")
    assert "prompt of sums.jsonl:3 " in error
    assert "draft 60 + its markers " in error
    assert error.endswith("tiny takes 512 (the positions of the model)")
    assert not (tmp_path / "run" / "run.toml").exists()
    completion = int(hint.partition("refine.max_completion_length=")[2].partition(";")[0])
    fits = create(tmp_path / "run", data, *quick, f"refine.max_completion_length={completion}")
    assert fits.code == 0, fits.stderr
    beyond = create(tmp_path / "other", data, *quick, f"refine.max_completion_length={completion + 1}")
    assert beyond.code == 2


def test_each_way_out_is_one(tmp_path, data):
    ways = ("draft.max_completion_length=200", "prompts.max_draft_tokens=200", "refine.max_completion_length=260")
    refused = create(tmp_path / "run", data, *ways)
    assert refused.code == 2
    shorter, completion, prompt = refused.stderr.splitlines()[1].removeprefix("hint: --set ").split("; or ")
    assert "longer drafts are cut, and counted" in shorter
    assert create(tmp_path / "a", data, *ways, shorter.split()[0]).code == 0
    assert create(tmp_path / "b", data, *ways, completion).code == 0
    assert "leaves out 1 problems" in prompt
    skipped = create(tmp_path / "c", data, *ways, prompt.split()[0], flags=("--skip-bad-rows",))
    assert skipped.code == 0
    assert "'too_long': 1" in skipped.stderr


def test_drafts_count_alone_where_no_prompt_has_one(tmp_path, data):
    long = ("draft.max_completion_length=400", "prompts.max_draft_tokens=400", "refine.max_completion_length=400")
    assert create(tmp_path / "both", data, *long).code == 2
    for name, override in (("grpo", "run.method=grpo"), ("none", "select.strategy=none")):
        assert create(tmp_path / name, data, *long, override).code == 0
    refused = create(tmp_path / "long", data, "draft.max_completion_length=500", "run.method=grpo")
    assert "error: draft may need " in refused.stderr
    assert "max_draft_tokens" not in refused.stderr


def test_the_context_of_the_engine_takes_precedence(tmp_path, data):
    refused = create(tmp_path / "run", data, "engine.max_model_len=64")
    assert "tiny takes 64 (engine.max_model_len)" in refused.stderr
    assert "a higher engine.max_model_len" in refused.stderr


class CountingTokenizer(PolicyTokenizer):
    """The tiny tokenizer, which notes what it encodes, and can lack characters."""

    def __init__(self, without: str = "") -> None:
        super().__init__(packaged_data() / "tiny-policy")
        self.encoded: list[ChatPrompt] = []
        self.without = without

    def encode_prompt(self, prompt):
        self.encoded.append(prompt)
        return super().encode_prompt(prompt)

    def encode_text(self, text):
        if set(self.without) & set(text):
            raise IgrpoError("no token")
        return super().encode_text(text)


PROBLEMS = [
    *(Problem(f"p{number}", f"{number}+1=?", "1", f"a.jsonl:{number}") for number in range(100)),
    Problem("long", "1+" * 200 + "1=?", "201", "a.jsonl:100"),
]
LIMITED = RunConfig.model_validate({"prompts": {"max_prompt_length": 64}, "data": {"skip_bad_rows": True}})


def test_only_prompts_that_may_be_too_long_are_encoded():
    tokenizer = CountingTokenizer()
    kept = short_enough(PromptLengths(PROBLEMS, LIMITED, tokenizer), PROBLEMS, LIMITED)
    assert kept == PROBLEMS[:-1]
    encoded = [prompt_without_draft(problem, LIMITED.prompts) for problem in (PROBLEMS[0], PROBLEMS[-1])]
    assert tokenizer.encoded == encoded


def test_every_prompt_is_encoded_where_the_tokenizer_lacks_a_character():
    tokenizer = CountingTokenizer(without="7")
    assert short_enough(PromptLengths(PROBLEMS, LIMITED, tokenizer), PROBLEMS, LIMITED) == PROBLEMS[:-1]
    assert len(tokenizer.encoded) == 1 + len(PROBLEMS)
