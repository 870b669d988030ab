"""A user's own reward functions: found, called with what they ask for, and named where they fail."""

from __future__ import annotations

import sys
from importlib import metadata

import pytest

from igrpo_cli.config.rewards import RewardSection
from igrpo_cli.errors import IgrpoError, UsageError
from igrpo_cli.records import Problem
from igrpo_cli.rewards.functions import (
    PARAMETERS,
    FunctionFailedError,
    RewardFunction,
    require_columns,
    resolve_target,
    source_sha256,
)
from igrpo_cli.rewards.grading_pool import GradingPool
from igrpo_cli.rewards.scorer import Scorer, ScoringInput

MODULE = """
def brevity(num_tokens, max_completion_length):
    return 1 - num_tokens / max_completion_length

def everything(**facts):
    return len(facts)

def agrees(completion, *, answer, verdict, strict=False):
    return (verdict == "correct") == completion.endswith(answer) and not strict

def of_level(level, completion, weight=2):
    return weight * level

def of_all(**facts):
    return float(facts["level"] == 3 and facts["answer"] == "4" and facts["tests"] == [[1, {"a": None}]])

def shares(completions, **kwargs):
    return [completions.count(each) / len(completions) for each in completions]

def places(completion_ids, prompts, num_tokens, level, verdict, extracted_answer):
    assert prompts == ["?"] * len(completion_ids) and level == [3] * len(prompts)
    return (len(ids) + (each == "correct") for ids, each in zip(completion_ids, verdict))

def too_few(completions): return [1.0]
def no_list(completions): return 1.0
def one_bad(completions): return [1.0, None, float("nan")]
def fails(completions): return [1 / len(each) for each in completions]
def yields(completions):
    for each in completions: yield 1 / (len(each) - 1)
def group_spins(completions):
    while True: pass
def group_exits(completions):
    import os; os._exit(3)
def mixed(completions, completion): return [1.0]

def only_by_place(completion, /):
    return 0.0

def divides(num_tokens):
    return 1 / (num_tokens - 3)

def says_high(): return "high"
def says_text_number(): return "1"
def says_nothing(): return None
def says_nan(): return float("nan")

def spins():
    while True: pass

def exits():
    import os; os._exit(3)

not_a_function = 4
"""
FACTS = dict.fromkeys(PARAMETERS, "x") | {"num_tokens": 25, "max_completion_length": 100, "verdict": "correct"}


