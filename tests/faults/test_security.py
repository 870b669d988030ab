"""Nothing unpickles, evaluates, reaches a shell or trusts code unasked; secrets of the environment stay there.

What is fed in at run time is tested where it comes in: pickles in `test_foreign_policies`, texts of models on a
terminal and a page in `test_hostile_texts`, keys in the tests of the server engine and the judge.
"""

from __future__ import annotations

import ast
import inspect
import json
import re
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from command_line import igrpo, make_run, sets
from igrpo_cli.config.update import PolicySection
from igrpo_cli.engines.factory import create_engine
from igrpo_cli.engines.tokenization import PolicyTokenizer
from igrpo_cli.http_client import without_secrets
from igrpo_cli.problems.sources import packaged_data
from igrpo_cli.store.settings import checksummed_settings
from igrpo_cli.training.policy import load_policy

PACKAGE = Path(__file__).parents[2] / "src" / "igrpo_cli"
TREES = {path.relative_to(PACKAGE).as_posix(): ast.parse(path.read_text("utf-8")) for path in PACKAGE.rglob("*.py")}
RUNS_CODE = {"eval", "exec", "compile", "__import__", "execfile"}
RUNS_COMMANDS = {
    "os.system",
    "os.popen",
    "os.startfile",
    "subprocess.getoutput",
    "subprocess.getstatusoutput",
    "asyncio.create_subprocess_shell",
    "runpy.run_path",
    "runpy.run_module",
}
RUNS_PROGRAMS = ("os.exec", "os.spawn", "os.posix_spawn")
UNPICKLES = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal", "yaml"}
UNPICKLES_MESSAGES = ("broadcast_object_list", "scatter_object_list", "gather_object", "all_gather_object")
BETWEEN_RANKS = ("training/ranks.py", "torch.distributed.broadcast_object_list")
"""Only the processes of one torchrun hear each other, on a group that they made themselves; no file is read so."""
PICKLED_READERS = {"torch.load", "np.load", "numpy.load", "pd.read_pickle", "torch.jit.load", "torch.hub.load"}


def calls(trees: Mapping[str, ast.Module] = TREES) -> Iterator[tuple[str, ast.Call, str]]:
    """(file, call, what is called, by its full name whatever it is imported as) of the whole package."""
    for file, tree in trees.items():
        imported = names_of(tree)
        for node in ast.walk(tree):
            if isinstance(node, ast.Call):
                first, dot, rest = ast.unparse(node.func).partition(".")
                yield file, node, f"{imported.get(first, first)}{dot}{rest}"


def names_of(tree: ast.Module) -> dict[str, str]:
    """What each imported name of a file stands for."""
    found = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {each.asname: each.name for each in node.names if each.asname}
        elif isinstance(node, ast.ImportFrom):
            found |= {each.asname or each.name: f"{node.module}.{each.name}" for each in node.names}
    return found


def is_forbidden(name: str) -> bool:
    """Whether a call runs code, a shell or a program, or unpickles."""
    is_called = name in RUNS_CODE | RUNS_COMMANDS | PICKLED_READERS or name.startswith(RUNS_PROGRAMS)
    return is_called or name.endswith(UNPICKLES_MESSAGES)


def keywords(call: ast.Call) -> dict[str, str]:
    return {word.arg: ast.unparse(word.value) for word in call.keywords if word.arg}


def test_no_call_runs_code_or_a_shell_or_reads_a_pickle():
    assert [(file, name) for file, _, name in calls() if is_forbidden(name) and (file, name) != BETWEEN_RANKS] == []
    assert BETWEEN_RANKS in [(file, name) for file, _, name in calls()], "an exception that nobody needs"
    assert [(file, name) for file, call, name in calls() if keywords(call).get("shell", "False") != "False"] == []


