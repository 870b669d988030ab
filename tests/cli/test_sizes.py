"""What `igrpo init` and a dry run say about the size of a run: counts by hand, and bytes against those on disk."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from command_line import igrpo, make_run, sets
from igrpo_cli.config.files import apply_overrides, check_config
from igrpo_cli.pipeline.plan import BYTES_PER_ROW, BYTES_PER_SHARD, describe_size, size_of_run


def config_of(*overrides: str):
    return check_config(apply_overrides({}, overrides), "test")


@pytest.fixture
def model(tmp_path) -> Path:
    """A model directory with the header of a weight file: 40 + 16 + 32 + 4 parameters."""
    shapes = {"embed_tokens.weight": [10, 4], "q_proj.weight": [4, 4], "up_proj.weight": [8, 4], "norm.weight": [4]}
    header = {name: {"dtype": "F32", "shape": shape, "data_offsets": [0, 0]} for name, shape in shapes.items()}
    text = json.dumps({"__metadata__": {"format": "pt"}, **header}).encode()
    (tmp_path / "model.safetensors").write_bytes(len(text).to_bytes(8, "little") + text)
    return tmp_path


@pytest.mark.parametrize(
    ("overrides", "policy", "state"),
    [
        (("policy.dtype=bfloat16",), 2 * 92, (8 + 4) * 92),
        (("policy.dtype=float32",), 4 * 92, 8 * 92),
        # r (in + out) for each of the two matrices: two moments, a master copy, and the adapter itself.
        (("update.lora_r=2",), 2 * 92, 16 * 2 * (4 + 4 + 8 + 4)),
        (("update.lora_r=2", 'update.lora_target_modules=["q_proj"]'), 2 * 92, 16 * 2 * (4 + 4)),
    ],
)
def test_a_policy_and_its_optimiser_state_follow_from_the_shapes_of_the_weights(model, overrides, policy, state):
    disk = size_of_run(config_of(*overrides), 10, model)["disk_bytes"]
    assert (disk["policy"], disk["optimizer_state"]) == (policy, state)


def test_the_whole_run_is_counted_with_what_it_keeps(model):
    settings = ("data.problems_per_iteration=6", "draft.num_generations=3", "refine.num_generations=2")
    lengths = ("draft.max_completion_length=10", "refine.max_completion_length=20", "prompts.max_prompt_length=5")
    config = config_of(*settings, *lengths, "update.keep_optimizer_states=2", "engine.groups_per_block=4")
    size = size_of_run(config, 7, model)
    assert (size["completions"], size["max_tokens_sampled"]) == (6 * (3 + 2), 6 * (3 * 10 + 2 * 20))
    assert (size["total_completions"], size["total_max_tokens_sampled"]) == (7 * 30, 7 * 420)
    assert (size["shards"], size["blocks"], size["blocks_per_shard"], size["iterations"]) == (1, 2, 2, 7)
    assert size["kept"] == {"policies": "all", "optimizer_states": 2, "shards": "all"}
    drafts = 6 * (3 * (10 * 12 + BYTES_PER_ROW) + 5 * 8) + BYTES_PER_SHARD
    refinements = 6 * (2 * (20 * 12 + BYTES_PER_ROW) + (5 + 10) * 8) + BYTES_PER_SHARD
    selections = 6 * 4 * 10 + BYTES_PER_SHARD
    assert size["disk_bytes"]["shards"] == drafts + refinements + selections
    assert size["disk_bytes"]["total"] == 7 * size["disk_bytes"]["shards"] + 7 * 2 * 92 + 2 * 12 * 92
    text = describe_size(config, size)
    assert "in total: 7 iterations, 210 completions, at most 2,940 tokens" in text
    assert "the last 2 optimiser states (update.keep_optimizer_states)" in text


def test_alternating_iterations_are_counted_by_their_kind():
    config = config_of("update.train_on=alternate", "draft.num_generations=3", "refine.num_generations=2")
    # Iterations 0 and 2 sample five drafts of each problem, iteration 1 three drafts and two refinements.
    assert size_of_run(config, 3)["total_completions"] == 3 * 32 * 5


def test_what_is_not_known_is_said_to_be_unknown():
    config = config_of("policy.model=nobody/no-model")
    size = size_of_run(config)
    disk = size["disk_bytes"]
    assert (size["iterations"], size["total_completions"], disk["policy"], disk["total"]) == (None, None, None, None)
    text = describe_size(config, size)
    assert "nobody/no-model is not on this machine" in text
    assert "is known when `igrpo init` has read the problems" in text


def test_the_bytes_on_disk_are_those_of_the_plan(finished_run):
    disk = igrpo("run", finished_run, "--dry-run", "--json").json["plan"]["disk_bytes"]
    weights = (finished_run / "policies/0001/model.safetensors").stat().st_size
    assert disk["policy"] <= weights < 1.1 * disk["policy"]
    state = sum(path.stat().st_size for path in (finished_run / "iteration_0001/update/optimizer").iterdir())
    assert disk["optimizer_state"] <= state < 1.1 * disk["optimizer_state"]
    stages = [finished_run / "iteration_0001" / stage for stage in ("draft", "select", "refine")]
    shards = sum(path.stat().st_size for stage in stages for path in stage.glob("shard-*"))
    assert shards <= disk["shards"]


def test_every_dry_run_has_the_same_keys(tmp_path):
    run = make_run(tmp_path / "run")
    of_init = igrpo("init", tmp_path / "new", "--preset", "arithmetic", "--dry-run", "--json").json["plan"]
    commands = ("draft", "select", "refine", "update", "run")
    plans = [igrpo(command, run, "--dry-run", "--json").json["plan"] for command in commands]
    assert all(plan.keys() == of_init.keys() for plan in plans)
    assert all(plan["iterations"] == 2 and plan["disk_bytes"]["total"] > 0 for plan in plans)
    of_eval = igrpo("eval", run, "--bench", "arithmetic", "--dry-run", "--json", *sets("eval.limit=8")).json["plan"]
    assert (of_eval["shards"], of_eval["blocks"]) == (1, 4)
    assert of_eval["disk_bytes"]["shards"] > 0
