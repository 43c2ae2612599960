"""Check a model's configuration: which classes and functions it names, and with what arguments.

The check is one of data; nothing of the model is built. Every object that the configuration
describes, wherever it stands, has to be on the list of ``harmless_classes``, or the caller's own.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from types import ModuleType
from typing import Any

from tfdq.model_files.harmless_classes import (
    FILE_ARGUMENTS,
    harmless_names,
    is_harmless_object,
    is_model_class,
    is_of_libraries,
    is_program,
    is_unlisted_name,
    opens_files,
)

_REMEDY = (
    "a class or function of your own is taken when it is registered with "
    "register_keras_serializable, or passed in custom_objects, before loading, in Python: the "
    "command line knows none of yours"
)

_CODE = {
    "Lambda": "Python code",
    "__lambda__": "Python code",
    "TorchModuleWrapper": "pickled Python objects",
    "TFSMLayer": "the path of a SavedModel",
    "ReloadedLayer": "the path of a SavedModel",
    "JaxLayer": "a compiled function",
    "FlaxLayer": "a compiled function",
    "TensorFlowOpLayer": "a raw TensorFlow operation",
    "ClassMethod": "a call of a TensorFlow class",
    "InstanceMethod": "a call of a TensorFlow object",
    "InstanceProperty": "an attribute of a TensorFlow object",
}
"""What is said of some classes that are not on the list."""

_OPERATION_LAYERS = ("TFOpLambda", "SlicingOpLambda")

# Values and types that Keras writes as objects; they are built from their own contents.
_VALUES = frozenset(
    """
    __tensor__ __numpy__ __bytes__ __tuple__ __ellipsis__ __slice__ __keras_tensor__ TensorShape
    CompositeTensor
    """.split()  # noqa: SIM905 (a table of words)
)
_TYPES = frozenset(
    {
        ("tensorflow.python.framework.sparse_tensor", "SparseTensorSpec"),
        ("tensorflow.python.framework.indexed_slices", "IndexedSlicesSpec"),
        ("tensorflow.python.framework.tensor", "TensorSpec"),
        ("tensorflow.python.ops.ragged.ragged_tensor", "RaggedTensorSpec"),
    }
)
"""Module and name of each type of TensorFlow's tensors."""

