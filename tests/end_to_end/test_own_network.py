"""A network of your own: blocks of MobileNetV3, a sigmoid head, a folder of photos."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest

import tfdq
from tfdq.data import load
from tfdq.robustness import run_attack
from tflite_export import Interpreter, convert

L = keras.layers
SIDE = 16


def block(x: Any, filters: int, expanded: int) -> Any:
    """Return an inverted residual with squeeze and excitation."""
    y = L.BatchNormalization()(L.Conv2D(expanded, 1, use_bias=False)(x))
    y = L.DepthwiseConv2D(3, padding="same", use_bias=False)(L.Activation("hard_silu")(y))
    y = L.Activation("hard_silu")(L.BatchNormalization()(y))
    gate = L.GlobalAveragePooling2D(keepdims=True)(y)
    gate = L.Conv2D(expanded // 4, 1, activation="relu")(gate)
    gate = L.Conv2D(expanded, 1, activation="hard_sigmoid")(gate)
    y = L.Conv2D(filters, 1, use_bias=False)(L.Multiply()([y, gate]))
    return L.Add()([x, L.BatchNormalization()(y)])


def network() -> keras.Model:
    image = keras.Input((SIDE, SIDE, 1))
    x = L.Conv2D(8, 3, strides=2, padding="same", use_bias=False)(image)
    x = block(L.Activation("hard_silu")(L.BatchNormalization()(x)), 8, 16)
    x = L.Dropout(0.1)(L.Flatten()(L.AveragePooling2D(2)(x)))
    return keras.Model(image, L.Dense(1, activation="sigmoid")(x), name="mine")


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Return the images of a folder with one folder for each of two classes."""
    from PIL import Image

    folder, digits = tmp_path_factory.mktemp("photos"), load("digits")
    for label, name in enumerate(("nought", "one")):
        (folder / name).mkdir()
        for number, image in enumerate(digits.x_train[digits.y_train == label]):
            Image.fromarray(image[..., 0]).save(folder / name / f"{number:03}.png")
    return load(str(folder), image_size=(SIDE, SIDE))


def test_it_is_trained_exported_and_attacked(photos: Any, tmp_path: Path) -> None:
    keras.utils.set_random_seed(0)
    x_train, x_test = (x.astype("float32") / 255 for x in (photos.x_train, photos.x_test))
    qat = tfdq.quantize_model(network(), activation_bits=4, input_range=(0, 1))
    qat.compile(keras.optimizers.Adam(3e-3), "binary_crossentropy", metrics=["accuracy"])
    qat.fit(x_train, photos.y_train, batch_size=16, epochs=4, verbose=0)

    exported = convert(qat, tmp_path / "mine.tflite", calibration=x_train[:64])
    assert exported.parity.exact
    deployed = Interpreter(tmp_path / "mine.tflite").predict(x_test)
    assert np.mean((deployed[:, 0] > 0.5) == photos.y_test) > 0.9
    np.testing.assert_array_equal(deployed, qat.predict(x_test, verbose=0))

    # One score stands for two classes; the file is attacked through the logit before the sigmoid.
    attacked = run_attack("pgd", str(tmp_path / "mine.tflite"), x_test, photos.y_test, 0.3)
    assert attacked.clean_accuracy == np.mean((deployed[:, 0] > 0.5) == photos.y_test)
    assert attacked.robust_accuracy < 0.5
