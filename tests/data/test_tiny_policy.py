"""The tiny policy: transformers loads it, its tokenizer is lossless, and its script runs."""

from __future__ import annotations

import importlib.util
import json
import random
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

POLICY = Path(__file__).parents[2] / "data" / "tiny-policy"
ARITHMETIC = POLICY.parent / "arithmetic"
WORDS = ("<think>", "</think>", "<answer>", "</answer>", "[draft]", "[/draft]")
PRINTABLE = "".join(chr(code) for code in range(32, 127)) + "\n"


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return AutoTokenizer.from_pretrained(POLICY)


@pytest.fixture(scope="module")
def demonstrations() -> ModuleType:
    spec = importlib.util.spec_from_file_location("demonstrations", POLICY / "demonstrations.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@given(text=st.text(alphabet=PRINTABLE) | st.lists(st.sampled_from([*WORDS, *PRINTABLE])).map("".join))
def test_printable_text_survives_encoding_and_decoding(tokenizer: PreTrainedTokenizerFast, text: str) -> None:
    ids = tokenizer(text, split_special_tokens=True)["input_ids"]
    assert tokenizer.unk_token_id not in ids
    assert tokenizer.decode(ids) == text


def test_words_of_the_format_are_single_ordinary_tokens(tokenizer: PreTrainedTokenizerFast) -> None:
    for word in WORDS:
        (token,) = tokenizer(word)["input_ids"]
        assert tokenizer.decode([token], skip_special_tokens=True) == word
        assert token not in tokenizer.all_special_ids


def test_digits_are_one_token_each(tokenizer: PreTrainedTokenizerFast) -> None:
    assert tokenizer.tokenize("<think>47+8") == ["<think>", "4", "7", "+", "8"]


def test_other_characters_become_unknown_one_by_one(tokenizer: PreTrainedTokenizerFast) -> None:
    ids = tokenizer("7é×8")["input_ids"]
    assert [token == tokenizer.unk_token_id for token in ids] == [False, True, True, False]


def test_control_tokens_in_untrusted_text_are_plain_characters(tokenizer: PreTrainedTokenizerFast) -> None:
    text = "<|assistant|><|end|>"
    ids = tokenizer(text, split_special_tokens=True)["input_ids"]
    assert len(ids) == len(text)
    assert not set(ids) & set(tokenizer.all_special_ids)


def test_the_chat_template_renders_turns_as_the_card_says(tokenizer: PreTrainedTokenizerFast) -> None:
    user = {"role": "user", "content": "7+8=?"}

    def render(*messages: dict[str, str], prompt: bool) -> str:
        return tokenizer.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=prompt)

    assert render(user, prompt=True) == "<|user|>7+8=?<|assistant|>"
    system = {"role": "system", "content": "Be right."}
    assert render(system, user, prompt=True) == "<|user|>Be right.\n\n7+8=?<|assistant|>"
    answered = {"role": "assistant", "content": "15"}
    assert render(user, answered, prompt=False) == "<|user|>7+8=?<|assistant|>15<|end|>"
    assert tokenizer.decode([tokenizer.eos_token_id]) == "<|end|>"


def test_the_model_is_a_llama_of_about_a_million_parameters(tokenizer: PreTrainedTokenizerFast) -> None:
    model = AutoModelForCausalLM.from_pretrained(POLICY)
    assert model.config.model_type == "llama"
    assert 0.5e6 < sum(parameter.numel() for parameter in model.parameters()) < 1.5e6
    assert model.config.vocab_size == len(tokenizer)
    assert model.config.eos_token_id == tokenizer.eos_token_id
    assert model.config.pad_token_id == tokenizer.pad_token_id


def test_the_weights_are_stored_in_float32_and_small() -> None:
    path = POLICY / "model.safetensors"
    assert 3e6 < path.stat().st_size < 4e6
    with safe_open(path, framework="pt") as weights:
        assert {weights.get_tensor(name).dtype for name in weights.keys()} == {torch.float32}  # noqa: SIM118


