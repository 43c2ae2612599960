"""Write the first cells of the notebooks: title, how to open it, and the installation.

    python colab/first_cells.py

What they say hangs on one setting, ``Repository`` under ``[project.urls]`` in pyproject.toml.
Without it the notebooks install the wheel that lies beside them. With it (a GitHub address) they
install from the repository, and carry a badge that opens them in Colab by one click. The tests
compare the stored notebooks with what this writes.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

import nbformat

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

FOLDER = Path(__file__).parent
EXTRAS = {"5_paper_figures": "[tensorflow,report]", "9_jax_gpu": "[tensorflow,jax]"}
_COLAB = "https://colab.research.google.com"
_FROM_REPOSITORY = """\
import importlib.util

if importlib.util.find_spec("tfdq") is None:
    %pip install -q "tfdq{extras} @ git+{repository}"
"""
_FROM_WHEEL = """\
import importlib.util
from pathlib import Path

if importlib.util.find_spec("tfdq") is None:
    wheels = sorted(Path().glob("tfdq-*.whl"))
    if not wheels:
        raise FileNotFoundError(
            "tfdq is not released yet: make its wheel with `make dist`, put dist/tfdq-*.whl beside "
            "this notebook (on Colab: Files, in the bar on the left), and run this cell again"
        )
    %pip install -q "{{wheels[-1]}}{extras}"
"""
_BY_UPLOAD = (
    "On Colab: *File > Upload notebook*, then upload the wheel that the first cell asks for, then "
    "*Runtime > Run all*."
)
_BY_CLICK = "On Colab: *Runtime > Run all*."


def repository() -> str | None:
    """Return the address of the sources that pyproject.toml names; None: it names none."""
    text = (FOLDER.parent / "pyproject.toml").read_text(encoding="utf-8")
    found = tomllib.loads(text)["project"].get("urls", {}).get("Repository")
    return None if found is None else str(found).rstrip("/")


def first_cells(path: Path, address: str | None) -> str:
    """Return the text of a notebook with its first two cells as they should be.

    Args:
        path: of the notebook.
        address: of the repository, https://github.com/OWNER/NAME, or None.

    Raises:
        ValueError: the address is none that Colab opens, or the notebook begins otherwise.
    """
    notebook = nbformat.read(path, as_version=4)
    title, install = notebook.cells[:2]
    badge = re.compile(r"\[!\[Open in Colab\].*\n\n")
    text = badge.sub("", title.source)
    how = re.compile(re.escape(_BY_UPLOAD) + "|" + re.escape(_BY_CLICK))
    if (title.cell_type, install.cell_type) != ("markdown", "code") or not how.search(text):
        raise ValueError(f"{path.name} does not begin with a title that says {_BY_CLICK!r}")
    extras = EXTRAS.get(path.stem, "[tensorflow]")
    if address is None:
        text = how.sub(_BY_UPLOAD, text)
        install.source = _FROM_WHEEL.format(extras=extras).strip()
    else:
        match = re.fullmatch(r"https://github\.com/([\w.-]+/[\w.-]+)", address)
        if match is None:
            raise ValueError(f"Colab opens https://github.com/OWNER/NAME, not {address!r}")
        link = f"{_COLAB}/github/{match[1]}/blob/main/colab/{path.name}"
        heading, _, rest = how.sub(_BY_CLICK, text).partition("\n\n")
        image = f"[![Open in Colab]({_COLAB}/assets/colab-badge.svg)]({link})"
        text = f"{heading}\n\n{image}\n\n{rest}"
        install.source = _FROM_REPOSITORY.format(extras=extras, repository=address).strip()
    title.source = text
    return str(nbformat.writes(notebook)) + "\n"


def main() -> None:
    """Write them all."""
    for path in sorted(FOLDER.glob("*.ipynb")):
        path.write_text(first_cells(path, repository()), encoding="utf-8")


if __name__ == "__main__":
    main()
