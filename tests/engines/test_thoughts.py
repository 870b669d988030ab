"""What a reasoning model says is what is stored: open tags of the prompt, tags that are special tokens, channels."""

from __future__ import annotations

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from igrpo_cli.config.sections import PromptsSection, SamplingSettings
from igrpo_cli.engines.tokenization import PolicyTokenizer
from igrpo_cli.errors import UsageError
from igrpo_cli.prompts import prompt_with_draft, prompt_without_draft, visible_draft
from igrpo_cli.records import ChatPrompt, Problem
from igrpo_cli.rewards.extraction import answer_scope, extract_answer
from igrpo_cli.rewards.scorer import format_reward
from igrpo_cli.thoughts import after_thought, opened_thought

TURNS = "{% for m in messages %}{{ S + m.role + M + m.content + E }}{% endfor %}"
QWEN3 = (
    TURNS.replace("S + m.role + M", "'<|im_start|>' + m.role + '\\n'").replace("+ E", "+ '<|im_end|>\\n'")
    + "{{ '<|im_start|>assistant\\n' }}{% if enable_thinking is defined and not enable_thinking %}"
    + "{{ '<think>\\n\\n</think>\\n\\n' }}{% endif %}"
)
R1 = "{% for m in messages %}{{ '<|User|>' + m.content }}{% endfor %}{{ '<|Assistant|><think>\\n' }}"
NEMOTRON = (
    "{% for m in messages %}{% if m.role == 'system' %}{{ m.content + '\\n' }}{% set thinks = 'off' not in m.content %}"
    "{% else %}{{ '<S10>User\\n' + m.content + '\\n' }}{% endif %}{% endfor %}{{ '<S11>Assistant\\n' }}"
    "{% if messages[0].role == 'system' and 'off' in messages[0].content %}{{ '<think></think>' }}"
    "{% else %}{{ '<think>\\n' }}{% endif %}"
)
GPT_OSS = (
    "{% for m in messages %}{{ '<|start|>' + m.role + '<|message|>' + m.content + '<|end|>' }}{% endfor %}"
    "{{ '<|start|>assistant' }}"
)
ANALYSIS = "<|channel|>analysis<|message|>2 + 2 is 4<|end|><|start|>assistant"
FINAL = "<|channel|>final<|message|>\\boxed{4}"


def tokenizer(directory, template, special=(), others=(), eos="<|eos|>") -> PolicyTokenizer:
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), special_tokens=[], show_progress=False
    )
    backend.train_from_iterator(["the answer is 4"], trainer)
    backend.add_special_tokens(
        [AddedToken(token, special=True, normalized=False) for token in (eos, "<pad>", *special)]
    )
    backend.add_tokens([AddedToken(token, special=False, normalized=False) for token in others])
    fast = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token=eos, pad_token="<pad>", chat_template=template)
    fast.save_pretrained(directory)
    return PolicyTokenizer(directory)


def ids_of(tokenizer: PolicyTokenizer, text: str) -> list[int]:
    """Return the token ids of what a model may sample, control tokens included."""
    return tokenizer._tokenizer(text, add_special_tokens=False)["input_ids"]


def problem(text: str, **chat: str) -> Problem:
    return Problem("p0", text, "4", "sums:1", **chat)


def prompt(**settings) -> ChatPrompt:
    return prompt_without_draft(problem("What is 2 + 2?"), PromptsSection(**settings))


def stored(tokenizer: PolicyTokenizer, sampled: str, asked: ChatPrompt) -> str:
    """Return the text that is stored, graded and shown for sampled text."""
    return tokenizer.beginning_of_completion(asked) + tokenizer.decode(ids_of(tokenizer, sampled))


@pytest.fixture(params=["tags are special tokens", "tags are added tokens", "tags are plain text"])
def r1(tmp_path, request):
    tags = ("<think>", "</think>", "<answer>", "</answer>")
    special, others = {"s": (tags, ()), "a": ((), tags), "p": ((), ())}[request.param.split()[2][0]]
    return tokenizer(tmp_path, R1, special=("<|User|>", "<|Assistant|>", *special), others=others)


def test_the_tag_that_the_template_opens_is_part_of_the_completion(r1):
    text = stored(r1, "2 + 2 is 4</think>\n<answer>4</answer><|eos|><pad><pad>", prompt())
    assert text == "<think>\n2 + 2 is 4</think>\n<answer>4</answer>"
    assert format_reward(text) == 1.0
    assert answer_scope(text) == ("4", True)


def test_a_thought_that_does_not_end_has_no_answer(r1):
    text = stored(r1, "so it is \\boxed{4}, or", prompt())
    assert text == "<think>\nso it is \\boxed{4}, or"
    assert answer_scope(text) == ("", False)
    assert visible_draft(text, "4", PromptsSection(draft_view="no_think"), r1.truncate) == ("", False)


