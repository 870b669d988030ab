"""`igrpo push`: what is sent to a Hub on this machine, what is refused, and what the card says."""

from __future__ import annotations

import base64
import hashlib
import json
import shlex
import shutil
import threading
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import huggingface_hub.constants as hub_constants
import pytest
import yaml

from command_line import SMALL, igrpo, make_run, run_to_end, sets
from igrpo_cli.inspection.run_config import read_run_config
from igrpo_cli.pipeline.changes import commands_until
from igrpo_cli.store.layout import RunDirectory
from igrpo_cli.store.manifest import publish_manifest, read_manifest
from igrpo_cli.store.settings import add_change

REPO = "someone/sums"
API = f"/api/models/{REPO}"


@dataclass
class Hub:
    """The calls of the Hub's API that a push makes, over a repository in memory."""

    url: str = ""
    files: dict[str, bytes] = field(default_factory=dict)
    """The files of the last commit."""
    objects: dict[str, bytes] = field(default_factory=dict)
    """Large files that have arrived, by SHA-256, committed or not."""
    created: list[dict] = field(default_factory=list)
    commits: list[str] = field(default_factory=list)
    uploads: list[str] = field(default_factory=list)
    calls: list[str] = field(default_factory=list)
    fails: dict[str, int] = field(default_factory=dict)
    """Status to answer calls whose path contains the key with."""

    def answer(self, method: str, path: str, body: bytes) -> tuple[int, object]:
        path = path.partition("?")[0]
        self.calls.append(f"{method} {path}")
        for part, status in self.fails.items():
            if part in path:
                return status, {"error": "Invalid credentials in Authorization header" if status == 401 else "broken"}
        if path == "/api/repos/create":
            self.created.append(json.loads(body))
            return (409 if len(self.created) > 1 else 200), {"url": f"{self.url}/{REPO}"}
        if path == "/api/validate-yaml":
            return 200, {"errors": [], "warnings": []}
        if path == f"{API}/tree/main":
            return 200, [_entry(name, content) for name, content in self.files.items()]
        if path == f"{API}/preupload/main":
            asked = json.loads(body)["files"]
            return 200, {
                "files": [{"path": f["path"], "uploadMode": _mode(f["path"]), "shouldIgnore": False} for f in asked]
            }
        if path == f"/{REPO}.git/info/lfs/objects/batch":
            asked = json.loads(body)["objects"]
            return 200, {"objects": [self._upload_of(each["oid"], each["size"]) for each in asked]}
        if path.startswith("/lfs/"):
            self.uploads.append(path.removeprefix("/lfs/"))
            self.objects[self.uploads[-1]] = body
            return 200, {}
        assert path == f"{API}/commit/main", path
        for line in map(json.loads, body.splitlines()):
            self._commit(line["key"], line["value"])
        return 200, {"commitUrl": f"{self.url}/{REPO}/commit/1", "commitOid": "1" * 40}

    def _upload_of(self, oid: str, size: int) -> dict:
        actions = {} if oid in self.objects else {"actions": {"upload": {"href": f"{self.url}/lfs/{oid}"}}}
        return {"oid": oid, "size": size, **actions}

    def _commit(self, key: str, value: dict) -> None:
        if key == "header":
            self.commits.append(value["summary"])
        elif key == "file":
            self.files[value["path"]] = base64.b64decode(value["content"])
        elif key == "lfsFile":
            self.files[value["path"]] = self.objects[value["oid"]]
        else:
            assert key == "deletedFile"
            del self.files[value["path"]]


def _mode(path: str) -> str:
    return "lfs" if path.endswith(".safetensors") else "regular"


def _entry(path: str, content: bytes) -> dict:
    found = {"type": "file", "path": path, "size": len(content)}
    if _mode(path) == "lfs":
        lfs = {"oid": hashlib.sha256(content).hexdigest(), "size": len(content), "pointerSize": 130}
        return {**found, "oid": "0" * 40, "lfs": lfs}
    return {**found, "oid": hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()}


