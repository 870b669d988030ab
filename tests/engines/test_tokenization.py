from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from igrpo_cli.engines.tokenization import PolicyTokenizer
from igrpo_cli.errors import IgrpoError, MissingInputError
from igrpo_cli.records import ChatPrompt, PromptSegment

CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] | trim + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<s>"]
NOT_SPECIAL = ["<think>", "</think>", "<|im_end|><|x|>"]
WHITE_SPACE = "\n\n\n"
CORPUS = ["the answer of 12 + 30 is 42 <think> hm </think> im_start im_end user assistant [draft] x [/draft]"] * 9


def bpe_tokenizer(chat_template: str | None = CHATML) -> PreTrainedTokenizerFast:
    """Byte-level BPE with all kinds of added tokens; its merges also produce `<think>`."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=330, initial_alphabet=alphabet, special_tokens=[], show_progress=False)
    tokenizer.train_from_iterator(CORPUS, trainer)
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL])
    tokenizer.add_tokens([AddedToken(token, special=False, normalized=False) for token in NOT_SPECIAL])
    tokenizer.add_tokens([AddedToken(WHITE_SPACE, special=False, normalized=False)])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|im_end|>", chat_template=chat_template)


@pytest.fixture(scope="module")
def bpe(tmp_path_factory: pytest.TempPathFactory) -> PolicyTokenizer:
    directory = tmp_path_factory.mktemp("bpe")
    bpe_tokenizer().save_pretrained(directory)
    return PolicyTokenizer(directory)


def saved(directory: Path, tokenizer: PreTrainedTokenizerFast) -> PolicyTokenizer:
    tokenizer.save_pretrained(directory)
    return PolicyTokenizer(directory)


def chat(*segments: str | PromptSegment, system: str = "") -> ChatPrompt:
    """Plain strings are untrusted."""
    as_segments = [PromptSegment(part, trusted=False) if isinstance(part, str) else part for part in segments]
    return ChatPrompt(system, tuple(as_segments))


def trusted(text: str) -> PromptSegment:
    return PromptSegment(text, trusted=True)


def control_ids(tokenizer: PolicyTokenizer, ids: list[int]) -> list[int]:
    backend = tokenizer._tokenizer
    ours = {backend.convert_tokens_to_ids(token) for token in [*SPECIAL, *NOT_SPECIAL]}
    return [token_id for token_id in ids if token_id in ours]


hostile_texts = st.lists(
    st.sampled_from(
        [*SPECIAL, *NOT_SPECIAL, "<|im_", "end|>", "<|", "<", "|>", ">", "<|x|>", "s>", "\n", " ", "é", "a"]
    )
    | st.text(max_size=5),
    max_size=8,
).map("".join)
quick = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def test_a_prompt_without_control_strings_is_tokenised_as_one_text(bpe: PolicyTokenizer):
    text, ids = bpe.encode_prompt(
        chat("What is 2 + 2?", trusted("\n\n[draft]\n"), "4", trusted("\n[/draft]"), system="Go.")
    )
    assert text == (
        "<|im_start|>system\nGo.<|im_end|>\n<|im_start|>user\nWhat is 2 + 2?\n\n[draft]\n4\n[/draft]<|im_end|>\n"
        "<|im_start|>assistant\n"
    )
    assert ids == bpe._tokenizer(text, add_special_tokens=False)["input_ids"]


@quick
@given(st.text(max_size=30), st.text(max_size=30), st.text(max_size=10))
def test_plain_prompts_agree_with_the_template_applied_to_the_whole_turn(
    bpe: PolicyTokenizer, problem: str, draft: str, system: str
):
    """White space around untrusted text is kept, also if the template strips the turn."""
    text, ids = bpe.encode_prompt(chat(problem, trusted("\n[draft]\n"), draft, trusted(" "), system=system))
    turns = [{"role": "user", "content": f"{problem}\n[draft]\n{draft} "}]
    if system:
        turns.insert(0, {"role": "system", "content": system})
    expected = bpe._tokenizer.apply_chat_template(turns, add_generation_prompt=True, tokenize=False)
    assert text == expected
    if not any(token in problem + draft for token in "<>|"):
        assert ids == bpe._tokenizer(expected, add_special_tokens=False)["input_ids"]


@quick
@given(hostile_texts, hostile_texts)
def test_untrusted_text_adds_no_control_token_and_takes_none_away(bpe: PolicyTokenizer, problem: str, draft: str):
    text, ids = bpe.encode_prompt(chat(problem, trusted("<think>"), draft, trusted("\n"), system="<s>"))
    expected = ["<|im_start|>", "<s>", "<|im_end|>", "<|im_start|>", "<think>", "<|im_end|>", "<|im_start|>"]
    assert control_ids(bpe, ids) == bpe._tokenizer.convert_tokens_to_ids(expected)
    assert bpe._tokenizer.decode(ids, skip_special_tokens=False) == text
    assert problem.strip() in text
    assert draft.strip() in text


@pytest.mark.parametrize(
    ("before", "untrusted", "after"), [("<|im_", "end|>", ""), ("", "<|im_", "end|>"), ("<|", "im_end", "|>")]
)
def test_a_control_string_made_of_trusted_and_untrusted_text_is_no_control_token(
    bpe: PolicyTokenizer, before: str, untrusted: str, after: str
):
    _, ids = bpe.encode_prompt(chat(trusted(before), untrusted, trusted(after)))
    assert control_ids(bpe, ids) == bpe._tokenizer.convert_tokens_to_ids(["<|im_start|>", "<|im_end|>", "<|im_start|>"])


def test_control_strings_in_trusted_text_are_control_tokens(bpe: PolicyTokenizer):
    _, ids = bpe.encode_prompt(chat(trusted("a<think>b")))
    assert bpe._tokenizer.convert_tokens_to_ids("<think>") in ids


def test_added_white_space_is_used_in_untrusted_text_too(bpe: PolicyTokenizer):
    assert bpe.encode_text(f"a{WHITE_SPACE}b")[1] == bpe._tokenizer.convert_tokens_to_ids(WHITE_SPACE)


@quick
@given(hostile_texts)
def test_ids_of_a_text_give_the_text_back(bpe: PolicyTokenizer, text: str):
    ids = bpe.encode_text(text)
    assert bpe.decode(ids) == text
    assert control_ids(bpe, ids) == []


def test_decode_leaves_special_tokens_out_and_spaces_alone(bpe: PolicyTokenizer):
    ids = bpe._tokenizer("<s>a , b .<think> n't<|im_end|>", add_special_tokens=False)["input_ids"]
    assert bpe.decode(ids) == "a , b .<think> n't"


@quick
@given(hostile_texts, st.integers(0, 12))
def test_truncation_keeps_the_beginning_within_its_tokens(bpe: PolicyTokenizer, text: str, max_tokens: int):
    kept, was_cut = bpe.truncate(text, max_tokens)
    assert text.startswith(kept)
    assert len(bpe.encode_text(kept, is_draft=True)) <= max_tokens
    assert was_cut == (len(bpe.encode_text(text, is_draft=True)) > max_tokens)
    assert was_cut or kept == text


def test_truncation_wastes_nothing_on_ordinary_text(bpe: PolicyTokenizer):
    kept, was_cut = bpe.truncate("the answer of 12 + 30 is 42", 3)
    assert was_cut
    assert bpe.encode_text(kept) == bpe.encode_text("the answer of 12 + 30 is 42")[:3]


def test_truncation_never_splits_a_character(bpe: PolicyTokenizer):
    assert len(bpe.encode_text("é")) == 2
    assert bpe.truncate("aéb", 2) == ("a", True)


REFUSING = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system role') }}{% endif %}" + CHATML
DROPPING = "{% for m in messages if m['role'] == 'user' %}<|im_start|>{{ m['content'] }}<|im_end|>{% endfor %}"


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        (REFUSING, "<|im_start|>user\nBe good.\n\nWhy?<|im_end|>\n<|im_start|>assistant\n"),
        (DROPPING, "<|im_start|>Be good.\n\nWhy?<|im_end|>"),
    ],
)
def test_a_system_turn_that_has_no_place_goes_before_the_users_text(tmp_path: Path, template: str, expected: str):
    tokenizer = saved(tmp_path, bpe_tokenizer(template))
    assert tokenizer.encode_prompt(chat("Why?", system="Be good."))[0] == expected


def test_a_template_that_drops_the_users_text_is_an_error(tmp_path: Path):
    tokenizer = saved(tmp_path, bpe_tokenizer("{{ messages[0]['role'] }}"))
    with pytest.raises(IgrpoError, match="drops 1 of 1 texts"):
        tokenizer.encode_prompt(chat("Why?"))


def test_a_template_that_always_fails_is_an_error(tmp_path: Path):
    tokenizer = saved(tmp_path, bpe_tokenizer("{{ raise_exception('not today') }}"))
    with pytest.raises(IgrpoError, match="not today"):
        tokenizer.encode_prompt(chat("Why?", system="x"))


def test_the_date_of_a_template_is_fixed(tmp_path: Path):
    tokenizer = saved(tmp_path, bpe_tokenizer("{{ strftime_now('%d %b %Y') }}" + CHATML))
    assert tokenizer.encode_prompt(chat("Why?"))[0].startswith("01 Jan 2025<|im_start|>")


def test_text_that_looks_like_our_own_markers_passes(bpe: PolicyTokenizer):
    text, _ = bpe.encode_prompt(chat("UNTRUSTED0E", "UNTRUSTEDX1E", system="UNTRUSTED0E"))
    assert text.count("UNTRUSTED0E") == 2
    assert "UNTRUSTED0EUNTRUSTEDX1E<|im_end|>" in text


def test_without_a_chat_template_ours_is_used(tmp_path: Path):
    tokenizer = saved(tmp_path, bpe_tokenizer(chat_template=None))
    assert not tokenizer.has_chat_template
    text, ids = tokenizer.encode_prompt(chat("2 + 2?", system="Be brief."))
    assert text == "Be brief.\n\nUser: 2 + 2?\n\nAssistant:"
    assert tokenizer.decode(ids) == text


def test_without_a_chat_template_bos_stands_first_where_the_tokenizer_puts_one(tmp_path: Path):
    from tokenizers.processors import TemplateProcessing

    raw = bpe_tokenizer(chat_template=None)
    bos = raw.convert_tokens_to_ids("<s>")
    raw.backend_tokenizer.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", bos)])
    raw.bos_token = "<s>"
    text, ids = saved(tmp_path, raw).encode_prompt(chat("2 + 2?"))
    assert text.startswith("<s>User: ")
    assert ids.count(bos) == 1
    assert ids[0] == bos


def test_a_single_character_that_is_a_special_token_is_replaced(make_policy: Callable[..., Path]):
    """It has no other token, so it is replaced, and the returned text shows the replacement."""
    tokenizer = PolicyTokenizer(make_policy("llama"))
    text, ids = tokenizer.encode_prompt(chat("a$b[EOS]"))
    dollar = tokenizer._tokenizer.convert_tokens_to_ids("$")
    assert dollar not in ids
    assert text == "[USER]a?b[EOS][BOT]"


def test_a_character_without_a_token_is_an_error_that_shows_it(make_policy: Callable[..., Path]):
    with pytest.raises(IgrpoError, match="has no token for 'Ω'"):
        PolicyTokenizer(make_policy("llama")).encode_text("abcΩd")


def test_the_unknown_token_is_no_control_token(tmp_path: Path):
    backend = Tokenizer(models.WordLevel({"[UNK]": 0, "[": 1, "U": 2, "N": 3, "K": 4, "]": 5}, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    backend.add_special_tokens(["[UNK]"])
    tokenizer = saved(tmp_path, PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="[UNK]"))
    assert tokenizer.encode_text("NxK") == [3, 0, 4]
    assert tokenizer.encode_text("[UNK]") == [1, 2, 3, 4, 5]


def test_eos_ids_come_from_tokenizer_and_configs(tmp_path: Path):
    raw = bpe_tokenizer()
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": [7, 9]}')
    (tmp_path / "config.json").write_text('{"eos_token_id": null}')
    assert saved(tmp_path, raw).eos_token_ids == (7, 9, raw.eos_token_id)


def test_a_directory_without_a_tokenizer_is_a_missing_input(make_policy: Callable[..., Path], tmp_path: Path):
    shutil.copy(make_policy("llama") / "config.json", tmp_path)
    with pytest.raises(MissingInputError, match="has no tokenizer"):
        PolicyTokenizer(tmp_path)


def test_earlier_turns_have_the_roles_of_the_template_and_their_control_tokens_are_text(bpe):
    asked = ChatPrompt("Be brief.", (PromptSegment("3+4?", trusted=False),), {}, ("1+1?<|im_end|>", "2"))
    text, ids = bpe.encode_prompt(asked)
    plain = ChatPrompt("Be brief.", (PromptSegment("3+4?", trusted=False),), {}, ("1+1?", "2"))
    expected, plain_ids = bpe.encode_prompt(plain)
    assert [text.count(word) for word in ("1+1?", "2", "3+4?")] == [1, 1, 1]
    assert text == expected.replace("1+1?", "1+1?<|im_end|>")
    assert control_ids(bpe, ids) == control_ids(bpe, plain_ids)


def test_the_system_prompt_of_a_problem_follows_that_of_the_settings_and_its_control_tokens_are_text(bpe):
    asked = ChatPrompt("Be brief.", (PromptSegment("3+4?", trusted=False),), problem_system="Base 7.<|im_end|>")
    text, ids = bpe.encode_prompt(asked)
    expected, plain_ids = bpe.encode_prompt(replace(asked, system="Be brief.\n\nBase 7.", problem_system=""))
    assert text == expected.replace("Base 7.", "Base 7.<|im_end|>")
    assert control_ids(bpe, ids) == control_ids(bpe, plain_ids)
    alone, _ = bpe.encode_prompt(replace(asked, system="", problem_system="Base 7."))
    assert alone == expected.replace("Be brief.\n\n", "")


def test_without_a_system_turn_the_system_prompt_of_a_problem_stands_before_its_text(tmp_path):
    template = "{% for m in messages %}{{ raise_exception('no') if m.role == 'system' }}{{ m.content }}{% endfor %}:"
    asked = ChatPrompt("Be brief.", (PromptSegment("3+4?", trusted=False),), problem_system="Base 7.")
    assert saved(tmp_path, bpe_tokenizer(template)).encode_prompt(asked)[0] == "Be brief.\n\nBase 7.\n\n3+4?:"


def test_a_model_without_template_or_system_turn_shows_earlier_turns_after_the_system_text(tmp_path):
    tokenizer = bpe_tokenizer()
    tokenizer.chat_template = None
    asked = ChatPrompt("Be brief.", (PromptSegment("3+4?", trusted=False),), {}, ("1+1?", "2"))
    text, _ = saved(tmp_path, tokenizer).encode_prompt(asked)
    assert text.endswith("Be brief.\n\nUser: 1+1?\n\nAssistant: 2\n\nUser: 3+4?\n\nAssistant:")


# Removes what stands before </think> in earlier turns of the assistant, as Qwen3 and DeepSeek-R1 do.
WITHOUT_THOUGHTS = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' }}"
    "{% if m['role'] == 'assistant' %}{{ m['content'].split('</think>')[-1] | trim }}"
    "{% else %}{{ m['content'] }}{% endif %}{{ '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n<think>\n' }}{% endif %}"
)


def improved(draft: str, system: str = "") -> ChatPrompt:
    return ChatPrompt(system, (trusted("Again."),), earlier=("1 + 1?", draft))


@pytest.mark.parametrize("template", [CHATML, WITHOUT_THOUGHTS])
def test_a_draft_as_an_answer_is_shown_as_it_was_written(tmp_path: Path, template: str):
    tokenizer = saved(tmp_path, bpe_tokenizer(template))
    draft = "<think>\nhm </think>\n\n3"
    text, ids = tokenizer.encode_prompt(improved(draft, system="Think."))
    turns = ["system\nThink.", "user\n1 + 1?", f"assistant\n{draft}", "user\nAgain."]
    expected = "".join(f"<|im_start|>{turn}<|im_end|>\n" for turn in turns) + "<|im_start|>assistant\n"
    assert text == expected + ("<think>\n" if template == WITHOUT_THOUGHTS else "")
    # The tags of the draft are the tokens that the model wrote.
    tags = [tokenizer._tokenizer.convert_tokens_to_ids(tag) for tag in ("<think>", "</think>")]
    assert [each for each in ids if each in tags] == tags + (tags[:1] if template == WITHOUT_THOUGHTS else [])
    assert tokenizer.beginning_of_completion(improved(draft)) == ("<think>\n" if template == WITHOUT_THOUGHTS else "")


@given(hostile_texts)
@settings(max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_an_answer_cannot_end_its_own_turn(bpe: PolicyTokenizer, draft: str):
    backend = bpe._tokenizer
    turn_marks = [backend.convert_tokens_to_ids(token) for token in SPECIAL]
    of_draft = [each for each in bpe.encode_prompt(improved(draft))[1] if each in turn_marks]
    assert of_draft == [each for each in bpe.encode_prompt(improved("x"))[1] if each in turn_marks]


@pytest.mark.parametrize(
    "template",
    [
        "{% for m in messages if m['role'] == 'user' %}{{ m['content'] }}{% endfor %}",
        "{% for m in messages %}{% if m['role'] == 'assistant' %}{{ raise_exception('no') }}{% endif %}"
        "{{ m['content'] }}{% endfor %}",
    ],
)
def test_a_template_without_earlier_answers_is_an_error_that_names_the_other_way(tmp_path: Path, template: str):
    tokenizer = saved(tmp_path, bpe_tokenizer(template))
    with pytest.raises(IgrpoError, match="chat template") as error:
        tokenizer.encode_prompt(improved("3"))
    assert error.value.hint is not None
    assert "prompts.draft_turn=user" in error.value.hint
