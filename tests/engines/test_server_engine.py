from __future__ import annotations

import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from fake_vllm import FakeVllm, token_of

from command_line import ONE_THREAD, igrpo, make_run
from igrpo_cli import http_client
from igrpo_cli.config.files import check_config
from igrpo_cli.config.sections import SamplingSettings
from igrpo_cli.engines.factory import create_engine
from igrpo_cli.errors import IgrpoError, Interrupted, UsageError
from igrpo_cli.records import SamplingGroup

POLICY = (Path(__file__).parents[2] / "data" / "tiny-policy").resolve()
SETTINGS = SamplingSettings(temperature=1.0, top_p=0.9, top_k=5, min_p=0.05, max_completion_length=8)
GROUPS = [SamplingGroup([5, 6, 7], [1, 2]), SamplingGroup([8, 9], [3, 4])]


def changed_policy(directory: Path) -> Path:
    """A copy of the policy with one weight changed."""
    shutil.copytree(POLICY, directory, dirs_exist_ok=True)
    weights = directory / "model.safetensors"
    changed = bytearray(weights.read_bytes())
    changed[-1] ^= 1
    weights.write_bytes(changed)
    return directory


@pytest.fixture(autouse=True)
def _short_pauses(monkeypatch):
    monkeypatch.setattr(http_client, "_LONGEST_PAUSE", 0.01)


@pytest.fixture
def start_server():
    """`start_server(...)`: a fake server, stopped at the end."""
    started = []

    def start(root=POLICY, **options):
        started.append(FakeVllm(root, **options))
        return started[-1]

    yield start
    for each in started:
        each.stop()


@pytest.fixture
def engine_of():
    """`engine_of(*servers)`: an engine on servers or URLs, closed at the end."""
    made = []

    def make(*servers, policy=POLICY, max_num_seqs=8, max_retries=2, timeout=20.0, max_model_len=None):
        section = {
            "name": "server",
            "endpoints": [each if isinstance(each, str) else each.url for each in servers],
            "max_num_seqs": max_num_seqs,
            "max_model_len": max_model_len,
            "max_retries": max_retries,
            "timeout": timeout,
        }
        made.append(create_engine(policy, check_config({"engine": section}, "run.toml").engine))
        return made[-1]

    yield make
    for each in made:
        each.close()


def completed(engine, groups=GROUPS, settings=SETTINGS):
    engine.submit("key", groups, settings)
    back = []
    while engine.num_unfinished:
        back += engine.step()
    ((key, completions),) = back
    assert key == "key"
    return completions


def first_tokens(completions):
    return [[row.completion_ids[0] for row in group] for group in completions]


EXPECTED = [[token_of(seed) for seed in group.seeds] for group in GROUPS]


def test_completions_come_back_in_the_order_of_groups_and_seeds(start_server, engine_of):
    server = start_server()
    engine = engine_of(server)
    completions = completed(engine)
    assert first_tokens(completions) == EXPECTED
    assert completions[0][0].sampling_logprobs == [-0.5, -0.25]
    assert completions[0][0].finish_reason == "stop"
    assert (engine.name, engine.device, engine.versions["vllm"]) == ("server", "server (1 endpoint)", "9.9")


def test_a_request_leaves_nothing_to_the_servers_defaults(start_server, engine_of):
    server = start_server()
    completed(engine_of(server), [SamplingGroup([5, 6], [2**63 - 1])])
    (asked,) = server.asked
    expected = {"prompt": [5, 6], "seed": 2**63 - 1, "max_tokens": 8, "temperature": 1.0, "top_p": 0.9, "top_k": 5}
    expected |= {"min_p": 0.05, "repetition_penalty": 1.0, "presence_penalty": 0.0, "frequency_penalty": 0.0}
    expected |= {"stop": [], "stop_token_ids": [2], "logprobs": 0, "return_token_ids": True, "model": "policy"}
    assert expected.items() <= asked.items()


def test_it_tells_of_completions_within_a_batch(start_server, engine_of):
    engine, counts = engine_of(start_server()), []
    engine.on_sampled = lambda *numbers: counts.append(numbers)
    completed(engine)
    assert counts == [(1, 2)] * sum(len(group.seeds) for group in GROUPS)


def test_each_request_has_the_temperature_of_its_completion(start_server, engine_of):
    server = start_server()
    rising = SETTINGS.model_copy(update={"temperature": [0.7, 0.0]})
    ((first, greedy, third),) = completed(engine_of(server), [SamplingGroup([5, 6], [1, 2, 3])], settings=rising)
    assert {asked["seed"]: asked["temperature"] for asked in server.asked} == {1: 0.7, 2: 0.0, 3: 0.7}
    assert [each.sampling_logprobs for each in (first, greedy, third)] == [[-0.5, -0.25], [0.0, 0.0], [-0.5, -0.25]]


