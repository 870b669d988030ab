"""`igrpo what-if` on a small run: every figure against the rows on disk, and no file of the run is changed."""

from __future__ import annotations

import shutil
from collections import defaultdict

import numpy as np
import pytest

from command_line import igrpo, make_run, sets
from igrpo_cli.commands.what_if import split_values
from igrpo_cli.records import Rollout, Selection
from igrpo_cli.store.tables import read_records

FIGURES_OF_REFINEMENTS = ("refinement_groups_with_variance", "nonzero_advantages", "advantage_abs_mean", "cosine")


def rows(run, stage, iteration=1):
    (path,) = (run / f"iteration_{iteration:04d}" / stage).glob("*.parquet")
    return read_records(path, Selection if stage == "select" else Rollout)


def rewards(run, stage, parts=None, iteration=1):
    """The rewards of each group: the recorded ones, or the sums of some parts."""
    groups = defaultdict(list)
    for row in rows(run, stage, iteration):
        groups[row.group_id].append(row.reward if parts is None else sum(row.reward_parts[name] for name in parts))
    return list(groups.values())


def share_with_variance(groups):
    return sum(len(set(group)) > 1 for group in groups) / len(groups)


def ask(run, *arguments):
    result = igrpo("what-if", run, "--iteration", 1, *arguments, "--json")
    assert result.code == 0, result.stderr
    return {each["name"]: each for each in result.json["variants"]}


def snapshot(run):
    return {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in run.rglob("*") if path.is_file()}


def test_the_settings_of_the_run_are_the_first_row(finished_run):
    own = ask(finished_run)["as run"]
    drafts, refinements = rewards(finished_run, "draft"), rewards(finished_run, "refine")
    groups = [np.array(group) for group in (*drafts, *refinements)]
    advantages = np.concatenate(
        [(group - group.mean()) / (group.std(ddof=1) + 1e-4) if len(set(group)) > 1 else 0 * group for group in groups]
    )
    by_hand = {
        "draft_groups_with_variance": share_with_variance(drafts),
        "refinement_groups_with_variance": share_with_variance(refinements),
        "same_draft": 1.0,
        "draft_reward": np.mean([max(group) for group in drafts]),
        "refinements": 24,
        "nonzero_advantages": (advantages != 0).mean(),
        "advantage_abs_mean": np.abs(advantages).mean(),
    }
    assert {name: own[name] for name in by_hand} == pytest.approx(by_hand)
    assert (own["cosine"], own["ess_tokens"], own["ess_sequences"]) == (None, None, None)


def test_four_rules_in_one_call_and_refinements_of_other_drafts_are_not_known(finished_run):
    before = snapshot(finished_run)
    found = ask(finished_run, "--vary", "select.strategy=best,random,wrong,worst", "--gradient", "--against", 2)
    assert list(found) == ["as run", *(f"select.strategy={name}" for name in ("best", "random", "wrong", "worst"))]
    own, best, worst = (found[name] for name in ("as run", "select.strategy=best", "select.strategy=worst"))
    assert {**best, "name": "as run", "settings": []} == own
    assert own["cosine"] == 1.0
    groups = rewards(finished_run, "draft")
    assert worst["draft_reward"] == pytest.approx(np.mean([min(group) for group in groups]))
    chosen = [each.draft_sample_id for each in rows(finished_run, "select")]
    same = np.mean([group.index(min(group)) == index for group, index in zip(groups, chosen, strict=True)])
    assert worst["same_draft"] == same < 1
    assert worst["draft_groups_with_variance"] == own["draft_groups_with_variance"]
    assert [worst[name] for name in (*FIGURES_OF_REFINEMENTS, "ess_tokens", "ess_sequences")] == [None] * 6
    assert snapshot(finished_run) == before


def test_another_normalisation_and_its_gradient(finished_run):
    found = ask(finished_run, "--vary", "update.scale_rewards=none,sample_std", "--gradient")
    groups = [np.array(group) for stage in ("draft", "refine") for group in rewards(finished_run, stage)]
    undivided = np.mean([np.abs(group - group.mean()) for group in groups])
    none, same = found["update.scale_rewards=none"], found["update.scale_rewards=sample_std"]
    assert none["advantage_abs_mean"] == pytest.approx(undivided)
    assert none["nonzero_advantages"] == found["as run"]["nonzero_advantages"]
    assert 0.5 < none["cosine"] < 1
    assert same["cosine"] == 1.0
    # The constants of an objective are its published ones, whatever the manifest of `grpo` records.
    dr_grpo = ask(finished_run, "--set", "update.loss_type=dr_grpo")["update.loss_type=dr_grpo"]
    assert dr_grpo["advantage_abs_mean"] == none["advantage_abs_mean"]


