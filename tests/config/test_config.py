"""Settings: presets, overrides, errors with the nearest key, and the identity of a stage."""

from __future__ import annotations

import tomllib

import pytest
from pydantic import ValidationError

from igrpo_cli.config import RunConfig, stage_identity
from igrpo_cli.config.files import (
    apply_overrides,
    check_config,
    merge,
    parse_override,
    preset_names,
    read_config_file,
    read_preset,
    read_toml,
    write_config,
)
from igrpo_cli.errors import UsageError
from igrpo_cli.texts import TOML_CURE


def test_the_selection_of_drafts_counts_in_conditioned_evaluations_alone():
    each, best = config_of(), config_of("eval.selection=best")
    assert stage_identity(each, "eval") == stage_identity(best, "eval")
    assert "selection" not in stage_identity(best, "eval")["eval"]
    conditioned = stage_identity(best, "conditioned")
    assert conditioned["eval"].pop("selection") == "best"
    assert conditioned == stage_identity(best, "eval")


def config_of(*overrides: str) -> RunConfig:
    return check_config(apply_overrides({}, overrides), "--set")


@pytest.mark.parametrize("name", preset_names())
def test_every_preset_is_valid_and_survives_run_toml(name):
    config = check_config(read_preset(name), name)
    assert check_config(tomllib.loads(write_config(config).decode()), "run.toml") == config


def test_paper_preset_carries_the_settings_of_the_paper():
    paper = check_config(read_preset("paper"), "paper")
    assert (paper.draft.num_generations, paper.refine.num_generations) == (4, 4)
    assert (paper.draft.temperature, paper.refine.temperature) == (0.7, 0.7)
    assert paper.update.learning_rate == 1e-6
    assert paper.update.lr_scheduler_type == "cosine_with_min_lr"
    assert (paper.update.min_lr_rate, paper.update.warmup_ratio, paper.update.beta) == (0.1, 0.1, 0.0)
    assert (paper.prompts.max_prompt_length, paper.refine.max_completion_length) == (1024, 4096)
    assert paper.data.problems_per_iteration * paper.refine.num_generations == 1024
    assert (paper.eval.temperature, paper.eval.top_p) == (0.6, 0.95)
    assert paper.update.train_on == "refinements"


def test_defaults_are_the_named_answers_to_what_the_paper_leaves_open():
    config = RunConfig()
    assert (config.select.strategy, config.select.ties, config.select.all_zero) == ("best", "first", "keep")
    assert (config.prompts.draft_view, config.update.train_on) == ("full", "refinements")
    assert config.update.constants() == ("sample_std", 0.2, 0.2)
    assert (config.update.dynamic_sampling, config.update.importance_sampling_correction) == (False, False)
    assert (config.update.optimizer_state, config.update.max_grad_norm) == ("carry", 1.0)


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("draft.temprature=1", "unknown key draft.temprature; did you mean draft.temperature?"),
        ("drft.temperature=1", "unknown key drft; did you mean draft?"),
        ("update.temperature=1", "did you mean draft.temperature?"),
        ("draft.temperature=-1", "draft.temperature = -1: input should be greater than or equal to 0"),
        ("draft.temperature=[0.7, -1]", "draft.temperature.1 = -1: input should be greater than or equal to 0"),
        ("draft.temperature=[]", "draft.temperature = []: list should have at least 1 item"),
        ("draft.temperature=hot", "draft.temperature = 'hot': input should be a valid number"),
        ("refine.temperature=[1, 2, 3, 4, 5]", "refine.temperature has 5 values, but a group has 4 completions"),
        ("select.strategy=bset", "select.strategy = 'bset'"),
        ("reward.weights={speed=1}", "reward.weights has no part 'speed': there are accuracy, format"),
        ("reward.weights={hard=1}", "copy, judge; --set reward.functions.hard=MODULE:FUNCTION adds a function"),
        ('reward.functions={judge="a:b"}', "reward.functions: judge is a built-in part"),
        ('reward.functions={"a-b"="a:b"}', "reward.functions: 'a-b' cannot name a part"),
        ("reward.weights={judge=1}", "reward.weights has judge: set judge.model, and judge.endpoint"),
        ("reward.weights={overlong=1}", "reward.weights has overlong: set reward.overlong_cache"),
        ("prompts.refine_template={problem}", "exactly once each"),
    ],
)
def test_a_wrong_setting_is_refused_by_name(override, expected):
    with pytest.raises(UsageError) as caught:
        config_of(override)
    assert expected in caught.value.message


