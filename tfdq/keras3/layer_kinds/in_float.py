"""Layers that stay in float, because the caller said so: copied as they are."""

from __future__ import annotations

from typing import Any

from keras import ops

from tfdq.keras3.layer_kinds.registry import Kind, Step


def copy_in_float(layer: Any, name: str) -> Any:
    """Return a layer or operation with the settings of another, without its weights.

    Raises:
        ValueError: its class does not make itself again from its configuration.
    """
    try:
        return type(layer).from_config({**layer.get_config(), "name": name})
    except (TypeError, NotImplementedError) as error:
        raise ValueError(
            f"layer {layer.name!r} ({type(layer).__name__}) is to stay in float, but is not made "
            f"again from its get_config(): {error}; give its class get_config and from_config"
        ) from error


def _load(step: Step, layer: Any) -> None:
    pairs = zip(getattr(step.node.layer, "weights", ()), getattr(layer, "weights", ()), strict=True)
    for old, new in pairs:
        new.assign(ops.convert_to_numpy(old))


IN_FLOAT = Kind((), None, role="in float", load=_load)
"""What is named in ``skip``: called on reals, its result quantized again."""
