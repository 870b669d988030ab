"""Names are resolved to the location of their problems."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

from igrpo_cli.errors import MissingInputError
from igrpo_cli.problems.sources import (
    BENCHES,
    TRAINING_SETS,
    ProblemSource,
    default_repeats,
    model_location,
    packaged_data,
    resolve_bench,
    resolve_training,
)

ROW = '{"problem": "1+1?", "answer": "2"}\n'


@pytest.fixture(autouse=True)
def _empty_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")


def test_a_path_takes_precedence(tmp_path: Path) -> None:
    Path("aime24").write_text(ROW)
    (tmp_path / "aime24.jsonl").write_text(ROW)
    assert resolve_bench("aime24", tmp_path) == ProblemSource(Path("aime24"))


@pytest.mark.parametrize("name", ["aime24.jsonl", "aime24.json", "aime24.parquet", "aime24_test.jsonl", "aime24"])
def test_the_folder_of_benchmarks_comes_before_the_hub(tmp_path: Path, name: str) -> None:
    target = tmp_path / name
    target.mkdir() if name == "aime24" else target.write_text(ROW)
    assert resolve_bench("aime24", tmp_path).location == target


def test_a_name_that_is_not_in_the_folder_is_a_hub_dataset(tmp_path: Path) -> None:
    for folder in (tmp_path, None):
        source = resolve_bench("gsm8k", folder)
        assert (source.location, source.split, source.configs) == ("openai/gsm8k", "test", ("main",))


def test_training_and_evaluation_never_use_each_others_split(tmp_path: Path) -> None:
    for split in ("train", "test"):
        (tmp_path / f"gsm8k_{split}.jsonl").write_text(ROW)
    assert resolve_training("gsm8k", tmp_path).location == tmp_path / "gsm8k_train.jsonl"
    assert resolve_bench("gsm8k", tmp_path).location == tmp_path / "gsm8k_test.jsonl"
    assert resolve_training(str(tmp_path)) == ProblemSource(tmp_path, split="train")
    assert resolve_bench(str(tmp_path)) == ProblemSource(tmp_path, split="test")
    (tmp_path / "gsm8k_train.jsonl").rename(tmp_path / "aime24.jsonl")
    assert resolve_bench(str(tmp_path)).split is None, "one split: the folder is read completely"
    assert resolve_training("openai/gsm8k").split == "train"
    assert resolve_bench("openai/gsm8k").split == "test"


def test_an_unknown_hub_id_is_used_unchanged() -> None:
    assert resolve_bench("someone/some-set_1.5") == ProblemSource("someone/some-set_1.5")


@pytest.mark.parametrize("name", ["none.jsonl", "./none", "some/where/none.parquet", "/none"])
def test_a_path_that_does_not_exist_is_an_error_with_a_hint(name: str) -> None:
    with pytest.raises(MissingInputError, match="does not exist") as missing:
        resolve_bench(name)
    for hint in ("--bench-dir", "IGRPO_BENCH_DIR", "pip install 'igrpo-cli[hub]'"):
        assert hint in (missing.value.hint or "")


def test_an_unknown_name_is_an_error_with_similar_names(tmp_path: Path) -> None:
    (tmp_path / "my_set.jsonl").write_text(ROW)
    for word, near in (
        ("aime2024", "aime24"),
        ("gsm", "gsm8k"),
        ("my_sett", "my_set"),
        ("qqq", "olympiadbench"),
    ):
        with pytest.raises(MissingInputError, match=f"no problem set '{word}'") as missing:
            resolve_bench(word, tmp_path)
        assert near in (missing.value.hint or "")
    with pytest.raises(MissingInputError, match=r"folder .*nowhere does not exist"):
        resolve_bench("aime24", tmp_path / "nowhere")


@pytest.mark.parametrize("name", ["", "\0", "x" * 5000, "../.."])
def test_unusual_names_are_errors_too(name: str, tmp_path: Path) -> None:
    if name == "../..":
        assert resolve_bench(name, tmp_path).location == Path(name)
        return
    with pytest.raises(MissingInputError):
        resolve_bench(name, tmp_path)


@pytest.mark.parametrize("name", ["arithmetic", "columns"])
def test_a_packaged_set_has_a_split_for_each_use(name: str) -> None:
    folder = packaged_data() / name
    assert resolve_training(name).location == folder / "train.jsonl"
    assert resolve_bench(name).location == folder / "test.jsonl"
    assert resolve_bench(f"builtin:{name}/train").location == folder / "train.jsonl"


@pytest.mark.parametrize("name", ["arithmetic/dev", "columns/digits-test", "none/train", "columns"])
def test_an_unknown_packaged_split_is_an_error_that_lists_the_known_ones(name: str) -> None:
    with pytest.raises(MissingInputError, match=f"no packaged set builtin:{name}") as missing:
        resolve_bench(f"builtin:{name}")
    assert "builtin:arithmetic/test" in (missing.value.hint or "")
    assert "builtin:columns/train" in (missing.value.hint or "")
    assert "builtin:columns/digits-test" not in (missing.value.hint or "")


@pytest.mark.parametrize(("name", "folder"), [("tiny", "tiny-policy"), ("columns", "columns-policy")])
def test_a_packaged_policy_has_a_name(name: str, folder: str) -> None:
    assert model_location(name) == str(packaged_data() / folder)
    assert model_location(f"org/{name}") == f"org/{name}"


def test_aime_gets_64_samples_and_the_others_8() -> None:
    repeats = {name: default_repeats(name) for name in BENCHES}
    assert {name for name, number in repeats.items() if number == 64} == {"aime24", "aime25", "aime26"}
    assert set(repeats.values()) == {64, 8}
    assert default_repeats("HuggingFaceH4/aime_2024") == 64
    assert default_repeats("arithmetic") == default_repeats("someone/else") == 8


def test_every_name_stands_for_a_hub_id_and_a_split() -> None:
    for table in (BENCHES, TRAINING_SETS):
        for name, named in table.items():
            assert named.name == name
            assert isinstance(named.source.location, str)
            assert named.source.location.count("/") == 1
            assert named.source.split in ("train", "test")


def test_the_table_agrees_with_the_list_of_sources() -> None:
    listed = tomllib.loads((Path(__file__).parents[2] / "data" / "SOURCES.toml").read_text("utf-8"))["hub"]
    for name, named in BENCHES.items():
        facts, source = listed[name], named.source
        assert (source.location, source.split) == (facts["id"], facts["split"])
        assert source.configs == ((facts["config"],) if "config" in facts else ())
        if facts["confirmed"]:
            assert (source.problem_column, source.answer_column) == (facts["problem"], facts["answer"])
            assert source.choices_column == facts.get("options")
            assert source.wrong_columns == tuple(facts.get("incorrect", ()))
        else:
            assert (source.problem_column, source.answer_column) == (None, None), "found from the data"


def test_a_run_directory_does_not_hide_the_set_that_it_is_named_after(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "columns").mkdir()
    (tmp_path / "columns/run.toml").touch()
    assert resolve_bench("columns") == resolve_bench("builtin:columns/test")
