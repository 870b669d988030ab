"""The section [data]: sources, and what `igrpo init` refuses."""

from __future__ import annotations

import tomllib

import pytest

from igrpo_cli.config import RunConfig
from igrpo_cli.config.files import apply_overrides, check_config, write_config
from igrpo_cli.errors import UsageError


def config(*overrides: str) -> RunConfig:
    return check_config(apply_overrides({}, overrides), "settings")


def test_a_mix_survives_the_file_of_a_run() -> None:
    mixed = config('data.mix=["x/a.jsonl", {train="owner/v1.5", weight=2, problem_column="q"}]')
    assert mixed.data.weights == {"a": 1.0, "v1.5": 2.0}
    assert mixed.data.train == "x/a.jsonl + owner/v1.5"
    again = check_config(tomllib.loads(write_config(mixed).decode()), "run.toml")
    assert again == mixed
    assert write_config(again) == write_config(mixed)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ('data.mix=["x/a.jsonl", "y/a.csv"]', "data.mix: 2 sources are called a: give them a name each"),
        ('data.mix=["a.jsonl", {train="b.csv", weigth=2}]', "data.mix.1.weigth; did you mean data.mix.1.weight?"),
        ('data.mix=[{train="a.jsonl", weight=0}]', "data.mix.0.weight = 0: input should be greater than 0"),
        ('data.mix=[{train="a.jsonl", name="x/y"}]', "data.mix.0.name = 'x/y'"),
        ("data.mix=[{weight=1}]", "data.mix.0.train"),
        ("data.mix=[]", "at least 1 item"),
        ("data.mix=a.jsonl", "data.mix = 'a.jsonl'"),
        ("data.answer_form=boxed", "data.answer_form = 'boxed'"),
    ],
)
def test_a_wrong_source_is_named(override: str, message: str) -> None:
    with pytest.raises(UsageError) as refused:
        config(override)
    assert message in refused.value.message


def test_settings_of_one_source_do_not_count_for_a_mix() -> None:
    with pytest.raises(
        UsageError, match=r"data\.problem_column is a setting of data\.train: write it into the sources"
    ):
        config('data.mix=["a.jsonl"]', "data.problem_column=q")
    named = config('data.mix=["x/a.jsonl", {train="y/a.csv", name="b"}]')
    assert list(named.data.weights) == ["a", "b"]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["data.min_solve_rate=0.1"], "data.min_solve_rate needs data.solve_rate_run"),
        (['data.curriculum="easy_first"'], "data.curriculum needs data.solve_rate_run"),
        (["data.solve_rate_run=runs/a"], "data.solve_rate_run has no effect: set one of data.min_solve_rate, "),
        (
            ["data.solve_rate_run=runs/a", "data.min_solve_rate=0.5", "data.max_solve_rate=0.2"],
            "data.min_solve_rate = 0.5 is above max_solve_rate = 0.2",
        ),
        (["data.solve_rate_run=runs/a", "data.max_solve_rate=1.2"], "less than or equal to 1"),
    ],
)
def test_solve_rates_need_a_run_and_a_use(overrides: list[str], message: str) -> None:
    with pytest.raises(UsageError) as refused:
        config(*overrides)
    assert message in refused.value.message
