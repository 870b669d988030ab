from __future__ import annotations

import os
import re
import shutil

import pytest

from igrpo_cli.records import Problem
from igrpo_cli.store.completion import count_problems, input_hashes, read_problems
from igrpo_cli.store.manifest import read_manifest
from igrpo_cli.store.parts import PartStore
from igrpo_cli.store.policies import promote_policy, read_policy, write_policy_manifest
from igrpo_cli.store.schema import ROLLOUTS
from igrpo_cli.store.temporaries import temporary_name
from igrpo_cli.store.verify import verify_run
from sample_run import (
    drafts,
    group,
    identity_of,
    make_run,
    publish,
    replace_rows,
    stage_update,
    told,
)


def test_a_finished_run_is_sound(run):
    seen = []
    report = verify_run(run, seen.append)
    assert report.problems == []
    assert report.notes == []
    # the problems, three policies, and in each iteration three stages of two shards and an update
    assert report.num_checked == len(seen) == 1 + 3 + 2 * (3 * 2 + 1)


def test_the_problems_read_back(run):
    assert read_problems(run.problems())[4] == Problem("p4", "What is 4 + 1?", "5", "sums.jsonl:4")
    assert count_problems(run.problems()) == 5


def files_of(root):
    return [path for path in sorted(root.rglob("*")) if path.is_file() and path.name != "README.md"]


@pytest.fixture
def small_run(tmp_path):
    return make_run(tmp_path / "small", num_iterations=1, num_shards=1)


def test_every_file_that_is_removed_is_missed(small_run):
    run = small_run
    for path in files_of(run.root):
        content = path.read_bytes()
        path.unlink()
        assert verify_run(run).problems, path
        path.write_bytes(content)
    assert verify_run(run).problems == []


def test_every_file_that_is_changed_is_noticed(small_run):
    run = small_run
    for path in files_of(run.root):
        content = path.read_bytes()
        path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        assert any(path.name in f"{problem.path} {problem.what}" for problem in verify_run(run).problems), path
        path.write_bytes(content)
    assert verify_run(run).problems == []


def test_damaged_data_is_named_with_the_command_that_makes_it_anew(run):
    path = run.shard(0, "refine", 1, 2)
    os.truncate(path.data, 1000)
    (problem, *further) = [p for p in verify_run(run).problems if p.path == path.data]
    assert further == []
    assert "SHA-256" in problem.what
    assert problem.hint == f"igrpo refine {run.root} --iteration 0 --shard 1 --overwrite"


def test_a_shard_made_again_shows_in_what_was_made_from_it(run):
    replace_rows(run.shard(1, "draft", 0, 2), ROLLOUTS, drafts(0, 1, prompt="another"))
    source = "iteration_0001/draft/shard-00000-of-00002.parquet"
    pattern = rf"iteration_0001/select/.*json was made from another {source} \(sha256 [0-9a-f]{{8}}… then, .*… now\)"
    assert sum(re.match(pattern, text) is not None for text in told(run)) == 2


def test_siblings_must_agree(run):
    path = run.shard(1, "draft", 1, 2)
    manifest = read_manifest(path)
    path.manifest.unlink()
    config = {**manifest.identity.config, "draft": {"temperature": 0.5, "top_k": 0}}
    blocks = [group(group_id, iteration=1) for group_id in (2, 3, 4)]
    inputs, policy = manifest.identity.inputs, manifest.identity.policy
    publish(path, identity_of(path, config=config, inputs=inputs, policy=policy), ROLLOUTS, blocks)
    assert told(run) == [
        "iteration_0001/draft/shard-00001-of-00002.json draft.temperature is 0.5, but 1.0 in draft shard 0 of 2"
    ]


def test_shards_of_two_divisions_are_told_apart(run):
    path = run.shard(1, "draft", 0, 3)
    publish(path, identity_of(path), ROLLOUTS, drafts(0))
    assert "iteration_0001/draft holds shards of 2 beside shards of 3" in told(run)


def test_missing_shards_matter_only_where_later_work_is_there(run):
    shutil.rmtree(run.iteration(1))
    shutil.rmtree(run.policy(2))
    path = run.shard(1, "draft", 1, 2)
    policy = read_policy(run, 1).id
    inputs = input_hashes(run.problems())
    publish(path, identity_of(path, policy=policy, inputs=inputs), ROLLOUTS, drafts(3, 4))
    assert told(run) == []
    run.shard(0, "draft", 1, 2).manifest.unlink()
    report = verify_run(run)
    (missing,) = [problem for problem in report.problems if problem.path == run.stage(0, "draft")]
    assert missing.what == "shards 1 of 2 are missing"
    assert missing.hint == f"igrpo draft {run.root} --iteration 0 --shard 1"
    assert [note.path for note in report.notes] == [run.shard(0, "draft", 1, 2).data]


