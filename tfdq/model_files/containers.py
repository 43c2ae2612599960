"""Check a Keras model file before Keras reads it: a model file is untrusted input.

Keras' own safe mode stops pickled lambdas in ``.keras`` files only: those in ``.h5`` files and in
SavedModels are run, and a configuration may name any class of Keras, and of any other module, those
that load programs among them. What a file may name is decided by ``model_configuration``; here are
the containers: archives and HDF5 files, and the copy that is both checked and loaded.
"""

from __future__ import annotations

import json
import shutil
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any

import h5py

from tfdq.model_files.configuration import (
    Registry,
    UnsafeModelError,
    check_configuration,
    check_training,
)

_LARGEST_CONFIG = 64 << 20
"""Bytes of a configuration that are read; that of ResNet-152 has 0.3 MiB."""

_LARGEST_FILE = 32 << 30
"""Bytes that a file may have, an archive unpacked, the arrays of an HDF5 file in memory."""

_LARGEST_EXPANSION = 100
"""Times its size in the file that a member of an archive, or an array, may have in memory."""

_EXPANDS_FREELY = 64 << 20
"""Bytes up to which the expansion does not count."""


def check_model_file(path: str | Path, registry: Registry | None = None) -> None:
    """Refuse a model file that could do more than make a model of layers.

    Args:
        path: a ``.keras`` or ``.h5`` file, or a SavedModel folder.
        registry: what the caller has registered; by default with tf_keras.

    Raises:
        UnsafeModelError: it is a SavedModel, which is a program; or names a class or function that
            is neither known to be harmless nor registered, an operation that is not arithmetic, a
            file to be read; or holds a link to another file, or a path that leads out of the
            archive; or is no model.
        ValueError: it is neither an archive nor an HDF5 file, or its configuration is not JSON.
    """
    _check(Path(path), Path(path), registry or Registry())


@contextmanager
def checked_copy(path: str | Path, registry: Registry | None = None) -> Iterator[Path]:
    """Copy a model file to a private folder and check the copy, so that no other is loaded.

    Args:
        path: a ``.keras`` or ``.h5`` file.
        registry: as for ``check_model_file``.

    Yields:
        The copy, which has the same name and is deleted afterwards.

    Raises:
        UnsafeModelError: as ``check_model_file``, or it is larger than any model.
        ValueError: as ``check_model_file``, or it is no regular file.
    """
    path = Path(path)
    if path.is_dir():
        check_model_file(path, registry)
    if not path.is_file():
        raise ValueError(f"{str(path)!r} is no regular file; copy the model to one")
    if path.stat().st_size > _LARGEST_FILE:
        raise UnsafeModelError(
            f"{str(path)!r} is not loaded: it is larger than {_LARGEST_FILE >> 30} GiB"
        )
    with tempfile.TemporaryDirectory(prefix="tfdq-") as folder:
        copy = Path(folder) / path.name
        shutil.copyfile(path, copy)
        _check(copy, path, registry or Registry())
        yield copy


def _check(path: Path, shown: Path, registry: Registry) -> None:
    """Check a file, which goes by another path in messages."""
    try:
        if path.is_dir():
            raise UnsafeModelError("a SavedModel is a program, free to read and write files")
        # A file may be both; Keras takes the one or the other by the suffix.
        archive, hdf5 = zipfile.is_zipfile(path), h5py.is_hdf5(path)
        if archive:
            _check_archive(path, shown, registry)
        if hdf5:
            with h5py.File(path, "r") as file:
                _check_contents(file)
                _check_attributes(file, shown, registry)
        if not archive and not hdf5:
            raise ValueError(f"{str(shown)!r} is not a Keras model file, or is cut off")
    except UnsafeModelError as error:
        raise UnsafeModelError(f"{str(shown)!r} is not loaded: {error}") from error
    except (OSError, KeyError, RuntimeError, zipfile.BadZipFile) as error:
        raise ValueError(f"{str(shown)!r} is damaged: {error}; save the model again") from error