def test_greedy_tokens_have_logprob_zero(start_server, engine_of):
    completions = completed(
        engine_of(start_server()),
        settings=SamplingSettings(temperature=0.0, top_p=1.0, top_k=0, max_completion_length=8),
    )
    assert completions[0][0].sampling_logprobs == [0.0, 0.0]


@pytest.mark.parametrize("fault", [(503, {"error": {"message": "busy"}}), (429, {}), (500, {}), "drop"])
def test_what_may_pass_is_tried_again(start_server, engine_of, fault):
    server = start_server()
    server.faults = [fault, fault]
    assert first_tokens(completed(engine_of(server))) == EXPECTED
    assert len(server.asked) == 6


def test_a_server_that_fails_at_every_try_interrupts(start_server, engine_of):
    server = start_server()
    server.faults = [(503, {"error": {"message": "shutting down"}})] * 100
    with pytest.raises(Interrupted, match="503: shutting down") as caught:
        completed(engine_of(server))
    assert server.url in caught.value.message
    assert "run the same command again" in caught.value.hint
    assert caught.value.exit_code == 75


def test_a_completion_at_which_a_server_fails_that_is_well_is_an_error_not_an_interruption(start_server, engine_of):
    server = start_server()
    server.faults = [(500, {"error": {"message": "no kernel"}})] * 100
    with pytest.raises(IgrpoError, match=r"is healthy, but fails .* 500: no kernel") as caught:
        completed(engine_of(server))
    assert caught.value.exit_code == 1


def test_a_server_whose_engine_is_dead_interrupts_though_its_process_answers(start_server, engine_of):
    server = start_server()
    server.faults = [(500, {"error": {"message": "EngineDeadError"}})] * 100
    server.health = 503
    with pytest.raises(Interrupted, match="500: EngineDeadError"):
        completed(engine_of(server))


def test_a_refusal_is_final_and_has_the_servers_words(start_server, engine_of):
    server = start_server()
    server.faults = [(400, {"error": {"message": "Token id 7777 is out of vocabulary"}})]
    with pytest.raises(IgrpoError, match="answered 400: Token id 7777 is out of vocabulary") as caught:
        completed(engine_of(server), [SamplingGroup([5], [1])])
    assert caught.value.exit_code == 1
    assert len(server.asked) == 1


def test_another_server_takes_over_from_a_dead_one(start_server, engine_of):
    first, second = start_server(), start_server()
    engine = engine_of(first, second)
    assert engine.device == "server (2 endpoints)"
    first.stop()
    assert first_tokens(completed(engine)) == EXPECTED
    assert second.asked
    assert len(first.asked) + len(second.asked) == 4


def test_a_server_that_is_not_there_at_the_start_is_done_without(start_server, engine_of):
    gone, server = start_server(), start_server()
    gone.stop()
    assert first_tokens(completed(engine_of(gone, server))) == EXPECTED


def test_without_any_server_the_command_is_to_be_run_again(start_server, engine_of):
    first, second = start_server(), start_server()
    engine = engine_of(first, second)
    for each in (first, second):
        each.stop()
    with pytest.raises(Interrupted) as caught:
        completed(engine)
    assert first.url in caught.value.message
    assert second.url in caught.value.message
    with pytest.raises(Interrupted):
        engine_of(first)


def test_a_server_that_comes_back_is_used_again_with_the_next_policy(start_server, engine_of):
    first, second = start_server(), start_server()
    engine = engine_of(first, second)
    first.faults = [(500, {})] * 3
    completed(engine)
    first.faults = []
    engine.load_policy(POLICY)
    before = len(first.asked)
    completed(engine)
    assert len(first.asked) > before


def test_a_server_that_does_not_answer_in_time_is_given_up(start_server, engine_of):
    server = start_server()
    engine = engine_of(server, max_retries=0, timeout=0.3)
    server.faults = ["hang"]
    with pytest.raises(Interrupted, match=r"did not answer within 0\.3 s"):
        completed(engine, [SamplingGroup([5], [1])])


def test_requests_are_bounded_and_spread_over_the_servers(start_server, engine_of):
    servers = [start_server(), start_server()]
    for each in servers:
        each.seconds = 0.05
    engine = engine_of(*servers, max_num_seqs=6)
    engine.submit("key", [SamplingGroup([5], range(24))], SETTINGS)
    assert not engine.has_room
    while engine.num_unfinished:
        engine.step()
    assert engine.has_room
    assert all(len(each.asked) >= 8 for each in servers)
    assert all(1 < each.most_at_a_time <= 5 for each in servers)


