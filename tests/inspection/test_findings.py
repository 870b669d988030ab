"""What `igrpo status` and the report say of drafts that do not help."""

from __future__ import annotations

import pytest

from igrpo_cli.inspection.run_state import findings

SEE = ": see docs/when-drafts-help.md"
PUBLISHED = {"select.strategy": "best", "update.train_on": "refinements", "update.refinement_prompt": "with_draft"}
DISTILLED = {"select.strategy": "random", "update.train_on": "both", "update.refinement_prompt": "without_draft"}


def test_copies_without_reward_variance_are_a_finding():
    curves = {"refine/copy_rate": [0.0, 0.2, 0.9, 0.9, 0.8, 0.9, 0.7], "refine/groups_with_gradient": [0.8, 0.2, 0.1]}
    # The last five copy rates, and all three shares.
    assert findings(curves, PUBLISHED) == [
        f"84% of refinements repeat their draft, and 37% of their groups have reward variance{SEE}"
    ]
    assert findings(curves | {"refine/groups_with_gradient": [0.6, 0.6, 0.6]}, PUBLISHED) == []
    assert findings(curves | {"refine/copy_rate": [0.4] * 5}, PUBLISHED) == []
    # Copies of right drafts are no fault.
    assert findings(curves | {"refine/accuracy_mean": [0.9] * 3}, PUBLISHED) == []
    assert findings(curves, DISTILLED) == []


def test_refinements_that_are_right_far_more_often_are_a_finding():
    curves = {"draft/accuracy_mean": [0.002, 0.004, 0.003], "refine/accuracy_mean": [0.1, 0.09, 0.101]}
    assert findings(curves, PUBLISHED) == [f"9.7% of refinements are right, but 0.3% of samples without draft{SEE}"]
    assert findings(curves | {"draft/accuracy_mean": [0.6] * 3, "refine/accuracy_mean": [0.99] * 3}, PUBLISHED) == []
    assert findings(curves, DISTILLED) == []


@pytest.mark.parametrize("curves", [{}, {"refine/copy_rate": [1.0, 1.0], "refine/groups_with_gradient": [0.0, 0.0]}])
def test_short_runs_have_no_findings(curves):
    assert findings(curves, PUBLISHED) == []
