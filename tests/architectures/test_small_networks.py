"""Networks of the forms that people deploy: quantized model = twin = file, integer for integer.

The ranges of inputs are those of images of 256 levels. Each run tries a few at 8 bits, and ``make
exhaustive`` all of them at 8, 4 and 2.
"""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import pytest

from tests.architectures.networks import NETWORKS
from tfdq.keras3 import QuantizedModel, calibrate, quantize_model
from tflite_export import convert
from tflite_export.ir.affine import quantize

ALWAYS = {("detector", 8), ("keyword_spotter", 8), ("autoencoder", 4), ("multi_task_heads", 8)}
CASES = [
    pytest.param(name, bits, marks=() if (name, bits) in ALWAYS else pytest.mark.exhaustive)
    for name in NETWORKS
    for bits in (8, 4, 2)
]


def feed(model: keras.Model, count: int) -> Any:
    """Return images for the one input of a model, or a list for its inputs."""
    rng = np.random.default_rng(0)
    shapes = [(count, *image.shape[1:]) for image in model.inputs]
    images = [rng.uniform(0, 255, shape).astype(np.float32) for shape in shapes]
    return images if len(images) > 1 else images[0]


def quantized(name: str, bits: int) -> QuantizedModel:
    """Return a network with ranges, whose BatchNormalizations have the statistics of a batch."""
    keras.utils.set_random_seed(0)
    model = quantize_model(NETWORKS[name](), 0.0, weight_bits=bits, activation_bits=bits)
    images = feed(model, 8)
    # Once in training: with the statistics of a new BatchNormalization its result is constant.
    model(images, training=True)
    return calibrate(model, images)


@pytest.mark.parametrize(("name", "bits"), CASES)
def test_the_file_computes_every_integer_of_the_model(name: str, bits: int) -> None:
    model = quantized(name, bits)
    images = feed(model, 7)
    exported = convert(model, calibration=images)
    assert exported.parity.exact
    ours = keras.tree.flatten(model.predict(images, verbose=0))
    graph = exported.graph
    for results in (exported.interpreter().integers(images), exported.twin().integers(images)):
        integers = results if isinstance(results, list) else [results]
        for index, reals, found in zip(graph.outputs, ours, integers, strict=True):
            deployed = keras.ops.convert_to_numpy(found)
            np.testing.assert_array_equal(quantize(reals, graph.tensors[index]), deployed)
            # A constant would agree with anything.
            assert len(np.unique(deployed)) > 1
