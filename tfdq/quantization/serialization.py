"""Load models that tfdq made, whatever the file format."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import tf_keras

from tfdq.lipschitz.names import REGULARIZERS
from tfdq.quantization.configs import DefensiveQuantizeConfig
from tfdq.quantization.layers import (
    ConvexCombination,
    FusedAdd,
    FusedBatchNormalization,
    FusedConv2D,
    FusedDense,
    FusedDepthwiseConv2D,
    FusedReLU,
)
from tfdq.quantization.quantizers import (
    FixedRangeQuantizer,
    KernelQuantizer,
    ObservedRangeQuantizer,
)
from tfdq.quantization.wrapper import InputQuantizer, PortableQuantizeWrapper, QuantizeWrapper

_CLASSES = (
    ConvexCombination,
    DefensiveQuantizeConfig,
    FixedRangeQuantizer,
    FusedAdd,
    FusedBatchNormalization,
    FusedConv2D,
    FusedDense,
    FusedDepthwiseConv2D,
    FusedReLU,
    InputQuantizer,
    KernelQuantizer,
    ObservedRangeQuantizer,
    PortableQuantizeWrapper,
    QuantizeWrapper,
    *REGULARIZERS.values(),
)


def quantize_scope(*custom_objects: dict[str, Any]) -> tf_keras.saving.custom_object_scope:
    """Return a scope that knows tfdq's classes by name, as tfmot's ``quantize_scope`` does.

    The classes are registered when ``tfdq.quantization`` is imported, so a scope is needed only
    for classes of one's own.

    Args:
        *custom_objects: more classes, name -> class.
    """
    known = {kind.__name__: kind for kind in _CLASSES}
    return tf_keras.saving.custom_object_scope(known, *custom_objects)


def load_model(path: str | Path, **options: Any) -> tf_keras.Model:
    """Load a saved tf_keras model, quantization-aware or float.

    Args:
        path: a ``.keras`` or ``.h5`` file, or a SavedModel folder.
        **options: arguments of ``tf_keras.models.load_model`` (``compile``, ``custom_objects``,
            ``safe_mode``).

    Raises:
        FileNotFoundError: there is nothing at ``path``.
        ValueError: it is not a model that tf_keras can read.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"no model at {str(path)!r}")
    if path.is_dir() and not (path / "saved_model.pb").exists():
        raise ValueError(f"{str(path)!r} is a folder but not a SavedModel (no saved_model.pb)")
    try:
        return tf_keras.models.load_model(path, **options)
    except OSError as error:
        raise ValueError(f"{str(path)!r} is not a Keras model file: {error}") from error