_OPERATIONS = re.compile(
    r"(__operators__\.|math\.|nn\.|linalg\.|image\.(resize|rgb|per))[a-z0-9_.]*", re.ASCII
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


class UnsafeModelError(ValueError):
    """A model file could run code, or reach other files, when it is loaded."""


class Registry:
    """The classes and functions that a caller has made known to Keras, by name."""

    def __init__(
        self, saving: ModuleType | None = None, custom_objects: Mapping[str, Any] | None = None
    ) -> None:
        """Read the registry of a library.

        Args:
            saving: ``tf_keras.saving``, the default, or ``keras.saving``.
            custom_objects: More objects, as ``load_model`` takes them.
        """
        if saving is None:
            import tf_keras

            saving = tf_keras.saving
        self._saving = saving
        self._custom = dict(custom_objects or {})

    def find(self, name: Any) -> Any:
        """Return what Keras takes for a name, or None, which sends it to a module.

        Raises:
            UnsafeModelError: A library registered it, and it is not on the list; or it takes code
                from its configuration.
        """
        if not isinstance(name, str):
            return None
        found = self._saving.get_registered_object(name, self._custom)
        if found is None:
            return None
        if is_program(found):
            program = _program_of(found)
            raise UnsafeModelError(
                f"it names {name!r}, a {program}, which takes {_CODE[program]} from the file"
            )
        registered = self._saving.get_custom_objects().get(name)
        if found is registered and is_of_libraries(found) and not is_harmless_object(found):
            raise UnsafeModelError(f"it names {name!r}, which is not known to be harmless")
        return found


def check_configuration(config: Any, registry: Registry) -> None:
    """Refuse a configuration that names anything but harmless classes, functions and values.

    Args:
        config: What ``json.loads`` makes of it.
        registry: The caller's own classes and functions.

    Raises:
        UnsafeModelError: It is not one of a model, or names something else.
    """
    check = _Check(registry)
    if not isinstance(config, dict) or not isinstance(config.get("class_name"), str):
        raise UnsafeModelError("its configuration is not that of a model")
    for item in _dictionaries(config):
        check.dictionary(item)
    kinds = check.kinds(config)
    if not kinds or not all(is_model_class(kind) for kind in kinds):
        raise UnsafeModelError(
            f"it holds an object of the class {config['class_name']!r}, no model"
        )


def check_training(config: Any, registry: Registry) -> None:
    """Refuse a configuration of a loss, an optimizer ... as `check_configuration` does.

    Raises:
        UnsafeModelError: It names something that is neither harmless nor the caller's own.
    """
    check = _Check(registry)
    for item in _dictionaries(config):
        check.dictionary(item)


class _Check:
    """The check of every dictionary in a configuration."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry
        self._names = harmless_names()

    def dictionary(self, item: dict[str, Any]) -> None:
        """Check a dictionary by itself; those in it are checked on their own."""
        layers = item.get("layers")
        for layer in layers if isinstance(layers, list) else ():
            if isinstance(layer, dict) and layer.get("class_name") == "function":
                raise UnsafeModelError(f"the function {layer.get('config')!r} is one of its layers")
        if "class_name" not in item:
            return
        kind = item["class_name"]
        if not isinstance(kind, str):
            raise UnsafeModelError(f"it names a class by {kind!r}, which is no name")
        if kind == "function":
            self._function(item)
        elif kind == "__typespec__":
            _check_type(item)
        elif kind == "TypeSpec":
            _check_legacy_type(item)
        elif kind not in _VALUES:
            self._object(item, kind)

    def kinds(self, item: dict[str, Any]) -> frozenset[Any]:
        """Return the classes that Keras may take for an object that passed the check."""
        own = self._own(item)
        if own is not None:
            return frozenset({own})
        name = item["class_name"]
        if "module" in item:
            return frozenset({self._names.classes[item["module"], name]})
        return self._names.by_name[name]

    def _object(self, item: dict[str, Any], kind: str) -> None:
        settings = item.get("config")
        settings = settings if isinstance(settings, dict) else {}
        name = str(settings.get("name") or item.get("name") or kind)
        if self._own(item) is None:
            _refuse_code(item, name)
            self._listed(item, kind)
        for known_as in (kind, item.get("registered_name")):
            if str(known_as).rpartition(">")[2] in _OPERATION_LAYERS:
                _check_operation(settings.get("function"), name)
        if any(opens_files(found) for found in self.kinds(item)):
            _check_arguments(settings, name)

    def _own(self, item: dict[str, Any]) -> Any:
        """Return the registered class of an object, if Keras takes that and nothing else.

        Keras takes a class by its registered name where the file names a module, and by the name
        of the class where it does not; both have to lead to a registered class.
        """
        kind = item["class_name"]
        registered = item.get("registered_name", kind)
        found = self._registry.find(registered if "module" in item else kind)
        if found is None:
            return None
        if registered is not None and self._registry.find(registered) is not found:
            return None
        if kind == registered or self._registry.find(kind) is found:
            return found
        # Keras writes the name of the class beside the one that it is registered under.
        own_name = kind == getattr(found, "__name__", None) and not is_unlisted_name(kind)
        return found if own_name else None

    def _listed(self, item: dict[str, Any], kind: str) -> None:
        """Check that Keras takes a class of the list, whatever it looks the name up by."""
        registered = item.get("registered_name")
        if registered not in (None, kind):
            raise UnsafeModelError(
                f"it names the class {kind!r} of the module {item.get('module')!r}, registered as "
                f"{registered!r}, which is not registered here; {_REMEDY}"
            )
        if "module" not in item:
            if kind not in self._names.by_name:
                raise UnsafeModelError(
                    f"it names the class {kind!r}, which is not known to be harmless; {_REMEDY}"
                )
        elif not (
            isinstance(item["module"], str) and (item["module"], kind) in self._names.classes
        ):
            raise UnsafeModelError(
                f"it names the class {kind!r} of the module {item['module']!r}, which is not known "
                f"to be harmless; {_REMEDY}"
            )

    def _function(self, item: dict[str, Any]) -> None:
        """Check what Keras makes a function of: its name, or in the module, or the other name."""
        name, module, registered = (
            item.get(key) for key in ("config", "module", "registered_name")
        )
        if self._registry.find(name) is not None:
            return
        if not (
            isinstance(name, str)
            and isinstance(module, str)
            and (module, name) in self._names.functions
            and registered in (None, "function", name)
        ):
            raise UnsafeModelError(
                f"it names the function {name!r} of the module {module!r}, which is not known to "
                f"be harmless; {_REMEDY}"
            )


def _refuse_code(item: dict[str, Any], name: str) -> None:
    """Say what some well-known classes hold."""
    for known_as in (item["class_name"], item.get("registered_name")):
        short = str(known_as).rpartition(">")[2]
        if short in _CODE:
            raise UnsafeModelError(f"its layer {name!r} ({short}) is {_CODE[short]}")


def _program_of(kind: type) -> str:
    return next(base.__name__ for base in kind.__mro__ if base.__name__ in _CODE)


def _check_arguments(settings: dict[str, Any], name: str) -> None:
    """Refuse arguments that a class would open as a file; a list of words is none."""
    for argument in FILE_ARGUMENTS:
        value = settings.get(argument)
        if value is not None and not (
            isinstance(value, list) and not any(isinstance(x, (dict, list)) for x in value)
        ):
            raise UnsafeModelError(f"its layer {name!r} reads the file {value!r}")


def _check_type(item: dict[str, Any]) -> None:
    """Check a type of tensors, which Keras takes from any module as well."""
    module, name = item.get("module"), item.get("spec_name")
    if item.get("registered_name") is not None or (module, name) not in _TYPES:
        raise UnsafeModelError(f"it names the type {name!r} of the module {module!r}")


def _check_legacy_type(item: dict[str, Any]) -> None:
    if item.get("type_spec") not in {f"tf.{kind}" for _, kind in _TYPES}:
        raise UnsafeModelError(f"it names the type {item.get('type_spec')!r}")


def _check_operation(symbol: Any, name: str) -> None:
    if not isinstance(symbol, str) or not (
        _OPERATIONS.fullmatch(symbol) or symbol in _MORE_OPERATIONS
    ):
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
