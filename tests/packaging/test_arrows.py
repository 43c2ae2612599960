"""Who may import whom: the packages in their order, and no circles between files."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

# Every package, each above those that it may use.
ORDER = (
    "tfdq._extras",
    "tfdq._first_use",
    "tfdq._version",
    "tfdq._with_keras",
    "tfdq.mistakes",
    "tfdq.grid",
    "tfdq.description",
    "tfdq.which_keras",
    "tfdq.batch_statistics",
    "tfdq.lagging_statistics",
    "tfdq.calibration_images",
    "tfdq.data",
    "tflite_export.quiet_stderr",
    "tflite_export.endings",
    "tflite_export.ir",
    "tflite_export.ops",
    "tflite_export.files",
    "tflite_export.runtime",
    "tfdq.penalties",
    "tfdq.settings",
    "tfdq.model_files",
    "tfdq.quantization",
    "tfdq.models",
    "tflite_export.lowering",
    "tflite_export.twin",
    "tflite_export.conversion",
    "tfdq.keras3",
    "tfdq.either_keras",
    "tflite_export.commands",
    "tflite_export.__main__",
    "tfdq.certificates",
    "tfdq.robustness",
    "tfdq.experiments",
    "tfdq.zoo",
    "tfdq.demo",
    "tfdq.report",
    "tfdq.cli",
)


def modules_of(package: str) -> dict[str, Path]:
    """Every module of a package, by its dotted name."""
    found = {}
    for path in sorted((ROOT / package).rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


MODULES = {**modules_of("tfdq"), **modules_of("tflite_export")}


def homes_of(source: str, package: str) -> dict[str, str]:
    """The modules that define the public names which a package loads on first use."""
    for node in ast.parse(source).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "_HOME":
            homes = ast.literal_eval(node.value)
            return {f"{package}.{name}": home for name, home in homes.items()}
    return {}


def defining_module(name: str, homes: dict[str, str]) -> str:
    """The module that defines a public name, through packages that take it from others."""
    further = f"{homes[name]}.{name.rpartition('.')[2]}"
    return defining_module(further, homes) if further in homes else homes[name]


FIRST_USE = {
    name: home
    for package, path in MODULES.items()
    for name, home in homes_of(path.read_text(encoding="utf-8"), package).items()
}
HOMES = {name: defining_module(name, FIRST_USE) for name in FIRST_USE}


def imports_of(source: str, modules: set[str], homes: dict[str, str]) -> Iterator[str]:
    """The modules that a source uses, inside functions and for type checkers, too.

    A name that a package loads on first use (`from tfdq import certify`, `tfdq.certify(...)`)
    counts as the module that defines it.
    """
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                yield inner if inner in modules else homes.get(inner, node.module)
        elif isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            yield homes.get(f"{node.value.id}.{node.attr}", node.value.id)


def imports_of_file(path: Path) -> set[str]:
    """The modules that a file of the repository uses."""
    return set(imports_of(path.read_text(encoding="utf-8"), set(MODULES), HOMES))


ARROWS = {name: (imports_of_file(path) & MODULES.keys()) - {name} for name, path in MODULES.items()}


def circle(arrows: dict[str, set[str]]) -> list[str]:
    """Names that import each other in a circle, or none."""
    left = {name: set(targets) for name, targets in arrows.items()}
    while ends := [name for name, targets in left.items() if not targets & left.keys()]:
        for name in ends:
            del left[name]
    return sorted(left)


def package_of(module: str) -> str:
    """The package of a module: the first two parts of its name."""
    return ".".join(module.split(".")[:2])


def test_arrows_and_circles_are_found() -> None:
    source = "import a.b\ndef f():\n    from a import c, d\n    from e import g\n    e.k()\n"
    source += "if TYPE_CHECKING:\n    import h\n"
    homes = {"e.g": "e.inner", "e.k": "e.other"}
    expected = {"a.b", "a.c", "a", "e.inner", "e.other", "h"}
    assert set(imports_of(source, {"a.c"}, homes)) == expected
    assert homes_of('_HOME = {"g": "e.inner"}', "e") == {"e.g": "e.inner"}
    assert defining_module("a.g", {"a.g": "e", "e.g": "e.inner"}) == "e.inner"
    assert circle({"a": {"b"}, "b": {"c"}, "c": {"b"}, "d": set()}) == ["a", "b", "c"]
    assert not circle({"a": {"b", "c"}, "b": {"c"}, "c": set()})


def test_twins_use_no_backend_but_that_of_keras() -> None:
    twins = {
        name: path
        for name, path in MODULES.items()
        if name.startswith(("tflite_export.twin.", "tflite_export.ops.")) and "twin" in path.stem
    }
    assert len(twins) > 40
    foreign = {"tensorflow", "tf_keras", "torch"}
    for name, path in twins.items():
        assert not {used.split(".")[0] for used in imports_of_file(path)} & foreign, name


def test_every_package_has_its_place() -> None:
    assert {package_of(name) for name in MODULES} - {"tfdq", "tflite_export"} == set(ORDER)


@pytest.mark.parametrize("package", ORDER)
def test_packages_use_those_below(package: str) -> None:
    below = {"tfdq", "tflite_export", *ORDER[: ORDER.index(package) + 1]}
    for name in MODULES:
        if package_of(name) == package:
            above = sorted(target for target in ARROWS[name] if package_of(target) not in below)
            assert not above, f"{name} imports {above}"


def test_the_picture_for_contributors_shows_this_order() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    picture = text.partition("<!-- the order of the packages -->\n```text\n")[2].partition("```")[0]
    shown = [name for line in picture.splitlines() for name in reversed(line.split())]
    assert shown == [name for name in reversed(ORDER) if "_" not in name.split(".")[1]]


@pytest.mark.parametrize("package", ["ir", "ops", "files", "runtime"])
def test_what_runs_on_a_board_knows_no_training(package: str) -> None:
    for name in MODULES:
        if name.startswith(f"tflite_export.{package}") and "twin" not in name:
            roots = {target.split(".")[0] for target in imports_of_file(MODULES[name])}
            assert not roots & {"tfdq", "tensorflow", "tf_keras", "keras", "scipy"}, name


def test_no_circle_between_files() -> None:
    assert not circle(ARROWS)


def test_every_module_that_is_imported_is_there() -> None:
    """Also where a function imports it, which no other test may call."""
    packages = ("tfdq", "tflite_export", "tests", "benchmarks")
    others = {name: path for name in packages[2:] for name, path in modules_of(name).items()}
    known = {*MODULES, *others}
    known |= {name.rpartition(".")[0] for name in known}
    missing: dict[str, list[str]] = {}
    for name, path in {**MODULES, **others}.items():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            named = [node.module] if isinstance(node, ast.ImportFrom) and not node.level else []
            if isinstance(node, ast.Import):
                named = [alias.name for alias in node.names]
            for target in named:
                ours = target is not None and target.partition(".")[0] in packages
                if ours and target not in known:
                    missing.setdefault(name, []).append(target)
    assert not missing
