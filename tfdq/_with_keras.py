"""Register with Keras what tfdq saves, as soon as both are imported, whichever comes first."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

BACKENDS = ("tensorflow", "jax", "torch")
"""The Keras backends that models can be trained on."""
_SAVED = ("tfdq.keras3", "tfdq.robustness.keras3_adversarial_training")
"""The modules whose classes stand in files that `keras.saving.load_model` reads."""


def register_with_keras() -> None:
    """Import the modules of `_SAVED` now if Keras is imported, else right after it will be.

    So `import tfdq` loads no Keras and no backend. On a backend on which nothing can be trained,
    nothing is registered: it can not compute the layers.
    """
    if "keras" not in sys.modules:
        sys.meta_path.insert(0, _Finder())
    elif hasattr(sys.modules["keras"], "saving"):
        _register(sys.modules["keras"])


def _register(keras: ModuleType) -> None:
    if keras.backend.backend() in BACKENDS:
        for module in _SAVED:
            importlib.import_module(module)


class _Finder(MetaPathFinder):
    """Finds Keras as Python would, and has the rest done behind its import."""

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Return how Keras is imported; None for every other module."""
        if name != "keras":
            return None
        for finder in sys.meta_path:
            spec = None if finder is self else finder.find_spec(name, path, target)
            if spec is not None and spec.loader is not None:
                spec.loader = _Loader(spec.loader, self)
                return spec
        return None


class _Loader(Loader):
    """Imports Keras, then what is registered with it."""

    def __init__(self, loader: Loader, finder: _Finder) -> None:
        self._loader = loader
        self._finder = finder

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        """Leave it to the loader of Keras."""
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        """Import Keras and register."""
        spec = module.__spec__
        assert spec is not None
        spec.loader = module.__loader__ = self._loader
        self._loader.exec_module(module)
        # Only now: Keras may have been looked for and not imported, or its import have failed.
        if self._finder in sys.meta_path:
            sys.meta_path.remove(self._finder)
        _register(module)