def test_an_override_is_toml_and_a_bare_word_is_a_string():
    assert parse_override("select.strategy=worst") == ("select", "strategy", "worst")
    assert parse_override("draft.temperature = 0.8") == ("draft", "temperature", 0.8)
    assert parse_override("data.skip_bad_rows=true") == ("data", "skip_bad_rows", True)
    assert parse_override("prompts.system_prompt=a = b") == ("prompts", "system_prompt", "a = b")


@pytest.mark.parametrize("text", ["draft.temperature", "temperature=1", "=1", "draft.=1"])
def test_an_override_of_another_shape_is_refused_with_an_example(text):
    with pytest.raises(UsageError) as caught:
        parse_override(text)
    example = "draft.temperature=VALUE or " if text == "temperature=1" else "for example draft.temperature=0.8"
    assert caught.value.hint.startswith(example)


@pytest.mark.parametrize(
    ("content", "line", "command"),
    [
        ('system_prompt = "Use \\boxed{}."', 3, "\\boxed"),
        ('system_prompt = """\nThink.\nUse \\frac12.\n"""', 5, "\\frac"),
        ('system_prompt = "Write $3 \\times 4$."', 3, "\\times"),
        ('system_prompt = "Close with \\right)"', 3, "\\right"),
        ('system_prompt = "a \\u001b b"', 3, "U+001B"),
        ('nested = { deep = ["x", "\\beta"] }', 3, "\\beta"),
    ],
)
def test_a_lost_backslash_is_refused_with_its_line_and_the_cure(tmp_path, content, line, command):
    path = tmp_path / "mine.toml"
    path.write_text(f"# by hand\n[prompts]\n{content}\n")
    with pytest.raises(UsageError, match=rf"mine\.toml line {line}: ") as caught:
        read_config_file(path)
    assert command in caught.value.message
    assert caught.value.hint == TOML_CURE


