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

def of_token_ids(token_ids):
    return 0.0

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


def scored(name, num_tokens=25, completions=(r"\boxed{4}",), **limits):
    problem = Problem("p", "2 + 2?", "4", "here")
    functions = {name: f"own_rewards:{name}"}
    with GradingPool(RewardSection(num_workers=1, **limits), functions) as pool:
        scorer = Scorer(pool, {"accuracy": 1.0, name: 2.0}, has_functions=True)
        return scorer.score([ScoringInput(problem, "?", text, num_tokens, 100, "stop") for text in completions])


def test_a_function_gets_what_it_names(module):
    assert RewardFunction("brevity", "own_rewards:brevity")(FACTS) == 0.75
    assert RewardFunction("everything", "own_rewards:everything")(FACTS) == len(PARAMETERS)
    assert RewardFunction("agrees", "own_rewards:agrees")({**FACTS, "completion": "so 4", "answer": "4"}) == 1.0


@pytest.mark.parametrize(
    ("function", "said"),
    [
        ("missing", "AttributeError"),
        ("not_a_function", "is not a function but int"),
        ("of_token_ids", "has the parameter 'token_ids'"),
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
        ("divides", "raised ZeroDivisionError at own_rewards.py:18"),
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
