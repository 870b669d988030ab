"""What ends a completion, and what its text is then: stop strings, stop token ids, and the end of a chat turn."""

from __future__ import annotations

from itertools import chain
from pathlib import Path

import pytest
from test_thoughts import GPT_OSS, ids_of, tokenizer

from command_line import igrpo, make_run
from igrpo_cli.config.engine import EngineSection
from igrpo_cli.config.sections import SamplingSettings
from igrpo_cli.engines.factory import create_engine
from igrpo_cli.engines.tokenization import PolicyTokenizer
from igrpo_cli.errors import UsageError
from igrpo_cli.records import SamplingGroup
from igrpo_cli.store.layout import RunDirectory
from igrpo_cli.store.manifest import read_manifest
from igrpo_cli.store.schema import ROLLOUTS
from igrpo_cli.store.tables import read_table

TINY = Path(__file__).parents[2] / "data" / "tiny-policy"
CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


def settings(**stops) -> SamplingSettings:
    return SamplingSettings(max_completion_length=24, **stops)


def text_of(tokenizer: PolicyTokenizer, sampled: str, **stops) -> str:
    return tokenizer.decode_completion(ids_of(tokenizer, sampled), tokenizer.with_all_stops(settings(**stops)))


@pytest.fixture
def chatml(tmp_path):
    """A base model: its EOS ends a document, and its chat template ends a turn with another token."""
    return tokenizer(tmp_path, CHATML, special=("<|im_start|>", "<|im_end|>"), eos="<|endoftext|>")


def test_the_token_that_ends_a_chat_turn_ends_a_completion(chatml):
    both = ids_of(chatml, "<|endoftext|><|im_end|>")
    assert set(chatml.eos_token_ids) == set(both)
    assert text_of(chatml, "the answer is 4<|im_end|>") == "the answer is 4"


def test_the_end_of_a_channel_does_not_end_a_completion(tmp_path):
    tokens = ("<|channel|>", "<|message|>", "<|start|>", "<|end|>")
    gpt_oss = tokenizer(tmp_path, GPT_OSS, special=tokens, eos="<|return|>")
    assert list(gpt_oss.eos_token_ids) == ids_of(gpt_oss, "<|return|>")


def test_a_template_that_refuses_a_turn_of_the_assistant_ends_no_turn(tmp_path):
    template = "{{ messages[0].content }}{% if messages[1] %}{{ raise_exception('one turn only') }}{% endif %}"
    one_turn = tokenizer(tmp_path, template)
    assert list(one_turn.eos_token_ids) == ids_of(one_turn, "<|eos|>")


def test_the_beginning_of_a_turn_is_not_the_end_of_one(tmp_path):
    template = "{% for m in messages %}{{ m.content }}{% endfor %}{{ '<|bot|>' }}"
    always_asking = tokenizer(tmp_path, template, special=("<|bot|>",))
    assert list(always_asking.eos_token_ids) == ids_of(always_asking, "<|eos|>")


def test_the_plain_template_ends_where_the_model_writes_the_next_question(tmp_path):
    base = tokenizer(tmp_path, None)
    assert base.with_all_stops(settings()).stop == ["\nUser:"]
    assert text_of(base, "the answer is 4\nUser: what is 2 + 3?\nAssistant: 5") == "the answer is 4"


@pytest.mark.parametrize(
    ("sampled", "stops", "text"),
    [
        ("4 Q: 5 A: 6", {"stop": ["A:", "Q:"]}, "4 "),
        ("4 Q: 5", {"stop": ["absent"]}, "4 Q: 5"),
        ("4<|im_start|>5", {"stop": ["<|im_start|>"]}, "4"),
        ("<answer>4</answer> and", {"stop": ["</answer>"]}, "<answer>4</answer>"),
    ],
)
def test_the_text_ends_before_a_stop_string_and_after_a_tag(chatml, sampled, stops, text):
    sampled = sampled.partition("5")[0] if "<|im_start|>" in sampled else sampled
    assert text_of(chatml, sampled, **stops) == text


