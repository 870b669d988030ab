"""The file of a study: the settings of its cells, and errors that name the file, the table and the key."""

from __future__ import annotations

from pathlib import Path

import pytest

from igrpo_cli.commands.study import study_file
from igrpo_cli.config.study import read_study
from igrpo_cli.errors import UsageError

ROOT = Path(__file__).parents[2]
FILE = """
name = "small"
preset = "arithmetic"
seeds = [3, 1]
eval_every = 20

[set]
run.num_iterations = 30
"draft.temperature" = 0.8

[arms.grpo]
run.method = "grpo"
draft.num_generations = 8

[arms.published]
update.train_on = "refinements"
"""


def written(path: Path, text: str) -> Path:
    file = path / "study.toml"
    file.write_text(text)
    return file


def test_the_cells_are_all_arms_of_each_seed_with_their_settings(tmp_path):
    study, cells = read_study(written(tmp_path, FILE))
    assert [(cell.arm, cell.seed) for cell in cells] == [
        *(("grpo", 3), ("published", 3)),
        *(("grpo", 1), ("published", 1)),
    ]
    assert [cell.path.as_posix() for cell in cells][:2] == ["grpo/seed-3", "published/seed-3"]
    grpo, published = cells[0].config, cells[1].config
    assert (grpo.draft.num_generations, published.draft.num_generations) == (8, 4)
    assert (grpo.update.train_on, published.update.train_on) == ("drafts", "refinements")
    assert {cell.config.draft.temperature for cell in cells} == {0.8}
    assert [cell.config.run.seed for cell in cells] == [3, 3, 1, 1]
    assert study.reference == "grpo"
    assert study.evaluated(grpo) == [0, 20, 30]


def test_overrides_apply_to_all_arms_and_a_config_file_lies_next_to_the_study(tmp_path):
    (tmp_path / "base.toml").write_text("[update]\nlearning_rate = 0.5\n")
    file = written(tmp_path, FILE.replace('preset = "arithmetic"', 'config = "base.toml"'))
    _, cells = read_study(file, ["draft.num_generations=2"])
    assert {(cell.config.update.learning_rate, cell.config.draft.num_generations) for cell in cells} == {(0.5, 2)}


def test_the_seed_of_an_override_or_a_config_file_is_refused_because_the_study_sets_it(tmp_path):
    file = written(tmp_path, FILE)
    with pytest.raises(UsageError, match=r"--set: run\.seed is set by the study") as caught:
        read_study(file, ["run.seed=7"])
    assert caught.value.hint == "use the key seeds of the study file"
    (tmp_path / "base.toml").write_text("[run]\nseed = 5\n")
    file = written(tmp_path, FILE.replace('preset = "arithmetic"', 'config = "base.toml"'))
    with pytest.raises(UsageError, match=r"base\.toml: run\.seed is set by the study"):
        read_study(file)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("train_on", "trian_on", r"study.toml \[arms.published\]: unknown key update.trian_on; did you mean"),
        ("num_iterations", "num_iteration", r"study.toml \[set\]: unknown key run.num_iteration; did you mean"),
        ("draft.num_generations = 8", "draft.num_generations = 0", r"\[arms.grpo\]: draft.num_generations = 0"),
        ("draft.num_generations = 8", "generations = 8", r"\[arms.grpo\]: generations is not section.key"),
        ("run.method", "run.seed = 1\nrun.method", r"\[arms.grpo\]: run.seed is set by the study"),
        ("eval_every", "evaluate_every", "unknown key evaluate_every; did you mean eval_every"),
        ("eval_every", 'baseline = "grpo8"\neval_every', "baseline: 'grpo8' is not an arm; there are grpo, published"),
        ("[3, 1]", "[3, 3]", "a seed is named twice"),
        ("[3, 1]", "[]", "seeds"),
        ("[3, 1]", f"[3, {2**63}]", f"seeds.1 = {2**63}"),
        ("[arms.grpo]", "[arms.'study.html']", "'study.html' cannot name an arm.* the results in study.html"),
        ("[arms.grpo]", "[arms.Figures]", "'Figures' cannot name an arm.* the results in figures"),
        ("[arms.grpo]", "[arms.Published]", "'published' cannot name an arm.* the arm 'Published'"),
        ('"small"', '"a/b"', "name = 'a/b'"),
        ("[arms.grpo]", "[arms.'a b']", "arms"),
        ("arithmetic", "arithmatic", "did you mean arithmetic"),
        ('preset = "arithmetic"', 'config = "no.toml"', "there is no config file"),
    ],
)
def test_a_mistake_is_named_with_its_place(tmp_path, old, new, message):
    file = written(tmp_path, FILE.replace(old, new))
    with pytest.raises(UsageError, match=message):
        read_study(file)


def test_a_study_without_a_number_of_iterations_is_refused(tmp_path):
    file = written(tmp_path, FILE.replace("run.num_iterations = 30", "").replace('preset = "arithmetic"', ""))
    with pytest.raises(UsageError, match=r"\[arms.grpo\]: run.num_iterations is not set"):
        read_study(file)


@pytest.mark.parametrize("path", sorted((ROOT / "studies").glob("*.toml")), ids=lambda path: path.stem)
def test_every_study_of_the_repository_can_be_run(path):
    study, cells = read_study(path)
    assert study.name == path.stem
    assert len(study.seeds) >= 5
    assert {cell.config.run.num_iterations for cell in cells} != {None}
    assert path.read_text("utf-8").startswith("# ")


def test_a_packaged_study_has_a_name_and_a_file_of_that_name_comes_first(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert study_file(Path("published")).name == "published.toml"
    (tmp_path / "published").write_text(FILE)
    assert study_file(Path("published")) == Path("published")
    with pytest.raises(UsageError, match="no study file publish") as caught:
        study_file(Path("publish"))
    assert "budgets, columns-format, columns, dapo" in caught.value.hint
