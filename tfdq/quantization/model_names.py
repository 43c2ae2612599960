"""The classes and functions that a model file may name: those that Keras, tf_keras and tfmot have.

Keras finds what a file names by importing a module and taking any attribute of it, a function that
writes files as well as a layer. So names are compared with what is known, not with what is feared.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from types import ModuleType
from typing import Any

PACKAGES = ("keras", "tf_keras", "tfdq", "tensorflow_model_optimization")

_BASES = {
    "tf_keras": (
        "layers.Layer",
        "optimizers.Optimizer",
        "optimizers.legacy.Optimizer",
        "optimizers.schedules.LearningRateSchedule",
        "losses.Loss",
        "regularizers.Regularizer",
        "initializers.Initializer",
        "constraints.Constraint",
        "mixed_precision.Policy",
    ),
    "keras": (
        "Operation",
        "optimizers.Optimizer",
        "optimizers.schedules.LearningRateSchedule",
        "losses.Loss",
        "metrics.Metric",
        "regularizers.Regularizer",
        "initializers.Initializer",
        "constraints.Constraint",
        "DTypePolicy",
        "quantizers.Quantizer",
        "random.SeedGenerator",
    ),
    "tensorflow_model_optimization": (
        "quantization.keras.QuantizeConfig",
        "quantization.keras.quantizers.Quantizer",
    ),
}
_FUNCTION_MODULES = ("activations", "initializers", "losses", "metrics", "regularizers", "ops")
# They turn a name or a configuration into an object, or back.
_NOT_FUNCTIONS = frozenset(("get", "deserialize", "serialize"))


def known_classes() -> frozenset[str]:
    """Return the names of the layers, optimizers, losses ... that this process has classes of."""
    pending = list(_bases())
    seen: set[type] = set()
    while pending:
        kind = pending.pop()
        if kind not in seen:
            seen.add(kind)
            pending.extend(type.__subclasses__(kind))
    return frozenset(kind.__name__ for kind in seen)


def known_functions() -> frozenset[str]:
    """Return the names of the activations, losses ... that Keras and tf_keras make public."""
    return frozenset(
        name
        for module in _public_modules()
        for name in dir(module)
        if name not in _NOT_FUNCTIONS
        and not name.startswith("_")
        and callable(getattr(module, name))
        and not isinstance(getattr(module, name), type)
    )


def is_function_module(module: str) -> bool:
    """Tell whether a module of Keras or tf_keras is one of those that have such functions."""
    parts = module.split(".")
    return (
        parts[0] in ("keras", "tf_keras")
        and any(part in _FUNCTION_MODULES for part in parts)
        and is_module_of_packages(module)
    )


def is_module_of_packages(module: str) -> bool:
    """Tell whether a module is one of Keras, tf_keras, tfmot or tfdq, and no program of theirs."""
    parts = module.split(".")
    return parts[0] in PACKAGES and all(
        part.isidentifier() and (part == "__internal__" or not part.startswith("_"))
        for part in parts
    )


def _libraries() -> Iterator[tuple[str, ModuleType]]:
    """Return those that are loaded; Keras 3 reads no file before it is."""
    for name in _BASES:
        if name in sys.modules:
            yield name, sys.modules[name]


def _bases() -> Iterator[type]:
    for name, library in _libraries():
        for path in _BASES[name]:
            found: Any = library
            for part in path.split("."):
                found = getattr(found, part)
            yield found


def _public_modules() -> Iterator[ModuleType]:
    for name, library in _libraries():
        if name in ("keras", "tf_keras"):
            for part in _FUNCTION_MODULES:
                if hasattr(library, part):
                    yield getattr(library, part)
