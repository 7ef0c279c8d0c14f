"""The notebook of the demo runs from its first cell to its last, with fewer videos and epochs."""

import json
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY


@pytest.mark.slow
def test_the_notebook_runs(tmp_path: Path) -> None:
    nbclient = pytest.importorskip("nbclient")
    nbformat = pytest.importorskip("nbformat")
    notebook = nbformat.read(REPOSITORY / "docs/demo.ipynb", as_version=4)
    (parameters,) = [c for c in notebook.cells if "parameters" in c.metadata.get("tags", [])]
    short = ["--training.stop_epoch", "1", "--training.validate_from", "1"]
    parameters.source = f"""
from pathlib import Path
DATA, RUNS = Path({str(tmp_path / "data")!r}), Path({str(tmp_path / "runs")!r})
VIDEOS = "--training 4 --validation 2 --test 2 --shortest 5 --longest 9".split()
SETTINGS = {short}
"""
    nbclient.NotebookClient(
        notebook, timeout=500, resources={"metadata": {"path": str(REPOSITORY / "docs")}}
    ).execute()
    assert (tmp_path / "runs/head/last.pt").is_file()


def test_the_notebook_is_valid_and_says_what_every_step_is_for() -> None:
    cells = json.loads((REPOSITORY / "docs/demo.ipynb").read_text())["cells"]
    headings = [c for c in cells if c["cell_type"] == "markdown" and c["source"][0][:2] == "##"]
    assert len(headings) >= 5
    for cell in cells:
        if cell["cell_type"] == "code":
            compile("".join(cell["source"]), "docs/demo.ipynb", "exec")
