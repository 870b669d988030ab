"""Judgements on disk: paid for once, shared by processes, and read with care."""

from __future__ import annotations

import errno
import hashlib
import json
import subprocess
import sys
from pathlib import Path

import pytest
from fake_judge import COMPLETION_TOKENS, PROMPT_TOKENS, tagged

from igrpo_cli.errors import IgrpoError
from igrpo_cli.rewards.judge_cache import JudgementCache
from igrpo_cli.rewards.judge_chat import JudgeScore

KEYS = [digit * 64 for digit in "0123456789"]
RIGHT = JudgeScore(1.0)
NO_VERDICT = JudgeScore(None, "no verdict")
GOOD = {"key": KEYS[1], "score": 0.5, "prompt_tokens": 1, "completion_tokens": 1}

JUDGE_IN_A_PROCESS = """
import json, sys
from pathlib import Path
from fake_judge import tagged
from igrpo_cli.errors import IgrpoError
from igrpo_cli.config.rewards import JudgeSection
from igrpo_cli.rewards.judge import Judge
url, cache, first, last, max_calls = sys.argv[1:]
judge = Judge(JudgeSection(endpoint=url, model="judge", max_concurrency=2, max_calls=int(max_calls)), Path(cache))
try:
    scores = [each.score for each in judge.score([tagged(str(n), "4") for n in range(int(first), int(last))])]
except IgrpoError as error:
    scores = error.message
print(json.dumps([scores, judge.num_calls, judge.num_cached]))
"""


def line(**fields):
    """A line as it is written, with the hash of the text before the hash."""
    text = f"{json.dumps(GOOD | fields)[:-1]}, "
    return f'{text}"checksum": "{hashlib.sha256(text.encode()).hexdigest()}"}}'


def lines_in(directory):
    return [json.loads(line) for path in sorted(directory.glob("*.jsonl")) for line in path.read_text().splitlines()]


def test_a_judgement_is_one_line_without_any_text(server, judge_of, tmp_path):
    judge_of().score([tagged("41")])
    (kept,) = lines_in(tmp_path / "judge")
    assert len(kept.pop("key")) == len(kept.pop("checksum")) == 64
    assert kept == {"score": 0.0, "prompt_tokens": PROMPT_TOKENS, "completion_tokens": COMPLETION_TOKENS}


def test_a_resumed_run_pays_for_nothing_twice(server, judge_of):
    requests = [tagged("41"), tagged("42")]
    first = judge_of().score(requests)
    again = judge_of()
    assert again.score(requests) == first
    assert (again.num_calls, again.num_tokens, again.num_cached) == (0, 0, 2)
    assert len(server.asked) == 2


@pytest.mark.parametrize("change", [{"model": "other"}, {"temperature": 0.5}, {"max_completion_tokens": 99}])
def test_what_decides_a_judgement_is_in_its_key(server, judge_of, change):
    judge_of().score([tagged("42")])
    judge_of(**change).score([tagged("42")])
    judge_of(**change).score([tagged("42")])
    judge_of(max_concurrency=1, timeout=9.0, max_retries=0).score([tagged("42")])
    assert len(server.asked) == 2


def test_a_reply_without_a_verdict_is_kept_where_it_would_be_the_same_again(server, judge_of, tmp_path):
    server.reply = lambda prompt: "I cannot say."
    for _ in range(2):
        assert judge_of().score([tagged("42")]) == [NO_VERDICT]
    assert len(server.asked) == 1
    for _ in range(2):
        assert judge_of(temperature=0.5).score([tagged("42")]) == [NO_VERDICT]
    assert len(server.asked) == 3
    assert [line["key"] is None for line in lines_in(tmp_path / "judge")].count(True) == 2
    with pytest.raises(IgrpoError, match="3 calls were used"):
        judge_of(max_calls=3).score([tagged("41")])


def run_judge(server, cache, first, last, max_calls=1000):
    command = [sys.executable, "-c", JUDGE_IN_A_PROCESS, server.url, str(cache), str(first), str(last), str(max_calls)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parent)


def result_of(process):
    stdout, _ = process.communicate(timeout=60)
    assert process.returncode == 0
    return json.loads(stdout)


def test_two_processes_share_a_cache(server, judge_of, tmp_path):
    cache = tmp_path / "judge"
    assert result_of(run_judge(server, cache, 0, 6)) == [[0.0] * 4 + [1.0, 0.0], 6, 0]
    assert result_of(run_judge(server, cache, 3, 9)) == [[0.0, 1.0, 0.0, 0.0, 0.0, 0.0], 3, 3]
    assert len(server.asked) == 9
    assert len(list(cache.iterdir())) == 2


def test_processes_at_work_at_the_same_time_share_a_budget(server, tmp_path):
    server.seconds = 0.02
    running = [run_judge(server, tmp_path / "judge", 100 * n, 100 * n + 60, max_calls=40) for n in range(2)]
    results = [result_of(process) for process in running]
    assert all("judge.max_calls is 40" in message for message, _, _ in results)
    # A few more are under way at the end; two budgets would be 80.
    assert 40 <= server.num_answered <= 50
    assert sum(calls for _, calls, _ in results) == server.num_answered


