"""The notebooks run from top to bottom, and are stored as they ran."""

import os
import re
import sys
from pathlib import Path

import pytest

nbformat = pytest.importorskip("nbformat")
FOLDER = Path(__file__).parents[2] / "colab"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
NAMES = [
    "1_quickstart",
    "2_error_amplification",
    "3_attacks_and_audit",
    "4_lipschitz_and_certificates",
    "5_paper_figures",
    "6_deploy",
]


def test_there_are_six() -> None:
    assert [path.stem for path in NOTEBOOKS] == NAMES


@pytest.mark.parametrize("path", NOTEBOOKS, ids=NAMES)
def test_runs(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    client = pytest.importorskip("nbclient")
    monkeypatch.setenv("TFDQ_SMALL", "1")
    # The commands of `!` lines come from the environment that runs this test.
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("PYTHONPATH", str(FOLDER.parent))
    notebook = nbformat.read(path, as_version=4)
    client.NotebookClient(
        notebook, timeout=600, resources={"metadata": {"path": str(tmp_path)}}
    ).execute()
    texts = [
        output.get("text", "")
        for cell in notebook.cells
        for output in cell.get("outputs", [])
        if output.output_type == "stream"
    ]
    # A `!` line that fails raises nothing: its error is in the text.
    assert not any(re.search(r"^(error:|Traceback)", text, re.MULTILINE) for text in texts), texts


@pytest.mark.parametrize("path", NOTEBOOKS, ids=NAMES)
def test_stored(path: Path) -> None:
    """With outputs of one whole run, figures to look at, and small."""
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    assert path.stat().st_size < 300_000
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    outputs = [output for cell in code for output in cell.outputs]
    assert len(outputs) >= 4
    assert not [o for o in outputs if o.output_type == "error" or o.get("name") == "stderr"]
    if not path.stem.startswith("6"):
        assert any("image/png" in output.get("data", {}) for output in outputs)
    text = path.read_text(encoding="utf-8")
    assert "pip install" in "".join(code[0].source)
    assert not re.search(r"/(home|root|tmp|work)/", text)
