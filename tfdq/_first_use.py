"""Load the public names of a package on first use (PEP 562), so that importing it is quick."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any

from tfdq._extras import explained


def loaded_on_first_use(
    package: str, home: Mapping[str, str]
) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """Return the ``__getattr__`` and the ``__dir__`` of a package whose names live elsewhere.

    Args:
        package: its ``__name__``; its ``__all__`` is what ``dir`` lists.
        home: each of those names, and the module that defines it; for a package inside, its own
            name.

    Example:
        >>> __getattr__, __dir__ = loaded_on_first_use(__name__, {"load": "tfdq.data.loading"})
    """

    def names() -> list[str]:
        return sorted(sys.modules[package].__all__)

    def load(name: str) -> Any:
        if name not in home:
            raise AttributeError(f"module {package!r} has no attribute {name!r}; it has {names()}")
        try:
            found = import_module(home[name])
            return found if found.__name__ == f"{package}.{name}" else getattr(found, name)
        except ModuleNotFoundError as error:
            raise explained(error, f"{package}.{name}") from error

    return load, names
