"""`igrpo status`: what stands in a run directory, for people, for programs, and while it changes."""

from __future__ import annotations

import json
import os
import pty
import re
import shutil
import signal
import subprocess
import sys
import time

import pytest

from command_line import ONE_THREAD, Result, igrpo, make_run
from igrpo_cli.store.policies import write_policy_manifest

SHARDS = 4
NEW_YEAR = 1_767_225_600
"""2026, in UTC."""
STAGE = {"done", "total", "missing", "damaged", "under_way"}


@pytest.fixture(scope="module")
def half_finished(tmp_path_factory):
    """Iteration 0 is finished; of iteration 1 the drafts are there, and one block of the shards 1 and 2 of refine."""
    run = make_run(tmp_path_factory.mktemp("status") / "run", f"run.num_shards={SHARDS}", "run.num_iterations=3")
    assert igrpo("run", run, "--iterations", "2").code == 0
    shutil.rmtree(run / "policies/0002")
    shutil.rmtree(run / "iteration_0001/update")
    for path in (run / "iteration_0001/refine").glob("shard-0000[1-3]*"):
        path.unlink()
    assert igrpo("eval", run, "--bench", "arithmetic", "--set", "eval.limit=4", "--samples", "2").code == 0
    assert igrpo("grade", run, "--stage", "draft", "--iteration", "1", "--reward", "accuracy", "--shard", "0").code == 0
    for shard, blocks in ((1, ("block-000001.claim", "block-000001.parquet")), (2, ("block-000002.claim",))):
        parts = run / f"iteration_0001/refine/.parts/shard-{shard:05d}-of-{SHARDS:05d}"
        parts.mkdir(parents=True)
        for path in (*map(parts.joinpath, blocks), parts):
            path.touch()
            os.utime(path, (NEW_YEAR + shard, NEW_YEAR + shard))
    return run


@pytest.fixture
def run(half_finished, tmp_path):
    """A copy to break."""
    return shutil.copytree(half_finished, tmp_path / "run")


def status_of(run, *arguments):
    result = igrpo("status", run, "--json", *arguments)
    assert (result.code, result.stderr) == (0, "")
    return result.json


def test_each_stage_says_what_is_done_missing_and_under_way(half_finished):
    status = status_of(half_finished)
    assert (status["iteration"], status["num_iterations"], status["unfinished"]) == (1, 3, [1, 2])
    assert all(stage.keys() == STAGE for stage in status["stages"].values())
    counts = {name: (stage["done"], stage["total"], stage["missing"]) for name, stage in status["stages"].items()}
    assert counts == {"draft": (4, 4, ""), "select": (4, 4, ""), "refine": (1, 4, "1-3"), "update": (0, 1, "0")}
    changed = "2026-01-01T00:00:"
    assert status["stages"]["refine"]["under_way"] == [
        {"shard": 1, "done": 1, "claimed": 1, "total": 1, "last_change": f"{changed}01+00:00", "seconds_left": 0.0},
        {"shard": 2, "done": 0, "claimed": 1, "total": 1, "last_change": f"{changed}02+00:00", "seconds_left": None},
    ]


def test_time_left_is_known_once_a_block_is_kept(tmp_path):
    run = make_run(tmp_path / "named", "run.num_iterations=3")
    assert status_of(run)["seconds_left_at_least"] is None
    parts = run / "iteration_0000/draft/.parts/shard-00000-of-00001"
    parts.mkdir(parents=True)
    now = int(time.time())
    # Two of four blocks in 20 seconds: 20 more for the stage, and as long for each of the two other iterations.
    for name, age in (("block-000000.claim", 20), ("block-000000.parquet", 10), ("block-000001.parquet", 0)):
        (parts / name).touch()
        os.utime(parts / name, (now - age, now - age))
    os.utime(parts, (now, now))
    status = status_of(run)
    (shard,) = status["stages"]["draft"]["under_way"]
    assert (shard["done"], shard["total"], shard["seconds_left"]) == (2, 4, 20)
    assert status["seconds_left_at_least"] == 3 * 40 - 20
    text = igrpo("status", cwd=run).stdout
    assert text.startswith("named: 0 of 3 iterations complete\n")
    assert "at least 1 min 40 s left, from what is done of iteration 0" in text
    assert re.search(r"0: 2 of 4 blocks, changed [0-9. s]+ ago, about 20 s left", text)