def test_a_missing_draft_matters_as_soon_as_selections_are_there(run):
    shutil.rmtree(run.stage(1, "refine"))
    shutil.rmtree(run.update(1).directory)
    shutil.rmtree(run.policy(2))
    assert told(run) == []
    run.shard(1, "draft", 1, 2).manifest.unlink()
    assert "iteration_0001/draft shards 1 of 2 are missing" in told(run)


def test_a_damaged_optimizer_state_is_named_and_a_removed_one_is_not_missed(run):
    file = run.update(0).optimizer / "state.safetensors"
    file.write_bytes(b"other")
    (text,) = told(run)
    assert "state.safetensors is damaged" in text
    shutil.rmtree(run.update(0).optimizer)
    assert told(run) == []


def test_a_gap_in_the_iterations_is_a_problem(run):
    shutil.rmtree(run.iteration(0))
    assert any(text.startswith("iteration_0000 does not exist") for text in told(run))


def test_a_run_of_plain_grpo_has_no_select_and_refine(run):
    for iteration in (0, 1):
        shutil.rmtree(run.stage(iteration, "select"))
        shutil.rmtree(run.stage(iteration, "refine"))
        shutil.rmtree(run.update(iteration).directory)
        policy = read_policy(run, iteration).id
        inputs = input_hashes(*run.shards(iteration, "draft", 2))
        shutil.rmtree(run.policy(iteration + 1))
        stage_update(run, iteration, policy, inputs, run.update(iteration).directory)
        promote_policy(run, iteration)
    assert told(run) == []


def test_old_policies_may_go_but_not_the_first_or_the_last(run):
    shutil.rmtree(run.policy(1))
    report = verify_run(run)
    assert report.problems == []
    assert [note.path for note in report.notes] == [run.policy(1)]
    shutil.rmtree(run.policy(2))
    shutil.rmtree(run.policy(0))
    problems = {problem.path: problem.hint for problem in verify_run(run).problems}
    assert problems[run.policy(0)] == f"igrpo init {run.root} --config {run.root}/run.toml"
    assert problems[run.policy(2)] == f"igrpo update {run.root} --iteration 1 --overwrite"


def test_a_policy_that_was_not_made_from_the_one_before_is_a_problem(run):
    file = run.policy(2) / "manifest.json"
    write_policy_manifest(file.parent, 2, "sha256:" + "f" * 64)
    assert any(text.startswith("policies/0002 was not made from policy 1") for text in told(run))


def test_a_shard_of_another_policy_is_a_problem(run):
    path = run.shard(1, "draft", 0, 2)
    manifest = read_manifest(path)
    path.manifest.unlink()
    inputs = manifest.identity.inputs
    publish(path, identity_of(path, inputs=inputs), ROLLOUTS, drafts(0, 1))
    assert any("was made from another policy than" in text for text in told(run))


def test_a_policy_not_yet_settled_is_only_noted(run):
    run.policy(2).rename(run.update(1).policy)
    report = verify_run(run)
    assert report.problems == []
    assert [note.path for note in report.notes] == [run.policy(2)]


def test_leftovers_are_noted_not_blamed(run):
    temporary = run.stage(1, "draft") / temporary_name("shard-00000-of-00002.parquet")
    temporary.touch()
    store = PartStore(run.shard(1, "refine", 0, 2).parts, "1" * 64)
    store.write(0, group(0))
    report = verify_run(run)
    assert report.problems == []
    assert {note.path for note in report.notes} == {temporary, store.directory.parent}


@pytest.mark.parametrize(("policy", "conditioned"), [(1, None), (1, "each"), (1, "best"), ("SmolLM2", None)])
def test_evaluations_are_checked_like_drafts(run, policy, conditioned):
    path = run.eval_shard("sums", policy, 0, 1, conditioned=conditioned)
    changes = {"iteration": path.iteration, "stage": "eval"}
    blocks = [group(0, **changes), group(1, **changes)]
    inputs = input_hashes(run.problems())
    publish(path, identity_of(path, inputs=inputs), ROLLOUTS, blocks)
    assert told(run) == []
    replace_rows(path, ROLLOUTS, [blocks[0], blocks[1][1:]])
    assert any(text.endswith("group 1 has the samples 1, 2 instead of 0 to 2") for text in told(run))
    os.truncate(path.data, 100)
    assert any("SHA-256" in text for text in told(run))
