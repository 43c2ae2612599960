"""Register with Keras what tfdq saves, as soon as both are imported, whichever comes first."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
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
    """Finds Keras once, as Python would, and has the rest done behind its import."""

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Return how Keras is imported; None for every other module."""
        if name != "keras":
            return None
        sys.meta_path.remove(self)
        spec = PathFinder.find_spec(name, path, target)
        if spec is not None and spec.loader is not None:
            spec.loader = _Loader(spec.loader)
        return spec


class _Loader(Loader):
    """Imports Keras, then what is registered with it."""

    def __init__(self, loader: Loader) -> None:
        self._loader = loader

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        """Leave it to the loader of Keras."""
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        """Import Keras and register."""
        spec = module.__spec__
        assert spec is not None
        spec.loader = module.__loader__ = self._loader
        self._loader.exec_module(module)
        _register(module)
