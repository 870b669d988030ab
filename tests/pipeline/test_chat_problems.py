"""Problems that are chats: earlier turns stand in every prompt, and completions continue the beginning of an answer."""

from __future__ import annotations

import json

import pytest

from command_line import SMALL, igrpo, sets
from igrpo_cli.store.layout import RunDirectory
from igrpo_cli.store.schema import ROLLOUTS
from igrpo_cli.store.tables import read_table

EARLIER = [{"role": "user", "content": "1+1=?"}, {"role": "assistant", "content": "<answer>2</answer>"}]
PREFILL = {"role": "assistant", "content": "<think>7"}


@pytest.fixture
def data(tmp_path):
    rows = [{"prompt": [*EARLIER, {"role": "user", "content": f"{n}+8=?"}, PREFILL], "answer": n + 8} for n in range(8)]
    path = tmp_path / "chats.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def rows_of(run: RunDirectory, stage: str):
    return read_table(run.shard(0, stage, 0, 1).data, ROLLOUTS).to_pylist()


def test_examples_and_prefill_are_in_the_prompts_of_all_stages_and_the_prefill_in_the_completions(tmp_path, data):
    run = tmp_path / "run"
    made = igrpo("init", run, "--preset", "arithmetic", *sets(*SMALL, f"data.train={data}", "run.num_iterations=1"))
    assert made.code == 0, made.stderr
    beginning = "<|user|>1+1=?<|assistant|><answer>2</answer><|end|><|user|>"
    assert f"{beginning}0+8=?<|assistant|><think>7\n" in made.stdout
    done = igrpo("run", run)
    assert done.code == 0, done.stderr
    drafts, refinements = (rows_of(RunDirectory(run), stage) for stage in ("draft", "refine"))
    for row in [*drafts, *refinements]:
        assert row["prompt"].startswith(beginning)
        assert row["prompt"].endswith("<|assistant|><think>7")
        assert row["completion"].startswith("<think>7")
    shown = {(row["group_id"], row["sample_id"]): row["completion"] for row in drafts}
    for row in refinements:
        draft = shown[row["group_id"], row["draft_sample_id"]]
        assert f"[draft]\n{draft}\n[/draft]" in row["prompt"]
    evaluated = igrpo("eval", run, "--bench", data, "--samples", "1", "--json")
    assert evaluated.code == 0, evaluated.stderr
    assert evaluated.json["problems"] == 8


def test_the_format_of_a_completion_counts_from_its_prefill(tmp_path, data):
    run = tmp_path / "run"
    igrpo("init", run, "--preset", "arithmetic", *sets(*SMALL, f"data.train={data}"))
    assert igrpo("draft", run).code == 0
    rows = rows_of(RunDirectory(run), "draft")
    well_formed = [row for row in rows if row["reward_format"] == 1]
    assert well_formed, "the tiny policy closes most thoughts"
    for row in well_formed:
        assert row["completion"].count("<think>") == 1
        assert row["completion"].endswith("</answer>")
