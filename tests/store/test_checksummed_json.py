"""JSON that is published: every bit of it counts, for `igrpo verify` and for whoever reads it."""

from __future__ import annotations

import json

import pytest

from igrpo_cli.errors import DamagedFileError
from igrpo_cli.rewards.judge_cache import JudgementCache
from igrpo_cli.rewards.judge_chat import JudgeScore
from igrpo_cli.store.checksummed_json import read_sent, read_summary, record_directory, write_sent, write_summary
from igrpo_cli.store.layout import RunDirectory
from igrpo_cli.store.policies import MANIFEST, POINTER, write_pointer, write_policy_manifest
from igrpo_cli.store.schema import PROBLEMS, SCORES
from igrpo_cli.store.verify import verify_run
from sample_run import POLICY, identity_of, model_directory, publish

FIGURES = {"bench": "sums", "problems": 4, "avg_at_k": 0.0, "ci95": [0.0, 0.25], "pass_at": {"1": 1e-06}}


def summary_of(run):
    path = run.eval_summary("sums", 3)
    write_summary(path, FIGURES)
    return path


def policy_of(run):
    directory = model_directory(run.policy(1))
    write_policy_manifest(directory, 1, POLICY)
    return directory / MANIFEST


def pointer_of(run):
    model_directory(run.root / "model")
    write_pointer(run, "owner/model", "main", run.root / "model")
    return run.policy(0) / POINTER


def optimizer_of(run):
    directory = run.update(0).optimizer
    directory.mkdir(parents=True)
    (directory / "state.safetensors").write_bytes(b"moments")
    record_directory(directory)
    return directory / "manifest.json"


def problems_of(run):
    publish(run.problems(), identity_of(run.problems(), inputs=()), PROBLEMS, [])
    return run.problems().manifest


def scores_of(run):
    path = run.scores(run.shard(0, "draft", 0, 1), "format")
    publish(path, identity_of(path, inputs=()), SCORES, [])
    return path.manifest


def sent_of(run):
    path = run.root / "log" / "wandb.json"
    write_sent(path, "0123abcd", ["iteration_0000/update", "eval/sums/policy_0003"])
    return path


def judgements_of(run):
    cache = JudgementCache(run.judgements)
    cache.add("a" * 64, JudgeScore(0.5), 30, 7)
    cache.add("b" * 64, JudgeScore(None, "n\u00f3 \u00ffverdict"), 30, 7)
    (path,) = run.judgements.iterdir()
    return path


def naming(run, path):
    """The problems of `verify_run` that name a file."""
    name = path.relative_to(run.root).as_posix()
    return [each for each in verify_run(run).problems if name in f"{each.path} {each.what}"]


MAKERS = [summary_of, policy_of, pointer_of, optimizer_of, problems_of, scores_of, sent_of, judgements_of]


@pytest.mark.parametrize("make", MAKERS)
def test_a_flipped_bit_of_each_byte_is_named(tmp_path, make):
    run = RunDirectory(tmp_path)
    path = make(run)
    assert naming(run, path) == []
    content = path.read_bytes()
    assert content.endswith(b"\n")
    for byte in range(len(content) - (path.suffix == ".jsonl")):
        damaged = bytearray(content)
        damaged[byte] ^= 1 << byte % 8
        path.write_bytes(damaged)
        assert naming(run, path), f"byte {byte}: {content[byte - 9 : byte + 9]!r}"
    path.write_bytes(content)
    assert naming(run, path) == []


@pytest.mark.parametrize("content", ["x", "", "[]", "{}", json.dumps(FIGURES), None])
def test_a_summary_that_is_another_one_is_named_with_what_makes_it_anew(tmp_path, content):
    run = RunDirectory(tmp_path)
    path = summary_of(run)
    path.write_text(content if content is not None else path.read_text().replace("0.25", "0.75"))
    (problem,) = naming(run, path)
    assert problem.hint.startswith("igrpo eval --bench sums --iteration 3,")
    with pytest.raises(DamagedFileError, match=r"summary\.json"):
        read_summary(path)


def test_what_was_written_is_read(tmp_path):
    run = RunDirectory(tmp_path)
    assert read_summary(summary_of(run)) == FIGURES
    assert read_sent(sent_of(run)) == ("0123abcd", ["iteration_0000/update", "eval/sums/policy_0003"])


@pytest.mark.parametrize("make", [maker for maker in MAKERS if maker is not judgements_of])
def test_a_record_without_its_checksum_is_damage(tmp_path, make):
    run = RunDirectory(tmp_path)
    path = make(run)
    value = json.loads(path.read_text())
    del value["checksum"]
    path.write_text(f"{json.dumps(value, indent=2)}\n")
    (problem, *_) = naming(run, path)
    assert "lacks the key checksum" in problem.what


def test_json_with_nan_is_refused(tmp_path):
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_summary(tmp_path / "summary.json", {"loss": float("nan")})
    assert list(tmp_path.iterdir()) == []


def test_a_torn_last_line_of_a_judge_is_no_damage_and_one_without_a_hash_is(tmp_path):
    run = RunDirectory(tmp_path)
    path = judgements_of(run)
    line = json.dumps({"key": "c" * 64, "score": 1.0, "prompt_tokens": 30, "completion_tokens": 7})
    whole = path.read_text()
    path.write_text(f"{whole}{line[:30]}")
    assert naming(run, path) == []
    path.write_text(f"{whole}{line}\n")
    assert naming(run, path) != []
    assert JudgementCache(run.judgements).get("c" * 64) is None
    path.write_text(whole.replace("0.5", "0.7"))
    (problem,) = naming(run, path)
    assert "line 1:" in problem.what
    assert JudgementCache(run.judgements).get("a" * 64) is None, "a score that may be another one is not used"
    assert JudgementCache(run.judgements).get("b" * 64) == JudgeScore(None, "n\u00f3 \u00ffverdict")


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "chat_template.jinja", "generation_config.json"])
def test_a_flipped_bit_of_a_file_of_a_policy_is_named(tmp_path, name):
    run = RunDirectory(tmp_path)
    directory = model_directory(run.policy(1))
    (directory / name).write_text('{"eos_token_id": 2}')
    write_policy_manifest(directory, 1, POLICY)
    content = (directory / name).read_bytes()
    assert naming(run, directory / name) == []
    for bit in range(len(content) * 8):
        damaged = bytearray(content)
        damaged[bit // 8] ^= 1 << bit % 8
        (directory / name).write_bytes(damaged)
        assert naming(run, directory / name), bit


@pytest.mark.parametrize("name", ["iteration_0001", "iteration_0000/select", "iteration_0000/draft/.parts", "log/a/b"])
@pytest.mark.parametrize("target", ["nowhere/at all", "itself"])
def test_a_link_that_leads_nowhere_is_named_wherever_it_lies(run, name, target):
    path = run.root / "more" / name
    path.parent.mkdir(parents=True)
    path.symlink_to(path.name if target == "itself" else target)
    (problem,) = verify_run(run).problems
    assert (problem.path, problem.hint) == (path, "remove the link, or make available what it leads to")
    assert "is a link that leads nowhere" in problem.what


def test_a_link_that_leads_somewhere_is_none_of_it(run, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (run.root / "notes").symlink_to(tmp_path / "elsewhere")
    (run.root / "around").symlink_to(run.root)
    assert verify_run(run).problems == []
