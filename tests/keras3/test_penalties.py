"""The penalties of quantized Keras 3 layers against NumPy, their weight against the schedule."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest

from tests.keras3.networks import small_cnn
from tfdq.keras3 import calibrate, quantize_model
from tfdq.keras3.layer_kinds.kernel import KernelLayer

L = keras.layers
pytestmark = pytest.mark.backends
Kernel = np.ndarray
schedules = keras.optimizers.schedules


def numpy(tensor: Any) -> np.ndarray:
    return np.asarray(keras.ops.convert_to_numpy(tensor))


def images(count: int = 8) -> np.ndarray:
    return np.random.default_rng(0).random((count, 8, 8, 1)).astype(np.float32)


def network() -> keras.Model:
    """A strided and a depthwise convolution and a wide dense layer, without BatchNorm."""
    image = keras.Input((8, 8, 1))
    x = L.Conv2D(6, 3, strides=2, padding="same", name="strided")(image)
    x = L.DepthwiseConv2D(3, depth_multiplier=2, name="depthwise")(x)
    x = L.Conv2D(4, 1, name="point")(x)
    model = keras.Model(image, L.Dense(20, name="wide")(L.GlobalAveragePooling2D()(x)))
    rng = np.random.default_rng(1)
    model.set_weights([rng.normal(0, 0.7, w.shape).astype(np.float32) for w in model.get_weights()])
    return model


def matrices(layer: KernelLayer) -> list[Kernel]:
    kernel = numpy(layer.kernel).astype(np.float64)
    if layer.depthwise:
        return [kernel[:, :, c].reshape(-1, kernel.shape[3]) for c in range(kernel.shape[2])]
    return [kernel.reshape(-1, kernel.shape[-1])]


def spectral(layer: KernelLayer, target: float) -> float:
    return sum(0.5 * max(np.linalg.norm(m, 2) - target, 0.0) ** 2 for m in matrices(layer))


def srip(layer: KernelLayer, target: float) -> float:
    deviations = [np.linalg.svd(m, compute_uv=False) ** 2 - target**2 for m in matrices(layer)]
    return sum(float(np.abs(deviation).max()) for deviation in deviations)


def orthogonal(layer: KernelLayer, target: float) -> float:
    values = [np.linalg.svd(m, compute_uv=False) for m in matrices(layer)]
    return sum(0.5 * float(np.square(v**2 - target**2).sum()) for v in values)


def conv_orthogonal(layer: KernelLayer, target: float) -> float:
    """The kernel's correlation with itself, at each offset that is a multiple of the strides."""
    kernel = numpy(layer.kernel).astype(np.float64)
    if kernel.ndim == 2 or kernel.shape[:2] == (1, 1):
        return orthogonal(layer, target)
    parts = np.split(kernel, kernel.shape[2], axis=2) if layer.depthwise else [kernel]
    return sum(_self_correlation(part, target, layer.strides) for part in parts)


def _self_correlation(kernel: Kernel, target: float, strides: tuple[int, int]) -> float:
    height, width, inputs, outputs = kernel.shape
    total = 0.0
    for down in range(-height + 1, height):
        for right in range(-width + 1, width):
            if down % strides[0] or right % strides[1]:
                continue
            product = np.zeros((outputs, outputs))
            for row, column in np.ndindex(height, width):
                if 0 <= row + down < height and 0 <= column + right < width:
                    product += kernel[row, column].T @ kernel[row + down, column + right]
            product -= target**2 * np.eye(outputs) * (down == right == 0)
            total += float(np.square(product).sum())
    # The smaller Gram: the penalty is 0 where it can be no smaller.
    excess = max(outputs - strides[0] * strides[1] * inputs, 0)
    return 0.5 * (total - excess * target**4)


REFERENCES: dict[str, Callable[[KernelLayer, float], float]] = {
    "orthogonal": orthogonal,
    "spectral": spectral,
    "srip": srip,
    "conv_orthogonal": conv_orthogonal,
}


@pytest.mark.parametrize("name", REFERENCES)
def test_the_value_is_that_of_numpy(name: str) -> None:
    model = quantize_model(network(), 0.3, on="kernel", regularizer=name, target=0.8)
    for layer in model.layers:
        if isinstance(layer, KernelLayer):
            for _ in range(40 if name in ("spectral", "srip") else 1):
                found = layer.kernel_penalty(layer.kernel, training=True)
            wanted = 0.3 * REFERENCES[name](layer, 0.8)
            np.testing.assert_allclose(float(numpy(found)), wanted, rtol=2e-3, atol=1e-5)


