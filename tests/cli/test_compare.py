"""`igrpo eval --compare`: figures by hand on evaluations that were made by hand."""

from __future__ import annotations

import math
import shutil

import pytest

from command_line import igrpo, igrpo_process
from made_evaluation import make_evaluation, make_problems

BEFORE = (["5", "6"], ["5", "!4"], ["!4", "5"], ["!4", "!4"])
AFTER = (["!4", "5"], ["5", "!4"], ["!4", "!4"], ["!4", "!4"])


@pytest.fixture
def run(tmp_path):
    """Two policies on four sums: accuracies 0, 1/2, 1/2, 1 and 1/2, 1/2, 1, 1."""
    run = make_problems(tmp_path / "run", "sums", 4)
    make_evaluation(run, "sums", 0, *BEFORE)
    make_evaluation(run, "sums", 3, *AFTER, num_shards=2)
    return run


def test_the_difference_of_two_policies_by_hand(run):
    result = igrpo("eval", run.root, "--bench", "sums", "--compare", "0", "3", "--json")
    assert (result.code, result.stderr) == (0, "")
    compared = result.json
    assert (compared["bench"], compared["problems"]) == ("sums", 4)
    assert (compared["before"]["avg_at_k"], compared["after"]["avg_at_k"]) == (0.5, 0.75)
    assert (compared["before"]["pass_at_k"], compared["after"]["pass_at_k"]) == (0.75, 1.0)
    # Differences 1/2, 0, 1/2, 0: mean 1/4, standard error sqrt(1/12) / 2, Student's t of 3 degrees of freedom.
    margin = 3.18245 * math.sqrt(1 / 12) / 2
    assert compared["difference"] == 0.25
    assert compared["difference_ci95"] == pytest.approx([0.25 - margin, 0.25 + margin], abs=1e-5)
    assert compared["p_value"] == pytest.approx(0.18169, abs=1e-5)
    assert (compared["gained"], compared["lost"]) == (1, 0)
    flip = {"problem_id": "p2", "problem": "What is 2 + 2?", "answer": "4", "before": 0.5, "after": 1.0}
    assert compared["flipped"] == [flip]


def test_the_other_way_round_it_is_lost(run):
    compared = igrpo("eval", run.root, "--bench", "sums", "--compare", "3", "0", "--json").json
    assert (compared["difference"], compared["gained"], compared["lost"]) == (-0.25, 0, 1)


def test_the_text_has_both_rows_the_difference_and_the_flips(run):
    result = igrpo_process("eval", run.root, "--bench", "sums", "--compare", "0", "3")
    assert (result.code, result.stderr) == (0, "")
    lines = result.stdout.splitlines()
    assert lines[0] == "sums: 4 problems, paired"
    header = lines[2].split()
    assert {"avg@k", "interval", "pass@k", "maj@k", "cons@k", "truncated", "ungraded"} <= set(header)
    assert lines[4].startswith("policy_0000  4 x 2    50.0 %")
    assert lines[5].startswith("policy_0003  4 x 2    75.0 %")
    assert "difference +25.0 points, 95 % interval -20.9 to +70.9, p = 0.18" in lines
    assert "solved (more than half of the samples correct): 1 gained, 0 lost" in lines
    assert lines[-1].split() == ["p2", "50.0", "%", "100.0", "%", "What", "is", "2", "+", "2?"]


def test_settings_that_differ_are_named(run):
    same = igrpo("eval", run.root, "--bench", "sums", "--compare", "0", "3")
    assert "settings" not in same.stdout
    settings = {"eval": {"temperature": 0.6, "max_gen_toks": 4096}, "prompts": {"system_prompt": ""}}
    other = {"eval": {"temperature": 0.0, "max_gen_toks": 4096}, "prompts": {"system_prompt": "Think | first."}}
    make_evaluation(run, "sums", 7, *BEFORE, config=settings)
    make_evaluation(run, "sums", 8, *AFTER, config=other)
    both = ["eval", run.root, "--bench", "sums", "--compare", "7", "8"]
    changed = {"eval.temperature": [0.6, 0.0], "prompts.system_prompt": ["", "Think | first."]}
    assert igrpo(*both, "--json").json["settings"] == changed
    lines = igrpo(*both).stdout.splitlines()
    place = lines.index("These settings differ too, so that the difference is not that of the policies alone.")
    assert [line.split()[0] for line in lines[place + 4 :]] == list(changed)
    assert lines[place + 4].split() == ["eval.temperature", "0.6", "0.0"]
    assert "eval.temperature" in igrpo(*both, "--markdown").stdout
    assert "eval.max\\_gen" not in igrpo(*both, "--markdown").stdout


def test_directories_and_names_of_directories_are_evaluations_too(run, tmp_path):
    by_number = igrpo("eval", run.root, "--bench", "sums", "--compare", "0", "3", "--json").json
    directories = [run.root / "eval/sums/policy_0000", run.root / "eval/sums/policy_0003"]
    without_bench = igrpo("eval", "--compare", *directories, "--json").json
    assert without_bench == by_number
    named = igrpo("eval", run.root, "--bench", "sums", "--compare", "policy_0000", "3", "--json").json
    assert named == by_number
    make_problems(tmp_path, "sums", 4)
    make_evaluation(run, "sums", "org--model", *AFTER)
    model = igrpo("eval", run.root, "--bench", "sums", "--compare", "0", "org/model", "--json").json
    assert (model["difference"], model["after"]["model"]["name"]) == (0.25, "org--model")


