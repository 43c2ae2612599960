"""The models of `tfdq.models` on Keras 3: each quantizes and exports to its own integers."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import pytest

from tests.exhaustive import only
from tests.keras3.deployed import assert_deployed
from tfdq import models
from tfdq.keras3 import calibrate, quantize_model

TINY = {
    "resnet8": {"width": 4},
    "resnet32": {"width": 2},
    "resnet18": {"width": 2},
    "preact_resnet18": {"width": 2},
    "wrn-16-4": {},
    "vgg16": {},
}
PUBLISHED = ("resnet8", "resnet32", "resnet18", "preact_resnet18", "wrn-16-4")


def assert_exact(name: str, shape: tuple[int, int, int], bits: int, **options: Any) -> None:
    keras.utils.set_random_seed(0)
    model = models.create(name, shape, 10, keras=3, **options)
    quantized = quantize_model(model, weight_bits=bits, activation_bits=bits, input_range=(0, 1))
    images = np.random.default_rng(0).random((16, *shape), np.float32)
    # The statistics of a new BatchNormalization would make the logits constant.
    assert_deployed(calibrate(quantized, images, batch_norm=True), images, compiled=False)


@pytest.mark.parametrize("name", only([*TINY], "resnet8", "preact_resnet18"))
def test_every_integer_is_the_runtimes(name: str) -> None:
    side = 32 if name == "vgg16" else 16
    assert_exact(name, (side, side, 3), 4, **TINY[name])


@pytest.mark.exhaustive
@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("name", PUBLISHED)
def test_so_it_is_at_the_published_size(name: str, bits: int) -> None:
    assert_exact(name, (32, 32, 3), bits)
