"""`igrpo show` on iterations that were made by hand: what is printed, filtered and refused."""

from __future__ import annotations

import os
import pty
import re
import subprocess
import sys

import pytest

from command_line import ONE_THREAD, igrpo
from made_iteration import Group, make_iteration, make_problems, make_update

OLD = (Group(["5", ""], ["!4", ""]), Group(["!4", "5"], ["!4", "!4"]))
NEW = (
    Group(["1+1 = 5", "6"], ["1+1 = 5", "7 8 9"]),
    Group(["5", "!4"], ["4", "!4"], selected=1),
    Group(["!4", "!4"], ["!4"]),
)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Two iterations; in the newer one a group is broken and none is fixed."""
    run = make_problems(tmp_path_factory.mktemp("show") / "run", 4)
    make_iteration(run, 0, *OLD)
    make_iteration(run, 1, *NEW)
    make_update(run, 1, {(1, 0, "refine", 0): -0.5, (1, 0, "refine", 1): 1.5})
    return run.root


def test_the_newest_iteration_is_told_in_order(run):
    result = igrpo("show", run)
    assert (result.code, result.stderr) == (0, "")
    assert result.stdout.split("\n\n") == [
        f"{run}, iteration 1: 3 problems, 2 more with --limit 0",
        "\np0, group 0 of iteration 1, from sums.jsonl:0\nreference answer: 4\n"
        "0 of 2 drafts correct; the selected one: wrong; 0 of 2 refinements correct; equal rewards",
        "prompt, 1 tokens\n│ ?",
        "draft 0: wrong, reward 0 (accuracy 0, format 0), answer 1+1 = 5, 2 tokens\n│ 1+1 = 5",
        "draft 1: wrong, reward 0 (accuracy 0, format 0), answer 6, 2 tokens\n│ 6",
        "selected: draft 0, the first of 2 with reward 0\nstrategy best; rewards of the drafts: mean 0, std 0.5",
        "prompt of the refinements, 1 tokens\n│ ?",
        "refinement 0: wrong, reward 0 (accuracy 0, format 0), answer 1+1 = 5, 2 tokens, advantage -0.50\n"
        "equal to its draft",
        "refinement 1: wrong, reward 0 (accuracy 0, format 0), answer 7 8 9, 2 tokens, advantage +1.50\n│ 7 8 9\n",
    ]


def test_what_changed_is_marked(run, tmp_path):
    other = make_problems(tmp_path / "run", 1)
    make_iteration(other, 0, Group(["1+1 = 2, so 5"], ["1+1 = 2, so 4"]))
    assert "│ 1+1 = 2, so[- 5-]{+ 4+}" in igrpo("show", other.root).stdout.splitlines()


@pytest.mark.parametrize(
    ("flags", "iteration", "problems"),
    [
        (["--broken"], 1, ["p1"]),
        (["--equal-rewards", "--limit", "0"], 1, ["p0", "p2"]),
        (["--equal-rewards", "--broken"], None, []),
        # Not in the newest iteration: the newest that has any.
        (["--fixed"], 0, ["p0"]),
        (["--verdict", "no_answer"], 0, ["p0"]),
        (["--problem", "p1"], 1, ["p1"]),
        (["--problem", "p1", "--iteration", "0"], 0, ["p1"]),
        (["--fixed", "--iteration", "1"], 1, []),
        (["--verdict", "ungraded"], None, []),
        (["--iteration", "0", "--limit", "5"], 0, ["p0", "p1"]),
    ],
)
def test_filters_choose_iteration_and_problems(run, flags, iteration, problems):
    shown = igrpo("show", run, *flags, "--json").json
    assert shown["iteration"] == iteration
    assert [story["problem_id"] for story in shown["stories"]] == problems
    if not problems:
        text = igrpo("show", run, *flags)
        assert text.code == 0
        assert "no problem matches --" in text.stdout


def test_json_has_everything(run):
    shown = igrpo("show", run, "--broken", "--json").json
    assert {key: shown[key] for key in ("run", "iteration", "matched", "groups")} == {
        "run": str(run),
        "iteration": 1,
        "matched": 1,
        "groups": 3,
    }
    (story,) = shown["stories"]
    assert (story["fixed"], story["broken"], story["gradient"], story["answer"]) == (False, True, True, "4")
    assert story["selection"]["draft_sample_id"] == 1
    assert story["selection"]["strategy"] == "best"
    assert [(each["completion"], each["verdict"], each["reward"]) for each in story["drafts"]] == [
        ("5", "wrong", 0.0),
        ("4", "correct", 1.0),
    ]
    assert [each["changes"] for each in story["refinements"]] == [[["same", "4"]], [["same", "4"]]]
    assert [each["advantage"] for each in story["refinements"]] == [None, None]


@pytest.mark.parametrize(
    ("group", "sentence"),
    [
        (Group(["!4", "5"], ["5"]), "selected: draft 0, reward 1\nstrategy best; "),
        (Group(["5"], ["5"], action="bare"), "refined without draft\nstrategy best, all_zero keep; "),
        (Group(["5"], action="drop"), "dropped, not refined\nstrategy best, all_zero keep; "),
        (Group(["5"], ["5"], shown_group=1), "selected: draft 0 of group 1, reward 1\nstrategy best; "),
    ],
)
def test_the_selection_says_what_was_done(tmp_path, group, sentence):
    run = make_problems(tmp_path / "run", 2)
    make_iteration(run, 0, group, Group(["!4"], ["5"]))
    assert f"\n\n{sentence}" in igrpo("show", run.root).stdout


def test_plain_grpo_and_half_done_iterations(tmp_path):
    run = make_problems(tmp_path / "run", 2)
    make_iteration(run, 0, *OLD, stages=["draft"])
    result = igrpo("show", run.root)
    assert result.code == 0
    assert "1 of 2 drafts correct\n" not in result.stdout
    assert "0 of 2 drafts correct; equal rewards" in result.stdout
    assert "refinement" not in result.stdout


HOSTILE = "```\n<script>alert(1)</script>\x1b[31m\u202e</script>\n~~~~"


def test_hostile_text_acts_neither_on_a_terminal_nor_in_markdown(tmp_path):
    run = make_problems(tmp_path / "run", 1)
    make_iteration(run, 0, Group([HOSTILE], [f"!{HOSTILE} 4"]))
    text = igrpo("show", run.root).stdout
    assert "\x1b" not in text
    assert "\u202e" not in text
    assert r"│ <script>alert(1)</script>\x1b[31m\u202e</script>" in text.splitlines()
    markdown = igrpo("show", run.root, "--markdown").stdout
    outside = re.sub(r"^(`{4,})text\n.*?^\1$", "", markdown, flags=re.DOTALL | re.MULTILINE)
    assert "<script>" not in outside
    assert "draft 0: wrong" in outside
    assert igrpo("show", run.root, "--json").json["stories"][0]["drafts"][0]["completion"] == HOSTILE


def test_long_texts_are_cut_with_a_count_unless_asked(tmp_path):
    run = make_problems(tmp_path / "run", 1)
    make_iteration(run, 0, Group(["x" * 5000], ["!4"]))
    assert "[…3,800 characters…]" in igrpo("show", run.root).stdout
    assert "x" * 5000 in igrpo("show", run.root, "--full").stdout


def test_what_is_missing_or_wrong_says_what_to_type(run, tmp_path):
    empty = make_problems(tmp_path / "empty", 1).root
    for arguments, code, error, hint in [
        ([tmp_path], 3, f"{tmp_path} is not a run directory: it has no run.toml", f"igrpo init {tmp_path}"),
        ([empty], 3, f"no iteration of {empty} has a complete draft shard", f"igrpo draft {empty} --iteration 0"),
        ([run, "--iteration", 2], 3, f"iteration 2 of {run} has no complete", f"igrpo draft {run} --iteration 2"),
        ([run, "--iteration", 9], 2, "iteration 9 does not exist: the run has 9, counted from 0", "igrpo status"),
        (
            [run, "--problem", "p11"],
            2,
            "the run has no problem 'p11'; did you mean p1?",
            "its 4 problems begin with p0",
        ),
        ([run, "--verdict", "right"], 2, "'right' is not a verdict", "--verdict correct, wrong, no_answer, ungraded"),
        ([run, "--json", "--markdown"], 2, "--json and --markdown exclude each other", "use one of them"),
    ]:
        result = igrpo("show", *arguments)
        assert (result.code, result.stdout) == (code, ""), arguments
        first, second = result.stderr.splitlines()
        assert first.startswith(f"error: {error}")
        assert second.startswith(f"hint: {hint}")


def test_a_damaged_shard_is_not_shown(tmp_path):
    run = make_problems(tmp_path / "run", 2)
    make_iteration(run, 0, *OLD)
    path = run.shard(0, "draft", 0, 1).data
    path.write_bytes(path.read_bytes()[:-9])
    result = igrpo("show", run.root)
    assert (result.code, result.stdout) == (1, "")
    assert f"{path}" in result.stderr


@pytest.mark.parametrize(
    ("no_color", "change"), [("", "\x1b[9;31m 5\x1b[0m\x1b[1;32m 4\x1b[0m"), ("1", "[- 5-]{+ 4+}")]
)
def test_on_a_terminal_changes_are_coloured_and_lines_wrapped(tmp_path, no_color, change):
    run = make_problems(tmp_path / "run", 1)
    make_iteration(run, 0, Group(["1+1 = 2, so 5"], ["1+1 = 2, so 4"]), prompt="word " * 40)
    shown = _on_a_terminal(["show", str(run.root)], NO_COLOR=no_color)
    assert change in shown
    lines = [re.sub(r"\x1b\[[0-9;]*m", "", line) for line in shown.splitlines()]
    assert all(len(line) <= 60 for line in lines if line.startswith("│"))
    assert sum(line.startswith("│ word word") for line in lines) > 2


def _on_a_terminal(arguments: list[str], **environment: str) -> str:
    """What `igrpo` writes to a terminal of 60 columns."""
    ours, theirs = pty.openpty()
    with os.fdopen(ours, "rb", buffering=0) as terminal:
        command = [sys.executable, "-m", "igrpo_cli", *arguments]
        variables = {**ONE_THREAD, "TERM": "xterm-256color", "COLUMNS": "60", **environment}
        variables = {name: value for name, value in variables.items() if value}
        process = subprocess.Popen(command, stdout=theirs, stderr=subprocess.PIPE, env=variables)
        os.close(theirs)
        written = b""
        while True:
            try:
                piece = terminal.read(4096)
            except OSError:  # The other end is closed.
                break
            if not piece:
                break
            written += piece
        assert process.wait(60) == 0, process.stderr.read() if process.stderr else ""
    return written.decode().replace("\r\n", "\n")
