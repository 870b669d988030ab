"""The benchmarks run, so that every figure can be measured again."""

from __future__ import annotations

import importlib.util
import json
import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest

from command_line import ONE_THREAD
from igrpo_cli.problems.sources import packaged_data

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"
TINY = packaged_data() / "tiny-policy"


def module(name):
    spec = importlib.util.spec_from_file_location(name, BENCHMARKS / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    loaded = importlib.util.module_from_spec(spec)
    sys.modules[name] = loaded
    spec.loader.exec_module(loaded)
    return loaded


def test_what_the_iteration_benchmark_times_exists():
    for path in module("iteration").TIMED:
        assert callable(pkgutil.resolve_name(path)), path


@pytest.mark.slow
def test_the_update_benchmark_measures_both_sides():
    pytest.importorskip("trl", reason="needs igrpo-cli[trl]")
    command = [sys.executable, str(BENCHMARKS / "update.py"), str(TINY), "--shape", "6:2:3-5", "--repeats", "1"]
    result = subprocess.run(command, env=ONE_THREAD, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr
    figures = json.loads(result.stdout)
    assert figures["shape"] == "6:2:3-5"
    assert figures["speedup"] == pytest.approx(figures["trl_s"] / figures["ours_s"])
    assert figures["memory_ratio"] == pytest.approx(figures["ours_gb"] / figures["trl_gb"])
    assert 0 < figures["roofline_share"] < 1


def test_the_update_benchmark_counts_every_operation_once():
    update = module("update")
    shape = update.Shape.parse("10:2:4-6")
    assert shape.lengths == (4, 6)

    class Config:
        hidden_size, vocab_size, num_hidden_layers, num_attention_heads, head_dim = 8, 100, 3, 2, 4

    body = 2 * 1000 * (10 + 4 + 6)
    head = 2 * 8 * 100 * (4 + 6)
    pairs = 10 * 10 / 2 + (4 * 10 + 4 * 4 / 2) + (6 * 10 + 6 * 6 / 2)
    attention = 4 * 3 * 2 * 4 * pairs
    assert update.count_flops(Config, 1000, shape) == 3 * (body + head + attention)


def test_the_report_benchmark_reports_on_the_run_that_it_was_asked_for():
    shape = ["--iterations", "2", "--problems", "3", "--samples", "2", "--tokens", "5", "--shards", "2"]
    command = [sys.executable, str(BENCHMARKS / "report.py"), *shape]
    result = subprocess.run(command, env=ONE_THREAD, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr
    figures = json.loads(result.stdout)
    assert (figures["iterations"], figures["rollouts"]) == (2, 2 * 2 * 3 * 2)
    assert 0 < figures["peak_gib"] < 4
    assert figures["bytes"] > 50_000


@pytest.fixture
def package(tmp_path):
    """A package with two rooms, `a` and `b`; every file is long enough and within the limits."""
    for name, text in {"a/one.py": "", "a/two.py": "from pkg.a.one import x\n", "b/three.py": ""}.items():
        path = tmp_path / "pkg" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "x = 1\n" * 60)
    return tmp_path / "pkg"


def test_sizes_passes_a_package_within_the_limits(package, capsys):
    assert module("sizes").main(package) == 0
    assert "2 rooms            3     181" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a/long.py", "x = 1\n" * 401, "long.py: 401 lines, at most 400"),
        ("a/function.py", "def f():\n" + "    x = 1\n" * 60, "function.py:1 f: 61 lines, at most 60"),
        ("a/small.py", "x = 1\n", "small.py: 1 lines, imported by nothing alone"),
        ("a/one.py", "from pkg.a import two\n", "one.py: 1 lines, imported by a.two alone"),
        ("a/one.py", "def f():\n    from pkg.b.three import x\n" + "x = 1\n" * 60, None),
    ],
)
def test_sizes_names_what_breaks_a_limit(package, capsys, name, text, message):
    (package / name).write_text(text)
    assert module("sizes").main(package) == (0 if message is None else 1)
    assert message is None or message in capsys.readouterr().out


def test_sizes_names_a_cycle_between_rooms(package, capsys):
    (package / "a/one.py").write_text("def f():\n    import pkg.b.three\n" + "x = 1\n" * 60)
    (package / "b/three.py").write_text("from pkg.a import two\n" + "x = 1\n" * 60)
    assert module("sizes").main(package) == 1
    assert "import cycle between rooms: a -> b -> a" in capsys.readouterr().out
