"""Whole runs with the options of the update: every objective, spare problems, the length penalty."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
from transformers import AutoModelForCausalLM

from command_line import files_below, igrpo, make_run, run_to_end, sets

TINY = Path(__file__).parents[2] / "data" / "tiny-policy"


def metrics_of(run, iteration=0):
    rows = pq.read_table(run / f"iteration_{iteration:04d}/update/metrics.parquet").to_pylist()
    return {(row["step"], row["name"]): row["value"] for row in rows}


@pytest.fixture(scope="module")
def sampled(tmp_path_factory):
    """A run that is ready for its first update."""
    run = make_run(tmp_path_factory.mktemp("sampled") / "run", "update.num_minibatches=2")
    for stage in ("draft", "select", "refine"):
        assert igrpo(stage, run).code == 0
    return run


@pytest.mark.parametrize("loss_type", ["grpo", "dapo", "dr_grpo", "gspo", "cispo"])
def test_every_objective_takes_its_steps(sampled, loss_type):
    result = igrpo("update", sampled, "--overwrite", *sets(f"update.loss_type={loss_type}"))
    assert result.code == 0, result.stderr
    metrics = metrics_of(sampled)
    assert metrics[0, "ratio_max_deviation"] == 0.0
    assert metrics[0, "grad_norm"] > 0
    assert metrics[1, "ratio_max_deviation"] > 0, "the second step must see the first"


def test_gspo_is_grpo_at_the_first_step_and_not_at_the_second(sampled):
    norms = {}
    for loss_type in ("grpo", "gspo"):
        assert igrpo("update", sampled, "--overwrite", *sets(f"update.loss_type={loss_type}")).code == 0
        norms[loss_type] = [metrics_of(sampled)[step, "grad_norm"] for step in (0, 1)]
    assert norms["grpo"][0] == pytest.approx(norms["gspo"][0], rel=1e-5)
    assert norms["grpo"][1] != pytest.approx(norms["gspo"][1], rel=1e-5)


def test_truncated_importance_weights_are_those_of_the_sampler(sampled):
    corrected = sets("update.importance_sampling_correction=true", "update.importance_sampling_clip_max=1.0")
    result = igrpo("update", sampled, "--overwrite", *corrected)
    assert result.code == 0, result.stderr
    # One engine and one trainer in float32: they agree to rounding, and the cap cuts half of the rounding away.
    weight = metrics_of(sampled)[0, "importance_weight_mean"]
    assert 1 - 1e-4 < weight <= 1.0


def test_log_probs_are_those_at_the_temperature_of_each_completion(tmp_path):
    several = ("draft.temperature=[0.5, 2.0]", "refine.temperature=[1.0, 0.7]", "update.train_on=both")
    run = run_to_end(make_run(tmp_path / "run", *several, "run.num_iterations=1"))
    drafts = pq.read_table(next((run / "iteration_0000/draft").glob("*.parquet"))).to_pylist()
    model = AutoModelForCausalLM.from_pretrained(TINY, dtype=torch.float32)
    for row, temperature in zip(drafts[:3], (0.5, 2.0, 0.5), strict=True):
        ids = torch.tensor([row["prompt_ids"] + row["completion_ids"]])
        with torch.no_grad():
            logits = model(ids).logits[0, len(row["prompt_ids"]) - 1 : -1] / temperature
        expected = logits.log_softmax(-1)[torch.arange(len(logits)), torch.tensor(row["completion_ids"])]
        assert row["sampling_logprobs"] == pytest.approx(expected.tolist(), abs=1e-4)
    metrics = metrics_of(run)
    # With one temperature for all, they would differ by tenths of a nat.
    assert max(metrics[0, f"sampler_mismatch_max/{stage}"] for stage in ("draft", "refine")) < 1e-3
    assert igrpo("verify", run, "--replay", 0).code == 0


def test_spare_problems_stand_in_for_groups_without_gradient(tmp_path):
    spare = ("data.spare_problems=8", "update.dynamic_sampling=true", "run.num_iterations=1")
    run = run_to_end(make_run(tmp_path / "run", *spare))
    drafts = pq.read_table(next((run / "iteration_0000/draft").glob("*.parquet")))
    assert drafts.num_rows == 16 * 3
    counts = json.loads((run / "iteration_0000/update/manifest.json").read_text())["counts"]
    # Drafts and refinements of 16 problems were sampled; of each kind at most 8 are trained on.
    assert counts["groups_sampled"] == 32
    assert 0 < counts["groups"] <= 16
    assert metrics_of(run)[0, "groups_with_gradient"] == 1.0
    assert igrpo("verify", run).code == 0
    before = files_below(run)
    assert igrpo("run", run).code == 0
    assert files_below(run) == before


def test_spare_problems_without_a_use_are_refused(tmp_path):
    result = igrpo("init", tmp_path / "run", "--preset", "arithmetic", *sets("data.spare_problems=4"))
    assert result.code == 2
    assert "dynamic_sampling" in result.stderr


def test_the_length_penalty_is_a_part_of_the_reward(tmp_path):
    weighted = "reward.weights={ accuracy = 1.0, format = 0.0, overlong = 0.5 }"
    run = make_run(tmp_path / "run", weighted, "reward.overlong_cache=8", "draft.max_completion_length=12")
    assert igrpo("draft", run).code == 0
    rows = pq.read_table(next((run / "iteration_0000/draft").glob("*.parquet"))).to_pylist()
    for row in rows:
        length = len(row["completion_ids"])
        assert row["reward_overlong"] == pytest.approx(min(0.0, (4 - length) / 8))
        assert row["reward"] == pytest.approx(row["reward_accuracy"] + 0.5 * row["reward_overlong"])
    assert {row["reward_overlong"] for row in rows} - {0.0}, "none of the drafts was long enough to see anything"
    assert igrpo("verify", run).code == 0


def test_a_length_penalty_needs_its_length(tmp_path):
    weighted = "reward.weights={ accuracy = 1.0, format = 0.0, overlong = 0.5 }"
    result = igrpo("init", tmp_path / "run", "--preset", "arithmetic", *sets(weighted))
    assert result.code == 2
    assert "set reward.overlong_cache" in result.stderr


@pytest.mark.parametrize("baseline", ["drafts", "pooled"])
def test_refinements_that_differ_from_their_drafts_have_a_gradient(sampled, baseline):
    result = igrpo("update", sampled, "--overwrite", *sets(f"update.baseline={baseline}"))
    assert result.code == 0, result.stderr
    metrics = metrics_of(sampled)
    with_gradient = [value for (step, name), value in metrics.items() if name == "groups_with_gradient/refine"]
    assert len(with_gradient) == 2
    assert sum(with_gradient) / 2 >= metrics[-1, "refine/groups_with_gradient"]
    assert igrpo("verify", sampled).code == 0


def test_a_baseline_of_refinements_that_are_not_trained_on_is_refused(tmp_path):
    overrides = sets("update.baseline=drafts", "update.train_on=drafts")
    result = igrpo("init", tmp_path / "run", "--preset", "arithmetic", *overrides)
    assert result.code == 2
    assert "update.baseline" in result.stderr


def test_plain_grpo_ignores_what_a_preset_says_of_refinements(tmp_path):
    result = igrpo("init", tmp_path / "run", "--preset", "quickstart", *sets("run.method=grpo"), "--dry-run", "--json")
    section = result.json["config"]["update"]
    assert (section["train_on"], section["baseline"], section["refinement_prompt"]) == ("drafts", "group", "with_draft")


def test_loss_weights_are_those_of_their_stage(sampled):
    norms = {}
    for weights in ("{drafts=1.0, refinements=1.0}", "{drafts=0.0}", "{refinements=0.0}", "{drafts=2.0}"):
        settings = sets("update.num_minibatches=1", f"update.loss_weights={weights}")
        assert igrpo("update", sampled, "--overwrite", *settings).code == 0
        norms[weights] = metrics_of(sampled)[0, "grad_norm"]
    assert len(set(norms.values())) == 4
    assert norms["{drafts=0.0}"] > 0


def test_refinements_trained_without_their_draft_have_another_gradient(sampled):
    norms = []
    for setting in ("update.shaping_gamma=0.1", "update.refinement_prompt=without_draft"):
        settings = sets("update.num_minibatches=1", "update.loss_weights={drafts=0.0}", setting)
        assert igrpo("update", sampled, "--overwrite", *settings).code == 0
        norms.append(metrics_of(sampled)[0, "grad_norm"])
    assert 0 < norms[1] != norms[0] > 0


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["update.train_on=refinements", "update.loss_weights={drafts=0.5}"], "needs update.train_on"),
        (["update.loss_weights={drafts=0, refinements=0}"], "nothing would be trained"),
        (["update.loss_weights={eval=1}"], "loss_weights"),
        (["update.train_on=drafts", "update.refinement_prompt=without_draft"], "update.refinement_prompt"),
    ],
)
def test_settings_without_an_effect_are_refused(tmp_path, settings, message):
    result = igrpo("init", tmp_path / "run", "--preset", "arithmetic", *sets(*settings))
    assert result.code == 2
    assert message in result.stderr
