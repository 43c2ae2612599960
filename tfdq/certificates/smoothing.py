"""Randomized smoothing: certified L2 radii for any classifier that can be called."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from tfdq.certificates.certificate import Certificate, check_examples
from tfdq.certificates.record import Record

Predict = Callable[[npt.NDArray[np.float32]], Any]
ABSTAIN = -1


@dataclass(frozen=True)
class SmoothingSettings:
    """How a classifier is smoothed.

    Args:
        sigma: standard deviation of the noise, in input units, > 0.
        selection_samples: noisy copies that choose the class (``n_0``), >= 1.
        samples: noisy copies that estimate its probability (``n``), >= 1.
        alpha: probability that a certified radius is wrong, in (0, 1).
        seed: of the noise.
        batch_size: noisy copies for each call of the classifier, >= 1.

    Raises:
        ValueError: an argument is out of its range.
    """

    sigma: float = 0.25
    selection_samples: int = 100
    samples: int = 10_000
    alpha: float = 0.001
    seed: int = 0
    batch_size: int = 500

    def __post_init__(self) -> None:
        """Check the arguments."""
        if not (self.sigma > 0 and math.isfinite(self.sigma)):
            raise ValueError(f"sigma must be a finite number > 0, got {self.sigma}")
        if not 0 < self.alpha < 1:
            raise ValueError(f"alpha must be in (0, 1), got {self.alpha}")
        for name in ("selection_samples", "samples", "batch_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be >= 1, got {getattr(self, name)}")

    @property
    def largest_radius(self) -> float:
        """The radius of an example whose every noisy copy is given one class."""
        return certified_radius(self.samples, self)


def clopper_pearson_lower(successes: int, trials: int, alpha: float) -> float:
    """Return the exact one-sided lower confidence bound of a probability.

    Args:
        successes: in ``[0, trials]``.
        trials: >= 1.
        alpha: probability that the bound is above the true value.

    Raises:
        ValueError: an argument is out of its range.

    Source: Clopper and Pearson, Biometrika 1934.
    """
    from statsmodels.stats.proportion import proportion_confint

    if not 0 <= successes <= trials or trials < 1 or not 0 < alpha < 1:
        raise ValueError(
            f"0 <= successes <= trials and 0 < alpha < 1 are needed, got {successes}, {trials}, "
            f"{alpha}"
        )
    # The interval is two-sided, with alpha/2 on either side.
    return float(proportion_confint(successes, trials, alpha=2 * alpha, method="beta")[0])


def certified_radius(successes: int, settings: SmoothingSettings) -> float:
    """Return the L2 radius that a count of votes proves, 0 when it proves none.

    ``sigma * Phi^-1(p)`` with ``p`` the lower confidence bound of the class' probability.
    """
    from scipy.stats import norm

    probability = clopper_pearson_lower(successes, settings.samples, settings.alpha)
    return float(settings.sigma * norm.ppf(probability)) if probability > 0.5 else 0.0


def vote(
    predict: Predict,
    image: npt.NDArray[np.float32],
    samples: int,
    settings: SmoothingSettings,
    rng: np.random.Generator,
    classes: int | None = None,
) -> npt.NDArray[np.int64]:
    """Count how often each class is given to noisy copies of an image.

    Args:
        predict: maps float32 ``(n, ...)`` to scores ``(n, classes)`` or labels ``(n,)``.
        image: one input, ``(...)``.
        samples: noisy copies.
        settings: noise and batch size.
        rng: source of the noise.
        classes: length of the result at least; None: as long as the largest label needs.

    Returns:
        int64 counts.

    Raises:
        ValueError: the classifier's result is neither scores nor labels.
    """
    counts = np.zeros(classes or 0, np.int64)
    for begin in range(0, samples, settings.batch_size):
        size = min(settings.batch_size, samples - begin)
        noise = rng.standard_normal((size, *image.shape), dtype=np.float32)
        found = np.asarray(predict(image + np.float32(settings.sigma) * noise))
        if found.ndim not in (1, 2) or len(found) != size:
            raise ValueError(
                f"the classifier gave shape {found.shape} for {size} inputs; scores "
                f"({size}, classes) or labels ({size},) are needed"
            )
        labels = found if found.ndim == 1 else np.argmax(found, axis=1)
        more = np.bincount(labels.astype(np.int64), minlength=len(counts))
        more[: len(counts)] += counts
        counts = more
    return counts


def smoothed_prediction(
    predict: Predict, image: npt.NDArray[np.float32], settings: SmoothingSettings, index: int = 0
) -> int:
    """Return the smoothed classifier's answer for one image, or `ABSTAIN` (-1).

    The two most frequent classes of ``samples`` noisy copies are compared by a binomial test; the
    answer is wrong (not the smoothed classifier's) with probability at most ``alpha``.

    Args:
        predict: as for `vote`.
        image: one input.
        settings: of the smoothing.
        index: of the image in its data set; sets the noise together with the seed.

    Source: Cohen, Rosenfeld, Kolter, ICML 2019, PREDICT.
    """
    from scipy.stats import binomtest

    rng = np.random.default_rng([settings.seed, index, 1])
    counts = vote(predict, image, settings.samples, settings, rng)
    order = np.argsort(counts)[::-1]
    first = int(counts[order[0]])
    second = int(counts[order[1]]) if len(order) > 1 else 0
    clear = binomtest(first, first + second, 0.5).pvalue <= settings.alpha
    return int(order[0]) if clear else ABSTAIN


def certify_image(
    predict: Predict, image: npt.NDArray[np.float32], settings: SmoothingSettings, index: int = 0
) -> dict[str, Any]:
    """Certify one image.

    Returns:
        ``{"index", "predicted" (-1: abstained), "radius", "votes"}``.

    Source: Cohen, Rosenfeld, Kolter, ICML 2019, CERTIFY.
    """
    rng = np.random.default_rng([settings.seed, index])
    chosen = vote(predict, image, settings.selection_samples, settings, rng)
    label = int(np.argmax(chosen))
    votes = int(vote(predict, image, settings.samples, settings, rng, label + 1)[label])
    radius = certified_radius(votes, settings)
    return {
        "index": index,
        "predicted": label if radius > 0 else ABSTAIN,
        "radius": radius,
        "votes": votes,
    }


def randomized_smoothing(
    predict: Predict,
    x: Any,
    y: Any,
    settings: SmoothingSettings | None = None,
    resume: str | Path | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Certificate:
    """Certify the smoothed version of a classifier in L2.

    The classifier ``g(x) = argmax_c P(f(x + noise) = c)`` does not change within the radius, with
    probability ``1 - alpha`` for each example; ``f`` may be anything, a ``.tflite`` file above
    all. The radius belongs to ``g``, not to ``f``: it holds for a device that votes over noisy
    copies of its input. ``f`` should be trained on noise of the same sigma
    (`gaussian_augmentation`).

    Args:
        predict: maps float32 ``(n, ...)`` to scores ``(n, classes)`` or labels ``(n,)``.
        x: examples ``(n, ...)``, on the scale of the training data.
        y: integer labels ``(n,)``.
        settings: noise, sample counts, confidence; None: the defaults.
        resume: a JSON-lines file that every finished example is appended to, and that a later
            call with the same arguments continues from; None: nothing is kept.
        progress: called with the examples done and in all.

    Raises:
        ValueError: an argument is out of its range, the classifier's result has a wrong shape, or
            ``resume`` holds another run.

    Source: Cohen, Rosenfeld, Kolter, *Certified Adversarial Robustness via Randomized Smoothing*,
    ICML 2019, theorem 1 and section 3.2.
    """
    images, labels = check_examples(x, y)
    settings = settings or SmoothingSettings()

    def scored(noisy: npt.NDArray[np.float32]) -> npt.NDArray[Any]:
        found = np.asarray(predict(noisy))
        if found.ndim == 2 and labels.max() >= found.shape[1]:
            raise ValueError(
                f"y has the label {labels.max()}, but the classifier has {found.shape[1]} classes, "
                f"0 to {found.shape[1] - 1}"
            )
        return found

    finished = Record(resume, "randomized smoothing", asdict(settings), images)
    for index, image in enumerate(images):
        if index not in finished.results:
            finished.add(certify_image(scored, image, settings, index))
        if progress is not None:
            progress(index + 1, len(images))
    finished.close()
    rows = [finished.results[index] for index in range(len(images))]
    predicted = np.array([row["predicted"] for row in rows])
    abstained = predicted == ABSTAIN
    radius = np.array([row["radius"] for row in rows], np.float64)
    correct = predicted == labels
    note = "" if np.any(correct & (radius > 0)) else "Vacuous: no correct example is certified."
    details = {**asdict(settings), "votes": [row["votes"] for row in rows]}
    return Certificate(
        radius, correct, abstained, "l2", "smoothing", 1 - settings.alpha, note, details
    )


def gaussian_augmentation(dataset: Any, sigma: float, seed: int = 0) -> Any:
    """Return a ``tf.data`` set of (images, labels) with Gaussian noise on the images.

    The training that randomized smoothing needs. The noise is not clipped, as at certification.

    Args:
        dataset: a ``tf.data.Dataset`` of ``(images, labels)``, floats.
        sigma: standard deviation in input units, >= 0.
        seed: of the noise.

    Raises:
        ValueError: ``sigma`` is negative.
    """
    import tensorflow as tf

    if not sigma >= 0:
        raise ValueError(f"sigma must be >= 0, got {sigma}")
    generator = tf.random.Generator.from_seed(seed)

    def add_noise(images: Any, *rest: Any) -> tuple[Any, ...]:
        noise = generator.normal(tf.shape(images), stddev=sigma, dtype=images.dtype)
        return (images + noise, *rest)

    return dataset.map(add_noise)
