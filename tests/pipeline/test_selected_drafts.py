"""Selections of whole runs: which drafts the strategies show, and external drafts."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from command_line import files_below, igrpo, make_run, run_to_end, sets


def rows(run: Path, stage: str) -> list[dict]:
    return [
        row for path in sorted(run.glob(f"iteration_0000/{stage}/*.parquet")) for row in pq.read_table(path).to_pylist()
    ]


def manifest(run: Path, stage: str) -> dict:
    return json.loads(next(run.glob(f"iteration_0000/{stage}/*.json")).read_text())


@pytest.fixture(scope="module")
def drafted(tmp_path_factory) -> Path:
    """A run of three shards with drafts alone."""
    run = make_run(tmp_path_factory.mktemp("drafted") / "run", "run.num_shards=3", "engine.groups_per_block=3")
    assert igrpo("draft", run).code == 0
    return run


def selected(run: Path, *settings: str) -> list[dict]:
    result = igrpo("select", run, "--overwrite", *sets(*settings))
    assert result.code == 0, result.stderr
    return rows(run, "select")


def test_wrong_and_balanced_drafts_are_those_with_accuracy_0(drafted):
    accuracy = {(row["group_id"], row["sample_id"]): row["reward_accuracy"] for row in rows(drafted, "draft")}
    of_group = {group: [value for (each, _), value in accuracy.items() if each == group] for group, _ in accuracy}
    assert any(len(set(values)) > 1 for values in of_group.values()), "some problem has right and wrong drafts"
    for row in selected(drafted, "select.strategy=wrong"):
        assert accuracy[row["draft_group_id"], row["draft_sample_id"]] == min(of_group[row["group_id"]])
    assert {row["draft_group_id"] for row in selected(drafted, "select.strategy=balanced")} == set(of_group)
    assert igrpo("verify", drafted).code == 0


def test_a_shuffled_wrong_draft_is_wrong_and_of_another_problem_in_any_number_of_shards(drafted, tmp_path):
    accuracy = {(row["group_id"], row["sample_id"]): row["reward_accuracy"] for row in rows(drafted, "draft")}
    found = selected(drafted, "select.strategy=shuffled_wrong")
    assert all(accuracy[row["draft_group_id"], row["draft_sample_id"]] == 0.0 for row in found)
    assert all(row["draft_group_id"] != row["group_id"] for row in found)
    assert igrpo("verify", drafted).code == 0
    one = make_run(tmp_path / "one", "engine.groups_per_block=3", "select.strategy=shuffled_wrong")
    assert igrpo("draft", one).code == igrpo("select", one).code == 0
    assert rows(one, "select") == found


def test_which_drafts_are_wrong_depends_on_the_weight_of_accuracy(drafted):
    by_accuracy = manifest(drafted, "select")["identity"]["config"]
    selected(drafted, "select.strategy=wrong")
    assert "weights" not in by_accuracy["reward"] or by_accuracy["select"]["strategy"] != "best"
    assert manifest(drafted, "select")["identity"]["config"]["reward"]["weights"] == {"accuracy": 1.0, "format": 1.0}
    rewards = {(row["group_id"], row["sample_id"]): row["reward"] for row in rows(drafted, "draft")}
    by_reward = selected(drafted, "select.strategy=wrong", "reward.weights={format=1.0}")
    for row in by_reward:
        of_group = [reward for (group, _), reward in rewards.items() if group == row["group_id"]]
        if min(of_group) <= 0:
            assert row["draft_reward"] <= 0


def external_file(run: Path, path: Path, leave_out: int = 0) -> Path:
    ids = pq.read_table(run / "problems.parquet")["problem_id"].to_pylist()[leave_out:]
    drafts = [{"problem_id": each, "draft": f"weak {number} {each}"} for each in ids for number in range(2)]
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(drafts), path)
    else:
        path.write_text("".join(f"{json.dumps(draft)}\n" for draft in drafts))
    return path


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
def test_external_drafts_of_a_file_are_shown_and_recorded(finished_run, tmp_path, suffix):
    path = external_file(finished_run, tmp_path / f"drafts{suffix}")
    strategy = ("select.strategy=external", f"select.external={path}", "run.num_iterations=1")
    run = run_to_end(make_run(tmp_path / "run", *strategy))
    chosen = rows(run, "select")
    assert {row["draft_group_id"] for row in chosen} == {-1}
    assert {row["draft_sample_id"] for row in chosen} == {0, 1}
    assert all(row["draft"] == f"weak {row['draft_sample_id']} {row['problem_id']}" for row in chosen)
    assert all(f"weak {row['draft_sample_id']}" in row["prompt"] for row in rows(run, "refine"))
    assert len(manifest(run, "select")["identity"]["config"]["select"]["external_sha256"]) == 64
    for command in (("verify",), ("show",), ("report",), ("status",)):
        result = igrpo(*command, run)
        assert result.code == 0, result.stderr
    assert "external draft" in igrpo("show", run).stdout
    before = files_below(run)
    path.write_bytes(path.read_bytes() + b"\n")
    assert igrpo("select", run, "--iteration", 0).code == 4, "another file is another selection"
    assert files_below(run) == before


def test_the_drafts_of_another_run_are_external_drafts(finished_run, tmp_path):
    run = make_run(tmp_path / "run", "select.strategy=external", f"select.external={finished_run}")
    for stage in ("draft", "select"):
        assert igrpo(stage, run).code == 0
    theirs = {row["completion"] for row in rows(finished_run, "draft")}
    assert all(row["draft"] in theirs for row in rows(run, "select"))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["select.strategy=external"], "needs select.external"),
        (["select.strategy=external", "select.external=absent.jsonl"], "does not exist"),
        (["select.strategy=external", "select.external=x.jsonl", "prompts.draft_view=answer_only"], "draft_view"),
    ],
)
def test_external_drafts_that_cannot_be_shown_are_refused(tmp_path, settings, message):
    result = igrpo("init", tmp_path / "run", "--preset", "arithmetic", *sets(*settings))
    assert result.code in (2, 3)
    assert message in result.stderr


def test_a_problem_without_external_draft_is_named(finished_run, tmp_path):
    path = external_file(finished_run, tmp_path / "drafts.jsonl", leave_out=3)
    missing = pq.read_table(finished_run / "problems.parquet")["problem_id"].to_pylist()[:3]
    overrides = sets("select.strategy=external", f"select.external={path}", "run.num_iterations=99")
    result = igrpo("init", tmp_path / "run", "--preset", "arithmetic", *overrides)
    assert result.code == 3
    assert all(each in result.stderr for each in missing)
    assert not (tmp_path / "run" / "run.toml").exists()
    path.write_text('{"problem_id": "a"}\n')
    result = igrpo("init", tmp_path / "run", "--preset", "arithmetic", *overrides)
    assert "row 1 has no texts problem_id and draft" in result.stderr


@pytest.mark.parametrize("turn", ["user", "assistant"])
def test_an_empty_slot_stands_in_every_prompt_without_draft(tmp_path, turn):
    prompts = (f"prompts.draft_turn={turn}", "prompts.empty_draft=none", "prompts.refine_request=again")
    run = make_run(tmp_path / "run", *prompts, "select.all_zero=bare", "run.num_iterations=1")
    assert igrpo("run", run).code == 0
    assert igrpo("eval", run, "--bench", "arithmetic", *sets("eval.limit=2")).code == 0
    assert igrpo("eval", run, "--bench", "arithmetic", "--with-draft", *sets("eval.limit=2")).code == 0
    slot = "[draft]\nnone\n[/draft]" if turn == "user" else "<|assistant|>none<|end|><|user|>again"
    evaluated = {path.parent.name: pq.read_table(path).to_pylist() for path in run.glob("eval/arithmetic/*/*.parquet")}
    found = [*rows(run, "draft"), *rows(run, "refine"), *(row for each in evaluated.values() for row in each)]
    assert len(evaluated) == 2
    assert {row["draft_sample_id"] is None for row in found} == {True, False}
    for row in found:
        assert (slot in row["prompt"]) == (row["draft_sample_id"] is None), row["prompt"]
    assert igrpo("verify", run).code == 0


def test_a_template_that_cannot_show_an_answer_is_refused(tmp_path):
    model = tmp_path / "model"
    shutil.copytree(Path(__file__).parents[2] / "data" / "tiny-policy", model)
    template = (model / "chat_template.jinja").read_text()
    (model / "chat_template.jinja").write_text(template.replace("{%- else -%}", "{%- elif false -%}"))
    overrides = sets(f"policy.model={model}", "prompts.draft_turn=assistant", "prompts.refine_request=again")
    result = igrpo("init", tmp_path / "run", "--preset", "arithmetic", *overrides)
    assert result.code == 1
    assert "drops 1 of 2 texts of the prompt" in result.stderr
    assert "prompts.draft_turn=user" in result.stderr
    assert not (tmp_path / "run" / "run.toml").exists()


ADAPTIVE = ("select.allocation=adaptive", "refine.num_generations=3", "engine.groups_per_block=3")


def test_an_adaptive_run_refines_by_solve_rate_within_the_budget(tmp_path):
    settings = (*ADAPTIVE, "select.strategy=opposite", "run.num_iterations=1", "data.problems_per_iteration=16")
    run = run_to_end(make_run(tmp_path / "run", *settings))
    right, num_drafts = Counter(), Counter()
    for row in rows(run, "draft"):
        right[row["group_id"]] += int(row["reward_accuracy"])
        num_drafts[row["group_id"]] += 1
    chosen, sampled = rows(run, "select"), Counter(row["group_id"] for row in rows(run, "refine"))
    assert sum(sampled.values()) <= 3 * len(chosen)
    assert len({0, *sampled.values()}) > 2, "groups have different sizes"
    for row in chosen:
        group = row["group_id"]
        assert row["num_refinements"] == sampled[group]
        assert (row["action"] == "drop") == (sampled[group] == 0)
        if right[group] == num_drafts[group]:
            assert sampled[group] == 0
    counts = manifest(run, "select")["counts"]
    assert counts["refinements"] == sum(sampled.values())
    metrics = pq.read_table(run / "iteration_0000/update/metrics.parquet").to_pylist()
    values = {row["name"]: row["value"] for row in metrics if row["step"] == -1}
    assert values["select/refinements_mean"] == pytest.approx(sum(sampled.values()) / len(chosen))
    assert 0 < values["refine/groups_with_gradient"] <= 1
    for command in ("verify", "status", "show", "report"):
        result = igrpo(command, run)
        assert result.code == 0, result.stderr
    before = files_below(run)
    assert igrpo("run", run).code == 0
    assert files_below(run) == before


def test_an_allocation_does_not_depend_on_the_number_of_shards(tmp_path):
    found = []
    for number in (1, 3):
        settings = (*ADAPTIVE, f"run.num_shards={number}", "select.strategy=shuffled_wrong", "run.num_iterations=1")
        run = make_run(tmp_path / f"of-{number}", *settings)
        for stage in ("draft", "select", "refine"):
            assert igrpo(stage, run).code == 0
        found.append([rows(run, stage) for stage in ("select", "refine")])
        assert igrpo("verify", run).code == 0
    assert found[0] == found[1]


def test_verify_finds_a_group_that_has_not_its_number_of_refinements(tmp_path):
    run = make_run(tmp_path / "run", *ADAPTIVE, "select.strategy=wrong")
    for stage in ("draft", "select", "refine"):
        assert igrpo(stage, run).code == 0
    path = next(run.glob("iteration_0000/refine/*.parquet"))
    refined = pq.read_table(path)
    pq.write_table(refined.slice(0, refined.num_rows - 1), path)
    assert igrpo("verify", run).code != 0


def test_where_all_drafts_are_right_each_problem_is_refined(tmp_path):
    run = make_run(tmp_path / "run", *ADAPTIVE, "run.num_iterations=1")
    assert igrpo("draft", run).code == 0
    everyone = sets("reward.weights={length=1.0}", "select.scores=length")
    assert igrpo("grade", run, "--stage", "draft", "--reward", "length", "--scores", "length").code == 0
    assert igrpo("select", run, *everyone).code == 0
    assert {row["num_refinements"] for row in rows(run, "select")} == {3}
    assert {row["action"] for row in rows(run, "select")} == {"condition"}


def test_a_fixed_allocation_leaves_the_number_to_the_stage(finished_run):
    assert {row["num_refinements"] for row in rows(finished_run, "select")} == {None}
    identity = manifest(finished_run, "select")["identity"]["config"]
    assert "refine" not in identity
    assert "weights" not in identity["reward"]
