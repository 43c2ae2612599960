"""Say in one line which extra brings a package that is not installed."""

from __future__ import annotations

_EXTRA_OF = {
    "tensorflow": "tensorflow",
    "tf_keras": "tensorflow",
    "tensorflow_model_optimization": "tensorflow",
    "tensorflow_datasets": "tensorflow",
    "cleverhans": "tensorflow",
    "jax": "jax",
    "torch": "torch",
}


def explained(error: ModuleNotFoundError, what: str) -> ModuleNotFoundError:
    """Return an error that says how to install what is missing; the same if no extra brings it.

    Args:
        error: Of an import.
        what: What needs the package, as the error names it.
    """
    package = (error.name or "").split(".")[0]
    if package not in _EXTRA_OF:
        return error
    return ModuleNotFoundError(
        f'{what} needs {package}, which is not installed: pip install "tfdq[{_EXTRA_OF[package]}]"',
        name=error.name,
    )


def explained_backend(error: ModuleNotFoundError) -> ModuleNotFoundError:
    """Return the error of importing Keras without its backend, with what to install."""
    package = (error.name or "").split(".")[0]
    if package not in ("tensorflow", "jax", "torch"):
        return error
    return ModuleNotFoundError(
        f"Keras runs on {package}, which is not installed: install a backend, pip install "
        '"tfdq[tensorflow]", "tfdq[jax]" or "tfdq[torch]", and name it in the environment '
        "variable KERAS_BACKEND if it is not tensorflow",
        name=error.name,
    )