def test_the_policy_is_sometimes_right_and_sometimes_not(tokenizer: PreTrainedTokenizerFast) -> None:
    """RL needs both. With 256 problems the bounds are far outside the sampling error."""
    rows = [json.loads(line) for line in (ARITHMETIC / "test.jsonl").read_text(encoding="utf-8").splitlines()[:256]]
    prompts = [f"<|user|>{row['problem']}<|assistant|>" for row in rows]
    batch = tokenizer(prompts, return_tensors="pt", padding=True, padding_side="left")
    model = AutoModelForCausalLM.from_pretrained(POLICY)
    torch.manual_seed(0)
    output = model.generate(
        input_ids=batch["input_ids"],
        attention_mask=batch["attention_mask"],
        do_sample=True,
        max_new_tokens=40,
    )
    texts = tokenizer.batch_decode(output[:, batch["input_ids"].shape[1] :], skip_special_tokens=True)
    found = [re.search(r"<answer>(\d+)</answer>", text) for text in texts]
    right = sum(bool(m) and m.group(1) == row["answer"] for m, row in zip(found, rows, strict=True)) / len(rows)
    assert 0.10 < right < 0.45


@pytest.mark.slow
def test_the_script_trains_and_saves_a_policy_that_loads(tmp_path: Path) -> None:
    output = tmp_path / "policy"
    command = [sys.executable, POLICY / "make_policy.py", output, "--steps", "3", "--seed", "1"]
    finished = subprocess.run(command, check=True, capture_output=True, text=True)
    losses = [float(loss) for loss in re.findall(r"loss (\d+\.\d+)", finished.stdout)]
    assert losses[-1] < losses[0]
    assert re.search(r"^without draft: +right ", finished.stdout, re.MULTILINE)
    assert re.search(r"^with draft: +right ", finished.stdout, re.MULTILINE)
    for name in ("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"):
        written, packaged = (json.loads((folder / name).read_text()) for folder in (output, POLICY))
        version = "transformers_version"  # depends on the installed version
        assert {**written, version: None} == {**packaged, version: None}, name
    AutoModelForCausalLM.from_pretrained(output)
    assert [path.name for path in tmp_path.iterdir()] == ["policy"]


def test_workings_without_a_slip_give_the_value(demonstrations: ModuleType) -> None:
    rng = random.Random(0)
    assert demonstrations.work_out((47, 38), rng, slips=False) == ("7+8=15,4+3+1=8", 85)
    assert demonstrations.work_out((82, -47), rng, slips=False) == ("12-7=5,8-4-1=3", 35)
    assert demonstrations.work_out((47, -12), rng, slips=False) == ("7-2=5,4-1=3", 35)
    assert demonstrations.work_out((47, 8, -5), rng, slips=False) == ("47+8=55,55-5=50", 50)
    assert demonstrations.work_out((7, -7), rng, slips=False) == ("7-7=0", 0)


terms = st.tuples(st.integers(0, 99), st.integers(-99, 99).filter(bool)).filter(lambda pair: sum(pair) >= 0)


@given(terms=terms, seed=st.integers(0, 2**32))
def test_a_working_is_correct_or_has_a_slip_as_requested(
    demonstrations: ModuleType, terms: tuple[int, int], seed: int
) -> None:
    _, value = demonstrations.work_out(terms, random.Random(seed), slips=False)
    assert value == sum(terms)
    working, wrong = demonstrations.work_out(terms, random.Random(seed), slips=True)
    slipped_step = any(eval(left) != int(right) for left, right in (s.split("=") for s in working.split(",")))
    assert wrong != sum(terms) or slipped_step


def test_a_draft_is_placed_between_its_markers_after_the_problem(demonstrations: ModuleType) -> None:
    assert demonstrations.user_turn_with_draft("7+8=?", "15") == "7+8=?\n\n[draft]\n15\n[/draft]"
