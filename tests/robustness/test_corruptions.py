"""Corruptions next to SciPy, closed forms and TensorFlow's JPEG; accuracy next to a count."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from scipy import stats

from tfdq.robustness import corrupt, corruption_accuracy
from tfdq.robustness.corruptions import CORRUPTIONS, STRENGTHS

STEP = 1 / 255


@pytest.fixture(scope="module")
def photos() -> np.ndarray:
    """Eight smooth colour images in [0, 1] on the grid of bytes."""
    draw = np.random.default_rng(0)
    rows, columns = np.meshgrid(np.linspace(0, 3, 32), np.linspace(0, 3, 32), indexing="ij")
    phase, speed = draw.random((8, 1, 1, 3)) * 6, draw.random((8, 1, 1, 3)) * 2
    waves = 0.5 + 0.45 * np.sin(phase + speed * (rows + 2 * columns)[None, ..., None])
    return (np.rint(waves * 255) / 255).astype(np.float32)


def grey(value: float) -> np.ndarray:
    return np.full((40, 16, 16, 1), round(value * 255) / 255, np.float32)


@pytest.mark.parametrize("name", CORRUPTIONS)
@pytest.mark.parametrize("strength", [1, 5])
def test_images_are_of_bytes_and_the_same_again(
    name: str, strength: int, photos: np.ndarray
) -> None:
    found = corrupt(name, photos, strength, seed=3)
    assert (found.shape, found.dtype) == (photos.shape, np.float32)
    np.testing.assert_allclose(found * 255, np.rint(found * 255), atol=1e-4)
    assert 0 <= found.min() < found.max() <= 1
    np.testing.assert_array_equal(found, corrupt(name, photos, strength, seed=3))
    noisy = name.endswith("noise")
    assert noisy == (not np.array_equal(found, corrupt(name, photos, strength, seed=4)))


@pytest.mark.parametrize(("strength", "deviation"), [(1, 0.04), (5, 0.10)])
def test_gaussian_noise_is_normal(strength: int, deviation: float) -> None:
    moved = corrupt("gaussian_noise", grey(0.5), strength) - grey(0.5)
    draw = np.random.default_rng(9).random(moved.shape)
    # Spread evenly over the step that it was rounded down to.
    assert stats.kstest((moved + draw * STEP).ravel() / deviation, "norm").pvalue > 1e-3


@pytest.mark.parametrize(("strength", "photons"), [(1, 500), (5, 50)])
def test_shot_noise_is_that_of_counted_photons(strength: int, photons: int) -> None:
    found = corrupt("shot_noise", grey(0.4), strength) + STEP / 2
    assert found.mean() == pytest.approx(0.4, abs=0.003)
    assert found.var() == pytest.approx(0.4 / photons, rel=0.06)


@pytest.mark.parametrize(("strength", "share"), [(1, 0.01), (4, 0.05)])
def test_impulse_noise_hits_a_share_of_the_values(strength: int, share: float) -> None:
    found = corrupt("impulse_noise", grey(0.5), strength)
    hit = found != grey(0.5)
    assert set(found[hit]) == {0.0, 1.0}
    assert stats.binomtest(int(hit.sum()), hit.size, share).pvalue > 1e-3
    assert stats.binomtest(int((found == 1).sum()), int(hit.sum()), 0.5).pvalue > 1e-3


@pytest.mark.parametrize(("strength", "deviation"), [(1, 0.4), (5, 1.0)])
def test_blur_is_a_sum_over_neighbours(strength: int, deviation: float, photos: np.ndarray) -> None:
    reach = int(4 * deviation + 0.5)
    weights = np.exp(-(np.arange(-reach, reach + 1) ** 2) / (2 * deviation**2))
    weights /= weights.sum()
    blurred = photos.astype(np.float64)
    for axis in (1, 2):
        around = [(reach, reach) if n == axis else (0, 0) for n in range(4)]
        padded = np.pad(blurred, around, mode="edge")
        blurred = sum(
            weight * np.take(padded, range(n, n + 32), axis) for n, weight in enumerate(weights)
        )
    np.testing.assert_allclose(
        corrupt("gaussian_blur", photos, strength) + STEP / 2, blurred, atol=STEP / 2 + 1e-5
    )


def test_contrast_shrinks_towards_the_mean(photos: np.ndarray) -> None:
    found = corrupt("contrast", photos, 5) + STEP / 2
    mean = photos.mean((1, 2), keepdims=True, dtype=np.float64)
    np.testing.assert_allclose(found, mean + 0.15 * (photos - mean), atol=STEP / 2 + 1e-5)


@pytest.mark.parametrize(("strength", "quality"), [(1, 80), (5, 40)])
def test_jpeg_is_that_of_tensorflow(strength: int, quality: int, photos: np.ndarray) -> None:
    """Another version of libjpeg: a value or two of 255 apart."""
    wanted = np.stack([tf.image.adjust_jpeg_quality(x, quality).numpy() for x in photos])
    found = corrupt("jpeg", photos, strength)
    assert np.abs(found - wanted).mean() < 0.5 * np.abs(photos - wanted).mean()
    assert np.abs(found - wanted).mean() < 1.5 * STEP
    assert corrupt("jpeg", photos[..., :1], strength).shape == (8, 32, 32, 1)


def test_accuracies_are_counts() -> None:
    """A model that looks at one pixel, which nothing but noise and contrast moves."""
    x = np.where(np.arange(60) % 3 == 0, 0.2, 0.7).astype(np.float32)[:, None, None, None]
    x = np.broadcast_to(x, (60, 8, 8, 3))
    y = (x[:, 0, 0, 0] > 0.5).astype(int)
    y[:6] = 1 - y[:6]

    def model(images: np.ndarray) -> np.ndarray:
        pixel = images[:, 3, 3, 1]
        return np.stack([0.5 - pixel, pixel - 0.5], -1)

    report = corruption_accuracy(model, x, y, strengths=[1, 5], seed=2)
    assert report.clean.successes == 54
    assert set(report.accuracy) == set(CORRUPTIONS)
    for name, row in report.accuracy.items():
        for strength, share in zip((1, 5), row, strict=True):
            right = (corrupt(name, x, strength, 2)[:, 3, 3, 1] > 0.5) == y
            assert (share.successes, share.total) == (right.sum(), 60)
    assert report.accuracy["gaussian_blur"][0].successes == 54
    values = [share.successes / 60 for row in report.accuracy.values() for share in row]
    assert report.mean == pytest.approx(np.mean(values))
    assert "| gaussian blur | 90.0 | 90.0 | 90.0 |" in report.to_markdown()
    assert "L_inf norm are about that norm only" in report.to_markdown()


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"name": "snow"}, KeyError, "no corruption 'snow'; there are gaussian_noise"),
        ({"strength": 6}, ValueError, "strength must be 1, 2, 3, 4 or 5, got 6"),
        ({"strength": 2.0}, ValueError, "4 or 5, got 2.0: give one of these integers"),
        ({"strength": True}, ValueError, "4 or 5, got True: give one of these integers"),
        ({"seed": -1}, ValueError, "seed must be at least 0"),
        ({"x": np.zeros((2, 8, 8, 2))}, ValueError, r"1 or 3\), got \(2, 8, 8, 2\)"),
        ({"x": np.full((1, 8, 8, 3), 255)}, ValueError, "divide bytes by 255"),
    ],
)
def test_mistakes_are_named(arguments: Any, error: type[Exception], message: str) -> None:
    given = {"name": "jpeg", "x": np.zeros((1, 8, 8, 3)), "strength": 1, **arguments}
    with pytest.raises(error, match=message):
        corrupt(**given)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"corruptions": "jpeg"}, TypeError, r"several names, got 'jpeg'; give \['jpeg'\]"),
        ({"strengths": 3}, TypeError, r"several integers, got 3; give \[3\]"),
        ({"strengths": True}, TypeError, "several integers, got True"),
        ({"strengths": [1, 2.0]}, ValueError, "got 2.0: give one of these integers"),
        ({"corruptions": ["jpeg", "snow"]}, KeyError, "no corruption 'snow'; there are"),
        ({"corruptions": []}, ValueError, "at least one, got .*; leave them out for all"),
    ],
)
def test_mistakes_are_named_before_the_model_is_asked(
    arguments: Any, error: type[Exception], message: str
) -> None:
    def model(images: np.ndarray) -> np.ndarray:
        raise AssertionError("asked")

    with pytest.raises(error, match=message):
        corruption_accuracy(model, grey(0.5), np.zeros(40, int), **arguments)


def test_strengths_are_the_published_five() -> None:
    assert STRENGTHS == (1, 2, 3, 4, 5)
    with pytest.raises(ValueError, match="at least one"):
        corruption_accuracy(lambda x: x, grey(0.5), np.zeros(40, int), strengths=[])
