"""Check a Keras model file before Keras reads it: a model file is untrusted input.

Keras' own safe mode stops pickled lambdas in ``.keras`` files only: those in ``.h5`` files and in
SavedModels are run, and a configuration may name any importable function, or any TensorFlow
operation, as a layer. The check is one of names, on the configuration alone; nothing of the model
is built.
"""

from __future__ import annotations

import json
import re
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import h5py

from tfdq.quantization.model_names import (
    PACKAGES,
    is_function_module,
    is_module_of_packages,
    known_classes,
    known_functions,
)

_LARGEST_CONFIG = 64 << 20
"""Bytes of a configuration that are read; that of ResNet-152 has 0.3 MiB."""

_REGISTER = (
    "register a class of your own with register_keras_serializable before loading, in Python: the "
    "command line knows no classes of yours"
)

_LARGEST_ARCHIVE = 32 << 30
"""Bytes that an archive may hold unpacked."""

_CODE = {
    "Lambda": "Python code",
    "__lambda__": "Python code",
    "TorchModuleWrapper": "pickled Python objects",
    "TFSMLayer": "the path of a SavedModel",
    "JaxLayer": "a compiled function",
    "FlaxLayer": "a compiled function",
    "TensorFlowOpLayer": "a raw TensorFlow operation",
    "ClassMethod": "a call of a TensorFlow class",
    "InstanceMethod": "a call of a TensorFlow object",
    "InstanceProperty": "an attribute of a TensorFlow object",
}

_OPERATION_LAYERS = ("TFOpLambda", "SlicingOpLambda")
# Values and types that Keras writes as objects; they are built from their own contents.
_VALUES = re.compile(r"__(?!lambda)\w+__|TensorShape|TypeSpec|CompositeTensor")

_OPERATIONS = (
    "__operators__.",
    "math.",
    "nn.",
    "linalg.",
    "image.resize",
    "image.rgb",
    "image.per",
)
_MORE_OPERATIONS = frozenset(
    """
    abs add argmax argmin broadcast_to cast clip_by_value concat cos divide exp expand_dims gather
    identity maximum minimum multiply one_hot ones_like pad reduce_max reduce_mean reduce_min
    reduce_sum reshape reverse round shape sigmoid sign sin slice split sqrt square squeeze stack
    stop_gradient strided_slice subtract tanh tile transpose unstack where zeros_like
    compat.v1.transpose compat.v1.squeeze compat.v1.expand_dims compat.v1.shape
    """.split()  # noqa: SIM905 (a table of words)
)


class _Names(NamedTuple):
    """What a configuration may name."""

    is_registered: Callable[[str], bool]
    classes: frozenset[str]
    functions: frozenset[str]


class UnsafeModelError(ValueError):
    """A model file could run code, or reach other files, when it is loaded."""


def check_model_file(
    path: str | Path, is_registered: Callable[[str], bool] = lambda name: False
) -> None:
    """Refuse a model file that could do more than make a model of layers.

    Args:
        path: a ``.keras`` or ``.h5`` file, or a SavedModel folder.
        is_registered: whether a class or function of that name is known in this process, so that
            Keras takes that one and imports nothing.

    Raises:
        UnsafeModelError: it is a SavedModel, which is a program; or holds Python code, the name of
            a function or module outside Keras and tfdq, an operation that is not arithmetic, a
            link to another file, or a path that leads out of the archive.
        ValueError: its configuration is not JSON.
    """
    path = Path(path)
    try:
        if path.is_dir():
            raise UnsafeModelError("a SavedModel is a program, free to read and write files")
        if zipfile.is_zipfile(path):
            _check_archive(path, is_registered)
        if h5py.is_hdf5(path):
            with h5py.File(path, "r") as file:
                _check_links(file)
                _check_configurations(file, is_registered)
    except UnsafeModelError as error:
        raise UnsafeModelError(f"{str(path)!r} is not loaded: {error}") from error


