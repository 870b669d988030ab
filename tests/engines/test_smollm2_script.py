"""data/smollm2/make_policy.py, on a tiny GGUF file with the layout of llama.cpp."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

gguf = pytest.importorskip("gguf")

SCRIPT = Path(__file__).parents[2] / "data" / "smollm2" / "make_policy.py"
TOKENS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *"12345.abĠĊ", "ab", "ĊĊ"]
MERGES = ["a b", "Ċ Ċ"]
HEADS, KEY_HEADS = 4, 2


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("make_smollm2_policy", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def original() -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(TOKENS),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=HEADS,
        num_key_value_heads=KEY_HEADS,
        max_position_embeddings=64,
        rms_norm_eps=1e-5,
        rope_theta=5000.0,
        tie_word_embeddings=True,
    )
    model = LlamaForCausalLM(config)
    for parameter in model.parameters():
        parameter.data = parameter.data.bfloat16().float()
    return model


@pytest.fixture(scope="module")
def gguf_file(script: ModuleType, original: LlamaForCausalLM, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("gguf") / "tiny.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    config = original.config
    writer.add_vocab_size(config.vocab_size)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(TOKENS)
    writer.add_token_types([3, 3, 3] + [1] * (len(TOKENS) - 3))
    writer.add_token_merges(MERGES)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_pad_token_id(2)
    writer.add_chat_template("{% for m in messages %}<|im_start|>{{ m['content'] }}<|im_end|>{% endfor %}")
    gguf_names = {theirs: ours for ours, theirs in script.TENSOR_NAMES.items()}
    for name, tensor in original.state_dict().items():
        if name == "lm_head.weight":
            continue
        module = name.removesuffix(".weight")
        block, separator, kind = module.removeprefix("model.layers.").partition(".")
        is_block = module.startswith("model.layers.") and separator
        values = tensor.numpy()
        if kind.endswith(("q_proj", "k_proj")):
            values = side_by_side(values, HEADS if kind.endswith("q_proj") else KEY_HEADS)
        gguf_name = f"blk.{block}.{gguf_names[kind]}.weight" if is_block else f"{gguf_names[module]}.weight"
        writer.add_tensor(gguf_name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def side_by_side(weight: np.ndarray, num_heads: int) -> np.ndarray:
    """llama.cpp's order of the rows of a head: element i of the first half, then element i of the second."""
    rows = []
    for head in np.split(weight, num_heads):
        first, second = np.split(head, 2)
        rows += [row for pair in zip(first, second, strict=True) for row in pair]
    return np.ascontiguousarray(rows)


@pytest.fixture(scope="module")
def policy(script: ModuleType, gguf_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("policies") / "nested" / "policy"
    assert script.main([str(output), "--gguf", str(gguf_file)]) == 0
    return output


def test_the_weights_survive_the_way_through_gguf(policy: Path, original: LlamaForCausalLM):
    assert AutoModelForCausalLM.from_pretrained(policy, dtype="auto", use_safetensors=True).dtype == torch.bfloat16
    model = AutoModelForCausalLM.from_pretrained(policy, dtype=torch.float32)
    ids = torch.tensor([[1, 5, 6, 7, 2]])
    assert torch.equal(model(ids).logits, original(ids).logits)


def test_digits_stand_alone_and_blank_lines_before_them_stay_whole(policy: Path):
    tokenizer = AutoTokenizer.from_pretrained(policy)
    assert tokenizer.tokenize("ab\n\n12.") == ["ab", "ĊĊ", "1", "2", "."]
    assert tokenizer.decode(tokenizer("ab\n\n12.")["input_ids"]) == "ab\n\n12."


def test_the_turn_mark_ends_completions_and_nothing_splits_it(policy: Path):
    tokenizer = AutoTokenizer.from_pretrained(policy)
    assert tokenizer.eos_token == "<|im_end|>"
    assert AutoModelForCausalLM.from_pretrained(policy).generation_config.eos_token_id == 2
    ids = tokenizer.apply_chat_template([{"role": "user", "content": "ab"}], return_dict=False)
    assert ids == [1, TOKENS.index("ab"), 2]


def test_a_policy_that_is_there_is_left_alone(script: ModuleType, policy: Path):
    before = (policy / "model.safetensors").stat().st_mtime_ns
    assert script.main([str(policy), "--gguf", "no-such-file"]) == 0
    assert (policy / "model.safetensors").stat().st_mtime_ns == before


def test_a_failure_leaves_nothing_behind(script: ModuleType, tmp_path: Path):
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(b"not a GGUF file at all")
    output = tmp_path / "out" / "policy"
    with pytest.raises(ValueError, match="GGUF"):
        script.main([str(output), "--gguf", str(broken)])
    assert list(output.parent.iterdir()) == []


def test_another_folder_in_the_way_is_a_conflict(script: ModuleType, tmp_path: Path):
    (tmp_path / "notes.txt").write_text("mine")
    assert script.main([str(tmp_path), "--package"]) == 4
    assert (tmp_path / "notes.txt").read_text() == "mine"
