"""Directories of evaluations say which policy was evaluated, and how."""

from __future__ import annotations

from pathlib import Path

import pytest

from igrpo_cli.store.layout import eval_flags, eval_iteration, eval_name


@pytest.mark.parametrize(
    ("policy", "conditioned", "name", "iteration", "flags"),
    [
        (3, None, "policy_0003", 3, "--bench aime24 --iteration 3"),
        (12345, "each", "policy_12345_conditioned", 12345, "--bench aime24 --iteration 12345 --with-draft"),
        (
            0,
            "best",
            "policy_0000_conditioned_best",
            0,
            "--bench aime24 --iteration 0 --with-draft --set eval.selection=best",
        ),
        ("SmolLM2", None, "SmolLM2", 0, "--model MODEL --bench aime24"),
        (
            "SmolLM2",
            "majority",
            "SmolLM2_conditioned_majority",
            0,
            "--model MODEL --bench aime24 --with-draft --set eval.selection=majority",
        ),
        ("policy_0003_old", None, "policy_0003_old", 0, "--model MODEL --bench aime24"),
    ],
)
def test_a_name_leads_to_its_directory_and_back(policy, conditioned, name, iteration, flags):
    assert eval_name(policy, conditioned) == name
    directory = Path("eval/aime24") / name
    assert (eval_iteration(directory), eval_flags(directory)) == (iteration, flags)
