"""An engine that gives back something else than was asked for, or fails: tried again, then exit 75, and it goes on.

What a server may do is in `tests/engines/test_server_engine.py`.
"""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from command_line import ONE_THREAD, files_below, igrpo, make_run
from igrpo_cli.config.sections import EngineSection
from igrpo_cli.engines.transformers import TransformersEngine
from igrpo_cli.engines.vllm import VllmEngine
from igrpo_cli.errors import EXIT_INTERRUPTED, IgrpoError, Interrupted
from igrpo_cli.rollouts import MAX_TRIES
from igrpo_cli.session import engine_settings

BLOCKS = ("data.problems_per_iteration=4", "engine.groups_per_block=2")

FAULTS = {
    "a sample too few": (lambda groups: [groups[0][:-1], *groups[1:]], "2 completions of group"),
    "a sample too many": (lambda groups: [[*groups[0], groups[0][0]], *groups[1:]], "4 completions of group"),
    "a group too few": (lambda groups: groups[1:], "1 groups where 2 were asked for"),
    "a group too many": (lambda groups: [*groups, groups[0]], "3 groups where 2 were asked for"),
    "nothing": (lambda _: [], "0 groups where 2 were asked for"),
    "tokens without log-probs": (
        lambda groups: [[replace(groups[0][0], sampling_logprobs=[]), *groups[0][1:]], *groups[1:]],
        "tokens with 0 log-probs of group",
    ),
}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    run = make_run(tmp_path_factory.mktemp("runs") / "undisturbed", *BLOCKS)
    assert igrpo("draft", run).code == 0
    return files_below(run / "iteration_0000")


def failing(patch, damage, times):
    """The engine's second batch comes back damaged, `times` times."""
    sound, batches, damaged = TransformersEngine.step, [], []

    def step(engine):
        done = sound(engine)
        for number, (key, groups) in enumerate(done):
            batches.append(key)
            if len(batches) > 1 and len(damaged) < times:
                damaged.append(key)
                done[number] = (key, damage(groups))
        return done

    patch.setattr(TransformersEngine, "step", step)
    return damaged


@pytest.mark.parametrize("name", FAULTS)
def test_what_comes_back_wrong_is_sampled_again(undisturbed, tmp_path, monkeypatch, name):
    run = make_run(tmp_path / "run", *BLOCKS)
    damaged = failing(monkeypatch, FAULTS[name][0], MAX_TRIES - 1)
    result = igrpo("draft", run)
    assert result.code == 0, result.stderr
    assert len(damaged) == MAX_TRIES - 1
    assert files_below(run / "iteration_0000") == undisturbed


@pytest.mark.parametrize("name", FAULTS)
def test_what_comes_back_wrong_again_and_again_ends_in_75(undisturbed, tmp_path, monkeypatch, name):
    damage, said = FAULTS[name]
    run = make_run(tmp_path / "run", *BLOCKS)
    with monkeypatch.context() as patch:
        damaged = failing(patch, damage, MAX_TRIES)
        result = igrpo("draft", run)
    assert (result.code, result.stdout) == (EXIT_INTERRUPTED, "")
    assert said in result.stderr
    assert f", {MAX_TRIES} times" in result.stderr
    assert len(damaged) == MAX_TRIES
    assert len(list(run.rglob("block-*.parquet"))) == 1, "the block that came back right is kept"
    assert igrpo("draft", run).code == 0
    assert files_below(run / "iteration_0000") == undisturbed


@pytest.mark.parametrize(
    ("failure", "expected", "said"),
    [
        (ConnectionResetError("the worker is gone"), Interrupted, "vLLM failed (ConnectionResetError: the worker"),
        (KeyError("7/0/0"), Interrupted, "vLLM failed (KeyError"),
        (torch.OutOfMemoryError("CUDA out of memory"), IgrpoError, "vLLM has no memory for 5 completions at a time"),
        (Interrupted("stopped by SIGTERM"), Interrupted, "stopped by SIGTERM"),
    ],
)
def test_a_vllm_that_fails_is_told_from_one_without_memory(failure, expected, said):
    def step():
        raise failure

    engine = object.__new__(VllmEngine)
    engine.device, engine._settings = "cpu", SimpleNamespace(max_num_seqs=5)
    engine._llm, engine._batches = SimpleNamespace(step=step), {0: SimpleNamespace(num_missing=1)}
    with pytest.raises(IgrpoError, match=r".") as raised:
        engine.step()
    assert type(raised.value) is expected
    assert raised.value.message.startswith(said)


HANGING = """
import ctypes, sys
from igrpo_cli.cli import main
from igrpo_cli.engines.transformers import TransformersEngine

sound, steps = TransformersEngine.step, []

def step(engine):
    steps.append(engine)
    if len(steps) == 3:
        ctypes.CDLL(None).sigprocmask(0, (ctypes.c_ulong * 16)(*[2**64 - 1] * 16), None)
        ctypes.CDLL(None).sleep(600)
    return sound(engine)

TransformersEngine.step, TransformersEngine.step_timeout = step, 2.0
main(sys.argv[1:])
"""
"""The third block is stuck in native code, where no handler of a signal ever runs."""


def test_an_engine_that_hangs_ends_in_75_and_the_next_run_goes_on(tmp_path):
    run = make_run(tmp_path / "run", *BLOCKS, "data.problems_per_iteration=8")
    command = [sys.executable, "-c", HANGING, "draft", str(run)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120, env=ONE_THREAD, check=False)
    assert (result.returncode, result.stdout) == (EXIT_INTERRUPTED, "")
    assert "error: transformers has not come back from a step for 2.0 s (engine.timeout)" in result.stderr
    assert "hint: run the same command again" in result.stderr
    assert "Traceback" not in result.stderr
    assert 1 <= len(list(run.rglob("block-*.parquet"))) <= 2, "what was sampled before is kept"
    assert igrpo("draft", run).code == 0
    sound = make_run(tmp_path / "sound", *BLOCKS, "data.problems_per_iteration=8")
    assert igrpo("draft", sound).code == 0
    assert files_below(run / "iteration_0000") == files_below(sound / "iteration_0000")


def test_vllm_has_the_limit_that_is_set():
    settings = engine_settings(EngineSection(timeout=7), trust_remote_code=False)
    assert settings.vllm.timeout == settings.server.timeout == 7
