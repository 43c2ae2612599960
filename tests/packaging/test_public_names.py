"""The packages import quickly, and every public name leads to what it names."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys

import pytest

PACKAGES = (
    "tfdq",
    "tfdq.certificates",
    "tfdq.data",
    "tfdq.models",
    "tfdq.penalties",
    "tfdq.robustness",
    "tfdq.zoo",
)


@pytest.mark.parametrize("package", [*PACKAGES, "tflite_export"])
def test_importing_loads_nothing_heavy(package: str) -> None:
    code = (
        f"import sys, {package}\n"
        "heavy = {'tensorflow', 'tf_keras', 'keras', 'numpy', 'scipy', 'matplotlib', 'typer'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)\n"
    )
    environment = {k: v for k, v in os.environ.items() if not k.startswith("COV")}
    subprocess.run([sys.executable, "-c", code], check=True, env=environment)


@pytest.mark.parametrize("package", PACKAGES)
def test_every_name_is_found_where_it_is_defined(package: str) -> None:
    module = importlib.import_module(package)
    assert dir(module) == sorted(module.__all__)
    for name in module.__all__:
        value = getattr(module, name)
        # Functions, classes and packages know their own name.
        assert getattr(value, "__name__", name).rpartition(".")[2] == name


@pytest.mark.parametrize("package", PACKAGES)
def test_an_unknown_name_gets_the_known_ones(package: str) -> None:
    module = importlib.import_module(package)
    with pytest.raises(AttributeError, match=f"module '{package}' has no attribute 'nonsense'; it"):
        _ = module.nonsense
