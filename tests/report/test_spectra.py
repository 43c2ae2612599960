"""The singular values in a report on a float model of Keras 3."""

from types import SimpleNamespace
from typing import Any

import keras
import numpy as np

from tfdq.report.measured import deployed_spectra, layers_without_spectra

L = keras.layers


def reported(model: keras.Model) -> Any:
    return SimpleNamespace(model=model, file=None)


def test_every_layer_with_a_kernel_is_in_models_inside_too() -> None:
    keras.utils.set_random_seed(0)
    inner = keras.Sequential([keras.Input((6, 6, 4)), L.Conv2D(4, 3, name="last")])
    image = keras.Input((8, 8, 3))
    x = L.SeparableConv2D(4, 3, name="separable")(image)
    x = L.DepthwiseConv2D(3, name="each")(x)
    x = inner(L.Conv2DTranspose(4, 3, name="back")(x))
    model = keras.Model(image, L.Dense(3, name="last")(L.Flatten()(x)))
    found = deployed_spectra(reported(model))
    names = ["separable (depthwise)", "separable (pointwise)", "each", "back", "last", "last (2)"]
    assert list(found) == names
    assert layers_without_spectra(reported(model)) == []
    # Of one matrix for each channel the singular values are the lengths of the kernels.
    kernel = np.asarray(model.get_layer("each").kernel)
    lengths = np.sqrt((kernel.astype(np.float64) ** 2).sum((0, 1, 3)))
    np.testing.assert_allclose(found["each"], np.sort(lengths)[::-1])
    for name, layer in (("last", inner.get_layer("last")), ("last (2)", model.get_layer("last"))):
        matrix = np.asarray(layer.kernel, np.float64)
        matrix = matrix.reshape(-1, matrix.shape[-1])
        np.testing.assert_allclose(found[name][0], np.linalg.norm(matrix, 2))


def test_a_subclassed_model() -> None:
    class Own(keras.Model):
        def __init__(self) -> None:
            super().__init__()
            self.inner = keras.Sequential([L.Dense(4, name="first")])
            self.last = L.Dense(2, name="last")

        def call(self, x: Any) -> Any:
            return self.last(self.inner(x))

    model = Own()
    model(np.zeros((1, 3), np.float32))
    assert set(deployed_spectra(reported(model))) == {"first", "last"}


def test_one_axis_and_layers_that_are_left_out() -> None:
    series = keras.Input((16, 3))
    x = L.LSTM(4, name="memory")(L.Conv1D(4, 3, name="first")(series))
    model = keras.Model(series, L.BatchNormalization()(L.Dense(2, name="last")(x)))
    assert list(deployed_spectra(reported(model))) == ["first", "last"]
    assert layers_without_spectra(reported(model)) == ["memory"]
