"""Objects inside layer configs, written the same way in every Keras file format.

Keras' own serializer writes ``.keras`` files one way and reads them back another way in ``.h5``
and SavedModel; a name and the constructor's arguments are all that is needed.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import tf_keras


def pack(instance: Any) -> dict[str, Any]:
    """Return the registered name and the config of an object."""
    name = tf_keras.saving.get_registered_name(type(instance))
    return {"class_name": name, "config": instance.get_config()}


def unpack(packed: Any, custom_objects: Mapping[str, Any] | None = None) -> Any:
    """Return the object that ``pack`` described; what is not packed is returned as it is.

    Args:
        packed: a result of ``pack``, or an object.
        custom_objects: more classes, name -> class.

    Raises:
        ValueError: the class is not known, or there are more entries than ``pack`` writes.
    """
    if not isinstance(packed, Mapping):
        return packed
    if set(packed) != {"class_name", "config"}:
        # The check of a model file goes by the module and the registered name where they stand.
        raise ValueError(f"expected 'class_name' and 'config', got the keys {sorted(packed)}")
    name = packed["class_name"]
    kind = (
        tf_keras.saving.get_registered_object(name, custom_objects)
        or getattr(tf_keras.layers, name, None)
        or getattr(tf_keras.optimizers.schedules, name, None)
    )
    if kind is None:
        raise ValueError(
            f"the class {name!r} is not known; import the module that defines and registers it, "
            "or load the model inside tfdq.quantize_scope({name: class})"
        )
    return kind.from_config(dict(packed["config"]))