def _check_archive(path: Path, shown: Path, registry: Registry) -> None:
    """Check names, sizes and contents of a ``.keras`` file."""
    with zipfile.ZipFile(path) as archive:
        members = archive.infolist()
        names = [member.filename for member in members]
        if len(set(names)) < len(names):
            raise UnsafeModelError("its archive holds two files of one name")
        for member in members:
            _check_member(member)
        if sum(member.file_size for member in members) > _LARGEST_FILE:
            raise UnsafeModelError(f"it unpacks to more than {_LARGEST_FILE >> 30} GiB")
        if "model.weights.npz" in names:
            raise UnsafeModelError("its weights are NumPy's archive, where Keras writes HDF5")
        if "config.json" not in names:
            raise ValueError(f"{str(shown)!r} is an archive without a config.json: no model")
        if archive.getinfo("config.json").file_size > _LARGEST_CONFIG:
            raise UnsafeModelError(f"its configuration is larger than {_LARGEST_CONFIG >> 20} MiB")
        for name in names:
            if name.endswith((".h5", ".hdf5")):
                with archive.open(name) as stored:
                    _check_weights(stored)
        check_configuration(_parsed(archive.read("config.json"), shown), registry)


def _check_member(member: zipfile.ZipInfo) -> None:
    name = member.filename
    parts = PurePosixPath(name.replace("\\", "/")).parts
    if not parts or parts[0] == "/" or ":" in parts[0] or ".." in parts:
        raise UnsafeModelError(f"its archive holds a path that leads out of it, {name!r}")
    # The upper half of the attributes is the mode of a Unix file; 0o120000 marks a link.
    if (member.external_attr >> 16) & 0o170000 == 0o120000:
        raise UnsafeModelError(f"its archive holds a link, {name!r}")
    _check_expansion(name, member.file_size, member.compress_size)


def _check_expansion(name: str, size: int, stored: int) -> None:
    if size > max(_EXPANDS_FREELY, _LARGEST_EXPANSION * stored):
        raise UnsafeModelError(f"{name!r} in it has {size} bytes, but {stored} in the file")


def _check_weights(stored: Any) -> None:
    try:
        file = h5py.File(stored, "r")
    except OSError:
        # No HDF5 file; Keras reads it with the same library and says so.
        return
    with file:
        _check_contents(file)


def _check_contents(file: h5py.File) -> None:
    """Refuse links, storage and views that lead into other files, and arrays of absurd sizes."""
    total = 0
    seen: set[int] = set()
    groups: list[h5py.Group] = [file]
    while groups:
        group = groups.pop()
        address = h5py.h5o.get_info(group.id).addr
        if address in seen:
            continue
        seen.add(address)
        for name in group:
            _check_link(group, name)
            child = group.get(name)
            if isinstance(child, h5py.Group):
                groups.append(child)
            elif isinstance(child, h5py.Dataset):
                if child.external or child.is_virtual:
                    raise UnsafeModelError(f"{name!r} in it is stored in another file")
                _check_expansion(name, child.nbytes, child.id.get_storage_size())
                total += child.nbytes
    if total > _LARGEST_FILE:
        raise UnsafeModelError(f"its arrays have more than {_LARGEST_FILE >> 30} GiB")


def _check_link(group: h5py.Group, name: str) -> None:
    try:
        link = group.get(name, getlink=True)
    except TypeError as error:
        raise UnsafeModelError(f"{name!r} in it is a link of an unknown kind") from error
    if isinstance(link, h5py.ExternalLink):
        raise UnsafeModelError(f"{name!r} in it is a link to the file {link.filename!r}")


def _check_attributes(file: h5py.File, shown: Path, registry: Registry) -> None:
    """Check what Keras makes a model and its optimizer of."""
    for name, check in (
        ("model_config", check_configuration),
        ("training_config", check_training),
    ):
        if name in file.attrs:
            text = file.attrs[name]
            check(_parsed(text.decode() if isinstance(text, bytes) else text, shown), registry)


def _parsed(text: Any, shown: Path) -> Any:
    if isinstance(text, (str, bytes)) and len(text) > _LARGEST_CONFIG:
        raise UnsafeModelError(f"its configuration is larger than {_LARGEST_CONFIG >> 20} MiB")
    try:
        return json.loads(text, object_pairs_hook=_dictionary)
    except UnsafeModelError:
        raise
    except (ValueError, TypeError, RecursionError) as error:
        raise ValueError(f"{str(shown)!r} is damaged: its configuration is not JSON") from error


def _dictionary(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return the dictionary, whose keys have one value each, whichever a reader takes."""
    result = dict(pairs)
    if len(result) < len(pairs):
        raise UnsafeModelError("its configuration gives one key two values")
    return result
