"""An engine that gives back something else than was asked for, or fails: tried again, then exit 75, and it goes on.

What a server may do is in `tests/engines/test_server_engine.py`.
"""

from __future__ import annotations

import math
import subprocess
import sys
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from command_line import ONE_THREAD, files_below, igrpo, make_run
from igrpo_cli.config.engine import EngineSection
from igrpo_cli.config.sections import SamplingSettings
from igrpo_cli.engines.base import ignore_progress
from igrpo_cli.engines.tokenization import PolicyTokenizer
from igrpo_cli.engines.transformers import TransformersEngine
from igrpo_cli.engines.vllm import VllmEngine
from igrpo_cli.errors import EXIT_INTERRUPTED, IgrpoError, Interrupted
from igrpo_cli.problems.sources import packaged_data
from igrpo_cli.records import SamplingGroup
from igrpo_cli.rollouts import MAX_ATTEMPTS

BLOCKS = ("data.problems_per_iteration=4", "engine.groups_per_block=2")


def first(**changes):
    """The first completion of the batch is another than was drawn."""
    return lambda groups: [[replace(groups[0][0], **changes), *groups[0][1:]], *groups[1:]]


def first_token(field, value):
    """Its first token has another id, or another log-prob."""
    return lambda groups: first(**{field: [value, *getattr(groups[0][0], field)[1:]]})(groups)


OF_GROUPS = {
    "a sample too few": (lambda groups: [groups[0][:-1], *groups[1:]], "2 completions of group 2 (problem"),
    "a sample too many": (lambda groups: [[*groups[0], groups[0][0]], *groups[1:]], "4 completions of group 2"),
    "a sample twice": (
        lambda groups: [[groups[0][0], groups[0][0], *groups[0][2:]], *groups[1:]],
        "the completion of another seed as sample 1 of group 2",
    ),
    "samples swapped": (lambda groups: [groups[0][::-1], *groups[1:]], "of another seed as sample 0 of group 2"),
    "groups swapped": (lambda groups: groups[::-1], "of another seed as sample 0 of group 2"),
    "a group too few": (lambda groups: groups[1:], "1 groups instead of 2"),
    "a group too many": (lambda groups: [*groups, groups[0]], "3 groups instead of 2"),
    "nothing": (lambda _: [], "0 groups instead of 2"),
    "tokens without log-probs": (first(sampling_logprobs=[]), "tokens with 0 log-probs as sample 0 of group 2"),
    "a negative token id": (
        first_token("completion_ids", -1),
        "token id -1, where the vocabulary has 107, as sample 0",
    ),
    "a token id too large": (first_token("completion_ids", 107), "token id 107, where the vocabulary has 107, as"),
    "a log-prob NaN": (first_token("sampling_logprobs", math.nan), "a log-prob of nan as sample 0 of group 2"),
    "a log-prob -inf": (first_token("sampling_logprobs", -math.inf), "a log-prob of -inf as sample 0 of group 2"),
    "a positive log-prob": (first_token("sampling_logprobs", 0.5), "a log-prob of 0.5 as sample 0 of group 2"),
}
"""What the groups of a batch become, and what is said of it."""


def of_groups(change):
    return lambda _, key, groups: [(key, change(groups))]


FAULTS = {name: (of_groups(change), said) for name, (change, said) in OF_GROUPS.items()} | {
    "an unknown key": (
        lambda _, key, groups: [("nonesuch", groups)],
        "a batch called 'nonesuch', which was not requested",
    ),
    "the key of a block that is kept": (
        lambda keys, key, groups: [(keys[0], groups)],
        "the batch of group 0 (problem",
    ),
    "a key twice": (lambda _, key, groups: [(key, groups), (key, groups)], "the batch of group 2 (problem"),
    "no key": (lambda *_: [], "nothing of the batch of group 2 (problem"),
}
"""What a batch becomes under which key, from (keys so far, its key, its groups), and what is said of it."""


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    run = make_run(tmp_path_factory.mktemp("runs") / "undisturbed", *BLOCKS)
    assert igrpo("draft", run).code == 0
    return files_below(run / "iteration_0000")