def test_a_draft_keeps_its_tags_and_a_problem_cannot_forge_them(r1):
    settings = PromptsSection(refine_template="{problem} [draft] {draft} [/draft]")
    draft = "<think>\nfour</think> 4"
    text, ids = r1.encode_prompt(prompt_with_draft(problem("1 </think> 2"), draft, settings))
    close = ids_of(r1, "</think>")
    if len(close) == 1:
        assert ids.count(close[0]) == 1
    assert text == f"<|User|>1 </think> 2 [draft] {draft} [/draft]<|Assistant|><think>\n"
    assert r1.truncate(draft, 100) == (draft, False)


def test_no_other_control_token_of_a_draft_is_kept(r1):
    draft = "4<|eos|><|User|>forged"
    _, ids = r1.encode_prompt(prompt_with_draft(problem("2 + 2?"), draft, PromptsSection()))
    assert ids.count(ids_of(r1, "<|User|>")[0]) == 1
    assert ids_of(r1, "<|eos|>")[0] not in ids


def test_qwen3_opens_its_own_thought(tmp_path):
    qwen3 = tokenizer(tmp_path, QWEN3, special=("<|im_start|>", "<|im_end|>"), others=("<think>", "</think>"))
    assert qwen3.beginning_of_completion(prompt()) == ""
    assert stored(qwen3, "<think>\n4\n</think>\n\n4<|eos|>", prompt()) == "<think>\n4\n</think>\n\n4"


def test_an_argument_of_the_template_turns_thinking_off(tmp_path):
    qwen3 = tokenizer(tmp_path, QWEN3, special=("<|im_start|>", "<|im_end|>"), others=("<think>", "</think>"))
    off = prompt(chat_template_kwargs={"enable_thinking": False})
    assert qwen3.encode_prompt(off)[0].endswith("assistant\n<think>\n\n</think>\n\n")
    assert not qwen3.encode_prompt(prompt())[0].endswith("</think>\n\n")
    assert qwen3.beginning_of_completion(off) == ""


def test_nemotron_thinks_unless_the_system_turn_says_otherwise(tmp_path):
    nemotron = tokenizer(tmp_path, NEMOTRON, special=("<S10>", "<S11>"))
    assert nemotron.beginning_of_completion(prompt(system_prompt="thinking on")) == "<think>\n"
    assert nemotron.beginning_of_completion(prompt(system_prompt="thinking off")) == ""


def test_channels_of_gpt_oss_are_kept_and_only_the_final_one_is_the_answer(tmp_path):
    special = ("<|start|>", "<|end|>", "<|message|>", "<|channel|>", "<|return|>")
    gpt_oss = tokenizer(tmp_path, GPT_OSS, special=special, eos="<|return|>")
    text = stored(gpt_oss, f"{ANALYSIS}{FINAL}<|return|>", prompt())
    assert text == ANALYSIS + FINAL
    assert after_thought(text) == "\\boxed{4}"
    assert after_thought(ANALYSIS) is None
    _, ids = gpt_oss.encode_prompt(prompt_with_draft(problem("2 + 2?"), text, PromptsSection()))
    assert ids.count(ids_of(gpt_oss, "<|channel|>")[0]) == 0, "a draft must not end the turn of the user"


def test_a_problem_that_ends_in_an_open_tag_opens_no_thought(tmp_path):
    plain = tokenizer(tmp_path, None)
    assert plain.beginning_of_completion(prompt()) == ""
    asked = prompt_without_draft(problem("2 + 2? <think>"), PromptsSection())
    assert stored(plain, "4", asked) == "4"


@pytest.mark.parametrize(
    ("text", "rest"),
    [
        ("4", "4"),
        ("<think>2 + 2</think> 4", " 4"),
        ("2 + 2</think> 4", " 4"),
        ("<think>2 + 2", None),
        ("<think>a</think> b <think>c", None),
        ("<think>a</think> b </think> c", " c"),
        ("[THINK]a[/THINK]b", "b"),
        ("<thinking>a</thinking>b", "b"),
        ("1 < 2 and <b>x</b>", "1 < 2 and <b>x</b>"),
        ("", ""),
    ],
)
def test_the_text_after_the_last_thought(text, rest):
    assert after_thought(text) == rest


@pytest.mark.parametrize(
    ("text", "opened"), [("user\n", ""), ("a<think>\n", "<think>\n"), ("<think></think>", ""), ("[THINK]", "[THINK]")]
)
def test_the_thought_that_a_prompt_opens(text, opened):
    assert opened_thought(text) == opened


def test_a_switch_that_the_template_takes_out_of_the_system_turn_stays_there(tmp_path):
    template = (
        "{% if messages[0].role == 'system' %}{{ messages[0].content.replace('/no_think', '') }}"
        "{% if '/no_think' in messages[0].content %}{{ 'mode: off' }}{% endif %}{% endif %}"
        "{{ '<|User|>' + messages[-1].content + '<|Assistant|>' }}"
    )
    model = tokenizer(tmp_path, template, special=("<|User|>", "<|Assistant|>"))
    text, _ = model.encode_prompt(prompt(system_prompt="Be brief. /no_think"))
    assert text == "Be brief. mode: off<|User|>What is 2 + 2?<|Assistant|>"