def test_another_reward_of_the_stored_parts(finished_run):
    weights = "reward.weights={accuracy=1}", "reward.weights={format=1}", "reward.weights={accuracy=1, format=1}"
    found = ask(finished_run, "--vary", "reward.weights={accuracy=1},{format=1},{accuracy=1, format=1}")
    assert tuple(found)[1:] == weights
    for name, parts in zip(weights, (["accuracy"], ["format"], ["accuracy", "format"]), strict=True):
        drafts, refinements = (rewards(finished_run, stage, parts) for stage in ("draft", "refine"))
        assert found[name]["draft_groups_with_variance"] == share_with_variance(drafts)
        assert found[name]["refinement_groups_with_variance"] == share_with_variance(refinements)
        assert found[name]["draft_reward"] == pytest.approx(np.mean([max(group) for group in drafts]))
    assert {**found[weights[2]], "name": "as run", "settings": []} == found["as run"]
    text = igrpo("what-if", finished_run, "--set", weights[1]).stdout
    marked = f"{weights[1]} *" in text
    assert marked == (found[weights[1]]["same_draft"] < 1)


def test_dynamic_sampling_and_drafts_alone(finished_run):
    found = ask(finished_run, "--vary", "update.train_on=drafts,refinements", "--set", "select.strategy=worst")
    assert found["update.train_on=refinements"]["nonzero_advantages"] is None
    groups = rewards(finished_run, "draft")
    in_varied = sum(len(group) for group in groups if len(set(group)) > 1)
    # An advantage is 0 where a reward equals the mean of its group.
    zero = sum(reward == np.mean(group) for group in groups if len(set(group)) > 1 for reward in group)
    expected = (in_varied - zero) / sum(map(len, groups))
    assert found["update.train_on=drafts"]["nonzero_advantages"] == pytest.approx(expected)
    dynamic = ask(finished_run, "--set", "update.dynamic_sampling=true")["update.dynamic_sampling=true"]
    assert dynamic["nonzero_advantages"] > ask(finished_run)["as run"]["nonzero_advantages"]


def test_alternating_iterations_are_asked_as_the_one_that_is_looked_at(finished_run):
    found = igrpo("what-if", finished_run, "--iteration", "1", *sets("update.train_on=alternate"), "--json")
    assert found.code == 0, found.stderr
    same = igrpo("what-if", finished_run, "--iteration", "1", *sets("update.train_on=refinements"), "--json").json
    figures = [[{**row, "name": "", "settings": []} for row in each["variants"]] for each in (found.json, same)]
    assert figures[0] == figures[1]


def test_the_effective_sample_size_falls_with_later_policies(finished_run):
    sizes = {}
    for policy in (1, 2):
        own = ask(finished_run, "--against", policy)["as run"]
        sizes[policy] = own["ess_tokens"], own["ess_sequences"]
    # Trainer and sampler compute the probabilities of policy 1 with other roundings.
    assert sizes[1] == pytest.approx((1.0, 1.0), abs=1e-5)
    assert 0 < sizes[2][1] < sizes[2][0] < sizes[1][0]


def test_means_over_iterations_and_figures(finished_run, tmp_path):
    arguments = ["--vary", "select.strategy=best,worst", "--figures", tmp_path / "drawn"]
    result = igrpo("what-if", finished_run, "--iteration", "0-1", *arguments, "--json")
    assert result.code == 0, result.stderr
    found = result.json
    own = [each["as run"]["draft_groups_with_variance"] for each in found["by_iteration"]]
    assert own == [share_with_variance(rewards(finished_run, "draft", iteration=number)) for number in (0, 1)]
    assert found["variants"][0]["draft_groups_with_variance"] == pytest.approx(sum(own) / 2)
    assert all(path.endswith(".svg") for path in found["figures"])
    assert "select.strategy=worst" in (tmp_path / "drawn/draft-reward.svg").read_text()