def test_backslashes_that_are_written_right_stay(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text(
        """[prompts]\nsystem_prompt = 'Use \\boxed{}.'\nrefine_template = "\\\\frac\\n\\tb\\n{problem}"\n"""
    )
    prompts = read_config_file(path)["prompts"]
    assert prompts == {"system_prompt": "Use \\boxed{}.", "refine_template": "\\frac\n\tb\n{problem}"}


def test_an_override_with_a_lost_backslash_or_open_quotes_is_refused():
    assert parse_override("prompts.system_prompt=Use \\boxed{}.")[2] == "Use \\boxed{}."
    assert parse_override("prompts.system_prompt='Use \\boxed{}.'")[2] == "Use \\boxed{}."
    for text, message in [
        ('prompts.system_prompt="Use \\boxed{}."', r"contains the control character U\+0008, which is \\boxed"),
        (
            "prompts.system_prompt=a\x07lpha",
            r"contains the control character U\+0007, which is \\alpha with one backslash",
        ),
        ('prompts.system_prompt="Use \\sqrt{}."', "is not valid TOML: Unescaped"),
        ('prompts.system_prompt="Use it', "is not valid TOML"),
    ]:
        with pytest.raises(UsageError, match=rf"--set prompts\.system_prompt {message}"):
            parse_override(text)


def test_later_settings_lie_over_earlier_ones_key_by_key():
    assert merge({"a": {"x": 1, "y": 2}}, {"a": {"y": 3}, "b": {"z": 4}}) == {"a": {"x": 1, "y": 3}, "b": {"z": 4}}


def test_plain_grpo_trains_on_its_drafts_and_has_two_stages():
    config = config_of("run.method=grpo")
    assert config.update.train_on == "drafts"
    assert config.stages() == ("draft", "update")
    assert config_of("run.method=grpo", "update.train_on=both").update.train_on == "drafts"


def test_igrpo_has_four_stages():
    assert config_of().stages() == ("draft", "select", "refine", "update")


def test_identity_holds_what_decides_a_result_and_nothing_else():
    identity = stage_identity(config_of("run.num_shards=8", "reward.num_workers=7"), "draft")
    assert identity["run"] == {"seed": 0, "cpu_threads": 0}
    assert identity["draft"]["temperature"] == 1.0
    assert "num_workers" not in identity["reward"]
    assert "update" not in identity
    assert stage_identity(config_of("run.num_shards=1"), "draft") == identity


def test_a_broken_file_is_named(tmp_path):
    (tmp_path / "bad.toml").write_text("[draft\n")
    with pytest.raises(UsageError, match=r"bad\.toml is not valid TOML"):
        read_toml(tmp_path / "bad.toml")
    with pytest.raises(UsageError, match="there is no config file"):
        read_toml(tmp_path / "absent.toml")
    with pytest.raises(UsageError, match="did you mean quickstart"):
        read_preset("quikstart")


def test_the_constants_in_use_are_recorded_with_an_update_whether_they_are_set_or_not():
    published = RunConfig(update={"loss_type": "gspo"})
    assert stage_identity(published, "update")["update"]["epsilon_high"] == 4e-4
    spelled_out = RunConfig(update={"loss_type": "gspo", "epsilon": 3e-4, "epsilon_high": 4e-4})
    assert stage_identity(published, "update") == stage_identity(spelled_out, "update")
    assert stage_identity(RunConfig(update={"loss_type": "dr_grpo"}), "update")["update"]["scale_rewards"] == "none"


@pytest.mark.parametrize("value", ["9" * 5000, "[" * 5000])
def test_toml_beyond_what_python_reads_is_not_valid(tmp_path, value):
    path = tmp_path / "large.toml"
    path.write_text(f"[draft]\ntemperature = {value}\n")
    with pytest.raises(UsageError, match=r"large\.toml is not valid TOML"):
        read_toml(path)
    assert parse_override(f"draft.temperature={value}") == ("draft", "temperature", value)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"select": {"strategy": "shuffled"}}, "graded drafts of the same problem"),
        ({"select": {"strategy": "none"}}, "graded drafts of the same problem"),
        ({"prompts": {"empty_draft": "N/A"}}, "unset prompts.empty_draft"),
    ],
)
@pytest.mark.parametrize("kind", ["stated", "shown"])
def test_a_verdict_needs_a_graded_draft_in_every_prompt_with_draft(settings, message, kind):
    if kind == "stated":
        settings = {**settings, "reward": {"refinements": "verdict"}}
    else:
        template = {"refine_template": "{problem}{draft}{verdict}"}
        settings = {**settings, "prompts": {**settings.get("prompts", {}), **template}}
    with pytest.raises(ValidationError, match=message):
        RunConfig(**settings)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"prompts": {"refine_template": "{problem}{draft}{verdict}"}}, "remove {verdict}"),
        ({"prompts": {"verdict_texts": {"correct": "wrong"}}}, "different texts"),
        ({"run": {"method": "grpo"}}, "no completion of this run sees a draft"),
        ({"update": {"baseline": "pooled"}}, "rewards no answers"),
        ({"update": {"refinement_prompt": "without_draft"}}, "rewards no answers"),
    ],
)
def test_settings_that_make_no_sense_of_verifications_are_refused(settings, message):
    with pytest.raises(ValidationError, match=message):
        RunConfig(reward={"refinements": "verdict"}, **settings)


def test_an_evaluation_with_draft_needs_answers_without_the_reference():
    assert RunConfig().evaluates_with_draft
    assert not RunConfig(reward={"refinements": "verdict"}).evaluates_with_draft
    assert not RunConfig(prompts={"refine_template": "{problem}{draft}{verdict}"}).evaluates_with_draft