@pytest.mark.parametrize("root", ["elsewhere", "/elsewhere", POLICY.name])
def test_a_server_with_another_model_is_refused(start_server, engine_of, root):
    with pytest.raises(IgrpoError, match=f"serves {root}, not the policy") as caught:
        engine_of(start_server(root))
    assert "VLLM_SERVER_DEV_MODE=1" in caught.value.hint


def test_the_same_directory_by_another_name_is_the_policy(start_server, engine_of, tmp_path):
    (tmp_path / "link").symlink_to(POLICY)
    completed(engine_of(start_server(tmp_path / "link")))


def test_another_policy_is_refused_where_none_can_be_loaded(start_server, engine_of, tmp_path):
    engine = engine_of(start_server())
    other = shutil.copytree(POLICY, tmp_path / "other")
    with pytest.raises(IgrpoError, match="cannot load another one") as caught:
        engine.load_policy(other)
    assert str(other) in caught.value.hint


def test_weights_are_loaded_where_they_can_be(start_server, engine_of, tmp_path):
    server = start_server(can_load=True)
    engine = engine_of(server)
    other = changed_policy(tmp_path / "other")
    engine.load_policy(other)
    assert server.loaded == [str(POLICY), str(other)]
    assert first_tokens(completed(engine)) == EXPECTED


def test_tasks_that_share_a_server_load_a_policy_once_while_its_weights_stay(start_server, engine_of, tmp_path):
    policy = shutil.copytree(POLICY, tmp_path / "policy")
    server = start_server(can_load=True)
    engine_of(server, policy=policy)
    (policy / "model.safetensors").touch()
    engine_of(server, policy=policy)
    assert len(server.loaded) == 1
    changed_policy(policy)
    engine_of(server, policy=policy)
    assert len(server.loaded) == 2


@pytest.mark.parametrize("device", ["cpu", None])
def test_a_server_that_would_keep_the_old_output_matrix_is_not_loaded_into(start_server, engine_of, tmp_path, device):
    server = start_server(can_load=True)
    server.device = device
    engine = engine_of(server)
    with pytest.raises(IgrpoError, match="cannot load another one"):
        engine.load_policy(changed_policy(tmp_path / "other"))
    assert server.loaded == []


def test_weights_that_cannot_be_loaded_are_refused(start_server, engine_of):
    server = start_server(can_load=True)
    server.load_status = 500
    with pytest.raises(IgrpoError, match=r"cannot load .*no such weights") as caught:
        engine_of(server)
    assert caught.value.exit_code == 1


def test_a_model_of_another_shape_is_refused_before_its_weights_are_touched(start_server, engine_of, make_policy):
    server = start_server(make_policy("llama"), can_load=True)
    with pytest.raises(IgrpoError, match="another shape"):
        engine_of(server)
    assert server.loaded == []


def test_what_was_sampled_after_a_restart_is_sampled_again_from_the_policy(start_server, engine_of):
    server = start_server(can_load=True)
    engine = engine_of(server, max_num_seqs=1)
    server.faults = ["restart"]
    assert first_tokens(completed(engine)) == EXPECTED
    assert [asked["seed"] for asked in server.asked] == [1, 1, 2, 3, 4]
    assert len(server.loaded) == 2


def test_unprocessed_logprobs_are_refused(start_server, engine_of):
    server = start_server()
    server.processed_logprobs = False
    with pytest.raises(IgrpoError, match="log-probs") as caught:
        engine_of(server)
    assert "--logprobs-mode processed_logprobs" in caught.value.hint


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"token_ids": None}, "token_ids is missing"),
        ({"token_ids": ["a", "b"]}, "token_ids is missing"),
        ({"logprobs": None}, "token_logprobs is missing"),
        ({"finish_reason": "length"}, "ends completions at 2 tokens, and the request allows 8"),
        ({"logprobs": [-0.5, -9999.0]}, "not finite"),
        ({"logprobs": [-0.5, float("nan")]}, "not finite"),
        ((400, {"error": {"message": "Out of range float values are not JSON compliant: nan"}}), "not finite"),
    ],
)
def test_a_reply_that_is_not_what_was_asked_for_is_named(start_server, engine_of, change, message):
    server = start_server()
    server.faults = [change]
    with pytest.raises(IgrpoError, match=message) as caught:
        completed(engine_of(server), [SamplingGroup([5], [1])])
    assert server.url in caught.value.message


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"logprobs": [-0.5]}, "2 tokens with 1 log-probs"),
        ({"token_ids": [], "logprobs": []}, "0 tokens"),
        ({"token_ids": [9] * 9, "logprobs": [-0.5] * 9}, "9 tokens, and the request allows 1 to 8"),
        ((200, {"choices": []}), "choices does not hold one completion"),
        ((200, ["no object"]), "choices does not hold one completion"),
    ],
)
def test_more_or_less_than_was_asked_for_is_asked_for_again_and_then_ends_in_75(
    start_server, engine_of, change, message
):
    server = start_server()
    engine = engine_of(server)
    server.faults = [change]
    assert completed(engine, [SamplingGroup([5], [1])])[0][0].finish_reason == "stop"
    server.faults = [change] * 3
    with pytest.raises(Interrupted, match=message) as caught:
        completed(engine, [SamplingGroup([5], [1])])
    assert server.url in caught.value.message