def _check_archive(path: Path, is_registered: Callable[[str], bool]) -> None:
    """Check names, sizes and contents of a ``.keras`` file."""
    with zipfile.ZipFile(path) as archive:
        members = archive.infolist()
        names = [member.filename for member in members]
        if len(set(names)) < len(names):
            raise UnsafeModelError("its archive holds two files of one name")
        for member in members:
            _check_member(member)
        if sum(member.file_size for member in members) > _LARGEST_ARCHIVE:
            raise UnsafeModelError(f"it unpacks to more than {_LARGEST_ARCHIVE >> 30} GiB")
        if "config.json" in names:
            if archive.getinfo("config.json").file_size > _LARGEST_CONFIG:
                raise UnsafeModelError(
                    f"its configuration is larger than {_LARGEST_CONFIG >> 20} MiB"
                )
            _check_configuration(_parsed(archive.read("config.json"), path), is_registered)
        for name in names:
            if name.endswith((".h5", ".hdf5")):
                with archive.open(name) as stored:
                    _check_weights(stored)


def _check_member(member: zipfile.ZipInfo) -> None:
    name = member.filename
    parts = PurePosixPath(name.replace("\\", "/")).parts
    if not parts or parts[0] == "/" or ":" in parts[0] or ".." in parts:
        raise UnsafeModelError(f"its archive holds a path that leads out of it, {name!r}")
    # The upper half of the attributes is the mode of a Unix file; 0o120000 marks a link.
    if (member.external_attr >> 16) & 0o170000 == 0o120000:
        raise UnsafeModelError(f"its archive holds a link, {name!r}")


def _check_weights(stored: Any) -> None:
    try:
        file = h5py.File(stored, "r")
    except OSError:
        # No HDF5 file; Keras reads it with the same library and says so.
        return
    with file:
        _check_links(file)


def _check_links(file: h5py.File) -> None:
    """Refuse links, storage and views that lead into other files."""
    seen: set[int] = set()
    groups: list[h5py.Group] = [file]
    while groups:
        group = groups.pop()
        address = h5py.h5o.get_info(group.id).addr
        if address in seen:
            continue
        seen.add(address)
        for name in group:
            link = group.get(name, getlink=True)
            if isinstance(link, h5py.ExternalLink):
                raise UnsafeModelError(f"{name!r} in it is a link to the file {link.filename!r}")
            child = group.get(name)
            if isinstance(child, h5py.Group):
                groups.append(child)
            elif isinstance(child, h5py.Dataset) and (child.external or child.is_virtual):
                raise UnsafeModelError(f"{name!r} in it is stored in another file")


def _check_configurations(file: h5py.File, is_registered: Callable[[str], bool]) -> None:
    for name in ("model_config", "training_config"):
        if name in file.attrs:
            _check_configuration(_parsed(file.attrs[name], file.filename), is_registered)


def _parsed(text: str | bytes, path: str | Path) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{str(path)!r} is damaged: its configuration is not JSON") from error


def _check_configuration(config: Any, is_registered: Callable[[str], bool]) -> None:
    """Check every class and function that a configuration names."""
    names = _Names(is_registered, known_classes(), known_functions())
    for item in _dictionaries(config):
        for layer in item.get("layers", ()) if isinstance(item.get("layers"), list) else ():
            if isinstance(layer, dict) and layer.get("class_name") == "function":
                raise UnsafeModelError(f"the function {layer.get('config')!r} is one of its layers")
        kind = item.get("class_name")
        if isinstance(kind, str):
            _check_object(item, kind, names)
        elif kind is not None:
            raise UnsafeModelError(f"it names a class by {kind!r}, which is no name")
        elif isinstance(item.get("module"), str):
            _check_module(item["module"], "an object")