def test_policies_scores_evaluations_and_costs_are_those_on_disk(half_finished):
    status = status_of(half_finished)
    assert [(each["policy"], each["made_from"]) for each in status["policies"]] == [
        (0, None),
        (1, status["policies"][0]["id"]),
    ]
    assert status["scores"] == {"draft": {"accuracy": {"done": 1, "total": 4}}}
    summary = json.loads((half_finished / "eval/arithmetic/policy_0001/summary.json").read_text())
    (evaluation,) = status["evaluations"]
    assert (evaluation["bench"], evaluation["model"], evaluation["conditioned"]) == ("arithmetic", 1, None)
    assert (evaluation["done"], evaluation["total"], evaluation["avg_at_k"]) == (4, 4, summary["avg_at_k"])
    manifests = [json.loads(path.read_text()) for path in half_finished.glob("iteration_*/draft/*.json")]
    assert len(manifests) == 8
    assert status["spent"]["draft"]["tokens"] == sum(manifest["tokens"] for manifest in manifests)
    assert status["spent"]["draft"]["seconds"] == pytest.approx(sum(manifest["seconds"] for manifest in manifests))
    assert status["projection"]["finished_iterations"] == 1
    assert status["faults"] == []


def test_the_curves_are_what_the_manifests_count(half_finished):
    counts = [json.loads(path.read_text()) for path in half_finished.glob("iteration_0000/refine/*.json")]
    right = sum(each["counts"].get("verdict_correct", 0) for each in counts) / sum(
        each["data"]["rows"] for each in counts
    )
    assert status_of(half_finished)["curves"]["refine/accuracy_mean"] == [pytest.approx(right)]


def test_the_text_fits_80_columns_and_says_the_same(half_finished):
    result = igrpo("status", half_finished)
    assert (result.code, result.stderr) == (0, "")
    heading, *lines = result.stdout.splitlines()
    assert heading == f"{half_finished}: 1 of 3 iterations complete"
    assert max(map(len, lines)) <= 80
    assert "policies 0-1; the newest, 0001, is made by the update of iteration 0" in lines
    assert re.search(r"^refine +1 +4 +shards 1-3 +1-2: 1 of 2 blocks, changed .* ago$", result.stdout, re.MULTILINE)
    assert "scores of draft: accuracy (1 of 4)" in lines
    assert re.search(r"^accuracy, without draft +[0-9.]+ % ▁ +[0-9.]+ %$", result.stdout, re.MULTILINE)
    assert re.search(
        r"^arithmetic +without draft +policy 1 +[0-9.]+ % +[0-9.]+ % to [0-9.]+ %$", result.stdout, re.MULTILINE
    )
    assert "projection from the mean of the complete iterations (1)" in result.stdout


def test_damaged_shards_are_neither_done_nor_missing(run):
    drafts = run / "iteration_0001/draft"
    (drafts / "shard-00000-of-00004.json").write_text("{")
    (drafts / "shard-00001-of-00004.parquet").unlink()
    with (drafts / "shard-00002-of-00004.parquet").open("ab") as file:
        file.write(b"x")
    status = status_of(run)
    stage = status["stages"]["draft"]
    assert (stage["done"], stage["missing"], stage["damaged"]) == (1, "", "0-2")
    for fault, what in zip(status["faults"], ("is not valid JSON", "is gone", "bytes, not the"), strict=True):
        assert what in fault
    text = igrpo("status", run).stdout
    assert text.count("\ndamaged: ") == 3
    assert f"`igrpo verify {run}` says what to do" in text


@pytest.mark.parametrize(
    ("file", "fault"),
    [
        ("policies/0001/manifest.json", "policies/0001/manifest.json"),
        ("iteration_0000/update/metrics.parquet", "metrics.parquet"),
        ("iteration_0000/update/manifest.json", "update/manifest.json is not valid JSON"),
    ],
)
def test_any_other_damage_is_told_and_the_rest_still_shown(run, file, fault):
    (run / file).write_bytes(b"\x00\xff{")
    status = status_of(run)
    assert [fault in each for each in status["faults"]] == [True]
    assert status["stages"]["draft"]["done"] == 4
    assert igrpo("status", run).code == 0


