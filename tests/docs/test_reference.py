"""The names in reference and guides exist, and the generated pages agree with the code."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from igrpo_cli.config import RunConfig
from igrpo_cli.inspection.curves import metrics_by_iteration
from igrpo_cli.store.layout import RunDirectory

DOCS = Path(__file__).parents[2] / "docs"
GUIDES = [DOCS.parent / "README.md", *sorted(DOCS.rglob("*.md"))]
SECTION = re.compile(rf"(?<![\w/.-])({'|'.join(RunConfig.model_fields)})\.([a-z_]+)(?![\w/]|\.[a-z])")
OF_OTHERS = re.compile(r"^```python\n.*?^```$|^```\w+ no-run: a command of .*?^```$", re.M | re.S)
"""Blocks whose names are no settings."""
FIRST_CELL = re.compile(r"^\|[^|]*\|", re.M)
"""In the pages for users of other programs, a cell of names of that program."""
FILES = {"md", "py", "sh", "toml", "sbatch", "jsonl"}


def test_the_generated_pages_are_up_to_date():
    result = subprocess.run([sys.executable, DOCS / "make_reference.py", "--check"], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


def test_an_outdated_page_is_detected(tmp_path):
    script = tmp_path / "make_reference.py"
    script.write_bytes((DOCS / "make_reference.py").read_bytes())
    result = subprocess.run([sys.executable, script, "--check"], capture_output=True, text=True)
    assert (result.returncode, "just reference" in result.stderr) == (1, True)


def test_the_reference_lists_the_metrics_of_a_run(finished_run):
    page = (DOCS / "reference/metrics.md").read_text("utf-8")
    rows = [re.findall(r"`([a-z_]+(?:/[a-z_]+)?)`", line.split("|")[1]) for line in page.splitlines() if "|" in line]
    described = {name for names in rows for name in names}
    recorded: set[str] = set()
    for metrics in metrics_by_iteration(RunDirectory(finished_run)):
        recorded |= metrics.whole.keys() | {name for step in metrics.steps.values() for name in step}
    of_stages = {f"{name}/{stage}" for name in described if "/" not in name for stage in ("draft", "refine")}
    alike = {name for name in recorded if re.search(r"/format_mean$|/verdict_(wrong|no_answer|ungraded)$", name)}
    assert recorded - described - of_stages - alike == set()
    # The first needs a wrong draft, the second an adaptive allocation.
    assert described - recorded <= {"refine/fix_rate", "select/refinements_mean"}


@pytest.mark.parametrize("path", GUIDES, ids=lambda path: path.name)
def test_settings_that_a_guide_names_exist(path):
    text = OF_OTHERS.sub("", path.read_text("utf-8"))
    text = FIRST_CELL.sub("", text) if path.name.startswith("from-") else text
    for section, key in SECTION.findall(text):
        if key not in FILES:
            assert key in RunConfig.model_fields[section].annotation.model_fields, f"{section}.{key}"


def test_the_names_of_trl_exist_in_trl():
    trl = pytest.importorskip("trl", reason="needs igrpo-cli[trl]")
    page = (DOCS / "from-trl.md").read_text("utf-8")
    table = page.partition("| TRL's `GRPOConfig` | igrpo |")[2].partition("## Only in TRL")[0]
    first_cells = [line.split("|")[1] for line in table.splitlines() if line.startswith("| `")]
    named = {name for cell in first_cells for name in re.findall(r"`(\w+)`", cell)}
    absent = page.partition("## Only in TRL")[2].partition("## ")[0]
    named |= set(re.findall(r"`(\w+)`", absent))
    fields = trl.GRPOConfig.__dataclass_fields__
    assert len(named) > 40
    assert named - fields.keys() == set()


def test_the_defaults_that_differ_from_trl_agree_with_the_guide():
    trl = pytest.importorskip("trl", reason="needs igrpo-cli[trl]")
    theirs, ours = trl.GRPOConfig.__dataclass_fields__, RunConfig()
    said = {
        "num_generations": (8, ours.draft.num_generations, 4),
        "max_completion_length": (512, ours.draft.max_completion_length, 240),
        "warmup_steps": (0, ours.update.warmup_ratio, 0.1),
        "loss_type": ("dapo", ours.update.loss_type, "grpo"),
        "lr_scheduler_type": ("linear", ours.update.lr_scheduler_type, "cosine_with_min_lr"),
        "vllm_importance_sampling_clip_max": (3.0, ours.update.importance_sampling_clip_max, 2.0),
        "gradient_checkpointing": (True, ours.update.gradient_checkpointing, False),
        "seed": (42, ours.run.seed, 0),
    }
    for name, (their_default, our_value, our_default) in said.items():
        assert (theirs[name].default, our_value) == (their_default, our_default), name
    same = "learning_rate", "beta", "max_grad_norm", "weight_decay", "adam_beta1", "adam_beta2", "adam_epsilon"
    for name in same:
        assert theirs[name].default == getattr(ours.update, name), name
