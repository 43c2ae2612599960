"""The operators of TensorFlow Lite that this package knows, one file each.

A module here with a `SPEC` is an operator: being there is all it takes to be written, read,
checked, run, differentiated, bounded, described and tested. The differentiable half, which needs
TensorFlow, is in a file of its own beside it, which `OperatorSpec.twin` names; files with ``twin``
in their names are loaded for a twin only.
"""

from importlib import import_module
from pkgutil import iter_modules

from tflite_export.ops.spec import OperatorSpec


def _found() -> dict[str, OperatorSpec]:
    """The specification of each module that is an operator, by the operator's name."""
    names = [entry.name for entry in iter_modules(__path__) if "twin" not in entry.name]
    modules = [import_module(f"{__name__}.{name}") for name in sorted(names)]
    return {m.SPEC.kind: m.SPEC for m in modules if hasattr(m, "SPEC")}


OPERATORS: dict[str, OperatorSpec] = _found()
"""Every operator the package writes, reads, runs and checks."""