def test_what_the_walk_sees_through():
    hidden = """
from os import system as harmless
import torch as t, asyncio
from numpy import load
import torch.distributed as dist
harmless("x"); t.load(path); load(path); asyncio.create_subprocess_shell("x"); dist.gather_object(x); os.execv(a, b)
json.load(file); torch.loadtxt(path)
"""
    found = [name for _, _, name in calls({"some.py": ast.parse(hidden)}) if is_forbidden(name)]
    assert found == [
        "os.system",
        "torch.load",
        "numpy.load",
        "asyncio.create_subprocess_shell",
        "torch.distributed.gather_object",
        "os.execv",
    ]


def test_nothing_imports_what_unpickles():
    imported = {
        (file, name.split(".")[0])
        for file, tree in TREES.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.Import | ast.ImportFrom)
        for name in ([alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module or ""])
    }
    assert {(file, name) for file, name in imported if name in UNPICKLES} == set()


def test_processes_are_started_with_a_list_of_arguments():
    starters = {"subprocess.run", "subprocess.Popen", "subprocess.check_output", "subprocess.check_call"}
    started = [(file, call) for file, call, name in calls() if name in starters]
    assert started, "the walk finds them"
    for file, call in started:
        assert not isinstance(call.args[0], ast.JoinedStr | ast.Constant | ast.BinOp), file


def test_code_that_comes_with_a_model_is_never_trusted_unless_a_setting_says_so():
    words = [(file, keywords(call)) for file, call, _ in calls()]
    passed = [(file, of_call["trust_remote_code"]) for file, of_call in words if "trust_remote_code" in of_call]
    assert passed, "the walk finds them"
    assert [(file, value) for file, value in passed if value == "True"] == []
    defaults = [
        PolicySection.model_fields["trust_remote_code"].default,
        inspect.signature(create_engine).parameters["trust_remote_code"].default,
        inspect.signature(PolicyTokenizer).parameters["trust_remote_code"].default,
        inspect.signature(load_policy).parameters["trust_remote_code"].default,
    ]
    assert defaults == [False] * 4


def test_weights_are_loaded_from_safetensors_alone():
    weightless = ("AutoConfig.from_pretrained", "AutoTokenizer.from_pretrained")
    loaders = [
        (file, keywords(call))
        for file, call, name in calls()
        if name.endswith(".from_pretrained") and not name.endswith(weightless)
    ]
    assert loaders, "the walk finds them"
    assert [file for file, words in loaders if words.get("use_safetensors") != "True"] == []


def test_pages_escape_all_that_they_are_given():
    """Jinja2 escapes nothing unless it is told to; chat templates are rendered by transformers' own sandbox.

    A model card is Markdown, and has filters of its own (tests/cli/test_push.py).
    """
    environments = [(file, keywords(call)) for file, call, name in calls() if name.split(".")[-1] == "Environment"]
    assert environments, "the walk finds them"
    assert [file for file, words in environments if words.get("autoescape") != "True"] == ["report/model_card.py"]
    page = (PACKAGE / "report" / "page.html").read_text("utf-8")
    assert "autoescape" not in page
    # Drawings escape for themselves (`test_svg`), and a constant.
    assert re.findall(r"[{%]\s*([^{}%]*?)\|\s*safe", page) == ["svg", "' class=\"several\"'"]


def test_a_model_that_brings_code_is_not_run(tmp_path):
    """`auto_map` names a Python file beside the weights: without `trust_remote_code` it must not be imported."""
    model = shutil.copytree(packaged_data() / "tiny-policy", tmp_path / "model", ignore=shutil.ignore_patterns("*.py"))
    config = json.loads((model / "config.json").read_text())
    config["model_type"] = "foreign"
    config["auto_map"] = {"AutoConfig": "foreign.Config", "AutoModelForCausalLM": "foreign.Model"}
    (model / "config.json").write_text(json.dumps(config))
    (model / "foreign.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w').write('x')\n")
    result = igrpo(
        "init", tmp_path / "run", "--preset", "arithmetic", "--set", f"policy.model={json.dumps(str(model))}"
    )
    if result.code == 0:
        result = igrpo("draft", tmp_path / "run", "-q")
    assert result.code == 1
    assert str(model) in result.stderr
    assert not (tmp_path / "ran").exists()


