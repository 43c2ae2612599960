"""Accuracy under corruptions that occur: noise, blur, contrast and JPEG at five strengths.

They are drawn or computed without the model, so nothing of them says anything about the worst case
in a ball, nor does a figure in the L_inf norm say anything about them.

Source: Hendrycks and Dietterich, *Benchmarking Neural Network Robustness to Common Corruptions and
Perturbations*, ICLR 2019; the strengths are those of its data set CIFAR-10-C, for 32x32 images.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image
from scipy.ndimage import gaussian_filter

from tfdq.mistakes import UnknownNameError, WrongTypeError
from tfdq.robustness.attacks.inputs import checked_images_and_labels
from tfdq.robustness.statistics import Proportion, wilson
from tfdq.robustness.targets import as_target

STRENGTHS = (1, 2, 3, 4, 5)
_UNIT = (0.0, 1.0)


def _gaussian_noise(x: np.ndarray, deviation: float, draw: np.random.Generator) -> np.ndarray:
    return x + draw.normal(0.0, deviation, x.shape)


def _shot_noise(x: np.ndarray, photons: float, draw: np.random.Generator) -> np.ndarray:
    return draw.poisson(x * photons) / photons


def _impulse_noise(x: np.ndarray, share: float, draw: np.random.Generator) -> np.ndarray:
    hit = draw.random(x.shape) < share
    return np.where(hit, draw.integers(0, 2, x.shape), x)


def _gaussian_blur(x: np.ndarray, deviation: float, _: np.random.Generator) -> np.ndarray:
    blurred: np.ndarray = gaussian_filter(x, (0, deviation, deviation, 0), mode="nearest")
    return blurred


def _contrast(x: np.ndarray, factor: float, _: np.random.Generator) -> np.ndarray:
    mean = x.mean((1, 2), keepdims=True)
    return (x - mean) * factor + mean


def _jpeg(x: np.ndarray, quality: float, _: np.random.Generator) -> np.ndarray:
    pixels = np.rint(x * 255).astype(np.uint8)
    grey = x.shape[-1] == 1
    decoded = []
    for image in pixels:
        with io.BytesIO() as file:
            Image.fromarray(image[..., 0] if grey else image).save(file, "JPEG", quality=quality)
            decoded.append(np.asarray(Image.open(file), np.float64).reshape(image.shape))
    return np.stack(decoded) / 255


@dataclass(frozen=True)
class _Corruption:
    """What is done to images, and its parameter at each strength."""

    change: Callable[[np.ndarray, float, np.random.Generator], np.ndarray]
    parameters: tuple[float, float, float, float, float]


_KNOWN = {
    "gaussian_noise": _Corruption(_gaussian_noise, (0.04, 0.06, 0.08, 0.09, 0.10)),
    "shot_noise": _Corruption(_shot_noise, (500, 250, 100, 75, 50)),
    "impulse_noise": _Corruption(_impulse_noise, (0.01, 0.02, 0.03, 0.05, 0.07)),
    "gaussian_blur": _Corruption(_gaussian_blur, (0.4, 0.6, 0.7, 0.8, 1.0)),
    "contrast": _Corruption(_contrast, (0.75, 0.5, 0.4, 0.3, 0.15)),
    "jpeg": _Corruption(_jpeg, (80, 65, 58, 50, 40)),
}
CORRUPTIONS = tuple(_KNOWN)
"""The corruptions that `corrupt` knows."""


def corrupt(name: str, x: np.ndarray, strength: int, seed: int = 0) -> np.ndarray:
    """Return corrupted images, of 8 bits as those of a camera or a file.

    | name | what | parameter at strengths 1 to 5 |
    |---|---|---|
    | `gaussian_noise` | normal noise on each value | its deviation: 0.04, 0.06, 0.08, 0.09, 0.10 |
    | `shot_noise` | Poisson noise | photons of a white pixel: 500, 250, 100, 75, 50 |
    | `impulse_noise` | values become 0 or 1 | share of the values: 1, 2, 3, 5, 7 % |
    | `gaussian_blur` | blur of each channel | deviation in pixels: 0.4, 0.6, 0.7, 0.8, 1 |
    | `contrast` | distances from each channel's mean shrink | factor: 0.75, 0.5, 0.4, 0.3, 0.15 |
    | `jpeg` | JPEG and back | quality: 80, 65, 58, 50, 40 |

    Args:
        name: One of `CORRUPTIONS`.
        x: Images in [0, 1], shape `(n, height, width, channels)`, 1 or 3 channels.
        strength: 1 to 5.
        seed: Seed of the noise, at least 0.

    Returns:
        Images of the same shape, float32, multiples of 1/255 in [0, 1].

    Raises:
        KeyError: If there is no such corruption.
        ValueError: If another argument is out of range.

    Source: Hendrycks and Dietterich, ICLR 2019, with the parameters of CIFAR-10-C.

    Example:
        >>> noisy = corrupt("gaussian_noise", x, strength=3)
    """
    _check_name(name)
    _check_strength(strength)
    if seed < 0:
        raise ValueError(f"seed must be at least 0, got {seed}")
    x = np.asarray(x)
    if x.ndim != 4 or x.shape[-1] not in (1, 3):
        raise ValueError(
            f"images must have the shape (n, height, width, 1 or 3), got {x.shape}: corruptions "
            "are of grey and colour images"
        )
    if not (len(x) and x.min() >= 0 and x.max() <= 1):
        raise ValueError("images must lie in [0, 1], and be at least one: divide bytes by 255")
    known = _KNOWN[name]
    draw = np.random.default_rng((seed, CORRUPTIONS.index(name), strength))
    changed = known.change(x.astype(np.float64), known.parameters[strength - 1], draw)
    # Rounded down, as the published images are; what is whole but for rounding stays whole.
    levels = np.floor(np.clip(changed, *_UNIT) * 255 + 1e-6)
    return (levels / 255).astype(np.float32)


def _check_name(name: Any) -> None:
    if not isinstance(name, str) or name not in _KNOWN:
        raise UnknownNameError(f"no corruption {name!r}; there are {', '.join(CORRUPTIONS)}")


def _check_strength(strength: Any) -> None:
    whole = isinstance(strength, (int, np.integer)) and not isinstance(strength, bool)
    if not whole or strength not in STRENGTHS:
        raise ValueError(
            f"strength must be 1, 2, 3, 4 or 5, got {strength!r}: give one of these integers"
        )


def _several(argument: str, values: Any, of: str) -> list[Any]:
    """Return the values of an argument that takes several."""
    if isinstance(values, str) or not isinstance(values, Iterable):
        raise WrongTypeError(f"{argument} must be several {of}, got {values!r}; give [{values!r}]")
    return list(values)


@dataclass(frozen=True)
class CorruptionReport:
    """How often a model is right on corrupted images.

    Attributes:
        model: Its name.
        clean: Share of the images as they are.
        accuracy: Corruption -> share at each of `strengths`.
        strengths: Of the corruptions, 1 to 5.
        seed: Of the noise.
    """

    model: str
    clean: Proportion
    accuracy: dict[str, tuple[Proportion, ...]]
    strengths: tuple[int, ...]
    seed: int

    @property
    def mean(self) -> float:
        """Mean accuracy over corruptions and strengths, in [0, 1]."""
        return float(np.mean([share.value for row in self.accuracy.values() for share in row]))

    def to_markdown(self) -> str:
        """Return a table of accuracies in percent, one row for each corruption."""
        titles = ["corruption", *map(str, self.strengths), "mean"]
        lines = ["| " + " | ".join(titles) + " |", "|---|" + "---:|" * (len(titles) - 1)]
        for name, row in self.accuracy.items():
            shares = [share.value for share in row]
            cells = [f"{100 * share:.1f}" for share in (*shares, float(np.mean(shares)))]
            lines.append("| " + " | ".join([name.replace("_", " "), *cells]) + " |")
        return "\n".join(
            [
                *lines,
                "",
                f"{self.model}: accuracy in % at the strengths of CIFAR-10-C, "
                f"{self.clean.total} images; clean {self.clean}, "
                f"mean {100 * self.mean:.1f}. Corruptions that occur, not the "
                "worst in a ball: figures in the L_inf norm are about that norm only.",
            ]
        )


def corruption_accuracy(
    model: Any,
    x: np.ndarray,
    y: np.ndarray,
    *,
    corruptions: Sequence[str] = CORRUPTIONS,
    strengths: Sequence[int] = STRENGTHS,
    seed: int = 0,
) -> CorruptionReport:
    """Measure how often a model is right on corrupted images.

    Args:
        model: What `as_target` takes: a Keras model on any backend, an `IntegerTwin`, an
            `Interpreter`, the path of a `.tflite` file, or a function.
        x: Images in [0, 1], shape `(n, height, width, channels)`, 1 or 3 channels.
        y: Labels, `(n,)` or one-hot `(n, classes)`.
        corruptions: Names of `CORRUPTIONS`; all by default.
        strengths: 1 to 5; all by default.
        seed: Seed of the noise.

    Returns:
        The accuracies, with their intervals.

    Raises:
        KeyError: If there is no such corruption.
        TypeError: If corruptions or strengths is one value, not a sequence.
        ValueError: If another argument is out of range.

    Example:
        >>> print(corruption_accuracy(qat, x, y).to_markdown())
    """
    names = _several("corruptions", corruptions, "names")
    steps = _several("strengths", strengths, "integers")
    if not names or not steps:
        raise ValueError(
            f"corruptions and strengths must each name at least one, got {names} and {steps}; "
            "leave them out for all"
        )
    for name in names:
        _check_name(name)
    for strength in steps:
        _check_strength(strength)
    images, labels = checked_images_and_labels(x, y, _UNIT)
    target = as_target(model)

    def share(moved: np.ndarray) -> Proportion:
        return wilson(int((target.predict(moved) == labels).sum()), len(labels))

    found = {
        name: tuple(share(corrupt(name, images, strength, seed)) for strength in steps)
        for name in names
    }
    return CorruptionReport(target.name, share(images), found, tuple(steps), seed)
