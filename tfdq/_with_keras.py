"""Register with Keras what tfdq saves, as soon as both are imported, whichever comes first."""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

from tfdq._extras import explained_backend

if TYPE_CHECKING:
    from collections.abc import Sequence
    from importlib.machinery import ModuleSpec

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
            import_module(module)


# Not derived from the classes of importlib.abc, whose import takes longer than all else here.
class _Finder:
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
                loader: Any = _Loader(spec.loader, self)
                spec.loader = loader
                return spec
        return None


class _Loader:
    """Imports Keras, then what is registered with it."""

    def __init__(self, loader: Any, finder: _Finder) -> None:
        self._loader = loader
        self._finder = finder

    def __getattr__(self, name: str) -> Any:
        """Return what else the loader of Keras can."""
        return getattr(self._loader, name)

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        """Leave it to the loader of Keras."""
        module: ModuleType | None = self._loader.create_module(spec)
        return module

    def exec_module(self, module: ModuleType) -> None:
        """Import Keras and register.

        Raises:
            ModuleNotFoundError: The backend of Keras is not installed.
        """
        spec = module.__spec__
        assert spec is not None
        spec.loader = module.__loader__ = self._loader
        try:
            self._loader.exec_module(module)
        except ModuleNotFoundError as error:
            raise explained_backend(error) from error
        # Only now: Keras may have been looked for and not imported, or its import have failed.
        if self._finder in sys.meta_path:
            sys.meta_path.remove(self._finder)
        _register(module)
