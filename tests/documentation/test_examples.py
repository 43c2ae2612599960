"""Every Python block of the documentation runs as it stands, the blocks of a page in order."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.documentation.markdown import CONTINUES, ROOT, blocks, pages

QUICKSTART = "docs/quickstart.md"
PAGES = [
    page
    for page in pages()
    # The README's examples are one trip, made in tests/end_to_end/test_new_user.py.
    if page != "README.md" and any(block.language == "python" for block in blocks(page))
]

pytestmark = pytest.mark.filterwarnings("ignore:You are saving your model as an HDF5 file")


def run(page: str, names: dict[str, Any]) -> None:
    """Run the Python blocks of a page; a traceback shows the line of the page."""
    for block in blocks(page):
        if block.language == "python":
            source = "\n" * (block.line - 1) + block.text
            exec(compile(source, str(ROOT / page), "exec"), names)


@pytest.fixture(scope="module")
def quickstart(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """Return the folder and the names that the quickstart leaves behind."""
    folder = tmp_path_factory.mktemp("quickstart")
    names: dict[str, Any] = {"__name__": "quickstart"}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        run(QUICKSTART, names)
    return folder, names


@pytest.mark.parametrize("page", PAGES)
def test_examples_run(
    page: str,
    quickstart: tuple[Path, dict[str, Any]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder, names = quickstart
    if page == QUICKSTART:
        assert (folder / "model.tflite").exists()
        return
    monkeypatch.chdir(tmp_path)
    # What a page registers or defines belongs to a module of that name.
    module = f"page_{Path(page).stem}"
    monkeypatch.setitem(sys.modules, module, type(sys)(module))
    own: dict[str, Any] = sys.modules[module].__dict__
    if CONTINUES in (ROOT / page).read_text(encoding="utf-8"):
        shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
        own.update({name: value for name, value in names.items() if not name.startswith("__")})
    run(page, own)
