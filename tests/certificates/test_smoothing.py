"""Randomized smoothing against closed forms and exact enumeration."""

import json
import math

import numpy as np
import pytest
import tensorflow as tf
from scipy.stats import beta, binom, norm

from tfdq.certificates.smoothing import (
    ABSTAIN,
    SmoothingSettings,
    certified_radius,
    certify_image,
    clopper_pearson_lower,
    gaussian_augmentation,
    randomized_smoothing,
    smoothed_prediction,
    vote,
)

WEIGHTS = np.array([[3.0], [4.0]], np.float32) / 5


def half_plane(x: np.ndarray) -> np.ndarray:
    """Return the scores of a linear classifier; its smoothed version is known exactly."""
    score = x.reshape(len(x), -1) @ WEIGHTS
    return np.concatenate([score, -score], axis=1)


@pytest.mark.parametrize(("successes", "trials"), [(0, 10), (7, 10), (10, 10), (9_950, 10_000)])
@pytest.mark.parametrize("alpha", [0.001, 0.05])
def test_lower_bound_is_clopper_pearson(successes: int, trials: int, alpha: float) -> None:
    bound = clopper_pearson_lower(successes, trials, alpha)
    expected = 0.0 if successes == 0 else beta.ppf(alpha, successes, trials - successes + 1)
    assert bound == pytest.approx(expected, abs=1e-12)
    if successes:
        # By definition: at the bound, so many successes or more have probability alpha.
        assert binom.sf(successes - 1, trials, bound) == pytest.approx(alpha, rel=1e-6)


def test_lower_bound_covers() -> None:
    """The bound is above the truth for at most a share alpha of all samples, exactly."""
    for truth in (0.3, 0.6, 0.9):
        successes = np.arange(41)
        wrong = np.array([clopper_pearson_lower(int(k), 40, 0.05) > truth for k in successes])
        assert np.sum(binom.pmf(successes, 40, truth)[wrong]) <= 0.05


def test_radius_of_a_linear_classifier_is_its_distance() -> None:
    """The smoothed half plane is the half plane: the radius cannot exceed the true distance."""
    settings = SmoothingSettings(0.5, 100, 40_000, 0.001, batch_size=20_000)
    points = np.array([[0.3, 0.4], [0.6, 0.8], [-0.3, -0.4], [0.004, 0.003]], np.float32)
    found = randomized_smoothing(half_plane, points, np.array([0, 0, 1, 0]), settings)
    distance = np.abs(points @ WEIGHTS)[:, 0]
    assert np.all(found.radius <= distance)
    np.testing.assert_allclose(found.radius[:3], distance[:3], rtol=0.05)
    np.testing.assert_array_equal(found.correct, [True, True, True, False])
    np.testing.assert_array_equal(found.abstained, [False, False, False, True])
    assert found.radius[3] == 0.0
    assert found.confidence == 0.999
    # A radius a tenth too long would not pass this test.
    assert np.any(found.radius / 0.9 > distance)


def test_radius_is_cohens_formula() -> None:
    settings = SmoothingSettings(0.25, samples=1000, alpha=0.01)
    for votes in (400, 520, 560, 990, 1000):
        lower = beta.ppf(0.01, votes, 1000 - votes + 1)
        expected = 0.25 * norm.ppf(lower) if lower > 0.5 else 0.0
        assert certified_radius(votes, settings) == pytest.approx(expected, rel=1e-9)
    assert settings.largest_radius == pytest.approx(0.25 * norm.ppf(0.01 ** (1 / 1000)), rel=1e-6)


def test_selection_and_estimation_use_different_noise() -> None:
    seen: list[np.ndarray] = []

    def watch(x: np.ndarray) -> np.ndarray:
        seen.append(x)
        return half_plane(x)

    settings = SmoothingSettings(1.0, 50, 120, batch_size=50)
    certify_image(watch, np.zeros(2, np.float32), settings)
    assert [len(x) for x in seen] == [50, 50, 50, 20]
    everything = np.concatenate(seen)
    assert len(np.unique(everything, axis=0)) == 170
    assert np.std(everything) == pytest.approx(1.0, rel=0.15)


def test_prediction_abstains_where_classes_are_even() -> None:
    settings = SmoothingSettings(0.5, samples=1000)
    assert smoothed_prediction(half_plane, np.array([0.3, 0.4], np.float32), settings) == 0
    assert smoothed_prediction(half_plane, np.array([-0.3, -0.4], np.float32), settings) == 1
    assert smoothed_prediction(half_plane, np.zeros(2, np.float32), settings) == ABSTAIN


