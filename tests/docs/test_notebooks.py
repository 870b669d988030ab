"""The notebooks run from the first cell to the last on a finished run, and are stored without outputs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

NOTEBOOKS = sorted((Path(__file__).parents[2] / "docs/notebooks").glob("*.ipynb"))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_a_notebook_is_stored_without_outputs(path):
    for cell in json.loads(path.read_text("utf-8"))["cells"]:
        assert not cell.get("outputs")
        assert cell.get("execution_count") is None


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_a_notebook_runs(path, finished_run, tmp_path):
    nbclient = pytest.importorskip("nbclient", reason="needs igrpo-cli[notebook]")
    nbformat = pytest.importorskip("nbformat", reason="needs igrpo-cli[notebook]")
    pytest.importorskip("ipykernel", reason="needs igrpo-cli[notebook]")
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs/quickstart-0").symlink_to(finished_run)
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    resources = {"metadata": {"path": str(tmp_path)}}
    nbclient.NotebookClient(notebook, timeout=300, kernel_name="python3", resources=resources).execute()
    kinds = {kind for cell in notebook.cells for output in cell.get("outputs", ()) for kind in output.get("data", {})}
    assert "image/png" in kinds, "the plot"