def test_an_aborted_completion_is_asked_for_again_and_kept_if_it_stays_aborted(start_server, engine_of):
    server = start_server()
    aborted = {"finish_reason": "abort", "token_ids": [7], "logprobs": [-1.0]}
    server.faults = [aborted]
    engine = engine_of(server)
    assert completed(engine, [SamplingGroup([5], [1])])[0][0].finish_reason == "stop"
    server.faults = [aborted] * 3
    assert completed(engine, [SamplingGroup([5], [1])])[0][0].finish_reason == "abort"


def test_prompts_must_fit_into_the_server_with_the_least_room(start_server, engine_of):
    engine = engine_of(start_server(max_model_len=64), start_server(max_model_len=12))
    with pytest.raises(IgrpoError, match=r"takes 12 \(max_model_len\)"):
        engine.submit("key", [SamplingGroup([5] * 5, [1])], SETTINGS)


def test_the_api_key_is_sent_and_never_shown(start_server, engine_of, monkeypatch):
    server = start_server()
    server.api_key = "key-of-the-server"
    monkeypatch.setenv("VLLM_API_KEY", "key-of-the-server")
    completed(engine_of(server))
    assert set(server.authorizations) == {"Bearer key-of-the-server"}
    monkeypatch.setenv("VLLM_API_KEY", "key-of-somebody")
    with pytest.raises(IgrpoError, match="answered 401") as caught:
        engine_of(server)
    assert "key-of-somebody" not in caught.value.message + str(caught.value.hint)
    assert "VLLM_API_KEY" in caught.value.hint


def test_without_endpoints_the_engine_says_how_to_name_one(engine_of):
    with pytest.raises(UsageError) as caught:
        engine_of()
    assert "--endpoint" in caught.value.hint


@pytest.mark.parametrize(
    "url",
    [
        "node7:8000",
        "ftp://node7",
        "http://",
        "http://node7:port",
        "http://node7:99999",
        "http://[::1",
        "http://n?q=secret",
    ],
)
def test_a_bad_url_is_refused(engine_of, url):
    with pytest.raises(UsageError) as caught:
        engine_of(url)
    assert "http://node7:8000" in f"{caught.value.message} {caught.value.hint}"
    assert "secret" not in caught.value.message


@pytest.mark.parametrize("url", ["http://me:secret@node7:8000", "me:secret@node7", "http://secret@node7"])
def test_credentials_in_a_url_are_refused_and_not_repeated(engine_of, url):
    with pytest.raises(UsageError, match="node7") as caught:
        engine_of(url)
    assert "secret" not in caught.value.message + caught.value.hint


def test_a_signal_ends_the_wait_and_close_ends_the_requests(start_server, engine_of):
    server = start_server()
    engine = engine_of(server)
    server.faults = ["hang"] * 4
    engine.submit("key", GROUPS, SETTINGS)

    def stop(*_):
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, 0.3)
    start = time.process_time()
    try:
        with pytest.raises(KeyboardInterrupt):
            engine.step()
    finally:
        signal.signal(signal.SIGALRM, before)
    assert time.process_time() - start < 0.2
    engine.close()
    deadline = time.monotonic() + 5
    while any(t.name.startswith("igrpo-server") for t in threading.enumerate()) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not [t.name for t in threading.enumerate() if t.name.startswith("igrpo-server")]
    with pytest.raises(IgrpoError, match="closed"):
        engine.submit("key", GROUPS, SETTINGS)


def test_the_command_line_names_what_is_missing(tmp_path):
    run = make_run(tmp_path / "run")
    result = igrpo("draft", run, "--engine", "server")
    assert result.code == 2
    assert "--endpoint" in result.stderr


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 75), (signal.SIGINT, 130)])
def test_a_command_that_waits_for_a_server_can_be_stopped(tmp_path, start_server, number, code):
    run = make_run(tmp_path / "run")
    server = start_server(can_load=True)
    server.faults = ["hang"] * 100
    arguments = ["draft", str(run), "-q", "--engine", "server", "--endpoint", server.url]
    process = subprocess.Popen(
        [sys.executable, "-m", "igrpo_cli", *arguments], env=ONE_THREAD, stderr=subprocess.PIPE, text=True
    )
    deadline = time.monotonic() + 90
    while not server.asked and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(number)
    _, stderr = process.communicate(timeout=10)
    assert process.returncode == code, stderr
    assert "Traceback" not in stderr
