"""Models of the Hub that come with their own code, and indices of weights that are none."""

from __future__ import annotations

import pytest

from command_line import igrpo, sets
from igrpo_cli.engines import hub
from igrpo_cli.errors import IgrpoError


@pytest.mark.parametrize("trusted", [True, False])
@pytest.mark.parametrize(
    "arguments",
    [("init", "new", *sets("policy.model=org/name")), ("eval", "--model", "org/name", "--bench", "arithmetic")],
)
def test_the_code_of_a_model_comes_where_it_is_trusted(monkeypatch, tmp_path, arguments, trusted):
    asked = []

    def download(model, revision, trust_remote_code):
        asked.append((model, trust_remote_code))
        raise IgrpoError("there is no network here")

    monkeypatch.setattr(hub, "_download", download)
    igrpo(*arguments, *sets(f"policy.trust_remote_code={str(trusted).lower()}"), cwd=tmp_path)
    assert asked == [("org/name", trusted)]


@pytest.mark.parametrize("index", ['{"metadata": {}}', '{"weight_map": ["a"]}', '{"weight_map": {"a": 1}}'])
def test_an_index_without_a_map_of_weights_is_damaged(tmp_path, index):
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text("{}")
    file = model / "model.safetensors.index.json"
    file.write_text(index)
    result = igrpo("init", tmp_path / "run", *sets(f"policy.model={model}"))
    assert result.code == 1
    assert f"{file} has no weight_map" in result.stderr
    assert "hint: download or copy the model again" in result.stderr
