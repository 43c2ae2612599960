"""Who may import whom: the packages in their order, and no circles between files."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

# The packages of the export, each above those that it may use.
ORDER = ("ir", "ops", "files", "runtime", "lowering", "twin", "conversion")


def modules_of(package: str) -> dict[str, Path]:
    """Every module of a package, by its dotted name."""
    found = {}
    for path in sorted((ROOT / package).rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


MODULES = {**modules_of("tfdq"), **modules_of("tflite_export")}


def imports_of(source: str, modules: set[str]) -> Iterator[str]:
    """The modules that a source imports, inside functions and for type checkers, too."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                yield inner if inner in modules else node.module
        elif isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name


ARROWS = {
    name: {
        target
        for target in imports_of(path.read_text(encoding="utf-8"), set(MODULES))
        if target in MODULES and target != name
    }
    for name, path in MODULES.items()
}


def circle(arrows: dict[str, set[str]]) -> list[str]:
    """Names that import each other in a circle, or none."""
    left = {name: set(targets) for name, targets in arrows.items()}
    while ends := [name for name, targets in left.items() if not targets & left.keys()]:
        for name in ends:
            del left[name]
    return sorted(left)


def test_arrows_and_circles_are_found() -> None:
    source = "import a.b\ndef f():\n    from a import c, d\n    from e import g\n"
    source += "if TYPE_CHECKING:\n    import h\n"
    assert set(imports_of(source, {"a.c"})) == {"a.b", "a.c", "a", "e", "h"}
    assert circle({"a": {"b"}, "b": {"c"}, "c": {"b"}, "d": set()}) == ["a", "b", "c"]
    assert not circle({"a": {"b", "c"}, "b": {"c"}, "c": set()})


@pytest.mark.parametrize("package", ORDER)
def test_packages_of_the_export_use_those_below(package: str) -> None:
    below = ORDER[: ORDER.index(package) + 1]
    ours = [name for name in MODULES if name.startswith(f"tflite_export.{package}")]
    assert ours
    for name in ours:
        for target in ARROWS[name]:
            if target.startswith("tflite_export"):
                assert target.split(".")[1] in below, f"{name} imports {target}"


@pytest.mark.parametrize("package", ["ir", "ops", "files", "runtime"])
def test_what_runs_on_a_board_knows_no_training(package: str) -> None:
    for name in MODULES:
        if name.startswith(f"tflite_export.{package}") and "twin" not in name:
            roots = {
                target.split(".")[0]
                for target in imports_of(MODULES[name].read_text(encoding="utf-8"), set(MODULES))
            }
            assert not roots & {"tfdq", "tensorflow", "tf_keras", "keras", "scipy"}, name


def test_no_circle_between_files() -> None:
    assert not circle(ARROWS)