@pytest.fixture
def module(tmp_path, monkeypatch):
    (tmp_path / "own_rewards.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "own_rewards", raising=False)
    return tmp_path / "own_rewards.py"


COLUMNS = '{"level": 3, "answer": "not this one", "tests": [[1, {"a": null}]], "completions": "nor this"}'


def scored(name, num_tokens=25, completions=(r"\boxed{4}",), groups=None, columns=COLUMNS, **limits):
    """Scores completions of one problem; `groups` has the group of each, or all are one."""
    problem = Problem("p", "2 + 2?", "4", "here", columns=columns)
    functions = {name: f"own_rewards:{name}"}
    with GradingPool(RewardSection(**{"num_workers": 1, **limits}), functions) as pool:
        scorer = Scorer(pool, {"accuracy": 1.0, name: 2.0})
        numbered = zip(completions, groups or [0] * len(completions), strict=True)
        return scorer.score(
            [
                ScoringInput(problem, "?", text, num_tokens, 100, "stop", None, group, [7] * len(text))
                for text, group in numbered
            ]
        )


def test_a_function_gets_what_it_names(module):
    assert RewardFunction("brevity", "own_rewards:brevity")(FACTS) == 0.75
    assert RewardFunction("everything", "own_rewards:everything")(FACTS) == len(PARAMETERS)
    assert RewardFunction("agrees", "own_rewards:agrees")({**FACTS, "completion": "so 4", "answer": "4"}) == 1.0


@pytest.mark.parametrize(
    ("function", "said"),
    [
        ("missing", "AttributeError"),
        ("not_a_function", "is not a function but int"),
        ("mixed", "has the parameter 'completion', which cannot be passed by name"),
        ("only_by_place", "has the parameter 'completion', which cannot be passed by name"),
    ],
)
def test_what_cannot_be_called_is_refused_before_any_row(module, function, said):
    with pytest.raises(UsageError) as caught:
        RewardFunction("mine", f"own_rewards:{function}")
    assert "the reward function mine (own_rewards:" in caught.value.message
    assert said in caught.value.message
    with pytest.raises(UsageError) as caught:
        GradingPool(RewardSection(num_workers=1), functions={"mine": f"own_rewards:{function}"})
    assert said in caught.value.message


@pytest.mark.parametrize(
    ("function", "said"),
    [
        ("says_high", "returned str, not a number"),
        ("says_text_number", "returned str 1.0, not a finite number"),
        ("says_nothing", "returned NoneType, not a number"),
        ("says_nan", "returned float nan, not a finite number"),
        ("divides", "raised ZeroDivisionError at own_rewards.py:40: division by zero"),
    ],
)
def test_what_is_no_finite_number_fails_with_the_function_named(module, function, said):
    with pytest.raises(FunctionFailedError) as caught:
        RewardFunction("mine", f"own_rewards:{function}")({**FACTS, "num_tokens": 3})
    assert str(caught.value) == f"the reward function mine (own_rewards:{function}) {said}"


def test_its_value_is_weighted_with_the_other_parts(module):
    (row,) = scored("brevity")
    assert row.parts == {"accuracy": 1.0, "format": 0.0, "brevity": 0.75}
    assert row.reward == 1.0 + 2 * 0.75


def test_a_row_where_it_fails_is_ungraded_and_the_next_is_not(module):
    (failed,) = scored("divides", num_tokens=3)
    assert (failed.grade.verdict, failed.reward, failed.parts["divides"]) == ("ungraded", 0.0, 0.0)
    assert "the reward function divides (own_rewards:divides) raised ZeroDivisionError" in failed.grade.reason
    (fine,) = scored("divides", num_tokens=5)
    assert (fine.grade.verdict, fine.reward, fine.grade.reason) == ("correct", 1.0 + 2 * 0.5, None)


@pytest.mark.parametrize(("function", "reason"), [("spins", "CPU time limit"), ("exits", "exit code 3")])
def test_one_that_hangs_or_kills_its_worker_costs_its_row_alone(module, function, reason):
    (row,) = scored(function, cpu_seconds=0.5)
    assert (row.grade.verdict, row.reward) == ("ungraded", 0.0)
    assert reason in row.grade.reason


def test_a_module_in_the_current_directory_shadows_no_other(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "json.py").write_text("raise RuntimeError('shadowed')")
    (tmp_path / "here.py").write_text("import json\ndef one(): return float(json.loads('1'))")
    with GradingPool(RewardSection(num_workers=1), functions={"one": "here:one"}) as pool:
        assert pool.grade([(r"\boxed{4}", "4")])[0].parts == {"one": 1.0}


def test_a_module_that_needs_more_memory_than_there_is_says_so(module):
    module.write_text("bytearray(1 << 30)\ndef one(): return 1.0")
    with pytest.raises(IgrpoError) as caught:
        GradingPool(RewardSection(num_workers=1, memory_mb=512), {"one": "own_rewards:one"})
    assert "MemoryError" in caught.value.message


def test_its_source_is_found_without_importing_it(module, tmp_path):
    module.write_text("raise RuntimeError('imported')")
    first = source_sha256("own_rewards:one")
    module.write_text("raise RuntimeError('imported again')")
    assert first is not None
    assert source_sha256("own_rewards:one") not in (None, first)
    (tmp_path / "package" / "inner").mkdir(parents=True)
    (tmp_path / "package" / "__init__.py").write_text("raise RuntimeError('imported')")
    (tmp_path / "package" / "inner" / "rewards.py").write_text("one = 1")
    assert source_sha256("package.inner.rewards:one") is not None
    assert source_sha256("no_such_module:one") is None
    assert source_sha256("sys:exit") is None


def test_a_word_is_an_entry_point(monkeypatch):
    entry = metadata.EntryPoint("brevity", "their.rewards:brevity", "igrpo.rewards")
    monkeypatch.setattr(metadata, "entry_points", lambda group: metadata.EntryPoints([entry]))
    assert resolve_target("mine", "brevity") == "their.rewards:brevity"
    assert resolve_target("mine", "own_rewards:one") == "own_rewards:one"
    for target in ("brevety", "module:", ":function", "a b:c", "module:function()"):
        with pytest.raises(UsageError) as caught:
            resolve_target("mine", target)
        assert f"reward.functions.mine = {target!r}" in caught.value.message
        assert "brevity" in caught.value.hint


def test_a_function_gets_the_columns_that_it_names_and_its_defaults(module):
    (row,) = scored("of_level")
    assert row.parts["of_level"] == 6.0
    assert RewardFunction("of_level", "own_rewards:of_level").signature.columns == ["level"]


def test_all_columns_are_passed_to_a_function_of_everything_and_none_replaces_a_parameter(module):
    (row,) = scored("of_all")
    assert row.parts["of_all"] == 1.0


def test_a_column_that_the_data_lack_is_named_with_those_that_there_are(module):
    signatures = {"mine": RewardFunction("mine", "own_rewards:of_level").signature}
    require_columns(signatures, ["subject", "level"])
    with pytest.raises(UsageError) as caught:
        require_columns(signatures, ["levels", "subject"])
    said = "the reward function mine (own_rewards:of_level) has the parameter 'level', which is no column of the data"
    assert caught.value.message == said
    assert "the other columns of the data are levels, subject; " in (caught.value.hint or "")


def test_a_function_is_not_called_where_the_data_lack_its_column(module):
    (row,) = scored("of_level", columns="{}")
    assert (row.parts["of_level"], row.grade.verdict, row.reward) == (0.0, "correct", 1.0)
    (row,) = scored("places", columns="{}")
    assert (row.parts["places"], row.grade.verdict) == (0.0, "correct")


@pytest.mark.parametrize("num_workers", [1, 3])
def test_a_function_of_lists_gets_whole_groups(module, num_workers):
    completions, groups = ["a", "a", "b", "a", "c", "c"] * 4, [0, 0, 0, 1, 1, 1] * 4
    groups = [group + place // 6 * 2 for place, group in enumerate(groups)]
    found = scored("shares", completions=completions, groups=groups, num_workers=num_workers)
    assert [row.parts["shares"] for row in found] == [2 / 3, 2 / 3, 1 / 3, 1 / 3, 2 / 3, 2 / 3] * 4


def test_the_parameters_of_a_function_of_lists_are_lists(module):
    found = scored("places", completions=[r"\boxed{4}", "xyz"])
    assert [row.parts["places"] for row in found] == [10.0, 3.0]


@pytest.mark.parametrize(
    ("function", "said"),
    [
        ("too_few", "returned 1 values for 3 completions"),
        ("no_list", "returned float, not a list of numbers"),
        ("fails", "raised ZeroDivisionError at own_rewards.py"),
        ("yields", "raised ZeroDivisionError at own_rewards.py"),
    ],
)
def test_a_function_of_lists_that_fails_costs_its_group_and_no_other(module, function, said):
    found = scored(function, completions=["", "4", "yes", "no!"], groups=[0, 0, 0, 1], columns="{}")
    assert [row.grade.verdict == "ungraded" for row in found[:3]] == [True] * 3
    said = f"the reward function {function} (own_rewards:{function}) {said}"
    assert all(said in row.grade.reason for row in found[:3])
    assert (found[3].grade.verdict == "ungraded") == (function == "no_list")


def test_a_value_that_is_no_number_costs_its_row(module):
    found = scored("one_bad", completions=["4", "4", "4"])
    assert [row.grade.verdict for row in found] == ["correct", "ungraded", "ungraded"]
    assert found[0].parts["one_bad"] == 1.0
    assert "one_bad) returned NoneType at place 1 of its list, not a number" in found[1].grade.reason
    assert "returned float nan at place 2 of its list, not a finite number" in found[2].grade.reason


@pytest.mark.parametrize(
    ("function", "reason"), [("group_spins", "CPU time limit"), ("group_exits", "the worker ended with exit code 3")]
)
def test_a_function_of_lists_that_ends_its_worker_costs_its_group(module, function, reason):
    found = scored(function, completions=["4", "5"], cpu_seconds=0.25)
    assert [row.grade.verdict for row in found] == ["ungraded", "ungraded"]
    assert found[0].grade.reason == f"{reason} in the reward function {function}, called with a group of 2"
