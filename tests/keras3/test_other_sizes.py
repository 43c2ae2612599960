"""`convert(input_shape=)` against the float network built at the new size, kind by kind."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import pytest

from tests.exhaustive import only
from tfdq.keras3 import calibrate, quantize_model
from tflite_export import convert

L, K = keras.layers, keras.ops
_SMALL, _LARGE, _LONG = (8, 8), (12, 12), (16, 4)
"""Sizes of images; the long one has as many pixels as the small one."""

SLICES: dict[str, Callable[[Any], Any]] = {
    "[1:]": lambda x: x[:, 1:],
    "[-4:]": lambda x: x[:, -4:],
    "[-20:]": lambda x: x[:, -20:],
    "[:-2]": lambda x: x[:, :-2],
    "[1:-2]": lambda x: x[:, 1:-2],
    "[-6:-2]": lambda x: x[:, -6:-2],
    "[-6:6]": lambda x: x[:, -6:6],
    "[2:6]": lambda x: x[:, 2:6],
    "[:8]": lambda x: x[:, :8],
    "[:, 2:20]": lambda x: x[:, :, 2:20],
    "[..., -2:]": lambda x: x[..., -2:],
    "[::1]": lambda x: x[:, ::1],
    "[7:]": lambda x: x[:, 7:],
}
POOLS: dict[str, Callable[[Any], Any]] = {
    "average": L.AveragePooling2D(8),
    "average-same": L.AveragePooling2D(8, padding="same"),
    "average-stride": L.AveragePooling2D(8, strides=1),
    "average-12": L.AveragePooling2D((12, 12), padding="same"),
    "average-op": lambda x: K.average_pool(x, 8, padding="valid"),
    "average-3-same": L.AveragePooling2D(3, strides=2, padding="same"),
    "max": L.MaxPooling2D(8),
    "max-same": L.MaxPooling2D(8, padding="same"),
    "max-5-same": L.MaxPooling2D(5, strides=3, padding="same"),
    "max-op": lambda x: K.max_pool(x, 8),
    "global-average": L.GlobalAveragePooling2D(keepdims=True),
    "global-max": L.GlobalMaxPooling2D(),
    "mean": lambda x: K.mean(x, (1, 2)),
    "maximum": lambda x: K.max(x, (1, 2), keepdims=True),
}


def row(x: Any) -> Any:
    """Return an image as a sequence of its pixels."""
    return L.Reshape((-1, 4))(x)


OTHERS: dict[str, Callable[[Any], Any]] = {
    "resizing-nearest": L.Resizing(24, 24, interpolation="nearest"),
    "resizing-bilinear": L.Resizing(10, 10),
    "upsampling": L.UpSampling2D((2, 3)),
    "upsampling-bilinear": L.UpSampling2D(2, interpolation="bilinear"),
    "padding": L.ZeroPadding2D(((1, 0), (2, 3))),
    "cropping-all": L.Cropping2D(3),
    "cropping": L.Cropping2D(((1, 2), (0, 3))),
    "conv-stride": lambda x: L.Conv2D(3, 4, strides=3, padding="same")(x),
    "conv-stride-2": lambda x: L.Conv2D(3, 3, strides=2, padding="same")(x),
    "conv-dilated": lambda x: L.Conv2D(3, 3, dilation_rate=2, padding="same")(x),
    "depthwise": lambda x: L.DepthwiseConv2D(3, strides=2, padding="same")(x),
    "separable": lambda x: L.SeparableConv2D(3, 3, strides=2, padding="same")(x),
    "transposed": lambda x: L.Conv2DTranspose(2, 3, strides=2, padding="same")(x),
    "conv-1d": lambda x: L.Conv1D(3, 4, strides=3, padding="same")(row(x)),
    "conv-1d-causal": lambda x: L.Conv1D(3, 4, padding="causal")(row(x)),
    "average-1d": lambda x: L.AveragePooling1D(64)(row(x)),
    "mean-1d": lambda x: K.mean(row(x), 1),
    "cropping-1d": lambda x: L.Cropping1D((2, 3))(row(x)),
    "flatten": L.Flatten(),
    "flatten-dense": lambda x: L.Dense(3)(L.Flatten()(x)),
    "repeated": lambda x: L.RepeatVector(3)(L.Flatten()(x)),
    "reshape": L.Reshape((16, 16)),
    "reshape-rest": L.Reshape((8, -1)),
    "reshape-op": lambda x: K.reshape(x, (-1, 64, 4)),
    "reshape-op-of-size": lambda x: K.reshape(x, (-1, *x.shape[1:3], 2, 2)),
    "expand": lambda x: K.squeeze(K.expand_dims(x, 1), 1),
    "expand-in-front": lambda x: L.Conv2D(2, 1)(K.expand_dims(row(x), 1)),
    "each-step": lambda x: L.TimeDistributed(L.Flatten())(x),
    "permute": L.Permute((2, 3, 1)),
    "permute-conv": lambda x: L.Conv2D(2, 1)(L.Permute((3, 2, 1))(x)),
    "permute-softmax": lambda x: L.Softmax()(L.Permute((3, 2, 1))(x)),
    "permute-units": lambda x: L.UnitNormalization()(L.Permute((3, 2, 1))(x)),
    "permute-norm": lambda x: L.LayerNormalization(center=False, scale=False)(
        L.Permute((3, 2, 1))(x)
    ),
    "permute-numbers": lambda x: L.Permute((3, 2, 1))(x) * np.linspace(1, 2, 8, dtype="float32"),
    "batch-norm": lambda x: L.BatchNormalization()(L.Conv2D(2, 3)(x)),
    "prelu": lambda x: L.PReLU(shared_axes=[1, 2])(x),
    "gate": lambda x: x * K.sigmoid(K.mean(x, (1, 2), keepdims=True)),
    "windows-gate": lambda x: x * L.MaxPooling2D(8)(x),
    "pixel-prelu": lambda x: L.PReLU()(L.MaxPooling2D(8)(x)),
    "rows-together": lambda x: L.Concatenate(1)([x, x[:, 2:]]),
    "two-ways": lambda x: L.Concatenate()([x, L.UpSampling2D(4)(L.MaxPooling2D(4)(x))]),
    "three-ways": lambda x: L.Concatenate()([x, L.ZeroPadding2D(2)(L.MaxPooling2D(2)(x))]),
    "added-ways": lambda x: L.Add()([x, L.ZeroPadding2D(2)(L.MaxPooling2D(2)(x))]),
    "valid-conv": lambda x: L.Conv2D(2, 6)(x),
    "center": lambda x: x - K.mean(x, (1, 2), keepdims=True),
}
KINDS = {**SLICES, **POOLS, **OTHERS}
_OTHER_WAY = (
    *("[1:]", "[-4:]", "[-20:]", "average", "average-same", "average-12", "average-1d", "gate"),
    *("upsampling", "resizing-nearest", "conv-stride-2", "permute-norm", "windows-gate"),
)
_MANY = ("reshape", "expand", "each-step", "flatten-dense", "added-ways", "max-5-same")
_TOO_SMALL = ("[7:]", "max", "valid-conv", "cropping-all", "windows-gate", "three-ways")
CASES = [
    *((kind, _SMALL, _LARGE) for kind in KINDS),
    *((kind, _LARGE, _SMALL) for kind in _OTHER_WAY),
    *((kind, _SMALL, _LONG) for kind in _MANY),
    *((kind, _SMALL, (4, 4)) for kind in _TOO_SMALL),
]
_RUN_ALWAYS = [
    *((kind, _SMALL, _LARGE) for kind in ("[1:]", "[-4:]", "[2:6]", "average", "average-1d")),
    *((kind, _SMALL, _LARGE) for kind in ("global-average", "resizing-nearest", "upsampling")),
    *((kind, _SMALL, _LARGE) for kind in ("conv-stride-2", "permute-norm", "batch-norm")),
    *((kind, _LARGE, _SMALL) for kind in ("[-4:]", "average")),
    *((kind, _SMALL, _LONG) for kind in ("reshape", "expand", "each-step")),
    ("max", _SMALL, (4, 4)),
]


def network(kind: str, size: tuple[int, int]) -> keras.Model:
    """Return a float network with the kind of layer in it, at a size."""
    keras.utils.set_random_seed(0)
    image = keras.Input((*size, 1))
    x = L.Conv2D(4, 3, padding="same")(image)
    build = KINDS[kind]
    if isinstance(build, L.Layer):
        # A layer is built once.
        build = type(build).from_config(build.get_config())
    return keras.Model(image, build(x))


def images(size: tuple[int, int]) -> np.ndarray:
    """Return images whose every row and column differs from the others."""
    ramps = (np.linspace(0.2, 1, count, dtype=np.float32) for count in size)
    noise = np.random.default_rng(0).random((8, *size, 1)).astype(np.float32)
    return (0.5 + 0.5 * noise) * np.multiply.outer(*ramps)[None, :, :, None]


def at_size(kind: str, size: tuple[int, int], small: keras.Model) -> np.ndarray | None:
    """Return what the float network gives at another size, or None if there is no such network."""
    try:
        large = network(kind, size)
        large.set_weights(small.get_weights())
        return np.asarray(large.predict(images(size), verbose=0))
    except ValueError:
        return None


@pytest.mark.parametrize("case", only(CASES, *_RUN_ALWAYS), ids=str)
def test_a_file_of_another_size_is_the_float_network_of_that_size(
    case: tuple[str, tuple[int, int], tuple[int, int]],
) -> None:
    kind, trained, other = case
    small = network(kind, trained)
    # The ranges hold what larger images bring.
    model = calibrate(quantize_model(small, 0.0), 1.6 * images(trained))
    wanted = at_size(kind, other, small)
    refusal = None
    try:
        exported = convert(model, calibration=images(other), input_shape=(*other, 1))
    except ValueError as error:
        refusal = str(error)
    if refusal is not None:
        assert re.search(r"not made for: '|layer '\w+' would make", refusal), refusal
        return
    assert wanted is not None
    found = np.asarray(exported.interpreter().predict(images(other)))
    assert found.shape == wanted.shape
    assert np.abs(found - wanted).max() < 0.15 * np.abs(wanted).max()


@pytest.mark.parametrize("kind", ["[1:]", "upsampling", "average-3-same", "flatten", "gate"])
def test_layers_of_any_size_are_not_refused(kind: str) -> None:
    model = calibrate(quantize_model(network(kind, _SMALL), 0.0), images(_SMALL))
    sizes = tuple(np.array((*_LARGE, 1)))
    assert convert(model, calibration=images(_LARGE), input_shape=sizes).parity.exact
