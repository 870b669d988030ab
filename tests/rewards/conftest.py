"""A judge on a server of its own, for the tests of judging."""

from __future__ import annotations

import pytest
from fake_judge import FakeJudge

from igrpo_cli import http_client
from igrpo_cli.config.rewards import JudgeSection
from igrpo_cli.rewards.judge import Judge


@pytest.fixture
def server(monkeypatch):
    """A fake judge model; pauses between tries are short."""
    monkeypatch.setattr(http_client, "_LONGEST_PAUSE", 0.01)
    fake = FakeJudge()
    yield fake
    fake.stop()


@pytest.fixture
def judge_of(server, tmp_path):
    """`judge_of(...)`: a judge on the server with some settings, all with one cache; closed at the end."""
    made = []

    def make(cache=tmp_path / "judge", **settings):
        made.append(
            Judge(JudgeSection(**{"endpoint": server.url, "model": "judge", "max_retries": 2, **settings}), cache)
        )
        return made[-1]

    yield make
    for each in made:
        each.close()
