"""Hub datasets, with a fake package `datasets`."""

from __future__ import annotations

import sys
from types import SimpleNamespace
from typing import Any

import pytest

from igrpo_cli.errors import IgrpoError, MissingInputError, UsageError
from igrpo_cli.problems.loading import load_problems
from igrpo_cli.problems.sources import default_repeats, resolve_bench

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class HubRows(list[dict[str, Any]]):
    info = SimpleNamespace(download_checksums={f"hf://datasets/a/b@{COMMIT}/main/test.parquet": {"num_bytes": 1}})


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """A fake `datasets` whose `load_dataset` returns `sets[id, config]`, a dict of splits, and records its calls."""
    module = SimpleNamespace(calls=[], sets={}, fails=None, disable_progress_bars=lambda: None)

    def load_dataset(path: str, name: str | None, *, split: str | None, revision: str | None) -> Any:
        module.calls.append((path, name, split, revision))
        if module.fails is not None:
            raise module.fails
        splits = {key: HubRows(rows) for key, rows in module.sets[path, name].items()}
        return splits if split is None else splits[split]

    module.load_dataset = load_dataset
    monkeypatch.setitem(sys.modules, "datasets", module)
    return module


def test_a_named_benchmark_requests_its_config_and_split_and_records_the_commit(hub: SimpleNamespace) -> None:
    rows = [{"question": "q1", "answer": "so\n#### 1,234"}, {"question": "q2", "answer": "so\n#### 18"}]
    hub.sets["openai/gsm8k", "main"] = {"test": rows}
    loaded = load_problems(resolve_bench("gsm8k"), revision="v2")
    assert hub.calls == [("openai/gsm8k", "main", "test", "v2")]
    assert [(row.problem_id, row.answer) for row in loaded.problems] == [
        ("gsm8k-main-test-1", "1234"),
        ("gsm8k-main-test-2", "18"),
    ]
    assert loaded.problems[0].source == "openai/gsm8k main test:1"
    assert loaded.source == "openai/gsm8k"
    assert loaded.revision == COMMIT


MATHS = {"problem": "1+1?", "solution": "It is \\boxed{7}", "answer": "2"}
QUESTION = {"question": "1+1?", "answer": "2"}
CHOICES = {"question_id": 70, "question": "1+1?", "options": ["1", "2"], "answer": "B", "answer_index": 1}
RIGHT_AND_WRONG = {
    "Pre-Revision Question": "1+0?",
    "Question": "1+1?",
    "Pre-Revision Correct Answer": "1",
    "Correct Answer": "2",
    **{f"Incorrect Answer {number}": f"{number + 2}" for number in (1, 2, 3)},
}


@pytest.mark.parametrize(
    ("bench", "hub_id", "config", "split", "row", "answer", "samples"),
    [
        ("aime24", "HuggingFaceH4/aime_2024", None, "train", {"id": 60, **MATHS}, "2", 64),
        ("aime25", "math-ai/aime25", None, "test", {"id": "0", "problem": "1+1?", "answer": "2"}, "2", 64),
        ("aime26", "MathArena/aime_2026", None, "train", {"problem_idx": 1, "problem": "1+1?", "answer": 2}, "2", 64),
        ("amc23", "math-ai/amc23", None, "test", {"id": 0, "question": "1+1?", "answer": 27.0}, "27", 8),
        ("math500", "HuggingFaceH4/MATH-500", None, "test", {"unique_id": "test/1.json", **MATHS}, "2", 8),
        ("gsm8k", "openai/gsm8k", "main", "test", {"question": "1+1?", "answer": "so\n#### 1,002"}, "1002", 8),
        ("minerva", "math-ai/minervamath", None, "test", QUESTION, "2", 8),
        (
            "olympiadbench",
            "Hothan/OlympiadBench",
            "OE_TO_maths_en_COMP",
            "train",
            {"id": 1, "question": "1+1?", "solution": ["so it is"], "final_answer": ["2"]},
            "2",
            8,
        ),
        ("gpqa", "Idavidrein/gpqa", "gpqa_diamond", "train", RIGHT_AND_WRONG, "(B)", 8),
        ("mmlu_pro", "TIGER-Lab/MMLU-Pro", None, "test", CHOICES, "(B)", 8),
    ],
)
def test_every_benchmark_is_requested_and_read(
    hub: SimpleNamespace,
    bench: str,
    hub_id: str,
    config: str | None,
    split: str,
    row: dict[str, Any],
    answer: str,
    samples: int,
) -> None:
    hub.sets[hub_id, config] = {split: [row], "other": [{"problem": "of another split", "answer": "0"}]}
    loaded = load_problems(resolve_bench(bench))
    assert hub.calls == [(hub_id, config, split, None)]
    assert [problem.answer for problem in loaded.problems] == [answer]
    assert loaded.problems[0].problem.splitlines()[0] == "1+1?"
    assert default_repeats(bench) == default_repeats(hub_id) == samples


