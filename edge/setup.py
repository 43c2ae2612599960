"""Build `tfdq-edge`: the part of ``tflite_export`` that runs on a board, and nothing else of it.

In a checkout the sources lie one folder up. They are copied beside this file for the time of a
build; a source archive holds the copies.
"""

import shutil
from pathlib import Path

from setuptools import setup

HERE = Path(__file__).resolve().parent
PACKAGES = ("ir", "ops", "files", "runtime")
COPIES = ("tflite_export", "LICENSE", "version.py")
CHECKOUT = HERE.parent / "tflite_export"


def copy_sources() -> None:
    """Copy what a board needs; the differentiable halves of the operators need TensorFlow."""
    target = HERE / "tflite_export"
    modules = [path for path in CHECKOUT.iterdir() if path.is_file()]
    for package in PACKAGES:
        modules += [path for path in (CHECKOUT / package).glob("*.py") if "twin" not in path.name]
    for path in modules:
        copy = target / path.relative_to(CHECKOUT)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, copy)
    shutil.copyfile(HERE.parent / "LICENSE", HERE / "LICENSE")
    shutil.copyfile(HERE.parent / "tfdq" / "_version.py", HERE / "version.py")


def remove_copies() -> None:
    """Leave the checkout as it was."""
    for name in COPIES:
        path = HERE / name
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def build() -> None:
    """Run setuptools on the copies."""
    setup(packages=["tflite_export", *(f"tflite_export.{package}" for package in PACKAGES)])


if CHECKOUT.is_dir():
    remove_copies()
    copy_sources()
    try:
        build()
    finally:
        remove_copies()
else:
    build()
