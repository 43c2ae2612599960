"""What the distributions declare: dependencies, versions, licences."""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import distribution
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

from tests.needs import required

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
EDGE_FILE = ROOT / "edge" / "pyproject.toml"
in_repository = pytest.mark.skipif(
    not EDGE_FILE.is_file(), reason="a source archive holds tfdq, not tfdq-edge"
)
# Where the name that is imported is not the distribution's.
DISTRIBUTIONS = {
    "sklearn": "scikit-learn",
    "tflite_runtime": "tflite-runtime",
    "jinja2": "jinja2",
    "PIL": "pillow",
}


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def asked_for(*extras: str) -> list[str]:
    """Return what the library and some of its extras ask for, with the extras that those name."""
    found = list(PROJECT["dependencies"])
    for extra in extras:
        for text in PROJECT["optional-dependencies"][extra]:
            requirement = Requirement(text)
            own = canonical(requirement.name) == PROJECT["name"]
            found += asked_for(*requirement.extras) if own else [text]
    return found


def imports(package: str) -> dict[str, Path]:
    """Return the top-level modules that a package imports, each with a file that does."""
    found: dict[str, Path] = {}
    for path in (ROOT / package).rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and node.module and not node.level:
                names = [node.module]
            for name in names:
                found.setdefault(name.split(".")[0], path.relative_to(ROOT))
    return found


@pytest.mark.parametrize("package", ["tfdq", "tflite_export"])
def test_what_is_imported_is_declared(package: str) -> None:
    groups = [PROJECT["dependencies"], *PROJECT["optional-dependencies"].values()]
    declared = {canonical(Requirement(text).name) for group in groups for text in group}
    for module, path in imports(package).items():
        if module in sys.stdlib_module_names or module in ("tfdq", "tflite_export"):
            continue
        name = canonical(DISTRIBUTIONS.get(module, module))
        assert name in declared, f"{path} imports {module}, which no dependency brings"


def test_the_version_stands_in_one_place() -> None:
    import tfdq

    assert distribution("tfdq").version == tfdq.__version__
    for file in ("pyproject.toml", "README.md", "mkdocs.yml"):
        assert f'"{tfdq.__version__}"' not in (ROOT / file).read_text("utf-8"), file


@in_repository
def test_the_citation_names_the_version_and_the_licence() -> None:
    import tfdq

    citation = (ROOT / "CITATION.cff").read_text("utf-8").splitlines()
    assert f"version: {tfdq.__version__}" in citation
    assert f"license: {PROJECT['license']}" in citation


@in_repository
def test_the_board_gets_the_same_version() -> None:
    import tfdq

    assert "_version.py" in (ROOT / "edge" / "setup.py").read_text("utf-8")
    assert f'"{tfdq.__version__}"' not in EDGE_FILE.read_text("utf-8")


@in_repository
def test_the_board_gets_no_tensorflow() -> None:
    edge = tomllib.loads(EDGE_FILE.read_text("utf-8"))["project"]
    names = {canonical(Requirement(text).name) for text in edge["dependencies"]}
    assert names == {"ai-edge-litert", "tflite-runtime", "numpy"}
    extra = {canonical(Requirement(text).name) for text in PROJECT["optional-dependencies"]["edge"]}
    assert extra == {"ai-edge-litert", "numpy"}


def test_the_library_asks_for_no_backend() -> None:
    names = {canonical(Requirement(text).name) for text in asked_for()}
    assert not {name for name in names if name.startswith(("tensorflow", "tf-", "jax", "torch"))}
    for extra in ("tensorflow", "jax", "torch"):
        assert extra in {canonical(Requirement(text).name) for text in asked_for(extra)}
    assert set(asked_for("tensorflow")) < set(asked_for("dev"))


def pins() -> dict[str, set[str]]:
    lines = (ROOT / "constraints.txt").read_text("utf-8").splitlines()
    found: dict[str, set[str]] = {}
    for line in lines:
        if line and not line.startswith("#"):
            requirement = Requirement(line)
            found.setdefault(canonical(requirement.name), set()).add(str(requirement.specifier))
    return found


def test_every_requirement_is_pinned_inside_its_bounds() -> None:
    known = pins()
    for text in asked_for("dev", "docs", "report", "release", "jax", "torch"):
        requirement = Requirement(text)
        assert canonical(requirement.name) in known, f"constraints.txt has no {requirement.name}"
        for pin in known[canonical(requirement.name)]:
            assert Version(pin.removeprefix("==")) in requirement.specifier, text


def closure() -> Iterator[str]:
    """Return the distributions that installing tfdq[tensorflow] installs, in this environment."""
    pending = [Requirement(text) for text in asked_for("tensorflow")]
    seen = set()
    while pending:
        requirement = pending.pop()
        marker = requirement.marker
        extras = requirement.extras or {""}
        if marker is not None and not any(marker.evaluate({"extra": e}) for e in extras):
            continue
        name = canonical(requirement.name)
        if name not in seen:
            seen.add(name)
            yield name
            inner = distribution(name).requires or []
            # The extras that were asked for hold for the requirements one level down.
            for text in inner:
                child = Requirement(text)
                if child.marker is None or any(child.marker.evaluate({"extra": e}) for e in extras):
                    child.marker = None
                    pending.append(child)


ALLOWED = re.compile(
    r"apache|\bbsd\b|bsd-|0bsd|\bmit\b|mit-cmu|\bisc\b|mpl|mozilla|\bpsf\b|python software|zlib|cc0"
    r"|permission is hereby granted",
    re.IGNORECASE,
)
REVIEWED = {
    # Weak copyleft, used as they are, unchanged, by CleverHans; neither is part of tfdq.
    "easydict": "LGPL-3.0-only",
    "nose": "LGPL",
    # Says "Apache 2.0" in its repository only.
    "namex": "UNKNOWN",
}


@required("piplicenses", "release")
def test_the_licences_of_all_dependencies_are_known_ones() -> None:
    command = [
        sys.executable,
        "-m",
        "piplicenses",
        "--format=json",
        "--from=mixed",
        "--with-system",
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    licences = {canonical(found["Name"]): found["License"] for found in json.loads(done.stdout)}
    unknown = {}
    for name in closure():
        licence = licences[name]
        if name in REVIEWED:
            assert REVIEWED[name] in licence, f"{name} changed its licence to {licence}: review it"
        elif not ALLOWED.search(licence) or re.search(r"\b[AL]?GPL", licence):
            unknown[name] = licence
    assert not unknown


@pytest.mark.exhaustive
@required("cyclonedx_py", "release")
def test_the_bill_of_materials_lists_the_dependencies(tmp_path: Path) -> None:
    file = tmp_path / "sbom.json"
    command = [sys.executable, "-m", "cyclonedx_py", "environment", "--of", "JSON", "-o", str(file)]
    command += ["--pyproject", str(ROOT / "pyproject.toml"), sys.executable]
    subprocess.run(command, capture_output=True, text=True, check=True)
    bill = json.loads(file.read_text("utf-8"))
    listed = {canonical(component["name"]) for component in bill["components"]}
    assert set(closure()) <= listed | {"setuptools", "wheel"}
    assert bill["metadata"]["component"]["name"] == "tfdq"