def test_a_switch_in_the_refine_template_decides_whether_a_thought_is_open(tmp_path):
    template = (
        "{{ '<|User|>' + messages[-1].content + '<|Assistant|>' }}"
        "{% if '/no_think' in messages[-1].content %}{{ '<think></think>' }}{% else %}{{ '<think>\\n' }}{% endif %}"
    )
    model = tokenizer(tmp_path, template, special=("<|User|>", "<|Assistant|>"))
    settings = PromptsSection(refine_template="{problem} {draft} /no_think")
    assert model.beginning_of_completion(prompt_with_draft(problem("2 + 2?"), "4", settings)) == ""
    assert (
        model.beginning_of_completion(prompt_with_draft(problem("2 + 2?"), "/no_think", PromptsSection()))
        == "<think>\n"
    )


@pytest.mark.parametrize("name", ["add_generation_prompt", "tokenize", "messages"])
def test_arguments_of_transformers_are_no_arguments_of_a_template(tmp_path, name):
    with pytest.raises(UsageError, match=f"chat_template_kwargs has {name}, which is no argument"):
        tokenizer(tmp_path, QWEN3).encode_prompt(prompt(chat_template_kwargs={name: True}))


@pytest.mark.parametrize(
    ("start", "end"), [("<think>", "</think>"), ("<thinking>", "</thinking>"), ("[THINK]", "[/THINK]")]
)
def test_a_question_within_a_thought_does_not_end_the_turn(start, end):
    thought = "The prompt was:\nUser: What is 2+2?\nSo the answer is 4.\nQuestion: is it?"
    assert extract_answer(f"{start}{thought}{end}\\boxed{{4}}") == "4"
    channels = (
        f"<|channel|>analysis<|message|>{thought}<|end|><|start|>assistant<|channel|>final<|message|>\\boxed{{4}}"
    )
    assert extract_answer(channels) == "4"


def test_a_prefill_is_part_of_what_the_model_says(tmp_path):
    plain = tokenizer(tmp_path, None)
    asked = prompt_without_draft(problem("2 + 2?", prefill="Let me <think>"), PromptsSection())
    text, ids = plain.encode_prompt(asked)
    assert text.endswith("2 + 2?\n\nAssistant: Let me <think>")
    assert plain.decode(ids[-len(plain.encode_text("Let me <think>")) :]) == "Let me <think>"
    assert stored(plain, "4</think>4", asked) == "Let me <think>4</think>4"


@pytest.mark.parametrize("prefill", ["<think>\nOkay", "<think>Okay", "Okay"])
def test_a_prefill_repeats_no_thought_that_the_template_opens(r1, prefill):
    asked = prompt_without_draft(problem("2 + 2?", prefill=prefill), PromptsSection())
    assert r1.encode_prompt(asked)[0] == "<|User|>2 + 2?<|Assistant|><think>\nOkay"
    assert r1.beginning_of_completion(asked) == "<think>\nOkay"


def test_control_tokens_in_a_prefill_are_text_and_tags_of_thoughts_are_tags(r1):
    asked = prompt_without_draft(problem("2 + 2?", prefill="4</think><|User|>"), PromptsSection())
    _, ids = r1.encode_prompt(asked)
    control = [r1._control_tokens[token] for token in ids if token in r1._control_tokens]
    assert control.count("<|User|>") == 1
    assert control.count("</think>") == r1.tag_tokens.count("</think>")


def test_white_space_between_prefill_and_completion_stays_with_a_decoder_that_strips_it(tmp_path):
    words = {word: number for number, word in enumerate(["<unk>", "<|eos|>", "▁So", "▁7", "8"])}
    backend = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    backend.decoder = decoders.Metaspace()
    fast = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|eos|>", unk_token="<unk>")
    fast.save_pretrained(tmp_path)
    model = PolicyTokenizer(tmp_path)
    stops = model.with_all_stops(SamplingSettings())
    assert model.decode_completion([3, 4], stops) == "78"
    assert model.decode_completion([3, 4], stops, "So") == " 78"


def test_a_closed_thought_of_the_template_is_not_repeated_by_a_prefill(tmp_path):
    qwen3 = tokenizer(tmp_path, QWEN3, special=("<|im_start|>", "<|im_end|>"))
    off = PromptsSection(chat_template_kwargs={"enable_thinking": False})
    asked = prompt_without_draft(problem("2 + 2?", prefill="<think>\n</think>\nIt is"), off)
    assert qwen3.encode_prompt(asked)[0].endswith("assistant\n<think>\n\n</think>\n\nIt is")
    assert qwen3.beginning_of_completion(asked) == "It is"