def test_the_digest_of_a_hub_dataset_depends_on_its_problems(hub: SimpleNamespace) -> None:
    def digest(answer: int) -> str:
        hub.sets["a/b", None] = {"train": [{"problem": "1+1?", "answer": answer}]}
        return load_problems("a/b").sha256

    assert digest(2) == digest(2) != digest(3)
    assert len(digest(2)) == 64


def test_several_configs_make_one_set(hub: SimpleNamespace) -> None:
    for config in ("I", "II"):
        hub.sets["a/b", config] = {"test": [{"question": f"q {config}", "answer": 1}]}
    loaded = load_problems("a/b", config=["I", "II"], split="test")
    assert [row.problem_id for row in loaded.problems] == ["b-I-test-1", "b-II-test-1"]


def test_a_split_is_only_guessed_if_there_is_one(hub: SimpleNamespace) -> None:
    row = {"problem": "1+1?", "answer": "2"}
    hub.sets["a/b", None] = {"train": [row]}
    assert load_problems("a/b").problems[0].source == "a/b train:1"
    hub.sets["a/b", None] = {"train": [row], "test": [row]}
    with pytest.raises(UsageError, match="has the splits train, test") as refused:
        load_problems("a/b")
    assert "data.split=" in (refused.value.hint or "")


def test_bad_rows_are_reported_with_config_and_split(hub: SimpleNamespace) -> None:
    hub.sets["a/b", "main"] = {"test": [{"problem": "1+1?", "answer": "2"}, {"problem": "2+2?", "answer": ""}]}
    with pytest.raises(IgrpoError, match="a/b main test row 2: the answer is empty"):
        load_problems("a/b", config="main")


def test_a_final_answer_in_a_column_named_solution_loads_by_the_table(hub: SimpleNamespace) -> None:
    rows = [{"prompt": "1+1?", "solution": "2", "reward_model": {"ground_truth": "2"}}]
    hub.sets["open-r1/DAPO-Math-17k-Processed", None] = {"train": rows}
    assert load_problems("dapo").problems[0].answer == "2"


@pytest.mark.parametrize(
    ("failure", "error", "message", "hint"),
    [
        (
            ConnectionError("Couldn't reach it"),
            MissingInputError,
            "cannot be read: Couldn't reach it",
            "HF_HOME",
        ),
        (FileNotFoundError("is gated"), MissingInputError, "is gated", "hf auth login"),
        (ValueError("Config name is missing.\nPick I"), UsageError, "missing. Pick I", "data.config="),
        (RuntimeError("odd"), IgrpoError, "RuntimeError: odd", ""),
    ],
)
def test_failures_become_errors_with_a_hint(
    hub: SimpleNamespace, failure: Exception, error: type[IgrpoError], message: str, hint: str
) -> None:
    hub.fails = failure
    with pytest.raises(error, match=message) as raised:
        load_problems("a/b")
    assert type(raised.value) is error
    assert hint in (raised.value.hint or "")


def test_without_the_package_the_hint_is_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(UsageError, match="needs the package datasets") as missing:
        load_problems("a/b")
    assert "igrpo-cli[hub]" in (missing.value.hint or "")
