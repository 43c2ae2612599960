"""Versions of the packages that a result depends on."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version

from tfdq._version import __version__

PACKAGES = (
    "numpy",
    "scipy",
    "tensorflow",
    "tf_keras",
    "keras",
    "tensorflow-model-optimization",
    "cleverhans",
    "ai-edge-litert",
)


def package_versions() -> dict[str, str]:
    """Return the versions of Python, tfdq and the packages it computes with, by name."""
    found = {"python": platform.python_version(), "tfdq": __version__}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found
