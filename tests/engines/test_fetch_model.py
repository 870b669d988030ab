from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from huggingface_hub.errors import LocalEntryNotFoundError

from igrpo_cli.engines.hub import FetchedModel, fetch_model
from igrpo_cli.errors import IgrpoError, MissingInputError, UsageError

NO_TENSORS = b"\x02" + b"\0" * 7 + b"{}"
"""A file of safetensors: the length of its table, and an empty table."""
COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def model_directory(tmp_path: Path) -> Path:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors").write_bytes(NO_TENSORS)
    return tmp_path


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, model_directory: Path) -> dict[str, object]:
    """A fake Hub with the repository org/name. The result holds the arguments of the last download."""
    asked: dict[str, object] = {}

    def snapshot_download(repo_id: str, **options: object) -> str:
        asked.update(options, repo_id=repo_id)
        if repo_id != "org/name":
            raise LocalEntryNotFoundError("Cannot find an appropriate snapshot\nand a second line")
        return shutil.copytree(model_directory, model_directory / "snapshots" / COMMIT)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    return asked


def test_a_local_directory_is_used_as_it_is(model_directory: Path):
    assert fetch_model(str(model_directory)) == FetchedModel(model_directory, None)


def test_a_local_directory_has_no_revision(model_directory: Path):
    with pytest.raises(UsageError, match="no revision 'main'"):
        fetch_model(str(model_directory), "main")


def test_a_hub_id_is_downloaded_and_known_by_its_commit(hub: dict[str, object]):
    fetched = fetch_model("org/name", "v1")
    assert fetched.revision_commit == COMMIT
    assert (fetched.directory / "model.safetensors").exists()
    assert (hub["repo_id"], hub["revision"]) == ("org/name", "v1")


def test_neither_pickles_nor_code_are_downloaded(hub: dict[str, object]):
    fetch_model("org/name")
    matching = {name for name in ("model.safetensors", "tokenizer.model", "a.bin", "b.py") if _allowed(hub, name)}
    assert matching == {"model.safetensors", "tokenizer.model"}


def test_code_is_downloaded_where_it_is_trusted(hub: dict[str, object]):
    fetch_model("org/name", trust_remote_code=True)
    assert _allowed(hub, "modeling.py")
    assert not _allowed(hub, "pytorch_model.bin")


def _allowed(asked: dict[str, object], name: str) -> bool:
    return any(Path(name).match(pattern) for pattern in asked["allow_patterns"])


@pytest.mark.parametrize("name", ["org/other", "no-such-model"])
def test_what_the_hub_does_not_give_is_a_missing_input_with_the_ways_out(hub: dict[str, object], name: str):
    with pytest.raises(MissingInputError, match=f"model {name} at revision v1 .*appropriate snapshot$") as caught:
        fetch_model(name, "v1")
    assert "HF_HUB_OFFLINE" in caught.value.hint
    assert f"hf download {name}" in caught.value.hint


def test_what_can_be_no_hub_id_is_a_missing_input():
    with pytest.raises(MissingInputError, match="model not a name! is neither"):
        fetch_model("not a name!")


@pytest.mark.parametrize("path", ["/no/such/model", "./nothing", "../nothing", "~/nothing", "a/b/c"])
def test_a_path_that_is_not_there_is_never_looked_for_on_the_hub(hub: dict[str, object], path: str):
    with pytest.raises(MissingInputError, match="no directory"):
        fetch_model(path)
    assert not hub


def test_a_directory_without_config_is_no_model(tmp_path: Path):
    with pytest.raises(MissingInputError, match=r"no config\.json"):
        fetch_model(str(tmp_path))


def test_pickled_weights_are_refused_by_name(model_directory: Path):
    (model_directory / "model.safetensors").rename(model_directory / "pytorch_model-00001.bin")
    with pytest.raises(IgrpoError, match=r"pytorch_model-00001\.bin.*run code"):
        fetch_model(str(model_directory))


def test_a_directory_with_other_weights_says_what_it_has(model_directory: Path):
    (model_directory / "model.safetensors").rename(model_directory / "model.gguf")
    with pytest.raises(MissingInputError, match=r"it has config\.json, model\.gguf"):
        fetch_model(str(model_directory))


def test_missing_parts_of_the_weights_are_counted_and_named(model_directory: Path):
    weight_map = {"a": "model.safetensors", "b": "model-2.safetensors", "c": "model-3.safetensors"}
    (model_directory / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    with pytest.raises(MissingInputError, match=r"lacks 2 of 3 weight files, model-2\.safetensors first"):
        fetch_model(str(model_directory))


def test_a_saved_policy_passes(make_policy: Callable[..., Path]):
    assert fetch_model(str(make_policy("llama"))).revision_commit is None