def test_what_another_process_adds_is_found_later(tmp_path):
    ours, theirs = JudgementCache(tmp_path), JudgementCache(tmp_path)
    assert ours.get(KEYS[0]) is None
    theirs.add(KEYS[0], RIGHT, 30, 7)
    theirs.add(None, NO_VERDICT, 3, 1)
    assert ours.get(KEYS[0]) is None
    ours.read_others()
    assert ours.get(KEYS[0]) == RIGHT
    assert (ours.num_calls, ours.num_tokens) == (2, 41)
    theirs.add(KEYS[1], NO_VERDICT, 0, 0)
    ours.add(KEYS[2], RIGHT, 1, 1)
    ours.read_others()
    ours.read_others()
    assert ours.get(KEYS[1]) == NO_VERDICT
    assert (ours.num_calls, ours.num_tokens, ours.num_damaged) == (4, 43, 0)


def test_of_two_judgements_the_first_one_stands(tmp_path):
    for name, score in (("b-1-00", 0.0), ("a-2-00", 1.0)):
        (tmp_path / f"{name}.jsonl").write_text(line(key=KEYS[0], score=score) + "\n")
    cache, other = JudgementCache(tmp_path), JudgementCache(tmp_path)
    assert cache.get(KEYS[0]) == RIGHT
    other.add(KEYS[0], JudgeScore(0.5), 1, 1)
    cache.read_others()
    assert cache.get(KEYS[0]) == RIGHT
    assert cache.num_calls == 3


def test_half_a_last_line_is_read_when_it_is_whole(tmp_path):
    writer = JudgementCache(tmp_path)
    for key in KEYS[:2]:
        writer.add(key, RIGHT, 30, 7)
    (path,) = tmp_path.iterdir()
    whole = path.read_bytes()
    path.write_bytes(whole[:-20])
    cache = JudgementCache(tmp_path)
    assert (cache.get(KEYS[0]), cache.get(KEYS[1])) == (RIGHT, None)
    assert (cache.num_calls, cache.num_damaged) == (1, 0)
    path.write_bytes(whole)
    cache.read_others()
    assert cache.get(KEYS[1]) == RIGHT
    assert (cache.num_calls, cache.num_damaged) == (2, 0)


@pytest.mark.parametrize(
    "damaged",
    [
        b" ",
        b"{",
        b"\xff\xfe",
        b"[]",
        b"3",
        b"[" * 100_000,
        line(score=1.5).encode(),
        b'{"key": "' + KEYS[1].encode() + b'", "score": NaN, "prompt_tokens": 1, "completion_tokens": 1}',
        line(score=True).encode(),
        line(score="1").encode(),
        line(score=None).encode(),
        line(key="1" * 63).encode(),
        line(key=1).encode(),
        line(prompt_tokens=-1).encode(),
        line(completion_tokens=1.5).encode(),
        json.dumps({name: value for name, value in GOOD.items() if name != "prompt_tokens"}).encode(),
        json.dumps(GOOD).encode(),
    ],
    ids=range(17),
)
def test_a_damaged_line_is_passed_over_and_counted(tmp_path, damaged):
    good = line(key=KEYS[2]).encode()
    (tmp_path / "node-1-00.jsonl").write_bytes(damaged + b"\n" + good + b"\n")
    cache = JudgementCache(tmp_path)
    assert cache.get(KEYS[1]) is None
    assert cache.get(KEYS[2]) == JudgeScore(0.5)
    assert (cache.num_calls, cache.num_tokens, cache.num_damaged) == (1, 2, 1)


def test_no_flipped_bit_changes_a_judgement(tmp_path):
    path, good = tmp_path / "node-1-00.jsonl", f"{line()}\n{line(key=KEYS[2])}\n".encode()
    for bit in range(8 * len(good)):
        flipped = bytearray(good)
        flipped[bit // 8] ^= 1 << bit % 8
        path.write_bytes(flipped)
        cache = JudgementCache(tmp_path)
        assert {cache.get(KEYS[1]), cache.get(KEYS[2])} <= {JudgeScore(0.5), None}, bit
        # One bit between both lines, or at the end, takes a line break away; what is then no line is waited for.
        assert cache.num_calls + cache.num_damaged in (1, 2, 3)


def test_what_follows_half_a_line_of_a_full_disk_is_whole(tmp_path, monkeypatch):
    def write_half(path, mode):
        whole = open_file(path, mode)

        class Half:
            def __enter__(self):
                return self

            def __exit__(self, *_):
                whole.close()

            def write(self, content):
                whole.write(content[:30])
                raise OSError(errno.ENOSPC, "No space left on device")

        return Half()

    open_file, cache = Path.open, JudgementCache(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", write_half)
        for _ in range(2):
            with pytest.raises(OSError, match="No space"):
                cache.add(KEYS[1], RIGHT, 1, 1)
    cache.add(KEYS[2], RIGHT, 1, 1)
    other = JudgementCache(tmp_path)
    assert (other.get(KEYS[1]), other.get(KEYS[2])) == (None, RIGHT)
    assert other.num_damaged == 0
    cache.read_others()
    assert (cache.num_calls, other.num_calls) == (1, 1)
