"""Load models that tfdq made, whatever the file format."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import tf_keras

from tfdq.model_files.configuration import Registry, UnsafeModelError
from tfdq.model_files.containers import checked_copy
from tfdq.model_files.keras3 import is_keras3_file
from tfdq.penalties.names import REGULARIZERS
from tfdq.quantization.configs import DefensiveQuantizeConfig
from tfdq.quantization.keras3 import load_keras3
from tfdq.quantization.layers import (
    ConvexCombination,
    FusedAdd,
    FusedBatchNormalization,
    FusedConv2D,
    FusedDense,
    FusedDepthwiseConv2D,
    FusedReLU,
)
from tfdq.quantization.quantized_model import QuantizedModel
from tfdq.quantization.quantizers import (
    FixedRangeQuantizer,
    KernelQuantizer,
    ObservedRangeQuantizer,
)
from tfdq.quantization.squeezing import BitDepthSqueeze, MedianSqueeze
from tfdq.quantization.wrapper import InputQuantizer, PortableQuantizeWrapper, QuantizeWrapper

_CLASSES = (
    BitDepthSqueeze,
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
    MedianSqueeze,
    ObservedRangeQuantizer,
    PortableQuantizeWrapper,
    QuantizeWrapper,
    QuantizedModel,
    *REGULARIZERS.values(),
)


def quantize_scope(*custom_objects: dict[str, Any]) -> tf_keras.saving.custom_object_scope:
    """Return a scope that knows tfdq's classes by name, as tfmot's ``quantize_scope`` does.

    The classes are registered when ``tfdq.quantization`` is imported, so a scope is needed only
    for classes of your own.

    Args:
        *custom_objects: more classes, name -> class.
    """
    known = {kind.__name__: kind for kind in _CLASSES}
    return tf_keras.saving.custom_object_scope(known, *custom_objects)


def load_model(path: str | Path, *, safe_mode: bool = True, **options: Any) -> tf_keras.Model:
    """Load a saved model, quantization-aware or float; one of Keras 3 is converted to tf_keras.

    A file is checked before Keras reads it (``tfdq.model_files.containers``), because Keras' own
    safe mode covers pickled lambdas in ``.keras`` files only. It may name the classes and functions
    listed in ``tfdq.model_files.harmless_classes``, those that are registered with tf_keras, and
    those in ``custom_objects``; what is checked is a private copy, and that is loaded.

    Args:
        path: a ``.keras`` or ``.h5`` file, or (with ``safe_mode=False``) a SavedModel folder.
        safe_mode: refuse files that could run code or reach other files. False: run what is in
            the file, for files whose origin you trust. A file of Keras 3 is read in safe mode
            either way.
        **options: more arguments of ``tf_keras.models.load_model`` (``compile``,
            ``custom_objects``); a ``.keras`` file of Keras 3 takes none and is not compiled, see
            ``tfdq.quantization.keras3.load_keras3``.

    Raises:
        FileNotFoundError: there is nothing at ``path``.
        UnsafeModelError: (a ValueError) the file is not merely a model of layers.
        ValueError: it is not a model that tf_keras can read.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"no model at {str(path)!r}")
    if path.is_dir() and not (path / "saved_model.pb").exists():
        raise ValueError(f"{str(path)!r} is a folder but not a SavedModel (no saved_model.pb)")
    # Opening a pipe would wait for ever, and a device may have no end.
    if not path.is_dir() and not path.is_file():
        raise ValueError(f"{str(path)!r} is a pipe or a device; copy the model to a file")
    _check_kind(path)
    if is_keras3_file(path):
        return load_keras3(path)
    if not safe_mode:
        return _read(path, path, safe_mode=False, **options)
    try:
        with checked_copy(path, Registry(tf_keras.saving, options.get("custom_objects"))) as copy:
            return _read(copy, path, safe_mode=True, **options)
    except UnsafeModelError as error:
        raise UnsafeModelError(
            f"{error}. If you trust where it comes from, load it with safe_mode=False "
            "(command line: --trust)."
        ) from error


def _read(path: Path, shown: Path, **options: Any) -> tf_keras.Model:
    """Load what Keras takes for a model file, which goes by another path in messages."""
    try:
        model = tf_keras.models.load_model(path, **options)
    except OSError as error:
        raise ValueError(
            f"{str(shown)!r} is not a Keras model file, or is cut off: {error}; save the model "
            "again"
        ) from error
    if not isinstance(model, tf_keras.Model):
        raise ValueError(f"{str(shown)!r} holds a {type(model).__name__}, no model of tf_keras")
    return model


def _check_kind(path: Path) -> None:
    """Refuse what looks like a model file and is none that tf_keras reads; says what to give."""
    if path.suffix == ".tflite":
        raise ValueError(
            f"{str(path)!r} is an integer file, which has no trainable weights; give the Keras "
            "model that it was made of"
        )
    if path.is_dir() or not h5py.is_hdf5(path):
        return
    with h5py.File(path, "r") as file:
        version = file.attrs.get("keras_version", "")
        has_model = "model_config" in file.attrs
    if not has_model:
        raise ValueError(
            f"{str(path)!r} holds weights only; save the whole model, with model.save('NAME.keras')"
        )
    if str(version.decode() if isinstance(version, bytes) else version).startswith("3."):
        raise ValueError(
            f"{str(path)!r} is an .h5 file of Keras {version}; load it there and save it again as "
            ".keras, which is read"
        )
