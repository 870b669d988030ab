"""The policy for columns: demonstrations as described, refinements that are better than fresh samples, and a script
that runs."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import random
import re
import statistics
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from safetensors import safe_open
from transformers import AutoModelForCausalLM, AutoTokenizer

DATA = Path(__file__).parents[2] / "data"
POLICY, TINY, COLUMNS = DATA / "columns-policy", DATA / "tiny-policy", DATA / "columns"


def import_file(path: Path, name: str) -> ModuleType:
    """Import a script that finds the modules next to the tiny policy by `sys.path`."""
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(TINY))
        spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def demonstrations() -> ModuleType:
    return import_file(POLICY / "column_demonstrations.py", "column_demonstrations")


@pytest.fixture(scope="module")
def make_problems() -> ModuleType:
    return import_file(COLUMNS / "make_problems.py", "make_columns")


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json", "chat_template.jinja"])
def test_tokenizer_and_template_are_those_of_the_tiny_policy(name: str) -> None:
    assert (POLICY / name).read_bytes() == (TINY / name).read_bytes()


def test_the_weights_are_stored_in_float32_and_small() -> None:
    path = POLICY / "model.safetensors"
    assert path.stat().st_size < 2e6
    with safe_open(path, framework="pt") as weights:
        assert {weights.get_tensor(name).dtype for name in weights.keys()} == {torch.float32}  # noqa: SIM118


def test_the_demonstrations_are_those_that_the_policy_was_trained_on(
    demonstrations: ModuleType, make_problems: ModuleType
) -> None:
    """The digest is that of the first two steps. Another order of draws would train another policy."""
    rng = random.Random(0)
    drawn = [demonstrations.draw_demonstration(make_problems.draw_problem(rng), rng) for _ in range(128)]
    text = json.dumps([(row.user, row.completion) for row in drawn])
    found = hashlib.sha256(text.encode()).hexdigest()
    assert found == "c9ebf4df582fe8add5efb7b97a9de164e7745acf0ddb7bcc1354cf791ca1973c"


def test_digits_are_wrong_kept_and_repaired_as_often_as_described(
    demonstrations: ModuleType, make_problems: ModuleType
) -> None:
    """Of 4,000 drafts with 64,000 digits. The tolerances are about five standard errors."""
    rng = random.Random(0)
    kept, repaired, copied, right_drafts = [], [], [], []
    for _ in range(4000):
        problem = make_problems.draw_problem(rng)
        draft = demonstrations.solve(problem, rng)
        refinement = demonstrations.refine(problem, draft, rng)
        drafted, refined = (re.findall(r"\d{16}", text)[0] for text in (draft, refinement))
        right_drafts.append(drafted == problem.answer)
        for right, before, after in zip(problem.answer, drafted, refined, strict=True):
            if before == right:
                kept.append(after == right)
            else:
                repaired.append(after == right)
                copied.append(after == before)
    assert len(repaired) / 64000 == pytest.approx(0.3, abs=0.01)
    assert statistics.mean(kept) == pytest.approx(0.97, abs=0.005)
    assert statistics.mean(repaired) == pytest.approx(0.7, abs=0.02)
    # A ninth of the digits that are drawn again is the one of the draft.
    assert statistics.mean(copied) == pytest.approx(0.2 + 0.1 / 9, abs=0.015)
    assert statistics.mean(right_drafts) == pytest.approx(0.7**16, abs=0.005)


def test_a_twentieth_of_the_completions_is_malformed(demonstrations: ModuleType, make_problems: ModuleType) -> None:
    rng = random.Random(0)
    problem = make_problems.draw_problem(rng)
    draft = demonstrations.solve(problem, rng)
    for completions in (
        [demonstrations.solve(problem, rng) for _ in range(5000)],
        [demonstrations.refine(problem, draft, rng) for _ in range(5000)],
    ):
        whole = [bool(re.fullmatch(r"<think>(\d{16})</think><answer>\1</answer>", text)) for text in completions]
        assert statistics.mean(whole) == pytest.approx(0.95, abs=0.016)


def test_half_of_the_demonstrations_have_a_draft_in_the_user_turn_of_igrpo(
    demonstrations: ModuleType, make_problems: ModuleType
) -> None:
    rng = random.Random(0)
    problem = make_problems.draw_problem(rng)
    users = [demonstrations.draw_demonstration(problem, rng).user for _ in range(4000)]
    with_draft = [user for user in users if user != problem.text]
    assert len(with_draft) / len(users) == pytest.approx(0.5, abs=0.04)
    shape = re.compile(re.escape(problem.text) + r"\n\n\[draft\]\n[^\n]*\d{16}[^\n]*\n\[/draft\]")
    assert all(shape.fullmatch(user) for user in with_draft)


def test_refinements_of_wrong_drafts_are_right_more_often_than_fresh_samples() -> None:
    """On held-out problems, with the 95 % interval of the paired difference above 0."""
    model, tokenizer = AutoModelForCausalLM.from_pretrained(POLICY), AutoTokenizer.from_pretrained(POLICY)
    rows = [json.loads(line) for line in (COLUMNS / "test.jsonl").read_text(encoding="utf-8").splitlines()[:128]]

    def sample(users: list[str]) -> list[str]:
        prompts = [f"<|user|>{user}<|assistant|>" for user in users]
        batch = tokenizer(prompts, return_tensors="pt", padding=True)
        ids, mask = batch["input_ids"], batch["attention_mask"]
        with torch.no_grad():
            output = model.generate(input_ids=ids, attention_mask=mask, do_sample=True, top_k=0, max_new_tokens=48)
        return tokenizer.batch_decode(output[:, ids.shape[1] :], skip_special_tokens=True)

    def is_right(completion: str, row: dict[str, str]) -> bool:
        return f"<answer>{row['answer']}</answer>" in completion

    torch.manual_seed(0)
    problems = [row["problem"] for row in rows]
    drafts, fresh = sample(problems), sample(problems)
    users = [f"{problem}\n\n[draft]\n{draft}\n[/draft]" for problem, draft in zip(problems, drafts, strict=True)]
    differences = [
        is_right(refinement, row) - is_right(other, row)
        for row, draft, other, refinement in zip(rows, drafts, fresh, sample(users), strict=True)
        if not is_right(draft, row)
    ]
    error = statistics.stdev(differences) / len(differences) ** 0.5
    assert len(differences) > 110
    assert statistics.mean(differences) - 1.96 * error > 0


@pytest.mark.slow
def test_the_script_trains_and_saves_a_policy_that_loads(tmp_path: Path) -> None:
    output = tmp_path / "policy"
    command = [sys.executable, POLICY / "make_policy.py", output, "--steps", "3", "--seed", "1"]
    finished = subprocess.run(command, check=True, capture_output=True, text=True)
    losses = [float(loss) for loss in re.findall(r"loss (\d+\.\d+)", finished.stdout)]
    assert losses[-1] < losses[0]
    assert re.search(r"^with draft: +right ", finished.stdout, re.MULTILINE)
    AutoModelForCausalLM.from_pretrained(output)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        assert (output / name).read_bytes() == (POLICY / name).read_bytes()
