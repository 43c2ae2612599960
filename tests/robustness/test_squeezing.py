"""Feature squeezing against SciPy's filter, closed forms, and adaptive against oblivious attack."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
import tf_keras
from scipy.ndimage import median_filter
from scipy.special import softmax

from tfdq.robustness import BitDepthSqueeze, MedianSqueeze, attack, run_attack, squeeze


@pytest.mark.parametrize("size", [2, 3, 4, 5])
@pytest.mark.parametrize("gradient", ["smooth", "exact", "straight_through"])
def test_median_equals_scipy(size: int, gradient: str) -> None:
    x = np.random.default_rng(size).random((3, 9, 7, 2)).astype(np.float32)
    ours = MedianSqueeze(size, gradient)(x).numpy()
    np.testing.assert_array_equal(ours, median_filter(x, size=(1, size, size, 1), mode="reflect"))


def gradient_of_the_middle(layer: Any, image: np.ndarray) -> np.ndarray:
    x = tf.constant(image.reshape(1, 3, 3, 1), tf.float32)
    with tf.GradientTape() as tape:
        tape.watch(x)
        middle = layer(x)[0, 1, 1, 0]
    return tape.gradient(middle, x).numpy().ravel()


@pytest.mark.parametrize("gradient", ["smooth", "exact"])
def test_median_gradient_goes_to_the_picked_pixel(gradient: str) -> None:
    image = np.random.default_rng(0).permutation(9)
    found = gradient_of_the_middle(MedianSqueeze(3, gradient), image)
    np.testing.assert_allclose(found, image == 4, atol=1e-12)


def test_smooth_median_gradient_is_shared_among_pixels_that_tie() -> None:
    """Behind a bit-depth squeezer most do; the exact derivative picks any one of them."""
    image = np.array([3, 1, 5, 3, 3, 9, 0, 3, 8]) / 15
    smooth = gradient_of_the_middle(MedianSqueeze(3, temperature=1e-3), image)
    np.testing.assert_allclose(smooth, (image == 3 / 15) / 4, atol=1e-12)
    assert np.count_nonzero(gradient_of_the_middle(MedianSqueeze(3, "exact"), image)) == 1
    # Near the median, by SciPy's softmax: values one step apart at a temperature of a step.
    warm = gradient_of_the_middle(MedianSqueeze(3, temperature=1 / 15), image)
    np.testing.assert_allclose(warm, softmax(-np.abs(15 * image - 3)), rtol=1e-4)


def test_the_smooth_gradient_makes_the_stronger_attack(float_model: Any, digits: Any) -> None:
    """Behind few levels, where pixels tie: the exact gradient goes to one of several at random."""
    x, y = digits.x_test[:200], digits.y_test[:200]
    left = {
        gradient: run_attack(
            "apgd-ce",
            squeeze(float_model, [BitDepthSqueeze(2), MedianSqueeze(3, gradient)]),
            x,
            y,
            0.1,
        ).robust_accuracy
        for gradient in ("smooth", "exact", "straight_through")
    }
    assert left["smooth"] < min(left["exact"], left["straight_through"]) - 0.03, left


@pytest.mark.parametrize("layer", [MedianSqueeze(3, "straight_through"), BitDepthSqueeze(3)])
def test_straight_through_gradient_is_the_identity(layer: Any) -> None:
    x = tf.constant(np.random.default_rng(1).uniform(0.01, 0.99, (2, 5, 5, 1)), tf.float32)
    weights = tf.random.stateless_normal(x.shape, [1, 1])
    with tf.GradientTape() as tape:
        tape.watch(x)
        value = tf.reduce_sum(layer(x) * weights)
    np.testing.assert_allclose(tape.gradient(value, x), weights)


@pytest.mark.parametrize("bits", range(1, 9))
@pytest.mark.parametrize("span", [(0.0, 1.0), (-1.0, 1.0), (0.0, 255.0)])
def test_bit_depth_levels(bits: int, span: tuple[float, float]) -> None:
    lo, hi = span
    grid = np.linspace(lo, hi, 2**bits)
    x = np.random.default_rng(bits).uniform(lo, hi, (4, 6, 6, 1)).astype(np.float32)
    layer = BitDepthSqueeze(bits, span)
    ours = layer(x).numpy()
    nearest = grid[np.abs(x[..., None] - grid).argmin(-1)]
    np.testing.assert_allclose(ours, nearest, atol=2e-6 * (hi - lo))
    np.testing.assert_allclose(layer(ours), ours, atol=1e-6 * (hi - lo))


def test_exact_bit_depth_gradient_is_zero() -> None:
    x = tf.random.stateless_uniform([1, 4, 4, 1], [0, 0])
    with tf.GradientTape() as tape:
        tape.watch(x)
        y = tf.reduce_sum(BitDepthSqueeze(2, gradient="exact")(x))
    gradient = tape.gradient(y, x, unconnected_gradients="zero")
    np.testing.assert_array_equal(gradient, np.zeros(x.shape))


def test_no_gradient_beyond_the_range() -> None:
    x = tf.constant([[-0.5, 0.5, 1.5]])
    with tf.GradientTape() as tape:
        tape.watch(x)
        y = tf.reduce_sum(BitDepthSqueeze(4)(x))
    np.testing.assert_array_equal(tape.gradient(y, x), [[0.0, 1.0, 0.0]])


@pytest.mark.parametrize("suffix", [".keras", ".h5"])
def test_saves_and_loads(suffix: str, float_model: Any, digits: Any, tmp_path: Path) -> None:
    model = squeeze(float_model, [BitDepthSqueeze(4, (0, 1)), MedianSqueeze(2)])
    path = tmp_path / f"model{suffix}"
    model.save(path)
    again = tf_keras.models.load_model(path)
    np.testing.assert_allclose(again(digits.x_test[:9]), model(digits.x_test[:9]), atol=1e-5)
    assert again.layers[1].get_config()["bits"] == 4
    assert again.layers[2].size == 2


@pytest.mark.parametrize(
    ("squeezers", "eps"),
    [([BitDepthSqueeze(1)], 0.3), ([MedianSqueeze(2), BitDepthSqueeze(3)], 0.15)],
)
def test_adaptive_attack_breaks_what_the_oblivious_one_does_not(
    squeezers: list[Any], eps: float, float_model: Any, digits: Any
) -> None:
    model = squeeze(float_model, squeezers)
    x, y = digits.x_test[:200], digits.y_test[:200]
    oblivious = attack("pgd", float_model, x, y, eps, early_stop=False)
    adaptive = attack("pgd", model, x, y, eps)

    def accuracy(images: np.ndarray) -> float:
        return float(np.mean(model(images).numpy().argmax(1) == y))

    assert accuracy(adaptive) < accuracy(oblivious) - 0.08
    assert accuracy(oblivious) < accuracy(x)


def test_exact_rounding_masks_the_gradient(float_model: Any, digits: Any) -> None:
    x, y = digits.x_test[:100], digits.y_test[:100]
    masked = squeeze(float_model, [BitDepthSqueeze(1, gradient="exact")])
    honest = squeeze(float_model, [BitDepthSqueeze(1)])
    figures = [run_attack("pgd", model, x, y, 0.3).robust_accuracy for model in (masked, honest)]
    assert figures[0] > figures[1] + 0.3


def test_in_front_of_a_quantized_model(quantized: Any, digits: Any) -> None:
    inner = quantized(4)
    model = squeeze(inner, [BitDepthSqueeze(4)])
    bytes_ = np.rint(digits.x_test[:20] * 255).astype(np.float32) / 255
    by_hand = np.rint(bytes_ * 15) / 15
    np.testing.assert_allclose(model(bytes_), inner(by_hand.astype(np.float32)), atol=1e-5)


def test_an_input_of_eight_bits_stays_one(quantized: Any, digits: Any) -> None:
    model = squeeze(quantized(4), [MedianSqueeze(2)])
    x = digits.x_test[:20]
    bytes_ = (np.rint(x * 255) / 255).astype(np.float32)
    np.testing.assert_array_equal(model(bytes_ + 0.4 / 255), model(bytes_))


@pytest.mark.parametrize("bits", [0, 9, 2.5, True])
def test_bad_bits(bits: Any) -> None:
    with pytest.raises(ValueError, match="bits must be a whole number"):
        BitDepthSqueeze(bits)


def test_bad_arguments(float_model: Any) -> None:
    with pytest.raises(ValueError, match="size must be"):
        MedianSqueeze(1)
    with pytest.raises(ValueError, match="gradient must be"):
        MedianSqueeze(3, "none")
    with pytest.raises(ValueError, match="lo < hi"):
        BitDepthSqueeze(3, (1.0, 0.0))
    with pytest.raises(ValueError, match="at least 5x5"):
        MedianSqueeze(5)(np.zeros((1, 4, 8, 1), np.float32))
    with pytest.raises(ValueError, match="squeezers is empty"):
        squeeze(float_model, [])
    with pytest.raises(TypeError, match="built tf_keras model"):
        squeeze(lambda x: x, [MedianSqueeze(2)])  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="tf_keras layers"):
        squeeze(float_model, [np.rint])  # type: ignore[list-item]
