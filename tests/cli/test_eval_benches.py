"""`igrpo eval` on several benchmarks, the list of those with a name, and Markdown to paste."""

from __future__ import annotations

import json

import pytest

import igrpo_cli.engines.factory as engines
from command_line import igrpo, igrpo_process, make_run, sets
from igrpo_cli.evaluation.summary import PAPER_BENCHES
from igrpo_cli.problems.sources import BENCHES, PACKAGED_SETS
from igrpo_cli.store.checksummed_json import read_summary, write_summary
from igrpo_cli.store.completion import read_problems
from igrpo_cli.store.layout import RunDirectory

ASKED = ("--samples", "2", *sets("eval.limit=3"))
DIGITS = "builtin:arithmetic/digits-test"
FIGURES = {"avg_at_k", "ci95", "pass_at_k", "maj_at_k", "cons_at_k", "truncated_fraction", "ungraded_fraction"}


@pytest.fixture
def run(tmp_path):
    return make_run(tmp_path / "run")


@pytest.fixture
def paper_folder(tmp_path):
    """Six local files with the names of the paper's benchmarks, two sums each."""
    folder = tmp_path / "benches"
    folder.mkdir()
    for number, bench in enumerate(PAPER_BENCHES, start=1):
        rows = [{"id": f"{bench}-{i}", "problem": f"{number}+{i}=?", "answer": str(number + i)} for i in (1, 2)]
        (folder / f"{bench}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def test_the_list_has_every_named_benchmark():
    result = igrpo_process("eval", "--list", "--json")
    assert (result.code, result.stderr) == (0, "")
    benches = {bench["name"]: bench for bench in result.json["benches"]}
    assert benches.keys() == {*PACKAGED_SETS, *BENCHES}
    assert benches["aime24"] == {
        "name": "aime24",
        "source": "HuggingFaceH4/aime_2024",
        "revision": "main",
        "config": None,
        "split": "train",
        "columns": {"problem": "problem", "answer": "answer"},
        "answer_form": "auto",
        "samples": 64,
    }
    assert (benches["gsm8k"]["config"], benches["gsm8k"]["answer_form"]) == (["main"], "solution")
    assert benches["mmlu_pro"]["columns"]["choices"] == "options"
    assert (benches["amc23"]["columns"], benches["arithmetic"]["source"]) == (None, "packaged")


def test_the_list_is_a_table_or_markdown():
    table = igrpo("eval", "--list").stdout.splitlines()
    assert table[0].split() == [
        *("name", "source", "revision", "config", "split", "columns", "answer_form", "samples"),
    ]
    assert [line.split()[0] for line in table[2:]] == [*PACKAGED_SETS, *BENCHES]
    markdown = igrpo("eval", "--list", "--markdown").stdout.splitlines()
    assert len(markdown) == len(table)
    assert markdown[4].startswith("| aime24 | HuggingFaceH4/aime_2024 | main | – | train |")


def test_several_benchmarks_share_one_engine(run, monkeypatch):
    started = []
    create_engine = engines.create_engine

    def count(*arguments, **options):
        started.append(arguments)
        return create_engine(*arguments, **options)

    monkeypatch.setattr(engines, "create_engine", count)
    both = igrpo("eval", run, "--bench", "arithmetic", "--bench", DIGITS, *ASKED, "--json")
    assert both.code == 0, both.stderr
    assert len(started) == 1
    assert both.json.keys() == {"benches", "macro_average"}
    assert both.json["macro_average"] is None
    assert [bench["bench"] for bench in both.json["benches"]] == ["arithmetic", "builtin--arithmetic--digits-test"]
    alone = igrpo("eval", run, "--bench", "arithmetic", *ASKED, "--json").json
    assert alone == both.json["benches"][0]
    assert alone.keys() >= FIGURES
    assert len(started) == 1, "the second command sampled nothing"


def test_the_text_has_each_benchmark_and_then_all(run):
    result = igrpo("eval", run, "--bench", "arithmetic", "--bench", DIGITS, *ASKED)
    assert result.code == 0, result.stderr
    headings = [line for line in result.stdout.splitlines() if " problems x 2 samples" in line]
    assert [heading.split(":")[0] for heading in headings] == ["arithmetic", "builtin--arithmetic--digits-test"]
    last = result.stdout.splitlines()[-4:]
    assert last[0].split()[:3] == ["bench", "model", "samples"]
    assert [line.split()[0] for line in last[2:]] == ["arithmetic", "builtin--arithmetic--digits-test"]


def test_the_macro_average_of_the_papers_six(run, paper_folder):
    benches = [flag for bench in PAPER_BENCHES for flag in ("--bench", bench)]
    request = ["eval", run, *benches, "--bench-dir", paper_folder, "--samples", "2"]
    result = igrpo(*request, "--json")
    assert result.code == 0, result.stderr
    accuracies = [bench["avg_at_k"] for bench in result.json["benches"]]
    assert len(accuracies) == 6
    assert result.json["macro_average"] == pytest.approx(sum(accuracies) / 6)
    text = igrpo(*request).stdout
    average = f"{100 * sum(accuracies) / 6:.1f} %"
    assert text.splitlines()[-1] == f"macro-average of the paper's six benchmarks: {average}"
    assert igrpo(*request, "--markdown").stdout.splitlines()[-1] == f"macro-average: {average}"


def test_tasks_of_an_array_share_every_benchmark(tmp_path):
    run = make_run(tmp_path / "run", "run.num_shards=2")
    request = ["eval", run, "--bench", "arithmetic", "--bench", DIGITS, "--samples", "2", *sets("eval.limit=4")]
    first = igrpo(*request, "--shard", "0", "--json").json
    assert [bench["shards_still_missing"] for bench in first["benches"]] == [1, 1]
    text = igrpo(*request, "--shard", "0").stdout
    assert text.splitlines()[-1] == "2 benchmarks, none of them complete"
    second = igrpo(*request, "--json", env={"SLURM_ARRAY_TASK_ID": "1"})
    assert second.code == 0, second.stderr
    assert [(bench["problems"], bench["samples"]) for bench in second.json["benches"]] == [(4, 2), (4, 2)]


def test_a_dry_run_plans_each_benchmark_and_writes_nothing(run):
    before = sorted(run.rglob("*"))
    request = ["eval", run, "--bench", "arithmetic", "--bench", DIGITS, *ASKED, "--dry-run"]
    plans = igrpo(*request, "--json").json["benches"]
    assert [(plan["problems"], plan["plan"]["completions"]) for plan in plans] == [(3, 6), (3, 6)]
    assert all(plan.keys() >= {"avg_at_k", "ci95", "pass_at_k", "maj_at_k", "verdicts"} for plan in plans)
    lines = igrpo(*request).stdout.splitlines()
    assert lines[0].startswith("arithmetic: 3 problems x 2 samples = 6 completions, at most 240 tokens")
    assert lines[-1] == "in total 12 completions, at most 480 tokens"
    assert sorted(run.rglob("*")) == before


def test_a_plan_needs_neither_run_nor_model(paper_folder, tmp_path):
    (tmp_path / "nowhere").mkdir()
    request = ["eval", "--bench", "aime24", "--bench-dir", paper_folder]
    plan = igrpo(*request, "--dry-run", "--json", cwd=tmp_path / "nowhere").json
    assert (plan["problems"], plan["plan"]["completions"], plan["model"]) == (2, 2 * 64, None)
    assert igrpo(*request, cwd=tmp_path / "nowhere").code == 3
    assert list((tmp_path / "nowhere").iterdir()) == []


def test_a_benchmark_that_does_not_exist_is_told_before_any_is_sampled(run):
    result = igrpo("eval", run, "--bench", "arithmetic", "--bench", "aime42", *ASKED)
    assert result.code == 3
    assert "aime42" in result.stderr
    assert list(run.glob("eval/*/policy_*")) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--bench", "arithmetic", "--bench", "arithmetic"], "2 benchmarks are called arithmetic"),
        (["--bench", "a/sums.jsonl", "--bench", "b/sums.jsonl"], "2 benchmarks are called sums"),
        (["--bench", "arithmetic", "--json", "--markdown"], "--json and --markdown exclude each other"),
        ([], "eval needs a benchmark"),
    ],
)
def test_what_makes_no_sense_is_a_usage_error(run, arguments, message):
    result = igrpo("eval", run, *arguments)
    assert (result.code, result.stdout) == (2, "")
    assert message in result.stderr
    assert "hint: " in result.stderr


