"""A judge that fails, costs too much or is closed: nothing is made up, and what was judged is kept."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from fake_judge import COMPLETION_TOKENS, PROMPT_TOKENS, tagged

from igrpo_cli import http_client
from igrpo_cli.errors import EXIT_FAILED, EXIT_INTERRUPTED, IgrpoError, Interrupted
from igrpo_cli.http_client import ClosedError
from igrpo_cli.rewards.judge import JudgeScore

BUSY = (503, {"error": {"message": "busy"}})


def scores(judge, *requests):
    return [each.score for each in judge.score(requests)]


@pytest.mark.parametrize("fault", [BUSY, (429, {}), (500, {}), "drop", "abort"])
def test_what_may_pass_is_tried_again(server, judge_of, fault):
    server.faults = [fault, fault]
    assert scores(judge_of(), tagged("42")) == [1.0]
    assert len(server.asked) == 3


def test_a_judge_that_does_not_answer_interrupts_and_nothing_is_made_up(server, judge_of):
    server.faults = [BUSY] * 3
    judge = judge_of()
    with pytest.raises(Interrupted, match=r"after 3 attempts: .*503: busy; judgements are kept") as caught:
        judge.score([tagged("42")])
    assert caught.value.exit_code == EXIT_INTERRUPTED
    assert server.url in caught.value.message
    assert "run the same command again" in caught.value.hint
    assert judge.num_calls == 0
    assert scores(judge, tagged("42")) == [1.0]


def test_where_one_request_finds_no_judge_those_that_wait_are_not_tried(server, judge_of):
    server.faults = [BUSY] * 100
    with pytest.raises(Interrupted):
        judge_of(max_concurrency=2, max_retries=0).score([tagged(str(number)) for number in range(40)])
    assert len(server.asked) < 8


def test_a_judge_that_is_too_slow_interrupts(server, judge_of):
    server.faults = ["hang"]
    with pytest.raises(Interrupted, match=r"did not answer within 0\.3 s"):
        judge_of(timeout=0.3, max_retries=0).score([tagged("42")])


def test_after_a_server_died_midway_the_same_scores_come_of_the_rest(server, judge_of):
    requests = [tagged(str(number), str(number - number % 3)) for number in range(12)]
    expected = [float(number % 3 == 0) for number in range(12)]
    compare = server.reply

    def die_at_the_seventh(prompt):
        if server.num_answered == 7:
            server.faults = [BUSY] * 1000
        return compare(prompt)

    server.reply = die_at_the_seventh
    with pytest.raises(Interrupted):
        judge_of(max_concurrency=2).score(requests)
    kept = server.num_answered
    assert 7 <= kept < 12
    server.reply, server.faults = compare, []
    resumed = judge_of()
    assert scores(resumed, *requests) == expected
    assert (resumed.num_calls, resumed.num_cached) == (12 - kept, kept)
    assert server.num_answered == 12


@pytest.mark.parametrize("status", [400, 413, 422])
def test_a_request_that_is_refused_alone_is_not_judged(server, judge_of, status):
    server.poison = {"too long": status}
    judge = judge_of()
    judged = judge.score([tagged("41"), tagged("too long"), tagged("42")])
    assert judged == [JudgeScore(0.0), JudgeScore(None, f"the judge refuses the request ({status})"), JudgeScore(1.0)]
    assert "too much" not in str(judged)
    again = len(server.asked)
    assert judge.score([tagged("too long")])[0].score is None
    assert len(server.asked) == again + 1, "a refusal is not cached"


def test_a_request_that_is_refused_first_is_told_from_a_setting_that_is_refused_always(server, judge_of):
    server.poison = {"too long": 400}
    assert judge_of().score([tagged("too long")]) == [JudgeScore(None, "the judge refuses the request (400)")]
    server.poison = {"Score": 400}  # stands in every request
    with pytest.raises(IgrpoError, match=r"does not accept requests: .* 400: it is too much") as caught:
        judge_of().score([tagged("41")])
    assert caught.value.exit_code == EXIT_FAILED
    assert "[judge]" in caught.value.hint


def test_a_request_at_which_a_well_server_fails_at_every_try_is_not_judged(server, judge_of):
    server.poison = {"poison": 500}
    judged = judge_of().score([tagged("poison"), tagged("42")])
    assert judged == [JudgeScore(None, "the judge fails at the request (500)"), JudgeScore(1.0)]
    server.poison = {"Score": 500}
    with pytest.raises(Interrupted, match="500: it is too much"):
        judge_of().score([tagged("poison")])


@pytest.mark.parametrize(
    ("fault", "hint"),
    [
        ((403, {"error": {"message": "no"}}), "JUDGE_KEY"),
        ((404, {"error": {"message": "no such model"}}), "judge.model"),
        ((405, {}), "base URL"),
        ((200, {"object": "list"}), "base URL"),
        ((200, {"choices": []}), "base URL"),
    ],
)
def test_a_wrong_setting_is_an_error_and_no_interruption(server, judge_of, fault, hint):
    server.faults = [fault]
    with pytest.raises(IgrpoError) as caught:
        judge_of(api_key_variable="JUDGE_KEY").score([tagged("42")])
    assert caught.value.exit_code == EXIT_FAILED
    assert hint in caught.value.hint
    assert len(server.asked) == 1


def test_the_key_is_sent_and_stands_in_no_file_and_no_message(server, judge_of, tmp_path, monkeypatch):
    monkeypatch.setenv("JUDGE_KEY", "sk-secret")
    server.api_key = "sk-secret"
    judge_of(api_key_variable="JUDGE_KEY").score([tagged("42")])
    server.faults = [(500, {"error": {"message": "got Bearer sk-secret"}})] * 4
    with pytest.raises(Interrupted) as interrupted:
        judge_of(api_key_variable="JUDGE_KEY").score([tagged("41")])
    server.api_key = "sk-other"
    with pytest.raises(IgrpoError, match="Unauthorized") as refused:
        judge_of(api_key_variable="JUDGE_KEY").score([tagged("43")])
    assert "JUDGE_KEY" in refused.value.hint
    files = [path.read_text() for path in (tmp_path / "judge").iterdir()]
    assert len(files) == 1
    assert not any("secret" in text for text in (*files, str(interrupted.value), str(refused.value)))


def test_the_budget_of_calls_is_exact_under_concurrency(server, judge_of):
    server.seconds = 0.01
    judge = judge_of(max_calls=10, max_concurrency=8)
    with pytest.raises(IgrpoError, match=r"10 calls were used, and judge\.max_calls is 10") as caught:
        judge.score([tagged(str(number)) for number in range(50)])
    assert caught.value.exit_code == EXIT_FAILED
    assert "judge.max_calls" in caught.value.hint
    assert server.num_answered == len(server.asked) == judge.num_calls == 10
    raised = judge_of(max_calls=50)
    raised.score([tagged(str(number)) for number in range(50)])
    assert (raised.num_calls, raised.num_cached) == (40, 10)


def test_a_call_that_fails_is_given_back_to_the_budget(server, judge_of):
    server.poison = {"too long": 400}
    judge = judge_of(max_calls=3, max_concurrency=4)
    judge.score([tagged("42")])
    server.seconds = 0.2
    with ThreadPoolExecutor(1) as other:
        refused = other.submit(judge.score, [tagged("too long"), tagged("too long too")])
        # Asked in another order, the two that are answered would take all that is left.
        while len(server.asked) < 3 and not refused.done():
            time.sleep(0.001)
        judged = judge.score([tagged("1"), tagged("2")])
    assert [each.score for each in refused.result()] == [None, None]
    assert [each.score for each in judged] == [0.0, 0.0]
    assert judge.num_calls == 3


def test_the_budget_of_tokens_ends_the_calls(server, judge_of):
    each = PROMPT_TOKENS + COMPLETION_TOKENS
    judge = judge_of(max_tokens=3 * each, max_concurrency=1)
    with pytest.raises(IgrpoError, match=rf"{3 * each} tokens were used, and judge\.max_tokens is {3 * each}"):
        judge.score([tagged(str(number)) for number in range(9)])
    assert len(server.asked) == 3
    server.has_usage = False
    with pytest.raises(IgrpoError, match="how many tokens") as caught:
        judge_of(max_tokens=100 * each).score([tagged("42")])
    assert "judge.max_calls" in caught.value.hint


def test_closing_breaks_off_what_is_under_way(server, judge_of):
    server.faults = ["hang"] * 9
    judge = judge_of(max_concurrency=2, max_calls=2)
    closing = threading.Timer(0.3, judge.close)
    closing.start()
    start = time.monotonic()
    with pytest.raises(ClosedError):
        judge.score([tagged(str(number)) for number in range(5)])
    assert time.monotonic() - start < 5
    closing.join()
    with pytest.raises(ClosedError):
        judge.score([tagged("42")])
    judge.close()
    deadline = time.monotonic() + 5
    while threads_of_judges() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not threads_of_judges()


def threads_of_judges():
    return [each.name for each in threading.enumerate() if each.name.startswith("igrpo-judge")]


def test_closing_ends_a_pause_between_tries(server, judge_of, monkeypatch):
    monkeypatch.setattr(http_client, "_FIRST_PAUSE", 60.0)
    monkeypatch.setattr(http_client, "_LONGEST_PAUSE", 60.0)
    server.faults = [BUSY] * 2
    judge = judge_of()
    threading.Timer(0.3, judge.close).start()
    start = time.monotonic()
    with pytest.raises(ClosedError):
        judge.score([tagged("42")])
    assert time.monotonic() - start < 5
