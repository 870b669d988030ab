"""The results of a study: what they are over, and what a damaged or incomplete run does to them."""

from __future__ import annotations

import numpy as np
import pytest

from igrpo_cli.config import RunConfig
from igrpo_cli.config.study import Cell, Study
from igrpo_cli.inspection.study import WITH_DRAFT, WITHOUT_DRAFT, ArmResults, CellResults, StudyResults

NAN = float("nan")


def results_of(arms: dict[str, list[list[list[float]]]]) -> StudyResults:
    """Results from {arm: accuracies by seed, policy and problem}, with 10 tokens before each further policy."""
    found = []
    for name, of_seeds in arms.items():
        cells = []
        for seed, of_policies in enumerate(of_seeds):
            correct = {policy: np.array(values) for policy, values in enumerate(of_policies)}
            spent = {axis: [10.0 * each for each in correct] for axis in ("tokens", "seconds", "gpu_seconds")}
            both = {WITHOUT_DRAFT: correct, WITH_DRAFT: correct}
            cells.append(CellResults(Cell(name, seed, RunConfig()), both, {}, spent, [], None))
        found.append(ArmResults(name, cells, cells))
    study = Study(name="s", seeds=[0, 1], arms={name: {} for name in arms})
    return StudyResults(study, found)


def test_the_baseline_reaches_its_own_final_accuracy_where_a_seed_has_ungraded_problems():
    # The last problem of seed 1 is ungraded: both are over the first two, 0.5 at the end.
    results = results_of({"base": [[[0, 0, 0], [1, 0, 0]], [[0, 0, 0], [1, 0, NAN]]]})
    assert results.target == 0.5
    assert results.cost_of_target("base") == {"tokens": 10.0, "gpu_seconds": 10.0, "seeds": 2}


def test_a_policy_without_a_problem_that_all_seeds_have_is_left_out_of_the_cost():
    results = results_of({"base": [[[0, NAN], [0, 0], [1, 1]], [[NAN, 0], [0, 0], [1, 1]]]})
    assert results.cost_of_target("base") == {"tokens": 20.0, "gpu_seconds": 20.0, "seeds": 2}


def test_p_values_are_corrected_for_all_arms_of_the_file_and_not_only_for_those_with_results():
    better = [[[0.5, 0, 0.5, 0], [1, 0, 1, 0.5]], [[0.5, 0, 0.5, 0], [1, 0.5, 1, 0.5]]]
    worse = [[[0.5, 0, 0.5, 0], [0.5, 0, 0.5, 0]], [[0.5, 0, 0.5, 0], [0.5, 0, 1, 0]]]
    comparisons = results_of({"base": worse, "best": better, "late": [], "later": []}).comparisons
    final = next(each for each in comparisons if each.score == "final")
    assert final.arm == "best"
    assert final.corrected == pytest.approx(min(1, 3 * final.p_value))