def test_labels_are_as_good_as_scores() -> None:
    settings = SmoothingSettings(0.5, samples=500)
    point = np.array([0.1, 0.2], np.float32)
    by_labels = certify_image(lambda x: np.argmax(half_plane(x), axis=1), point, settings)
    assert by_labels == certify_image(half_plane, point, settings)


def test_a_broken_run_is_continued(tmp_path) -> None:
    settings = SmoothingSettings(0.5, 20, 200)
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((6, 2)).astype(np.float32), np.zeros(6, int)
    expected = randomized_smoothing(half_plane, x, y, settings)
    file = tmp_path / "record.jsonl"
    calls = 0

    def breaks(images: np.ndarray) -> np.ndarray:
        nonlocal calls
        calls += 1
        if calls == 6:
            raise ConnectionError("the board is gone")
        return half_plane(images)

    with pytest.raises(ConnectionError):
        randomized_smoothing(breaks, x, y, settings, resume=file)
    with file.open("a") as handle:
        handle.write('{"index": 5, "pred')
    progress: list[tuple[int, int]] = []
    again = randomized_smoothing(
        breaks, x, y, settings, resume=file, progress=lambda *p: progress.append(p)
    )
    assert calls == 6 + 2 * 4
    assert progress[-1] == (6, 6)
    np.testing.assert_array_equal(again.radius, expected.radius)
    finished = randomized_smoothing(breaks, x, y, settings, resume=file)
    assert calls == 6 + 2 * 4
    np.testing.assert_array_equal(finished.radius, expected.radius)
    assert len(file.read_text().splitlines()) == 7
    with pytest.raises(ValueError, match="another run"):
        randomized_smoothing(breaks, x, y, SmoothingSettings(0.6, 20, 200), resume=file)
    with pytest.raises(ValueError, match="another run"):
        randomized_smoothing(breaks, x + 1, y, settings, resume=file)
    file.write_text("nonsense\n")
    with pytest.raises(ValueError, match="not a record"):
        randomized_smoothing(breaks, x, y, settings, resume=file)


def test_certificate_is_saved_as_data(tmp_path) -> None:
    settings = SmoothingSettings(0.5, 20, 100)
    found = randomized_smoothing(half_plane, np.ones((2, 2)), np.array([0, 1]), settings)
    found.save(tmp_path / "smoothing.json")
    data = json.loads((tmp_path / "smoothing.json").read_text())
    assert data["details"]["sigma"] == 0.5
    assert data["details"]["votes"] == found.details["votes"]
    assert found.certified_accuracy(0.0) == 0.5


def test_training_noise() -> None:
    images = np.zeros((4, 50, 50, 1), np.float32)
    dataset = tf.data.Dataset.from_tensor_slices((images, np.arange(4))).batch(2)
    noisy = list(gaussian_augmentation(dataset, 0.3, seed=1))
    values = np.concatenate([batch.numpy() for batch, _ in noisy])
    assert values.std() == pytest.approx(0.3, rel=0.05)
    np.testing.assert_array_equal(np.concatenate([y.numpy() for _, y in noisy]), np.arange(4))
    assert not np.array_equal(values[:2], values[2:])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"sigma": 0.0}, "sigma"),
        ({"sigma": math.inf}, "sigma"),
        ({"alpha": 1.0}, "alpha"),
        ({"samples": 0}, "samples"),
        ({"selection_samples": 0}, "selection_samples"),
        ({"batch_size": 0}, "batch_size"),
    ],
)
def test_wrong_settings_are_refused(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SmoothingSettings(**arguments)


def test_wrong_calls_are_refused() -> None:
    settings = SmoothingSettings(0.5, 10, 10)
    with pytest.raises(ValueError, match="scores"):
        vote(lambda x: np.zeros(3), np.zeros(2, np.float32), 10, settings, np.random.default_rng())
    with pytest.raises(ValueError, match="label 3, but the classifier has 3 classes"):
        randomized_smoothing(
            lambda x: np.zeros((len(x), 3)), np.zeros((2, 4)), np.array([0, 3]), settings
        )
    with pytest.raises(ValueError, match="successes"):
        clopper_pearson_lower(11, 10, 0.05)
    with pytest.raises(ValueError, match="sigma"):
        gaussian_augmentation(None, -1.0)