def test_markdown_is_all_of_the_output(run):
    result = igrpo("eval", run, "--bench", "arithmetic", "--bench", DIGITS, *ASKED, "--markdown")
    assert result.code == 0, result.stderr
    lines = result.stdout.splitlines()
    assert len(lines) == 4
    assert {line.count("|") for line in lines} == {13}
    assert lines[2].startswith("| arithmetic | tiny | 3 x 2 |")


def test_the_packaged_policy_is_a_model_too(tmp_path):
    settings = sets("eval.limit=2", "eval.max_gen_toks=40", "engine.name=transformers")
    result = igrpo("eval", "--model", "tiny", "--bench", "arithmetic", "--samples", "1", *settings, cwd=tmp_path)
    assert result.code == 0, result.stderr
    assert (tmp_path / "eval/arithmetic/tiny/summary.json").exists()


def test_answers_are_compared_once(run, monkeypatch):
    import igrpo_cli.evaluation.consensus as module

    request = ["eval", run, "--bench", "arithmetic", *ASKED, "--json"]
    first = igrpo(*request)
    assert first.code == 0, first.stderr
    monkeypatch.setattr(module, "consensus", lambda *_: pytest.fail("compared again"))
    assert igrpo(*request).json == first.json
    summary = run / "eval/arithmetic/policy_0000/summary.json"
    write_summary(summary, {**read_summary(summary), "shards": ["0" * 64]})
    monkeypatch.setattr(module, "consensus", lambda *_: {"1": 0.125, "2": 0.25})
    assert igrpo(*request).json["cons_at_k"] == 0.25, "a summary of other shards does not count"


def test_problems_that_the_run_trains_on_are_counted(run, tmp_path):
    first = read_problems(RunDirectory(run).problems())[0]
    rows = [{"problem": f" {first.problem}\n", "answer": "1"}, {"problem": "1 + 1 + 1 = ?", "answer": "3"}]
    (tmp_path / "seen.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    result = igrpo("eval", run, "--bench", tmp_path / "seen.jsonl", *ASKED, "--json")
    assert (result.code, result.json["trained_on"]) == (0, 1)
    assert "1 of the 2 problems of seen are training problems of the run" in result.stderr
    unseen = igrpo("eval", run, "--bench", "arithmetic", *ASKED, "--json")
    assert unseen.json["trained_on"] == 0
    assert "training problems" not in unseen.stderr