def test_text_and_markdown(finished_run):
    lines = igrpo("what-if", finished_run, "--vary", "select.strategy=worst").stdout.splitlines()
    assert lines[0].split()[:3] == ["variant", "drafts", "vary"]
    assert "cosine" not in lines[0]
    assert lines[2].startswith("as run ")
    assert "Iteration 1." in lines
    assert any("cannot be known without sampling" in line for line in lines)
    table = igrpo("what-if", finished_run, "--vary", "select.strategy=worst", "--markdown").stdout
    assert "| select.strategy=worst | " in table


def test_drafts_without_refinements(tmp_path):
    run = make_run(tmp_path / "run")
    missing = igrpo("what-if", run)
    assert (missing.code, missing.stdout) == (3, "")
    assert f"hint: igrpo draft {run}" in missing.stderr
    assert igrpo("draft", run).code == 0
    result = igrpo("what-if", run, "--vary", "select.strategy=best,worst", "--json")
    assert result.code == 0, result.stderr
    assert "refinements of iteration 0 are not complete: only drafts count" in result.stderr
    own, best, worst = result.json["variants"]
    assert best["draft_reward"] == own["draft_reward"] >= worst["draft_reward"]
    assert own["nonzero_advantages"] is None


def test_wrong_requests_say_what_to_type(finished_run, tmp_path):
    for arguments, code, error, hint in [
        (["--set", "draft.temperature=0.5"], 2, "draft.temperature changes nothing that stored", "what-if takes all"),
        (["--set", "update.learning_rate=1"], 2, "update.learning_rate changes nothing", "of update what-if takes"),
        (["--set", "update.scale_reward=none"], 2, "what-if: unknown key update.scale_reward; did you mean", "`igrpo"),
        (["--vary", "select.strategy=best,wost"], 2, "--set: select.strategy = 'wost'", "`igrpo init"),
        (
            ["--set", "reward.weights={accuracy=1,length=0.5}"],
            2,
            "the draft rollouts of iteration 1 have no part",
            f"igrpo grade {finished_run} --stage draft --iteration 1 --reward accuracy=1 --reward length=0.5 --scores",
        ),
        (["--iteration", "5"], 2, "iteration 5 of 2 does not exist", "for example --iteration 0"),
        (["--against", "7"], 3, "policy 7 does not exist", "igrpo status"),
        (["--set", "select.scores=mine"], 3, "", "igrpo grade"),
        (["--png"], 2, "--png needs a folder", "--figures"),
    ]:
        result = igrpo("what-if", finished_run, *arguments)
        assert (result.code, result.stdout) == (code, ""), (arguments, result.stderr)
        first, second = result.stderr.splitlines()
        assert first.startswith(f"error: {error}"), result.stderr
        assert second.startswith(f"hint: {hint}"), result.stderr
    assert igrpo("what-if", tmp_path).code == 3


def test_plain_grpo_has_no_selection(tmp_path):
    run = make_run(tmp_path / "run", "run.method=grpo", "run.num_iterations=1")
    assert igrpo("run", run).code == 0
    result = igrpo("what-if", run, *sets("select.strategy=worst"))
    assert result.code == 2
    assert 'run.method = "grpo" has no selection' in result.stderr
    found = igrpo("what-if", run, "--vary", "update.scale_rewards=none", "--gradient", "--json").json["variants"]
    assert (found[0]["same_draft"], found[0]["cosine"]) == (None, 1.0)


def test_damaged_rollouts_are_an_error(finished_run, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(finished_run, run)
    shard = run / "iteration_0001/refine/shard-00000-of-00001.parquet"
    data = bytearray(shard.read_bytes())
    data[len(data) // 2] ^= 1
    shard.write_bytes(data)
    result = igrpo("what-if", run, "--vary", "select.strategy=worst")
    assert (result.code, result.stdout) == (1, "")
    assert str(shard) in result.stderr


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("best,worst", ["best", "worst"]),
        ("{accuracy=1, format=0}, {format=1}", ["{accuracy=1, format=0}", "{format=1}"]),
        ('"a,b",c', ['"a,b"', "c"]),
        ("1", ["1"]),
    ],
)
def test_a_comma_in_brackets_or_quotes_separates_nothing(text, values):
    assert split_values(text) == values
