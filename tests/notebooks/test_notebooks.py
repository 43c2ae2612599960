"""The notebooks run from top to bottom, and are stored as they ran."""

import importlib.util
import os
import re
import sys
from pathlib import Path
from typing import Any

import pytest

nbformat = pytest.importorskip("nbformat")
FOLDER = Path(__file__).parents[2] / "colab"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"), key=lambda path: int(path.stem.partition("_")[0]))
NAMES = [
    "1_quickstart",
    "2_error_amplification",
    "3_attacks_and_audit",
    "4_lipschitz_and_certificates",
    "5_paper_figures",
    "6_deploy",
    "7_fine_tune",
    "8_audit_a_file",
    "9_jax_gpu",
    "10_own_layer",
]
EXTRAS = {"5_paper_figures": "[tensorflow,report]", "9_jax_gpu": "[tensorflow,jax]"}


def test_there_are_ten() -> None:
    assert [path.stem for path in NOTEBOOKS] == NAMES


@pytest.mark.parametrize("path", NOTEBOOKS, ids=NAMES)
def test_runs(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    client = pytest.importorskip("nbclient")
    if "jax" in path.stem:
        pytest.importorskip("jax")
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


@pytest.fixture(scope="module")
def first_cells() -> Any:
    """Return the script that writes the first cells."""
    spec = importlib.util.spec_from_file_location("first_cells", FOLDER / "first_cells.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("path", NOTEBOOKS, ids=NAMES)
def test_first_cells_are_those_of_the_projects_address(path: Path, first_cells: Any) -> None:
    expected = first_cells.first_cells(path, first_cells.repository())
    assert path.read_text(encoding="utf-8") == expected, "run: python colab/first_cells.py"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=NAMES)
def test_with_an_address_one_click_opens_and_installs(
    path: Path, tmp_path: Path, first_cells: Any
) -> None:
    address = "https://github.com/OWNER/NAME"
    copy = tmp_path / path.name
    for _ in range(2):
        copy.write_text(first_cells.first_cells(path, address), encoding="utf-8")
        title, install = nbformat.read(copy, as_version=4).cells[:2]
        link = f"https://colab.research.google.com/github/OWNER/NAME/blob/main/colab/{path.name}"
        assert title.source.count(f"({link})") == 1
        assert title.source.startswith("# ")
        assert "upload" not in title.source.lower()
        extras = EXTRAS.get(path.stem, "[tensorflow]")
        assert pip_line(install.source) == f'install -q "tfdq{extras} @ git+{address}"'
        path = copy
    # Back without one: nothing is left of it.
    plain = first_cells.first_cells(copy, None)
    assert "OWNER" not in plain
    assert plain == first_cells.first_cells(FOLDER / copy.name, None)


def pip_line(source: str) -> str:
    """Run a cell where tfdq is not installed; return what it hands to pip."""
    from IPython.core.inputtransformer2 import TransformerManager

    class Shell:
        def __init__(self) -> None:
            self.lines: list[str] = []

        def run_line_magic(self, name: str, line: str) -> None:
            assert name == "pip"
            # As IPython does: braces hold expressions.
            self.lines.append(re.sub(r"{(.*?)}", lambda m: str(eval(m[1], names)), line))

    shell = Shell()
    names: dict[str, Any] = {"get_ipython": lambda: shell}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(importlib.util, "find_spec", lambda name: None)
        exec(TransformerManager().transform_cell(source), names)
    return shell.lines[0]


def test_without_an_address_the_wheel_beside_the_notebook_is_installed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, first_cells: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    for path in NOTEBOOKS:
        text = first_cells.first_cells(path, None)
        source = nbformat.reads(text, as_version=4).cells[1].source
        with pytest.raises(FileNotFoundError, match=r"not released yet.*make dist.*on Colab"):
            pip_line(source)
        wheel = tmp_path / "tfdq-0.1.0-py3-none-any.whl"
        wheel.touch()
        extras = EXTRAS.get(path.stem, "[tensorflow]")
        assert pip_line(source) == f'install -q "{wheel.name}{extras}"'
        wheel.unlink()


def test_an_address_that_colab_cannot_open_is_refused(first_cells: Any) -> None:
    with pytest.raises(ValueError, match=r"https://github\.com/OWNER/NAME, not"):
        first_cells.first_cells(NOTEBOOKS[0], "https://example.org/tfdq")