def _check_object(item: dict[str, Any], kind: str, names: _Names) -> None:
    inner = item.get("config")
    settings = inner if isinstance(inner, dict) else {}
    name = str(settings.get("name") or item.get("name") or kind)
    registered = item.get("registered_name")
    for known_as in (kind, registered):
        short = str(known_as).rpartition(">")[2]
        if short in _CODE:
            raise UnsafeModelError(f"its layer {name!r} ({short}) is {_CODE[short]}")
        if short in _OPERATION_LAYERS:
            _check_operation(str(settings.get("function")), name)
    if isinstance(settings.get("vocabulary"), str):
        raise UnsafeModelError(f"its layer {name!r} reads the file {settings['vocabulary']!r}")
    module = item.get("module")
    if kind == "function":
        _check_function(inner, module, registered, names)
    elif kind == "__typespec__":
        _check_type(item.get("spec_name"), module, registered)
    elif not _VALUES.fullmatch(kind):
        _check_class(kind, module, registered, names)


def _check_class(kind: str, module: Any, registered: Any, names: _Names) -> None:
    """Check what Keras makes a class of: the registered name, or the class's in the module.

    Files differ in which of the two counts, so that each has to be good by itself.
    """

    def good(name: Any) -> bool:
        return isinstance(name, str) and (names.is_registered(name) or name in names.classes)

    if isinstance(registered, str) and names.is_registered(registered):
        # Keras writes the name of the class beside it, which need not be registered, too.
        if good(kind) or kind == registered.rpartition(">")[2] or _is_class_name(kind):
            return
    elif good(kind) and (registered is None or ">" in str(registered) or good(registered)):
        if module is not None and not names.is_registered(kind):
            _check_module(str(module), f"the class {kind!r}")
        return
    if module is not None:
        _check_module(str(module), f"the class {kind!r}")
    raise UnsafeModelError(
        f"it names the class {kind!r}, which neither Keras nor tfdq has; {_REGISTER}"
    )


def _is_class_name(name: str) -> bool:
    """Tell a class by the capital letter that it begins with, underscores aside."""
    return name.isidentifier() and name.lstrip("_")[:1].isupper()


def _check_module(module: str, what: str) -> None:
    if not is_module_of_packages(module):
        raise UnsafeModelError(
            f"it names {what} of the module {module!r}, which is not of {', '.join(PACKAGES)}; "
            f"{_REGISTER}"
        )


def _check_function(name: Any, module: Any, registered: Any, names: _Names) -> None:
    """Check what Keras makes a function of: its name alone, or in the module, or the other name."""
    if isinstance(name, str) and names.is_registered(name):
        return
    if not (
        isinstance(name, str)
        and name in names.functions
        and (module in (None, "builtins") or is_function_module(str(module)))
        and (registered in (None, "function") or registered in names.functions)
    ):
        raise UnsafeModelError(
            f"it names the function {name!r} of the module {module!r}; functions of Keras are "
            "taken, those of others when they are registered with register_keras_serializable"
        )


def _check_type(name: Any, module: Any, registered: Any) -> None:
    """Check a type of tensors, which Keras takes from any module as well."""
    if not (
        registered is None
        and str(module).split(".")[0] == "tensorflow"
        and re.fullmatch(r"\w*Spec", str(name))
    ):
        raise UnsafeModelError(f"it names the type {name!r} of the module {module!r}")


def _check_operation(symbol: str, name: str) -> None:
    if not (symbol.startswith(_OPERATIONS) or symbol in _MORE_OPERATIONS):
        raise UnsafeModelError(
            f"its layer {name!r} calls tf.{symbol}, which is not known to be mere arithmetic"
        )


def _dictionaries(value: Any) -> Iterator[dict[str, Any]]:
    """Return all dictionaries in a JSON value."""
    pending = [value]
    while pending:
        item = pending.pop()
        if isinstance(item, dict):
            yield item
            pending.extend(item.values())
        elif isinstance(item, list):
            pending.extend(item)
