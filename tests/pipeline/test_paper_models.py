"""The model classes of the paper as small models with templates of the same structure, through every command.

Each model is trained for a moment to say a few known texts. Their format and accuracy are written down here by hand.
"""

from __future__ import annotations

import json
import random
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedConfig, Qwen2Config
from transformers.models.nemotron_h import NemotronHConfig

sys.path.append(str(Path(__file__).parents[1] / "engines"))

from test_thoughts import tokenizer as make_tokenizer

from command_line import igrpo, sets
from igrpo_cli.config.sections import PromptsSection
from igrpo_cli.engines.factory import vllm_fits
from igrpo_cli.engines.tokenization import PolicyTokenizer
from igrpo_cli.prompts import prompt_with_draft, prompt_without_draft
from igrpo_cli.records import Problem
from igrpo_cli.store.layout import RunDirectory
from igrpo_cli.store.schema import ROLLOUTS
from igrpo_cli.store.tables import read_table

PROBLEMS = ["2+2", "1+3", "8-4", "2*2"]
"""All have the answer 4, so that the same texts are right and wrong for all of them."""
SYSTEM = "Solve."
PROMPTS = PromptsSection(system_prompt=SYSTEM)
CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
R1 = (
    "{% for m in messages %}{% if m.role == 'system' %}{{ m.content }}"
    "{% elif m.role == 'user' %}{{ '<|User|>' + m.content }}"
    "{% else %}{{ '<|Assistant|>' + m.content.split('</think>')[-1] + '<|eos|>' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|Assistant|><think>\\n' }}{% endif %}"
)
NEMOTRON_H = (
    "{{ '<S10>System\\n' }}{% for m in messages %}{% if m.role == 'system' %}{{ m.content }}"
    "{% else %}{{ '\\n' + ('<S11>User\\n' if m.role == 'user' else '<S11>Assistant\\n') + m.content }}"
    "{% if m.role == 'assistant' %}{{ '<|eos|>' }}{% endif %}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '\\n<S11>Assistant\\n<think>\\n' }}{% endif %}"
)
RIGHT, WRONG, UNTIDY, UNFINISHED = "tidy and right", "tidy and wrong", "right, no answer tags", "thought without end"
SAID = {
    RIGHT: ("so it is</think><answer>4</answer>", 1.0, 1.0),
    WRONG: ("so it is</think><answer>5</answer>", 0.0, 1.0),
    UNTIDY: ("so</think>It is \\boxed{4}", 1.0, 0.0),
    UNFINISHED: ("it is \\boxed{4} or", 0.0, 0.0),
}
"""What follows `<think>` and a line feed, with its accuracy and format: the answer in a thought is no answer."""


def qwen2(**changes: Any) -> PreTrainedConfig:
    sizes = {"hidden_size": 128, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4}
    return Qwen2Config(
        **{**sizes, "num_key_value_heads": 2, "max_position_embeddings": 512, "tie_word_embeddings": False, **changes}
    )


def nemotron_h(**changes: Any) -> PreTrainedConfig:
    recurrent = {"ssm_state_size": 8, "mamba_num_heads": 4, "mamba_head_dim": 16, "n_groups": 2, "head_dim": 32}
    sizes = {"hidden_size": 48, "intermediate_size": 96, "num_attention_heads": 4, "num_key_value_heads": 2}
    layers = ["mamba", "attention", "mamba", "mlp"]
    return NemotronHConfig(layers_block_type=layers, max_position_embeddings=512, **recurrent, **sizes, **changes)


MODELS = {
    "DeepSeek-R1-Distill-Qwen": (qwen2, {}, R1, ("<|User|>", "<|Assistant|>", "<|endoftext|>"), "<|eos|>"),
    "Nemotron-H": (nemotron_h, {}, NEMOTRON_H, ("<S10>", "<S11>"), "<|eos|>"),
    "OpenMath-Nemotron": (qwen2, {}, CHATML, ("<|im_start|>", "<|im_end|>"), "<|endoftext|>"),
    # The model has 40 heads of queries on 8 of keys, and more layers than the others.
    "OpenReasoning-14B": (
        qwen2,
        {"num_hidden_layers": 3, "num_attention_heads": 10, "num_key_value_heads": 2, "hidden_size": 320},
        CHATML,
        ("<|im_start|>", "<|im_end|>"),
        "<|endoftext|>",
    ),
}


def said(tokenizer: PolicyTokenizer, kind: str) -> str:
    """The text that the model is to say after its prompt."""
    text, _, _ = SAID[kind]
    return text if tokenizer.beginning_of_completion(prompt_of("?")) else f"<think>\n{text}"


