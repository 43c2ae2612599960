"""What a model may be calibrated on: the same images in every form give the same ranges."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
import tf_keras

import tfdq

L = tf_keras.layers
RNG = np.random.default_rng(0)
A = RNG.uniform(0, 0.5, (12, 6, 6, 1)).astype(np.float32)
B = RNG.uniform(0, 1.0, (12, 6, 6, 1)).astype(np.float32)
LABELS = np.arange(12) % 3


def one_input() -> tf_keras.Model:
    tf_keras.utils.set_random_seed(0)
    image = L.Input((6, 6, 1), name="image")
    x = L.ReLU()(L.Conv2D(3, 3)(image))
    return tfdq.quantize_model(tf_keras.Model(image, L.Dense(3)(L.Flatten()(x))))


def two_inputs() -> tf_keras.Model:
    tf_keras.utils.set_random_seed(0)
    a, b = L.Input((6, 6, 1), name="a"), L.Input((6, 6, 1), name="b")
    joined = L.Add()([L.Conv2D(3, 3)(a), L.Conv2D(3, 3)(b)])
    return tfdq.quantize_model(tf_keras.Model([a, b], L.Dense(3)(L.Flatten()(joined))))


def ranges(model: tf_keras.Model) -> list[np.ndarray]:
    """The non-trainable weights: the ends of the observed ranges, as there is no BatchNorm."""
    return [np.atleast_1d(weight.numpy()) for weight in model.non_trainable_weights]


@pytest.mark.parametrize(
    "form",
    [
        lambda: list(A),
        lambda: tuple(A),
        lambda: [A[:5], A[5:]],
        lambda: [A],
        lambda: (A,),
        lambda: (A, LABELS),
        lambda: A.tolist(),
        lambda: tf.data.Dataset.from_tensor_slices((A, LABELS)).batch(4),
        lambda: tf.data.Dataset.from_tensor_slices(A).batch(4),
    ],
    ids=["images", "tuple", "batches", "one", "tuple of one", "pair", "numbers", "pairs", "images"],
)
def test_every_form_of_the_same_images_gives_the_same_ranges(form: Callable[[], Any]) -> None:
    expected = ranges(tfdq.calibrate(one_input(), A, batch_size=4))
    found = ranges(tfdq.calibrate(one_input(), form(), batch_size=4))
    assert expected
    np.testing.assert_array_equal(np.concatenate(found), np.concatenate(expected))
    # The input's range is the extremes of the images, whatever the model computes of them.
    grid = tfdq.calibrate(one_input(), form(), batch_size=12).layers[1].output_grid()
    np.testing.assert_allclose(grid.scale * (grid.qmax - grid.zero_point), A.max(), rtol=0.01)


@pytest.mark.parametrize(
    "form",
    [
        lambda: [A, B],
        lambda: (A, B),
        lambda: {"b": B, "a": A},
        lambda: tf.data.Dataset.from_tensor_slices(((A, B), LABELS)).batch(12),
        lambda: tf.data.Dataset.from_tensor_slices(({"a": A, "b": B}, LABELS)).batch(12),
    ],
    ids=["list", "tuple", "names", "dataset", "dataset of names"],
)
def test_several_inputs_take_one_array_each(form: Callable[[], Any]) -> None:
    model = tfdq.calibrate(two_inputs(), form())
    for layer, images in zip(model.layers[2:4], (A, B), strict=True):
        grid = layer.output_grid()
        np.testing.assert_allclose(grid.scale * (grid.qmax - grid.zero_point), images.max(), 0.01)


@pytest.mark.parametrize(
    ("images", "error", "message"),
    [
        ([A[0], B[0, :5]], ValueError, r"images \(6, 6, 1\) of one size.*\(5, 6, 1\)"),
        ([A[0], A], ValueError, r"images \(6, 6, 1\) of one size, or batches"),
        ([], ValueError, "no images"),
        (A[0], ValueError, r"one image of input 'image'.*image\[None\]"),
        (A[:, :5], ValueError, r"\(12, 5, 6, 1\), but input 'image' takes \(n, 6, 6, 1\)"),
        (A * np.nan, ValueError, "NaN or infinite"),
        ((image for image in A), TypeError, "got generator"),
        ("digits", TypeError, "got str"),
        (None, TypeError, "got NoneType"),
        (tf.data.Dataset.from_tensor_slices(A), ValueError, r"dataset\.batch\(n\)"),
        (tf.data.Dataset.from_tensors(A).repeat(), ValueError, r"infinite: use dataset\.take"),
    ],
)
def test_what_holds_no_such_images_is_named(images: Any, error: type, message: str) -> None:
    model = one_input()
    before = np.concatenate(ranges(model))
    with pytest.raises(error, match=message):
        tfdq.calibrate(model, images)
    np.testing.assert_array_equal(np.concatenate(ranges(model)), before)


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (A, r"2 inputs \['a', 'b'\].*a list of one array.*got one array"),
        ([A], "got 1 of them"),
        ([A, B[:5]], r"differ in number: \[5, 12\]"),
        ({"a": A, "c": B}, r"named \['a', 'c'\], but the inputs .*\['a', 'b'\]"),
        (tf.data.Dataset.from_tensor_slices((A, B)).batch(4), r"\(\(a, b, \.\.\.\), labels\)"),
    ],
)
def test_inputs_that_are_missing_are_named(images: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tfdq.calibrate(two_inputs(), images)
