"""Figures as text."""

from __future__ import annotations

import pytest

from igrpo_cli.algo.estimates import MIN_P_VALUE
from igrpo_cli.evaluation.summary import refinement_figures, summarise
from igrpo_cli.ui.tables import (
    ORACLE,
    all_benches_text,
    difference_text,
    markdown_table,
    markdown_text,
    summary_row,
    summary_text,
)
from made_evaluation import sample, samples

MODEL = {"name": "tiny", "policy": "sha256:5"}
BARE = samples(["!4", "5"], ["6", "!4"])


@pytest.fixture
def summary():
    return summarise(BARE, "sums", MODEL, {"1": 0.5, "2": 0.75})


@pytest.fixture
def conditioned(summary):
    refined = [sample(g, s, "!4", draft_sample_id=0) for g in (0, 1) for s in (0, 1)]
    figures = summarise(refined, "sums", MODEL, None)
    return {**figures, "selection": "best", "bare": summary, **refinement_figures(refined, BARE)}


def test_the_shares_that_question_an_accuracy_are_always_there(summary):
    row = summary_row(summary)
    assert (row["truncated"], row["no answer"], row["ungraded"]) == ("0.0 %", "0.0 %", "0.0 %")
    text = summary_text(summary)
    for name in ("truncated", "no answer", "ungraded"):
        assert f"\n{name}" in text


def test_the_text_names_what_k_samples_say(summary):
    lines = [line.split() for line in summary_text(summary).splitlines()]
    assert ["avg@2", "50.0", "%"] in [line[:3] for line in lines]
    assert ["cons@2", "75.0", "%"] in [line[:3] for line in lines]
    assert ["k", "1", "2"] in lines
    assert ["pass", "50.0", "%", "100.0", "%"] in lines
    assert ["cons", "50.0", "%", "75.0", "%"] in lines


def test_powers_of_two_and_all_samples_are_shown():
    text = summary_text(summarise(samples(["!4"] * 6), "sums", MODEL, None))
    assert ["k", "1", "2", "4", "6"] in [line.split() for line in text.splitlines()]
    assert ["cons", "–", "–", "–", "–"] in [line.split() for line in text.splitlines()]


def test_a_conditioned_evaluation_stands_beside_the_bare_one(conditioned):
    lines = summary_text(conditioned).splitlines()
    assert any(line.startswith("without draft ") and "50.0 %" in line for line in lines)
    assert any(line.startswith("with draft (best) ") and "100.0 %" in line for line in lines)
    assert any(line.startswith("difference +50.0 points") for line in lines)
    assert ["fix", "rate", "100.0", "%"] in [line.split()[:4] for line in lines]
    assert lines[-1] == ORACLE
    assert ORACLE not in summary_text({**conditioned, "selection": "each"})


def test_rates_over_nothing_are_a_dash(conditioned):
    text = summary_text({key: value for key, value in conditioned.items() if key != "fix_rate"})
    assert ["fix", "rate", "–"] in [line.split()[:3] for line in text.splitlines()]


def test_a_difference_is_told_in_points():
    figures = {"difference": -0.031, "difference_ci95": [-0.06, 0.0012], "p_value": 0.0612}
    assert difference_text(figures) == "difference -3.1 points, 95 % interval -6.0 to +0.1, p = 0.061"
    sure = {"difference": 0.33, "difference_ci95": [0.3, 0.36], "p_value": MIN_P_VALUE}
    assert difference_text(sure) == "difference +33.0 points, 95 % interval +30.0 to +36.0, p < 1e-12"
    single = {"difference": 0.5, "difference_ci95": None, "p_value": None}
    assert difference_text(single) == "difference +50.0 points; a single problem gives no interval"


def test_several_benchmarks_and_their_macro_average(summary):
    text = all_benches_text([summary, {**summary, "bench": "more"}], 0.5)
    assert [line.split()[0] for line in text.splitlines()[2:4]] == ["sums", "more"]
    assert text.endswith("macro-average of the paper's six benchmarks: 50.0 %")
    assert "macro" not in all_benches_text([summary], None)


def test_markdown_has_a_row_for_each_side_and_no_cell_breaks_it(conditioned):
    lines = markdown_text([conditioned]).splitlines()
    assert [line.split(" | ")[1] for line in lines[2:]] == ["tiny", "tiny, with draft (best)"]
    assert len({line.count("|") for line in lines}) == 1
    assert markdown_table([{"a|b": "c|d"}]) == "| a&#124;b |\n|---|\n| c&#124;d |"
    assert markdown_text([conditioned], 0.25).endswith("\n\nmacro-average: 25.0 %")