def problem_of(text: str) -> Problem:
    return Problem(text, text, "1", text)


def prompt_of(text: str):
    return prompt_without_draft(problem_of(text), PROMPTS)


@pytest.fixture(scope="module", params=list(MODELS))
def model(request, tmp_path_factory) -> Path:
    """The directory of a model that says each of the known texts about as often as the others."""
    config_of, changes, template, special, eos = MODELS[request.param]
    directory = tmp_path_factory.mktemp("model")
    tags = ("<think>", "</think>", "<answer>", "</answer>")
    tokenizer = make_tokenizer(directory, template, special=special, others=tags, eos=eos)
    ids_of = tokenizer._tokenizer
    torch.manual_seed(0)
    end = tokenizer.eos_token_ids[-1]
    config = config_of(
        vocab_size=tokenizer.largest_id + 1,
        eos_token_id=ids_of.eos_token_id,
        pad_token_id=ids_of.pad_token_id,
        **changes,
    )
    network = AutoModelForCausalLM.from_config(config)
    optimizer = torch.optim.AdamW(network.parameters(), lr=3e-3)
    order = random.Random(0)
    texts = [[*ids_of(said(tokenizer, kind), add_special_tokens=False)["input_ids"], end] for kind in SAID]
    for _ in range(200):
        problem = order.choice(PROBLEMS)
        prompts = [
            prompt_of(problem),
            prompt_with_draft(problem_of(problem), f"<think>\n{SAID[RIGHT][0]}", PROMPTS),
        ]
        prompt_ids = tokenizer.encode_prompt(order.choice(prompts))[1]
        rows = [torch.tensor([*prompt_ids, *text]) for text in texts]
        loss = torch.stack([network(row[None], labels=row[None]).loss for row in rows]).mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    network.save_pretrained(directory)
    return directory


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["transformers", "vllm"])
def test_every_command_agrees_with_the_count_by_hand(model, engine, tmp_path):
    if engine == "vllm" and not vllm_fits("auto"):
        pytest.skip("needs vLLM in a build for this machine")
    data = tmp_path / "fours.jsonl"
    data.write_text("\n".join(json.dumps({"problem": problem, "answer": "4"}) for problem in PROBLEMS))
    settings = (
        f"policy.model={model}",
        f"data.train={data}",
        f"prompts.system_prompt={SYSTEM}",
        "data.problems_per_iteration=4",
        "run.num_iterations=1",
        "draft.num_generations=12",
        "refine.num_generations=4",
        "draft.max_completion_length=40",
        "refine.max_completion_length=40",
        "reward.weights={accuracy=1.0,format=1.0}",
        "policy.dtype=float32",
        "update.dtype=float32",
        "update.learning_rate=1e-4",
        f"engine.name={engine}",
        "engine.dtype=float32",
        "engine.enforce_eager=true",
        "engine.kv_cache_memory_bytes=134217728",
        "engine.gpu_memory_utilization=0.2",
        "eval.max_gen_toks=40",
        "eval.temperature=1.0",
        "eval.top_p=1.0",
        "eval.repeats=12",
    )
    run = tmp_path / "run"
    for command in (
        ("init", run, *sets(*settings)),
        *((stage, run) for stage in ("draft", "select", "refine", "update")),
        ("eval", run, "--bench", data),
    ):
        result = igrpo(*command)
        assert (result.code, result.stderr.count("Warning")) == (0, 0), result.stderr
    place = RunDirectory(run)
    shards = [place.shard(0, stage, 0, 1) for stage in ("draft", "refine")] + [place.eval_shard("fours", 1, 0, 1)]
    drafts, refinements, samples = (read_table(shard.data, ROLLOUTS).to_pylist() for shard in shards)
    for rows in (drafts, refinements, samples):
        by_text = {f"<think>\n{text}": (accuracy, tidy) for text, accuracy, tidy in SAID.values()}
        known = [row for row in rows if row["completion"] in by_text]
        assert len(known) >= len(rows) / 2, [row["completion"] for row in rows]
        for row in known:
            assert (row["reward_accuracy"], row["reward_format"]) == by_text[row["completion"]], row["completion"]
            assert row["finish_reason"] == "stop"
            assert row["reward"] == sum(by_text[row["completion"]])
    assert {row["reward"] for row in drafts} == {0.0, 1.0, 2.0}
    draft_of = {(row["group_id"], row["sample_id"]): row for row in drafts}
    for row in refinements:
        draft = draft_of[row["group_id"], row["draft_sample_id"]]
        assert draft["reward"] == max(each["reward"] for each in drafts if each["group_id"] == row["group_id"])
        assert draft["completion"].strip() in row["prompt"]
