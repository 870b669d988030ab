"""The predicted memory of an update: parts counted by hand, ranks, what settings change, and a measured step."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig

from igrpo_cli.config.update import PolicySection, UpdateSection
from igrpo_cli.records import TrainingGroup
from igrpo_cli.training import memory as prediction
from igrpo_cli.training.memory import UnpredictableError, predict_memory

BENCHMARK = Path(__file__).parent.parent.parent / "benchmarks" / "memory.py"
VOCAB, HIDDEN, INNER, LAYERS = 40, 64, 96, 2
CONFIG = LlamaConfig(
    vocab_size=VOCAB,
    hidden_size=HIDDEN,
    intermediate_size=INNER,
    num_hidden_layers=LAYERS,
    num_attention_heads=4,
    num_key_value_heads=2,
    tie_word_embeddings=True,
)
# Tied embedding; query, output, key and value (half as wide); three matrices of the MLP; two norms, and the last one.
PARAMETERS = VOCAB * HIDDEN + LAYERS * (3 * HIDDEN * HIDDEN + 3 * HIDDEN * INNER + 2 * HIDDEN) + HIDDEN
NUM_TENSORS = 1 + LAYERS * 9 + 1


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    """A model directory with a configuration and no weights."""
    directory = tmp_path_factory.mktemp("model")
    CONFIG.architectures = ["LlamaForCausalLM"]
    CONFIG.save_pretrained(directory)
    return directory


def group_of(prompt: int, completions: int, length: int) -> TrainingGroup:
    return TrainingGroup(
        stage="refine",
        group_id=0,
        problem_id="problem",
        prompt_ids=np.zeros(prompt, np.int64),
        temperatures=[1.0] * completions,
        completion_ids=[np.zeros(length, np.int64)] * completions,
        sampling_logprobs=[np.zeros(length, np.float32)] * completions,
        rewards=[0.0] * completions,
        advantages=[1.0] * completions,
        is_masked=[False] * completions,
        max_completion_length=length,
    )


def predict(model, group=(20, 4, 10), *, device_type="cpu", num_ranks=1, **settings):
    section = UpdateSection(**({"dtype": "float32"} | settings))
    groups = [group_of(*group)]
    return predict_memory(model, section, PolicySection(), [groups], device_type=device_type, num_ranks=num_ranks)


def test_weights_gradients_and_moments_are_those_counted_by_hand(model):
    found = predict(model)
    assert (found.num_parameters, found.num_trainable) == (PARAMETERS, PARAMETERS)
    # AdamW counts its steps in one number for each tensor. The rotary embedding has two vectors of 8 frequencies.
    assert found.step["optimizer"] == 2 * 4 * PARAMETERS + 4 * NUM_TENSORS
    assert 0 <= found.state - 4 * 4 * PARAMETERS - 4 * NUM_TENSORS <= 2 * 8 * 4
    assert found.published == 2 * PARAMETERS
    assert found.publication["gradients"] == 4 * PARAMETERS
    assert (found.row_tokens, found.row_completion_tokens) == (20 + 4 * 9, 4 * 10)


def test_offloading_leaves_the_weights_to_compute_with_on_a_gpu(model):
    kept, offloaded = (
        predict(model, device_type="cuda", dtype="bfloat16", beta=0.1, offload_optimizer=each) for each in (False, True)
    )
    linear = LAYERS * (3 * HIDDEN * HIDDEN + 3 * HIDDEN * INNER)
    on_device = 2 * linear + 4 * (PARAMETERS - linear)
    # At most four gradients are on their way; the largest ones are matrices of the MLP in bfloat16.
    on_their_way = 4 * 2 * HIDDEN * INNER
    assert {part: offloaded.step[part] for part in ("weights", "reference", "gradients", "optimizer")} == {
        "weights": on_device,
        "reference": on_device,
        "gradients": on_their_way,
        "optimizer": 0,
    }
    assert offloaded.step["weight_copies"] == 2 * VOCAB * HIDDEN  # the output matrix, in bfloat16
    assert sum(offloaded.publication.values()) == 2 * on_device + on_their_way + 2 * VOCAB * HIDDEN
    assert offloaded.peak < kept.peak / 2
    assert offloaded.step["activations"] >= kept.step["activations"]


def test_ranks_share_weights_gradients_and_moments(model):
    one, four = (predict(model, num_ranks=ranks, device_type="cuda", dtype="bfloat16") for ranks in (1, 4))
    # Each vocabulary row and output row is a multiple of 4, so nothing is padded.
    assert four.step["optimizer"] == pytest.approx(one.step["optimizer"] / 4, abs=4 * NUM_TENSORS)
    assert four.publication["weights"] == pytest.approx(PARAMETERS, abs=200)
    assert four.step["gathered"] > 0
    assert one.step["gathered"] == 0
    assert one.step["weight_copies"] > 0
    assert four.step["weight_copies"] == 0


def test_a_gpu_holds_no_table_of_all_pairs_of_tokens(model):
    group = (100, 8, 2000)
    found = predict(model, group, device_type="cuda", max_tokens_per_batch=2**20, gradient_checkpointing=True)
    assert found.attention == "flex"
    assert found.step["activations"] < found.row_tokens**2


def test_settings_that_save_memory_save_it_in_the_prediction(model):
    group = (100, 8, 100)
    stored, recomputed = (predict(model, group, gradient_checkpointing=each) for each in (False, True))
    assert recomputed.step["activations"] < 0.75 * stored.step["activations"]
    shorter = predict(model, group, max_tokens_per_batch=200)
    assert shorter.row_tokens < stored.row_tokens
    assert shorter.peak < stored.peak


def test_adapters_have_the_only_gradients(model):
    pytest.importorskip("peft")
    found = predict(model, lora_r=2)
    # r (in + out): query, key, value, output, and the three matrices of the MLP.
    adapters = LAYERS * 2 * (2 * (2 * HIDDEN) + 2 * (HIDDEN + HIDDEN // 2) + 3 * (HIDDEN + INNER))
    assert (found.num_trainable, found.num_parameters) == (adapters, PARAMETERS)
    assert found.publication["gradients"] == 4 * adapters


def test_the_reference_policy_is_counted(model):
    assert predict(model, beta=0.1).step["reference"] == pytest.approx(4 * PARAMETERS, abs=200)


def test_a_model_that_does_not_run_without_values_is_named(model, monkeypatch):
    def fail(*_args, **_options):
        raise RuntimeError("shape depends on values\nmore")

    monkeypatch.setattr(prediction, "unloaded_causal_lm", fail)
    with pytest.raises(UnpredictableError, match=r"shape depends on values$"):
        predict(model)


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="measures memory with Linux's /proc")
def test_a_real_step_takes_what_is_predicted(tmp_path):
    config = LlamaConfig(
        vocab_size=16384,
        hidden_size=384,
        intermediate_size=1024,
        num_hidden_layers=8,
        num_attention_heads=6,
        num_key_value_heads=2,
        tie_word_embeddings=True,
    )
    AutoModelForCausalLM.from_config(config, dtype=torch.float32).save_pretrained(tmp_path)
    shapes = ("300:4:128", "300:4:128:checkpointing")
    command = [sys.executable, str(BENCHMARK), str(tmp_path), *(word for each in shapes for word in ("--shape", each))]
    table = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    ratios = [float(line.split("|")[4]) for line in table.splitlines()[2:]]
    assert ratios == pytest.approx([1.0, 1.0], abs=0.1), table
