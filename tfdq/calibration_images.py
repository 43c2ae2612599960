"""The images that a model is calibrated on: arrays, lists and data sets as batches, checked."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from tfdq.mistakes import WrongTypeError


def calibration_batches(model: Any, images: Any, batch_size: int) -> Iterator[list[np.ndarray]]:
    """Yield what a model is called with, one batch at a time.

    Args:
        model: a tf_keras or Keras 3 model of one input or several.
        images: as for ``tfdq.calibrate``.
        batch_size: images in a batch, where ``images`` is no data set.

    Yields:
        For each input of the model a float32 array ``(m, ...)``.

    Raises:
        TypeError: ``images`` is of a kind that holds no images.
        ValueError: they do not fit the model's inputs, or hold NaN or infinite values; a data set
            is infinite or not batched.
    """
    if not isinstance(batch_size, int) or batch_size < 1:
        raise ValueError(f"batch_size must be an integer of at least 1, got {batch_size!r}")
    if _is_dataset(images):
        yield from _of_dataset(model, images)
        return
    arrays = _arrays(model, images)
    for start in range(0, len(arrays[0]), batch_size):
        yield [array[start : start + batch_size] for array in arrays]


def _is_dataset(images: Any) -> bool:
    # Only a process that has loaded TensorFlow can have made one.
    tf = sys.modules.get("tensorflow")
    return tf is not None and isinstance(images, tf.data.Dataset)


def _of_dataset(model: Any, dataset: Any) -> Iterator[list[np.ndarray]]:
    if int(dataset.cardinality()) == sys.modules["tensorflow"].data.INFINITE_CARDINALITY:
        raise ValueError("the dataset of calibration images is infinite: use dataset.take(n)")
    for element in dataset.as_numpy_iterator():
        given = element[0] if isinstance(element, tuple) else element
        several = len(model.inputs) > 1 or isinstance(given, Mapping)
        arrays = _by_input(model, given) if several else [given]
        yield [_checked(value, tensor) for value, tensor in zip(arrays, model.inputs, strict=True)]


def _arrays(model: Any, images: Any) -> list[np.ndarray]:
    """Return one array ``(n, ...)`` for each input of the model."""
    if len(model.inputs) > 1 or isinstance(images, Mapping):
        found = [
            _checked(value, tensor)
            for value, tensor in zip(_by_input(model, images), model.inputs, strict=True)
        ]
        counts = {len(array) for array in found}
        if len(counts) > 1:
            raise ValueError(
                f"the calibration images of the model's inputs differ in number: {sorted(counts)}"
            )
        return found
    (tensor,) = model.inputs
    if isinstance(images, tuple) and len(images) == 2 and not _fits(images[1], tensor):
        images = images[0]  # (images, labels), as `fit` takes them
    if isinstance(images, (list, tuple)):
        return [_joined(images, tensor)]
    return [_checked(images, tensor)]


def _by_input(model: Any, given: Any) -> Sequence[Any]:
    """Return one entry for each input, from a sequence in their order or a dictionary by name."""
    structure = getattr(model, "_inputs_struct", None)
    if isinstance(structure, Mapping):
        names = sorted(structure)
    else:
        names = [tensor.name for tensor in model.inputs]
    if isinstance(given, Mapping):
        if set(given) != set(names):
            raise ValueError(
                f"the calibration images are named {sorted(map(str, given))}, but the inputs of "
                f"{model.name!r} {names}"
            )
        return [given[name] for name in names]
    if not isinstance(given, (list, tuple)) or len(given) != len(names):
        count = f"{len(given)} of them" if isinstance(given, (list, tuple)) else "one array"
        raise ValueError(
            f"{model.name!r} has {len(names)} inputs {names}: calibrate on a list of one array "
            f"(n, ...) for each, or on a dataset of ((a, b, ...), labels); got {count}"
        )
    return given


def _joined(images: Sequence[Any], tensor: Any) -> np.ndarray:
    """Return a list of images, or of batches of images, as one array."""
    if not images:
        raise ValueError("there are no images to calibrate on")
    ranks = {np.ndim(image) for image in images}
    rank = len(tensor.shape)
    if ranks == {rank}:
        return np.concatenate([_checked(batch, tensor) for batch in images])
    shapes = {np.shape(image) for image in images}
    if ranks != {rank - 1} or len(shapes) > 1:
        listed = ", ".join(map(str, sorted(shapes, key=str)[:3]))
        raise ValueError(
            f"a list to calibrate on must hold images {_shown(tensor)[1:]} of one size, or batches "
            f"of them; this one holds shapes {listed}"
        )
    return _checked(np.stack([np.asarray(image) for image in images]), tensor)


def _fits(value: Any, tensor: Any) -> bool:
    """Return whether an array has the shape of an input's images or batches of them."""
    shape, wanted = np.shape(value), tensor.shape[1:]
    if len(shape) == len(wanted) + 1:
        shape = shape[1:]
    sizes = zip(shape, wanted, strict=False)
    return len(shape) == len(wanted) and all(there in (None, size) for size, there in sizes)


def _checked(value: Any, tensor: Any) -> np.ndarray:
    """Return a batch as float32, or say what is wrong with it."""
    array = np.asarray(value)
    if not (np.issubdtype(array.dtype, np.floating) or np.issubdtype(array.dtype, np.integer)):
        raise WrongTypeError(
            "calibration images must be an array of numbers (n, ...), a list of images or a "
            f"tf.data.Dataset of batches, got {type(value).__name__}"
        )
    wanted = _shown(tensor)
    if array.ndim == len(wanted) - 1 and array.ndim and _fits(array, tensor):
        raise ValueError(
            f"calibration images have shape {array.shape}, one image of input {tensor.name!r}: "
            "pass a batch (image[None], or dataset.batch(n))"
        )
    if array.ndim != len(wanted) or not _fits(array, tensor):
        raise ValueError(
            f"calibration images have shape {array.shape}, but input {tensor.name!r} takes "
            f"({', '.join(map(str, wanted))})"
        )
    array = np.asarray(array, np.float32)
    if not np.isfinite(array).all():
        raise ValueError("the calibration images hold NaN or infinite values; clean them first")
    return array


def _shown(tensor: Any) -> tuple[Any, ...]:
    return ("n", *tensor.shape[1:])