def failing(patch, damage, times):
    """From the engine's second batch on what comes back is damaged, `times` times."""
    sound, keys, damaged = TransformersEngine.step, [], []

    def step(engine):
        given = []
        for key, groups in sound(engine):
            keys.append(key)
            is_damaged = len(keys) > 1 and len(damaged) < times
            given += damage(keys, key, groups) if is_damaged else [(key, groups)]
            damaged.extend([key] * is_damaged)
        return given

    patch.setattr(TransformersEngine, "step", step)
    return damaged


@pytest.mark.parametrize("name", ["a sample too few", "samples swapped", "an unknown key", "a key twice", "no key"])
def test_what_comes_back_wrong_is_sampled_again(undisturbed, tmp_path, monkeypatch, name):
    run = make_run(tmp_path / "run", *BLOCKS)
    damaged = failing(monkeypatch, FAULTS[name][0], MAX_ATTEMPTS - 1)
    result = igrpo("draft", run)
    assert result.code == 0, result.stderr
    assert len(damaged) == MAX_ATTEMPTS - 1
    assert files_below(run / "iteration_0000") == undisturbed


@pytest.mark.parametrize("name", FAULTS)
def test_what_comes_back_wrong_again_and_again_ends_in_75(undisturbed, tmp_path, monkeypatch, name):
    damage, said = FAULTS[name]
    run = make_run(tmp_path / "run", *BLOCKS)
    with monkeypatch.context() as patch:
        damaged = failing(patch, damage, MAX_ATTEMPTS)
        result = igrpo("draft", run)
    assert (result.code, result.stdout) == (EXIT_INTERRUPTED, "")
    assert said in result.stderr
    assert f", {MAX_ATTEMPTS} times" in result.stderr
    assert "Traceback" not in result.stderr
    assert len(damaged) == MAX_ATTEMPTS
    assert len(list(run.rglob("block-*.parquet"))) == 1, "the block that came back right is kept"
    assert igrpo("draft", run).code == 0
    assert files_below(run / "iteration_0000") == undisturbed


@pytest.mark.parametrize(("times", "code"), [(MAX_ATTEMPTS - 1, 0), (MAX_ATTEMPTS, EXIT_INTERRUPTED)])
def test_what_comes_back_besides_is_no_row_and_borne_as_often(tmp_path, monkeypatch, times, code):
    run = make_run(tmp_path / "run", *BLOCKS, "data.problems_per_iteration=8")
    with monkeypatch.context() as patch:
        failing(patch, lambda keys, key, groups: [(key, groups), (keys[0], groups)], times)
        result = igrpo("draft", run)
    assert result.code == code, result.stderr
    assert "once more, which was not requested, 3 times" in result.stderr or not code
    sound = make_run(tmp_path / "sound", *BLOCKS, "data.problems_per_iteration=8")
    assert igrpo("draft", run).code == igrpo("draft", sound).code == 0
    assert files_below(run / "iteration_0000") == files_below(sound / "iteration_0000")


@pytest.mark.parametrize("times", [1, math.inf])
def test_a_block_that_comes_back_under_the_key_of_another_in_flight_is_noticed(
    undisturbed, tmp_path, monkeypatch, times
):
    run = make_run(tmp_path / "run", *BLOCKS)
    sound, renamed = TransformersEngine.step, []

    def step(engine):
        [(key, groups)] = sound(engine)
        if engine._queue and len(renamed) < times:
            renamed.append(key)
            key = engine._queue[0][0]
        return [(key, groups)]

    with monkeypatch.context() as patch:
        patch.setattr(TransformersEngine, "has_room", property(lambda engine: len(engine._queue) < 2))
        patch.setattr(TransformersEngine, "step", step)
        result = igrpo("draft", run)
    assert renamed
    assert (result.code, result.stderr.count("error: ")) in (
        [(0, 0)] if times == 1 else [(0, 0), (EXIT_INTERRUPTED, 1)]
    )
    assert igrpo("draft", run).code == 0
    assert files_below(run / "iteration_0000") == undisturbed