SEES_CRITIQUE = {"refine_template": "{problem}{draft}{critique}"}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"prompts": SEES_CRITIQUE}, 'set critique.by = "policy" or "judge"'),
        ({"prompts": {"draft_turn": "assistant", "refine_request": "{critique}"}}, "prompts.refine_request has"),
        ({"critique": {"by": "policy"}}, "put {critique} into prompts.refine_template"),
        (
            {"critique": {"by": "policy"}, "prompts": {**SEES_CRITIQUE, "draft_turn": "assistant"}},
            "put {critique} into prompts.refine_request",
        ),
        ({"critique": {"by": "policy", "template": "{draft}"}, "prompts": SEES_CRITIQUE}, "exactly once each"),
        ({"critique": {"by": "judge"}, "prompts": SEES_CRITIQUE}, "set judge.model, and judge.endpoint"),
        (
            {"critique": {"by": "policy"}, "prompts": SEES_CRITIQUE, "select": {"strategy": "none"}},
            'strategy = "none" shows none',
        ),
        (
            {
                "critique": {"by": "policy", "template": "{problem}{draft}{verdict}"},
                "prompts": SEES_CRITIQUE,
                "select": {"strategy": "shuffled"},
            },
            "graded drafts of the same problem",
        ),
        ({"critique": {"by": "policy"}, "prompts": {**SEES_CRITIQUE, "empty_draft": "-"}}, "unset prompts.empty_draft"),
        (
            {"critique": {"by": "policy"}, "prompts": SEES_CRITIQUE, "reward": {"refinements": "verdict"}},
            "refinements would see the verdict",
        ),
    ],
)
def test_settings_that_make_no_sense_of_critiques_are_refused(settings, message):
    with pytest.raises(ValidationError, match=message):
        RunConfig(**settings)


def test_refinements_depend_on_critiques_where_there_are_any():
    assert "critique" not in stage_identity(RunConfig(critique={"temperature": 0.5}), "refine")
    policy = RunConfig(critique={"by": "policy"}, prompts=SEES_CRITIQUE)
    judge = RunConfig(critique={"by": "judge"}, prompts=SEES_CRITIQUE, judge={"model": "m"})
    assert stage_identity(policy, "refine")["critique"]["temperature"] == 1.0
    assert "judge" not in stage_identity(policy, "refine")
    assert "temperature" not in stage_identity(judge, "refine")["critique"], "a judge has its own"
    assert stage_identity(judge, "refine")["judge"]["model"] == "m"
    assert "judge" not in stage_identity(judge, "draft")
    assert not policy.evaluates_with_draft


NGRAM = "engine.speculative_config={method = 'ngram', num_speculative_tokens = 5, prompt_lookup_max = 4}"


def test_speculative_decoding_counts_in_what_is_sampled_and_an_empty_table_switches_it_off():
    with_it = config_of("engine.name=vllm", NGRAM)
    recorded = stage_identity(with_it, "refine")["engine"]["speculative_config"]
    assert recorded["num_speculative_tokens"] == 5
    assert check_config(tomllib.loads(write_config(with_it).decode()), "run.toml") == with_it
    assert stage_identity(with_it, "update") == stage_identity(config_of("engine.name=vllm"), "update")
    switched_off = config_of("engine.name=vllm", NGRAM, "engine.speculative_config={}")
    assert switched_off == config_of("engine.name=vllm")


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ((NGRAM,), 'set engine.name = "vllm", not "auto"'),
        (("engine.name=transformers", NGRAM), 'engine.speculative_config is a setting of vLLM.* not "transformers"'),
        (("engine.name=server", NGRAM), 'engine.speculative_config is a setting of vLLM.* not "server"'),
        (("engine.name=transformers", "engine.quantization=fp8"), "engine.quantization is a setting of vLLM"),
        (("engine.name=server", "engine.quantization=fp8"), "engine.quantization is a setting of vLLM"),
        (("engine.name=vllm", NGRAM, "refine.min_p=0.1"), "does not apply refine.min_p"),
        (("engine.name=vllm", NGRAM, "eval.min_p=0.1"), "does not apply eval.min_p"),
        (
            ("engine.name=vllm", NGRAM, "engine.speculative_config.prompt_lookup_min=5"),
            "prompt_lookup_min = 5 is above prompt_lookup_max = 4",
        ),
        (
            ("engine.name=vllm", NGRAM, "engine.speculative_config.method=suffix"),
            "engine.speculative_config.method = 'suffix': input should be 'ngram'",
        ),
        (
            ("engine.name=vllm", NGRAM, "engine.speculative_config.prompt_lookup_maxx=5"),
            "did you mean engine.speculative_config.prompt_lookup_max",
        ),
        (("engine.name=vllm", "engine.speculative_config={method = 'ngram'}"), "num_speculative_tokens"),
    ],
)
def test_speculative_decoding_that_cannot_work_is_refused(overrides, message):
    with pytest.raises(UsageError, match=message):
        config_of(*overrides)