def test_what_is_iterated_is_saved(tmp_path: Path) -> None:
    x = np.random.default_rng(0).random((4, 6)).astype(np.float32)
    model = keras.Sequential([keras.Input((6,)), L.Dense(8), L.Dense(5)])
    model = quantize_model(model, 0.3, regularizer="srip")
    model(x, training=True)
    model.seal()
    model(x, training=False)
    model.save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras")
    again(x, training=False)
    for one, other in zip(model.losses, again.losses, strict=True):
        np.testing.assert_allclose(numpy(one), numpy(other), rtol=1e-5)


@keras.saving.register_keras_serializable(package="test_penalties")
class SumOfMagnitudes(keras.regularizers.Regularizer):
    def __init__(self, beta: float, on: str = "kernel") -> None:
        self.beta, self.on = beta, on

    def __call__(self, kernel: Any) -> Any:
        return self.beta * keras.ops.sum(keras.ops.abs(kernel))

    def get_config(self) -> dict[str, Any]:
        return {"beta": self.beta, "on": self.on}


def test_a_regularizer_of_ones_own_acts_where_it_says(tmp_path: Path) -> None:
    model = small_cnn()
    for layer in model.layers:
        if isinstance(layer, L.BatchNormalization):
            layer.gamma.assign(np.linspace(0.5, 2.0, layer.gamma.shape[0]))
    for on in ("kernel", "folded"):
        quantized = calibrate(quantize_model(model, regularizer=SumOfMagnitudes(0.1, on)), images())
        quantized.save(tmp_path / "model.keras")
        again = keras.saving.load_model(tmp_path / "model.keras")
        again(images(), training=False)
        wanted = []
        for layer in quantized.layers:
            if isinstance(layer, KernelLayer):
                kernel = np.abs(numpy(layer.kernel).astype(np.float64))
                if on == "folded" and layer.norm is not None:
                    kernel = kernel * np.abs(layer.folded(None)[0])
                wanted.append(0.1 * kernel.sum())
        found = [float(numpy(loss)) for loss in again.losses]
        np.testing.assert_allclose(found, wanted, rtol=1e-4)


@keras.saving.register_keras_serializable(package="test_penalties")
def line(step: Any) -> Any:
    return 0.01 * step


@pytest.mark.parametrize(
    ("schedule", "wanted"),
    [
        (schedules.PolynomialDecay(0.0, 4, 0.1), [0.0, 0.025, 0.05, 0.075, 0.1, 0.1]),
        (line, [0.0, 0.01, 0.02, 0.03, 0.04, 0.05]),
    ],
)
def test_the_weight_follows_the_step(schedule: Any, wanted: list[float], tmp_path: Path) -> None:
    model = quantize_model(
        keras.Sequential([keras.Input((4,)), L.Dense(3, name="dense")]),
        on="kernel",
        target=1.0,
        beta_schedule=schedule,
    )
    x, y = np.random.default_rng(0).random((24, 4)).astype(np.float32), np.arange(24) % 3
    deviation = orthogonal(model.get_layer("dense"), 1.0)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)

    def weight(model: Any) -> float:
        model.seal()
        model(x, training=False)
        return float(numpy(model.losses[0])) / deviation

    found = []
    model.compile(keras.optimizers.SGD(0.0), loss)
    for _ in range(3):
        model.fit(x[:8], y[:8], batch_size=8, verbose=0)
        found.append(weight(model))
    model.save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras")
    found.append(weight(again))
    again.fit(x, y, batch_size=8, verbose=0)
    found.append(weight(again))
    np.testing.assert_allclose(found, [*wanted[:3], wanted[2], wanted[5]], atol=1e-4)


def test_what_cannot_be_a_penalty_is_named() -> None:
    for settings, message in (
        ({"regularizer": "l2"}, "orthogonal, srip, spectral, conv_orthogonal or .* got 'l2'"),
        ({"regularizer": abs}, "registered subclass of keras.regularizers.Regularizer"),
        (
            {"regularizer": SumOfMagnitudes(0.1), "beta_schedule": line},
            "SumOfMagnitudes has a weight of its own",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            quantize_model(small_cnn(), **settings)
    with pytest.raises(TypeError, match=r"keras\.optimizers\.schedules.*got 0\.5"):
        quantize_model(small_cnn(), beta_schedule=0.5)  # type: ignore[arg-type]