def test_a_flipped_bit_in_the_metrics_of_the_iteration_that_is_shown_is_told_once(finished_run, tmp_path):
    run = shutil.copytree(finished_run, tmp_path / "run")
    metrics = max(run.glob("iteration_*/update/metrics.parquet"))
    content = bytearray(metrics.read_bytes())
    content[len(content) // 2] ^= 1
    metrics.write_bytes(content)
    assert [str(metrics) in each for each in status_of(run)["faults"]] == [True]


@pytest.mark.parametrize("content", [b"[run", b"\xff\xfe", b"[run]\nnum_shards = -1\n"])
def test_a_damaged_run_toml_is_an_error_in_words(run, content):
    (run / "run.toml").write_bytes(content)
    result = igrpo("status", run)
    assert result.code in (1, 2)
    assert result.stderr.startswith("error: ")
    assert "run.toml" in result.stderr


def test_a_policy_that_was_replaced_breaks_the_chain(run):
    write_policy_manifest(run / "policies/0001", 1, "sha256:" + "0" * 64)
    assert status_of(run)["faults"] == [f"{run}/policies/0001 was not made from policy 0"]


def test_a_policy_that_still_lies_in_its_update_is_no_damage(run):
    shutil.move(run / "policies/0001", run / "iteration_0000/update/policy")
    status = status_of(run, "--iteration", "0")
    assert (status["policies_waiting"], status["faults"]) == ([1], [])
    assert status["stages"]["update"]["done"] == 1
    assert "policy 1 is still in the directory of its update" in igrpo("status", run).stdout


def test_steps_of_an_update_that_are_kept_are_under_way(run):
    (run / "iteration_0001/.update/0123456789abcdef/step_000001").mkdir(parents=True)
    (step,) = status_of(run)["stages"]["update"]["under_way"]
    assert (step["done"], step["total"]) == (1, 1)


def test_status_imports_no_torch(half_finished):
    code = (
        "import sys\nfrom igrpo_cli.cli.app import main\n"
        "try: main(sys.argv[1:])\nexcept SystemExit: pass\n"
        "print([name for name in ('torch', 'transformers', 'vllm') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code, "status", half_finished], capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_watching_goes_with_no_list_of_missing_shards(half_finished):
    result = igrpo("status", half_finished, "--watch", "--missing", "draft")
    assert (result.code, result.stdout) == (2, "")
    assert f"hint: igrpo status {half_finished} --watch" in result.stderr


def test_watching_a_finished_run_shows_it_once(finished_run):
    result = igrpo("status", finished_run, "--watch")
    assert (result.code, result.stderr) == (0, "")
    assert re.fullmatch(r"[0-9:]{8} iteration 1 of 2: draft 1/1, select 1/1, refine 1/1, update 1/1\n", result.stdout)


def test_without_a_terminal_watching_tells_what_changes_and_nothing_else(run):
    command = [sys.executable, "-m", "igrpo_cli", "status", run, "--watch", "--every", "0.2"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=ONE_THREAD) as watch:
        first = watch.stdout.readline()
        time.sleep(0.7)
        manifest = run / "iteration_0001/draft/shard-00003-of-00004.json"
        manifest.unlink()
        # A look that falls between two listings of the directory sees a shard that has just lost its manifest.
        second = next(line for line in iter(watch.stdout.readline, "") if "1 faults" not in line)
        watch.send_signal(signal.SIGINT)
        rest, errors = watch.communicate(timeout=20)
    assert "draft 4/4, select 4/4, refine 1/4 + 1-2: 1 of 2 blocks, update 0/1" in first
    assert "draft 3/4" in second
    assert (watch.returncode, rest, errors) == (130, "", "")


def test_on_a_terminal_watching_redraws_and_leaves_the_last_state(half_finished):
    result = _on_terminal("status", half_finished, "--watch", "--every", "0.2")
    assert result.code == 130
    assert result.stdout.count("1 of 3 iterations complete") > 2
    assert "\x1b[1A" in result.stdout
    assert "in total" in result.stdout.rpartition("\x1b[1A")[2]


def _on_terminal(*arguments):
    """Run `igrpo` on a terminal for as long as it takes to draw a few times, then press Ctrl-C."""
    process, terminal = pty.fork()
    if process == 0:
        os.environ.update(TERM="xterm", COLUMNS="100", LINES="50")
        os.execv(sys.executable, [sys.executable, "-m", "igrpo_cli", *map(str, arguments)])
    shown, pressed = b"", False
    while piece := _read(terminal):
        shown += piece
        if not pressed and shown.count(b"iterations complete") > 3:
            pressed = bool(os.write(terminal, b"\x03"))
    os.close(terminal)
    return Result(os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]), shown.decode(), "")


def _read(terminal):
    try:
        return os.read(terminal, 65536)
    except OSError:  # the other end is closed
        return b""