def test_a_stop_string_that_is_a_control_token_is_its_token_id(chatml):
    (start,) = ids_of(chatml, "<|im_start|>")
    found = chatml.with_all_stops(settings(stop=["<|im_start|>", "x"], stop_token_ids=[7]))
    assert found.stop == ["x"]
    assert found.stop_token_ids == sorted({7, start, *chatml.eos_token_ids})


def test_a_stop_string_that_contains_a_control_token_is_refused(chatml):
    with pytest.raises(UsageError, match="contains '<|im_start|>'".replace("|", r"\|")):
        chatml.with_all_stops(settings(stop=["<|im_start|>user"]))


def engine_of(name: str):
    section = {"kv_cache_memory_bytes": 256 * 2**20, "gpu_memory_utilization": 0.2, "enforce_eager": True}
    try:
        return create_engine(TINY, EngineSection(name=name, dtype="float32", max_num_seqs=32, **section))
    except UsageError as error:
        pytest.skip(str(error))


def drawn(engine, stops):
    prompts = [engine.tokenizer.encode_text(text) for text in ("17 + 25 = ", "9 - 4 = ")]
    engine.submit("batch", [SamplingGroup(ids, range(8)) for ids in prompts], settings(**stops))
    done = []
    while engine.num_unfinished:
        done += engine.step()
    ((_, groups),) = done
    return list(chain(*groups))


@pytest.mark.parametrize("name", ["transformers", "vllm"])
def test_a_completion_ends_with_the_token_that_completes_a_stop_string(name):
    if name == "vllm":
        pytest.importorskip("vllm")
    engine = engine_of(name)
    decode, free = engine.tokenizer.decode, drawn(engine, {})
    longest = max((decode(each.completion_ids) for each in free), key=len)
    for string in (longest[3:6], longest[-2:], longest[5]):
        stopped = drawn(engine, {"stop": [string]})
        assert any(
            len(each.completion_ids) < len(whole.completion_ids) for each, whole in zip(stopped, free, strict=True)
        )
        for each, whole in zip(stopped, free, strict=True):
            ids = list(whole.completion_ids)
            ends = [end for end in range(1, len(ids) + 1) if string in decode(ids[:end])]
            assert list(each.completion_ids) == ids[: min(ends, default=len(ids))]
            assert each.finish_reason == ("stop" if ends else whole.finish_reason)
            assert len(each.sampling_logprobs) == len(each.completion_ids)
    engine.close()


@pytest.mark.parametrize("name", ["transformers", "vllm"])
def test_a_stop_token_id_ends_a_completion(name):
    if name == "vllm":
        pytest.importorskip("vllm")
    engine = engine_of(name)
    free = drawn(engine, {})
    token = free[0].completion_ids[2]
    for each, whole in zip(drawn(engine, {"stop_token_ids": [token]}), free, strict=True):
        ids = list(whole.completion_ids)
        end = ids.index(token) + 1 if token in ids else len(ids)
        assert list(each.completion_ids) == ids[:end]
        assert each.finish_reason == ("stop" if token in ids else whole.finish_reason)
    engine.close()


def test_drafts_end_at_a_stop_string_and_the_manifest_records_it(tmp_path):
    run = make_run(tmp_path / "run", "draft.stop=['=']", "draft.stop_token_ids=[6]")
    assert igrpo("draft", run).code == 0
    shard = RunDirectory(run).shard(0, "draft", 0, 1)
    rows = read_table(shard.data, ROLLOUTS).to_pylist()
    assert not any("=" in row["completion"] for row in rows)
    ended = [row for row in rows if row["completion_ids"][-1] not in (2, 6) and row["finish_reason"] == "stop"]
    assert ended
    sampling = read_manifest(shard).sampling
    assert sampling["stop"] == ["="]
    assert sampling["stop_token_ids"] == [2, 6]


def test_an_empty_stop_string_is_refused(tmp_path):
    result = igrpo("init", tmp_path / "run", "--set", "draft.stop=['']")
    assert result.code == 2
    assert "draft.stop" in result.stderr
