"""The notebooks run from top to bottom against a live market with nothing but its address and a key."""

from __future__ import annotations

import os
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from tests.live import LiveMarket

FOLDER = Path(__file__).resolve().parents[2] / "notebooks"
KEY_OF = {
    "01_vendor_publishes.ipynb": "vendor",
    "02_engineer_fine_tunes_and_publishes.ipynb": "engineer",
    "03_factory_chooses_and_uses.ipynb": "factory",
}


def test_every_notebook_has_a_user() -> None:
    assert sorted(path.name for path in FOLDER.glob("*.ipynb")) == sorted(KEY_OF)


@pytest.mark.parametrize("name", KEY_OF)
def test_a_notebook_is_kept_without_outputs_and_headed_in_both_languages(name: str) -> None:
    notebook = nbformat.read(FOLDER / name, as_version=4)
    nbformat.validate(notebook)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            assert not cell.outputs
            assert cell.execution_count is None
        for line in cell.source.splitlines() if cell.cell_type == "markdown" else ():
            if line.startswith("#"):
                assert any("一" <= letter <= "鿿" for letter in line), line
                assert any(letter.isascii() and letter.isalpha() for letter in line), line


@pytest.mark.parametrize("name", KEY_OF)
def test_a_notebook_runs_to_its_end_and_draws(
    name: str, live_market: LiveMarket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for setting in [each for each in os.environ if each.startswith(("ALGOMART_", "MLFLOW_"))]:
        monkeypatch.delenv(setting)
    monkeypatch.setenv("ALGOMART_URL", live_market.url)
    monkeypatch.setenv("ALGOMART_KEY", live_market.keys[KEY_OF[name]])
    monkeypatch.setenv("PYTHONPATH", str(FOLDER.parent))
    notebook = nbformat.read(FOLDER / name, as_version=4)
    client = NotebookClient(notebook, timeout=200, kernel_name="python3", resources={"metadata": {"path": tmp_path}})
    client.execute()
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    assert any("image/png" in output.get("data", {}) for output in outputs)
    if folder := os.environ.get("NOTEBOOKS_OUT"):  # to look at what they draw
        nbformat.write(notebook, Path(folder) / name)