def test_secrets_of_the_environment_reach_no_file_and_no_stream(tmp_path):
    secrets = {
        name: f"hf_{name.lower()}_that_nobody_may_read" for name in ("HF_TOKEN", "OPENAI_API_KEY", "WANDB_API_KEY")
    }
    run = make_run(tmp_path / "run", "data.problems_per_iteration=2")
    result = igrpo("draft", run, "-v", "--json", env=secrets)
    assert result.code == 0, result.stderr
    written = [path for path in run.rglob("*") if path.is_file()]
    assert len(written) >= 5
    everything = b"".join([(result.stdout + result.stderr).encode(), *(path.read_bytes() for path in written)])
    assert [name for name, value in secrets.items() if value.encode() in everything] == []


URLS_WITH_SECRETS = [
    'engine.endpoints=["http://bob:hunter2@localhost:1"]',
    'engine.endpoints=["http://localhost:2", "http://hunter2@localhost:1/v1"]',
    "engine.endpoints=http://bob:hunter2@localhost:1",
    'engine.endpoints="bob:hunter2@localhost:1"',
    "engine=http://bob:hunter2@localhost:1",
    "judge.endpoint=http://bob:hunter2@localhost:1",
    'judge.endpoint=["bob:hunter2@localhost:1"]',
    'judge.endpoint="https://localhost:1/v1?api_key=hunter2"',
    'judge.endpoint="https://bob:x@localhost:1/v1?api_key=hunter2"',
    'judge.endpoint="https://localhost:1/v1#hunter2"',
    'judge.endpoint=["https://localhost:1/v1?api_key=hunter2"]',
]


@pytest.fixture(scope="module")
def fresh_run(tmp_path_factory):
    return make_run(tmp_path_factory.mktemp("fresh") / "run", "data.problems_per_iteration=2")


@pytest.mark.parametrize("setting", URLS_WITH_SECRETS)
def test_a_secret_in_a_url_is_refused_before_anything_is_written_and_not_repeated(tmp_path, fresh_run, setting):
    before = {path: path.read_bytes() for path in fresh_run.rglob("*") if path.is_file()}
    for request in (["init", tmp_path / "run", "--preset", "arithmetic"], ["draft", fresh_run]):
        result = igrpo(*request, *sets(setting, "engine.name=server"), "-v")
        assert (result.code, result.stdout) == (2, ""), result
        assert result.stderr.startswith("error: ")
        assert "hunter2" not in result.stderr
        assert "bob" not in result.stderr
    assert list(tmp_path.iterdir()) == []
    assert {path: path.read_bytes() for path in fresh_run.rglob("*") if path.is_file()} == before


def test_a_secret_that_a_run_toml_holds_is_refused_by_every_command_and_not_repeated(tmp_path, fresh_run):
    run = Path(shutil.copytree(fresh_run, tmp_path / "run"))
    settings = (run / "run.toml").read_bytes().partition(b"\n")[2]
    assert b"endpoints = []" in settings
    with_secret = settings.replace(b"endpoints = []", b'endpoints = ["http://bob:hunter2@localhost:1"]')
    (run / "run.toml").write_bytes(checksummed_settings(with_secret))
    for command in ("draft", "status"):
        result = igrpo(command, run)
        assert result.code == 2
        assert "engine.endpoints.0: the endpoint at localhost:1 carries credentials" in result.stderr
        assert "hunter2" not in result.stdout + result.stderr


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("proxy http://bob:hunter2@proxy:3128/ refused", "proxy http://***@proxy:3128/ refused"),
        ("see https://h/v1?api_key=hunter2&a=b, then", "see https://h/v1?*** then"),
        ('{"url": "https://a:b@c@h/v1?k=hunter2"}', '{"url": "https://***@h/v1?***"}'),
        ("bob:hunter2@h: nothing", "***@h: nothing"),
        ("http://node7:8000/v1 answers 400: max_tokens?", "http://node7:8000/v1 answers 400: max_tokens?"),
        ("What is 3 @ 4?", "What is 3 @ 4?"),
    ],
)
def test_urls_in_messages_lose_their_secrets(text, shown):
    assert without_secrets(text) == shown
