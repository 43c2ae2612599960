"""Packages that some tests need and `make test` need not have: skipped by name where they lack."""

from __future__ import annotations

import importlib
import importlib.util
from types import ModuleType

import pytest


def installed(name: str) -> bool:
    """Return whether a package or module is installed.

    A folder without `__init__.py` is not: `import build` succeeds in a checkout that has a folder
    `build`, which setuptools leaves there.

    Args:
        name: what is imported, such as `"build"`.
    """
    try:
        spec = importlib.util.find_spec(name)
    except ModuleNotFoundError:
        return False
    return spec is not None and spec.origin is not None


def reason(name: str, extra: str) -> str:
    """Return why a test is skipped, in the words that `tests.skipped` finds."""
    return f"needs {name}, of the extra [{extra}]"


def require(name: str, extra: str) -> ModuleType:
    """Return a package, or skip the test, or the file of tests, that asks for it.

    Args:
        name: what is imported.
        extra: of pyproject.toml, that brings it.
    """
    if not installed(name):
        pytest.skip(reason(name, extra), allow_module_level=True)
    return importlib.import_module(name)


def required(name: str, extra: str) -> pytest.MarkDecorator:
    """Return the mark that skips a test where a package lacks; arguments as for `require`."""
    return pytest.mark.skipif(not installed(name), reason=reason(name, extra))
