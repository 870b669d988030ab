"""Hub sets, with a stand-in for the package `datasets`: what we ask of it, and make of its answers."""

from __future__ import annotations

import sys
from types import SimpleNamespace
from typing import Any

import pytest

from igrpo_cli.errors import IgrpoError, MissingInputError, UsageError
from igrpo_cli.problems.loading import load_problems
from igrpo_cli.problems.sources import resolve_bench

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class HubRows(list[dict[str, Any]]):
    info = SimpleNamespace(download_checksums={f"hf://datasets/a/b@{COMMIT}/main/test.parquet": {"num_bytes": 1}})


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """A `datasets` whose `load_dataset` gives `sets[id, config]`, a dict of splits, and notes its calls."""
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


def test_a_named_benchmark_asks_for_its_config_and_split_and_records_the_commit(hub: SimpleNamespace) -> None:
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


def test_the_digest_of_a_hub_set_follows_its_problems(hub: SimpleNamespace) -> None:
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


def test_a_split_is_only_guessed_where_there_is_one(hub: SimpleNamespace) -> None:
    row = {"problem": "1+1?", "answer": "2"}
    hub.sets["a/b", None] = {"train": [row]}
    assert load_problems("a/b").problems[0].source == "a/b train:1"
    hub.sets["a/b", None] = {"train": [row], "test": [row]}
    with pytest.raises(UsageError, match="has the splits train, test") as refused:
        load_problems("a/b")
    assert "data.split=" in (refused.value.hint or "")


def test_bad_rows_are_placed_by_config_and_split(hub: SimpleNamespace) -> None:
    hub.sets["a/b", "main"] = {"test": [{"problem": "1+1?", "answer": "2"}, {"problem": "2+2?", "answer": ""}]}
    with pytest.raises(IgrpoError, match="a/b main test row 2: the answer is empty"):
        load_problems("a/b", config="main")


def test_a_bare_answer_in_a_column_named_solution_loads_by_the_table(hub: SimpleNamespace) -> None:
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
def test_failures_become_errors_with_a_cure(
    hub: SimpleNamespace, failure: Exception, error: type[IgrpoError], message: str, hint: str
) -> None:
    hub.fails = failure
    with pytest.raises(error, match=message) as raised:
        load_problems("a/b")
    assert type(raised.value) is error
    assert hint in (raised.value.hint or "")


def test_without_the_package_the_cure_is_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(MissingInputError, match="needs the package datasets") as missing:
        load_problems("a/b")
    assert "igrpo-cli[hub]" in (missing.value.hint or "")