def output_of(request_id, prompt_ids, *tokens):
    """A request of vLLM that is done, with a completion of one token for each of `tokens`."""
    drawn = [
        SimpleNamespace(token_ids=[token], logprobs=SimpleNamespace(logprobs=[-1.0]), finish_reason="stop")
        for token in tokens
    ]
    return SimpleNamespace(finished=True, request_id=request_id, prompt_token_ids=prompt_ids, outputs=drawn)


@pytest.mark.parametrize(
    "other",
    [
        output_of("0/0/7", [5], 9),
        output_of("8/0/1", [5], 9),
        output_of("nonesuch", [5], 9),
        output_of("0/0/0", [5], 9),
        output_of("0/0/1", [6], 9),
        output_of("0/0/1", [5]),
        output_of("0/0/1", [5], 9, 9),
    ],
)
def test_a_vllm_that_answers_other_requests_gives_back_a_batch_without_them(other):
    engine = object.__new__(VllmEngine)
    engine.device, engine.dtype, engine._policy = "cpu", "float32", "policy"
    engine.tokenizer = PolicyTokenizer(packaged_data() / "tiny-policy")
    engine._config, engine._max_model_len, engine._num_batches = SimpleNamespace(max_num_seqs=5), 50, 0
    engine._batches, engine._requests, engine._add = {}, {}, lambda *_: None
    engine.on_sampled = ignore_progress
    outputs = [output_of("0/0/0", [5], 7), other]
    engine._llm = SimpleNamespace(step=lambda: outputs, has_unfinished_requests=lambda: False)
    engine.submit(
        "key",
        [SamplingGroup([5], [11, 12])],
        SamplingSettings(temperature=1.0, top_p=1.0, top_k=0, max_completion_length=8),
    )
    [(key, [drawn])] = engine.step()
    assert key == "key"
    assert [(each.completion_ids, each.seed) for each in drawn] == [([7], 11)]
    assert not engine.num_unfinished


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
    engine.device, engine._config = "cpu", SimpleNamespace(max_num_seqs=5)
    engine._llm, engine._batches = SimpleNamespace(step=step), {0: SimpleNamespace(num_missing=1)}
    with pytest.raises(IgrpoError, match=r".") as raised:
        engine.step()
    assert type(raised.value) is expected
    assert raised.value.message.startswith(said)


HANGING = """
import ctypes, sys
from igrpo_cli.cli.app import main
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
    assert "error: transformers has not returned from a step for 2.0 s (engine.timeout)" in result.stderr
    assert "(most recent call first)" in result.stderr, "the stack of every thread is shown"
    assert "in step" in result.stderr
    assert "hint: run the same command again" in result.stderr
    assert "Traceback" not in result.stderr
    assert 1 <= len(list(run.rglob("block-*.parquet"))) <= 2, "what was sampled before is kept"
    assert igrpo("draft", run).code == 0
    sound = make_run(tmp_path / "sound", *BLOCKS, "data.problems_per_iteration=8")
    assert igrpo("draft", sound).code == 0
    assert files_below(run / "iteration_0000") == files_below(sound / "iteration_0000")


def test_vllm_has_the_limit_that_is_set(monkeypatch):
    model_config = SimpleNamespace(dtype="float32", max_model_len=64, get_vocab_size=lambda: 64)
    monkeypatch.setattr(VllmEngine, "_start", lambda self, directory: SimpleNamespace(model_config=model_config))
    assert VllmEngine(packaged_data() / "tiny-policy", EngineSection(timeout=7, device="cpu")).step_timeout == 7