def test_a_number_is_a_policy_even_where_a_directory_has_that_name(run, tmp_path):
    shutil.copytree(run.root / "eval/sums/policy_0000", tmp_path / "3")
    compared = igrpo("eval", run.root, "--bench", "sums", "--compare", "0", "3", "--json", cwd=tmp_path).json
    assert compared["after"]["avg_at_k"] == 0.75


def test_conditioned_evaluations_of_both(run):
    for policy, groups in ((0, AFTER), (3, BEFORE)):
        make_evaluation(run, "sums", policy, *groups, conditioned="majority")
    both = ["eval", run.root, "--bench", "sums", "--compare", "0", "3", "--with-draft"]
    compared = igrpo(*both, "--set", "eval.selection=majority", "--json").json
    assert compared["difference"] == -0.25
    assert compared["before"]["directory"].endswith("policy_0000_conditioned_majority")
    missing = igrpo(*both)
    assert missing.code == 3
    assert missing.stderr.splitlines() == [
        f"error: {run.root}/eval/sums/policy_0000_conditioned holds no evaluation",
        f"hint: igrpo eval {run.root} --bench sums --iteration 0 --with-draft",
    ]


def test_several_benchmarks_are_compared_one_by_one(run):
    make_problems(run.root, "more", 2)
    make_evaluation(run, "more", 0, ["!4"], ["5"])
    make_evaluation(run, "more", 3, ["5"], ["5"])
    compared = igrpo("eval", run.root, "--bench", "sums", "--bench", "more", "--compare", "0", "3", "--json").json
    assert [(each["bench"], each["difference"]) for each in compared["benches"]] == [("sums", 0.25), ("more", -0.5)]


def test_markdown_to_paste(run):
    text = igrpo("eval", run.root, "--bench", "sums", "--compare", "0", "3", "--markdown").stdout
    lines = text.splitlines()
    assert lines[0].startswith("| bench | model | samples | avg@k | 95 % interval |")
    assert lines[1] == "|" + "---|" * lines[0].count(" | ") + "---|"
    assert lines[3].startswith("| sums | policy_0003 | 4 x 2 | 75.0 % |")
    assert lines[-1].startswith("difference +25.0 points")


def test_other_problems_are_a_conflict(run, tmp_path):
    make_evaluation(run, "sums", "fewer", *AFTER[:3])
    fewer = igrpo("eval", run.root, "--bench", "sums", "--compare", "0", "fewer")
    assert fewer.code == 4
    assert "1 problems are only in one of them, for example p3 in" in fewer.stderr
    assert "hint: evaluate both on the same problems" in fewer.stderr
    other = make_problems(tmp_path / "other", "sums", 4, answer="5")
    make_evaluation(other, "sums", 0, *BEFORE)
    place = tmp_path / "other/eval/sums/policy_0000"
    changed = igrpo("eval", run.root, "--bench", "sums", "--compare", "0", place)
    assert changed.code == 4
    assert f"problem p0 is not the same in {run.root}/eval/sums/policy_0000 and {place}" in changed.stderr


def test_missing_evaluations_and_shards_say_what_to_type(run):
    (run.root / "eval/sums/policy_0003/shard-00001-of-00002.json").unlink()
    half = igrpo("eval", run.root, "--bench", "sums", "--compare", "0", "3")
    assert (half.code, half.stdout) == (3, "")
    assert half.stderr.splitlines() == [
        f"error: {run.root}/eval/sums/policy_0003 lacks 1 of its 2 shards",
        f"hint: igrpo eval {run.root} --bench sums --iteration 3",
    ]
    model = igrpo("eval", run.root, "--bench", "sums", "--compare", "0", "org/model")
    assert model.stderr.splitlines()[1] == f"hint: igrpo eval --model org/model --bench sums --output {run.root}"
    directory = igrpo("eval", "--compare", run.root / "eval/sums/policy_0003", run.root / "eval/sums/policy_0000")
    assert directory.stderr.splitlines()[1] == "hint: igrpo eval --bench sums --iteration 3"
    make_evaluation(run, "sums", 0, *BEFORE, num_shards=2)
    mixed = igrpo("eval", run.root, "--bench", "sums", "--compare", "0", "0")
    assert mixed.code == 4
    assert "holds shards of 1 and shards of 2" in mixed.stderr


def test_a_damaged_shard_is_not_compared(run):
    shard = run.root / "eval/sums/policy_0000/shard-00000-of-00001.parquet"
    data = bytearray(shard.read_bytes())
    data[len(data) // 2] ^= 1
    shard.write_bytes(data)
    result = igrpo("eval", run.root, "--bench", "sums", "--compare", "0", "3")
    assert result.code == 1
    assert "is damaged" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--compare", "0", "3"], "0 is not a directory of results, and --bench is missing"),
        (["--bench", "sums", "--compare", "0", "3", "--samples", "4"], "takes no --samples"),
        (["--bench", "sums", "--compare", "0", "3", "--dry-run"], "takes no --dry-run"),
        (["--bench", "sums", "--compare", "0", "3", "--model", "tiny"], "takes no --model"),
        (["--bench", "sums", "--compare", "0"], "--compare"),
    ],
)
def test_what_a_comparison_cannot_take_is_a_usage_error(run, arguments, message):
    result = igrpo("eval", run.root, *arguments)
    assert (result.code, result.stdout) == (2, "")
    assert message in result.stderr
    assert "hint: " in result.stderr