@pytest.fixture
def hub(monkeypatch):
    """A Hub on this machine, with the settings that make the client use it."""
    hub = Hub()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def respond(self):
            body = self._body()
            status, found = hub.answer(self.command, self.path, body)
            content = json.dumps(found).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def _body(self) -> bytes:
            if "chunked" not in self.headers.get("Transfer-Encoding", ""):
                return self.rfile.read(int(self.headers.get("Content-Length", 0)))
            body = b""
            while size := int(self.rfile.readline(), 16):
                body += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
            return body

        do_GET = do_POST = do_PUT = respond

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    hub.url = f"http://127.0.0.1:{server.server_port}"
    # The client reads the environment once, when it is imported.
    monkeypatch.setattr(hub_constants, "ENDPOINT", hub.url)
    monkeypatch.setattr(hub_constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(hub_constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setenv("HF_TOKEN", "hf_of_a_test")
    yield hub
    server.shutdown()
    server.server_close()


@pytest.fixture(scope="module")
def run(finished_run, tmp_path_factory) -> Path:
    """A finished run with evaluations of the initial policy and of the last one."""
    run = Path(shutil.copytree(finished_run, tmp_path_factory.mktemp("push") / "run"))
    evaluated(run, 0)
    evaluated(run, 2)
    return run


def evaluated(run, policy):
    flags = ("--bench", "arithmetic", "--iteration", policy, "--samples", "2", "--json")
    result = igrpo("eval", run, *flags, *sets("eval.limit=3"))
    assert result.code == 0, result.stderr
    return result.json


def push(run, *flags):
    return igrpo("push", run, "--repo", REPO, *flags)


def test_a_push_creates_a_private_repository_and_makes_one_commit(run, hub):
    result = push(run, "--json")
    assert result.code == 0, result.stderr
    assert [each["visibility"] for each in hub.created] == ["private"]
    assert len(hub.commits) == 1
    assert hub.commits[0].startswith("Policy 2 (sha256:")
    policy = run / "policies/0002"
    ours = {path.name: path.read_bytes() for path in policy.iterdir() if path.name != "manifest.json"}
    assert hub.files == {**ours, "README.md": result.json["card"].encode()}
    assert (result.json["policy"], result.json["url"], result.json["skipped"]) == (2, f"{hub.url}/{REPO}", False)
    again = push(run, "--json")
    assert (again.code, again.json["skipped"], len(hub.commits)) == (0, True, 1)


def test_another_policy_is_refused_until_overwrite_replaces_it_whole(run, hub):
    assert push(run, "--policy", "1").code == 0
    hub.files |= {"model-00001-of-00002.safetensors": b"of another model", "notes.txt": b"kept"}
    refused = push(run)
    assert refused.code == 4
    assert f"{REPO} holds other files: README.md, model.safetensors, model-00001-of-00002.safetensors" in refused.stderr
    assert push(run, "--overwrite").code == 0
    assert hub.files["model.safetensors"] == (run / "policies/0002/model.safetensors").read_bytes()
    assert "model-00001-of-00002.safetensors" not in hub.files
    assert hub.files["notes.txt"] == b"kept"


def test_a_damaged_policy_is_never_sent(run, hub, tmp_path):
    copy = Path(shutil.copytree(run, tmp_path / "copy"))
    weights = copy / "policies/0002/model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-5] ^= 1
    weights.write_bytes(content)
    for flags in ([], ["--dry-run"]):
        result = push(copy, *flags)
        assert result.code == 1
        assert "model.safetensors has changed since policy" in result.stderr
    assert hub.calls == []


def test_an_interrupted_push_continues_without_sending_the_weights_again(run, hub):
    hub.fails = {"/commit/": 503}
    result = push(run)
    assert result.code == 75
    assert f"the push to {REPO} was interrupted" in result.stderr
    assert "hint: run the same command again" in result.stderr
    assert (hub.files, len(hub.uploads)) == ({}, 1)
    hub.fails = {}
    assert push(run).code == 0
    assert "model.safetensors" in hub.files
    assert len(hub.uploads) == 1


def test_a_token_without_rights_is_named(run, hub):
    hub.fails = {"/api/repos/create": 401, f"{API}": 401}
    result = push(run)
    assert result.code == 1
    assert f"the Hub does not accept a push to {REPO} (401)" in result.stderr
    assert "hf auth login" in result.stderr
    assert "hf_of_a_test" not in result.stderr


def test_a_hub_that_cannot_be_reached_is_an_interruption(run, hub, monkeypatch):
    monkeypatch.setattr(hub_constants, "ENDPOINT", "http://127.0.0.1:9")
    result = push(run)
    assert (result.code, result.stdout) == (75, "")
    assert f"the push to {REPO} was interrupted" in result.stderr


def test_a_dry_run_prints_the_card_lists_the_files_and_sends_nothing(run, hub):
    result = push(run, "--dry-run")
    assert (result.code, hub.calls) == (0, [])
    assert result.stdout.startswith("---\n")
    size = (run / "policies/0002/model.safetensors").stat().st_size
    assert f"{size:>14,}  model.safetensors" in result.stderr
    planned = push(run, "--dry-run", "--json").json
    assert planned["bytes"] == sum(each["bytes"] for each in planned["files"])


def test_the_card_says_what_was_trained_and_how_well_it_does(run):
    card = push(run, "--dry-run").stdout
    _, front, text = card.split("---\n", 2)
    assert yaml.safe_load(front)["tags"] == ["igrpo", "grpo", "reinforcement-learning", "arxiv:2602.09000"]
    assert "# license:" in front
    assert "iGRPO, 3 drafts + 3 refinements of each problem" in text
    row = next(line for line in text.splitlines() if line.startswith("| arithmetic"))
    for figures in (evaluated(run, 2), evaluated(run, 0)):
        assert f"{100 * figures['avg_at_k']:.1f} %" in row
        assert f"({100 * figures['ci95'][0]:.1f} to" in row
    assert "3 x 2, temperature 1, top-p 1, at most 40 tokens" in row
    assert "igrpo eval RUN --iteration 2 --bench arithmetic --samples 2 --set eval.limit=3" in text
    assert str(run) not in card


def test_the_settings_and_commands_of_a_card_make_a_run_with_the_same_settings(run, tmp_path):
    card = push(run, "--dry-run").stdout
    settings = card.split("```toml\n")[1].split("```")[0]
    (tmp_path / "settings.toml").write_text(settings)
    (init,) = [line for line in card.splitlines() if line.startswith("igrpo init")]
    assert igrpo(*init.replace("RUN", "again").split()[1:], cwd=tmp_path).code == 0
    assert (tmp_path / "again/run.toml").read_bytes() == (run / "run.toml").read_bytes()
    assert "learning_rate = 0.0001" in settings
    assert "temperature" not in settings.partition("[eval]")[0]  # the default


def test_the_commands_of_a_card_repeat_the_changes_that_its_policy_has_seen(tmp_path):
    first, again = make_run(tmp_path / "first"), make_run(tmp_path / "again")
    for run, command in (
        (first, ["set", "reward.weights.format=0.5", "select.strategy=worst", "--from-iteration", 1]),
        (first, ["extend", "--iterations", 4]),
        (first, ["set", "select.strategy=random", "--from-iteration", 3]),
    ):
        assert igrpo(command[0], run, *command[1:]).code == 0
    commands = commands_until(read_run_config(RunDirectory(first)), 3)
    assert commands == [
        'igrpo set RUN \'reward.weights={"accuracy" = 1.0, "format" = 0.5}\' select.strategy=worst --from-iteration 1',
        "igrpo extend RUN --iterations 4",
        "igrpo run RUN --iterations 3",
    ]
    for command in commands[:-1]:
        assert igrpo(*(str(again) if word == "RUN" else word for word in shlex.split(command)[1:])).code == 0
    same, before = (read_run_config(RunDirectory(run)) for run in (again, first))
    assert same.changes == before.changes[:2]


def test_a_card_has_all_settings_of_an_evaluation_and_nothing_of_this_machine(run, tmp_path):
    copy = Path(shutil.copytree(run, tmp_path / "copy"))
    sampled = sets("eval.limit=2", "eval.top_k=7", "eval.min_p=0.05", """eval.stop=["it's"]""")
    evaluation = igrpo("eval", copy, "--bench", "arithmetic", "--iteration", 2, "--samples", 1, "--overwrite", *sampled)
    assert evaluation.code == 0, evaluation.stderr
    changed = {
        "judge": {"endpoint": "http://10.0.0.7:8000", "model": "/home/me/models/judge"},
        "engine": {"endpoints": ["http://10.0.0.8:8000"], "device": "cpu"},
        "log": {"project": "a-private-one"},
        "select": {"strategy": "external", "external": "/home/me/drafts.jsonl"},
    }
    add_change(RunDirectory(copy), 0, {"log": {"project": "a-private-one"}})
    add_change(RunDirectory(copy), 1, changed)
    card = push(copy, "--dry-run").stdout
    drafts = """'select.external="drafts.jsonl"'"""
    assert [line for line in card.splitlines() if line.startswith("igrpo set")] == [
        f"""igrpo set RUN judge.model=judge select.strategy=external {drafts} --from-iteration 1"""
    ]
    assert not [secret for secret in ("10.0.0", "/home", "private", "device", str(tmp_path)) if secret in card]
    assert "2 x 1, temperature 1, top-p 1, top-k 7, min-p 0.05, at most 40 tokens" in card
    command = shlex.split(next(line for line in card.splitlines() if line.startswith("igrpo eval")))
    assert command[7:] == ["--samples", "1", *sampled[2:], *sampled[:2]]

    # What the evaluation left unset is named where the run has a value.
    unset = Path(shutil.copytree(run, tmp_path / "unset"))
    add_change(RunDirectory(unset), 0, {"eval": {"min_p": 0.1}})
    assert "--samples 2 --set eval.min_p=0.0 --set eval.limit=3\n" in push(unset, "--dry-run").stdout


def test_a_card_tells_hub_data_by_the_recorded_commit_and_names_system_prompts(tmp_path):
    folder = tmp_path / "team/sums"
    folder.mkdir(parents=True)
    rows = [{"problem": f"1+{n}", "answer": str(1 + n), "system_prompt": "Add."} for n in range(8)]
    (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    init = igrpo("init", "run", "--preset", "arithmetic", *sets(*SMALL, "data.train=team/sums"), cwd=tmp_path)
    assert init.code == 0, init.stderr
    run = RunDirectory(tmp_path / "run")
    card = push(run.root, "--dry-run").stdout
    assert "team" not in card
    assert "| data | sums |" in card
    assert 'train = "sums"' in card
    assert "the chat template of the tokenizer, with the system prompts of the problems." in card

    manifest = read_manifest(run.problems())
    from_hub = replace(manifest, versions={**manifest.versions, "problems": "0" * 40})
    publish_manifest(run.problems().manifest, from_hub, replace=True)
    card = igrpo("push", "run", "--repo", REPO, "--dry-run", cwd=tmp_path).stdout
    assert yaml.safe_load(card.split("---\n")[1])["datasets"] == ["team/sums"]
    assert 'train = "team/sums"' in card


def test_a_card_of_the_users_own_takes_the_place_of_the_generated_one(run, hub, tmp_path):
    (tmp_path / "card.md").write_text("---\nlicense: mit\n---\nmine\n")
    assert push(run, "--card", tmp_path / "card.md").code == 0
    assert hub.files["README.md"] == b"---\nlicense: mit\n---\nmine\n"
    missing = push(run, "--card", tmp_path / "none.md")
    assert missing.code == 3


def test_a_policy_or_an_adapter_that_does_not_exist_is_an_error(run, hub):
    for beyond in (push(run, "--policy", "3"), igrpo("fork", run, run.parent / "new", "--from", "3")):
        assert beyond.code == 3
        assert "policy 3 does not exist" in beyond.stderr
        assert "; the run has 0-2\n" in beyond.stderr
        assert f"hint: igrpo status {run} shows its 2 iterations; igrpo extend {run} --iter" in beyond.stderr
    no_adapter = push(run, "--adapter")
    assert no_adapter.code == 3
    assert "policy 2 has no adapter" in no_adapter.stderr
    assert igrpo("push", run, "--repo", "sums").code == 2
    assert hub.calls == []


@pytest.mark.slow
def test_an_adapter_is_pushed_without_the_weights_and_names_its_base_model(hub, tmp_path):
    pytest.importorskip("peft", reason="needs igrpo-cli[lora]")
    run = run_to_end(make_run(tmp_path / "run", "run.num_iterations=1", "update.lora_r=4"))
    assert push(run, "--adapter", "--base-model", "someone/base").code == 0
    assert sorted(hub.files) == ["README.md", "adapter_config.json", "adapter_model.safetensors"]
    adapter = run / "iteration_0000/update/adapter"
    assert hub.files["adapter_model.safetensors"] == (adapter / "adapter_model.safetensors").read_bytes()
    assert json.loads(hub.files["adapter_config.json"])["base_model_name_or_path"] == "someone/base"
    front = yaml.safe_load(hub.files["README.md"].decode().split("---\n")[1])
    assert (front["library_name"], front["base_model"]) == ("peft", "someone/base")
    (adapter / "adapter_model.safetensors").write_bytes(b"damaged")
    assert push(run, "--adapter").code == 1
