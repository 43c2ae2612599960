"""What a model takes as black and white: declared, or found by trying the usual ranges."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tfdq.robustness.gradients.interface import LossFunction
from tfdq.robustness.statistics import Proportion, wilson
from tfdq.robustness.targets import Target

TRIED_IMAGES = 200


@dataclass(frozen=True)
class InputRange:
    """The values that a model takes for images in [0, 1], `low + (high - low) * image`.

    Attributes:
        name: What it is called.
        low: What a black pixel becomes: one number, or one for each channel.
        high: What a white pixel becomes, likewise.

    Raises:
        ValueError: They are of different lengths, not finite, or low is not below high.
    """

    name: str
    low: tuple[float, ...]
    high: tuple[float, ...]

    def __post_init__(self) -> None:
        ends = np.array([*self.low, *self.high], np.float64)
        if (
            len(self.low) != len(self.high)
            or not np.isfinite(ends).all()
            or not all(a < b for a, b in zip(self.low, self.high, strict=True))
        ):
            raise ValueError(
                f"an input range goes from low to a higher number, got {self.low} to {self.high}"
            )

    @property
    def span(self) -> np.ndarray:
        """`high - low`, float32, `(1,)` or `(channels,)`."""
        return np.subtract(self.high, self.low).astype(np.float32)

    def scaled(self, images: Any) -> Any:
        """Return images in [0, 1], an array or a tensor, as the model takes them."""
        return images * self.span + np.array(self.low, np.float32)

    def to_dict(self) -> dict[str, Any]:
        """Return the range as plain data."""
        return {"name": self.name, "low": list(self.low), "high": list(self.high)}


_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
USUAL: tuple[InputRange, ...] = (
    InputRange("0..1", (0.0,), (1.0,)),
    InputRange("0..255", (0.0,), (255.0,)),
    InputRange("-1..1", (-1.0,), (1.0,)),
    InputRange("pixel-128", (-128.0,), (127.0,)),
    InputRange(
        "imagenet",
        tuple(-m / s for m, s in zip(_MEAN, _STD, strict=True)),
        tuple((1 - m) / s for m, s in zip(_MEAN, _STD, strict=True)),
    ),
)
"""What `find_input_range` tries; imagenet: mean and standard deviation of ImageNet's colours."""


GRID = "grid"
"""What says that the bytes of an image are the integers of the model's input, from the least on."""


def parse_input_range(text: str, grid: tuple[float, float] | None = None) -> InputRange:
    """Return the range of `LOW,HIGH`, of `L,L,L,H,H,H` (for each channel), or of a name.

    Args:
        text: numbers, the name of a usual range, or `grid`.
        grid: The smallest and largest value of the model's input, if that has integers.

    Raises:
        ValueError: It is none of these, or `grid` of an input that has none.
    """
    if text == GRID:
        if grid is None:
            raise ValueError("--input-range grid is for .tflite files whose input is integers")
        return InputRange(GRID, grid[:1], grid[1:])
    for known in USUAL:
        if text == known.name:
            return known
    try:
        numbers = [float(part) for part in text.split(",")]
    except ValueError:
        numbers = []
    half = len(numbers) // 2
    if len(numbers) not in (2, 6):
        raise ValueError(
            f"--input-range takes LOW,HIGH or one of {', '.join(known.name for known in USUAL)}, "
            f"{GRID}, got {text!r}"
        )
    return InputRange(text, tuple(numbers[:half]), tuple(numbers[half:]))


class RescaledTarget(Target):
    """A target that is given images in [0, 1] and puts them on the range of its model.

    So `eps` is in the units of images in [0, 1], `8/255` for eight steps of a byte, whatever the
    model takes, also where the channels differ.

    Args:
        inner: The model's own target.
        input_range: What it takes.
        trials: How the range was found, if it was.
    """

    def __init__(
        self, inner: Target, input_range: InputRange, trials: RangeTrials | None = None
    ) -> None:
        super().__init__(inner.name, inner.batch_size, inner.outputs)
        self.inner = inner
        self.range = input_range
        self.differentiable = inner.differentiable
        self.input_range = {
            **input_range.to_dict(),
            **({} if trials is None else {"tried": trials.to_dict()}),
        }
        # What the inner one knows of its outputs holds for the same outputs here.
        self._outputs_checked = inner._outputs_checked

    @property
    def variables(self) -> Sequence[Any]:
        """The Keras variables that the inner target reads."""
        return self.inner.variables

    def _scores(self, x: np.ndarray) -> np.ndarray:
        return self.inner._scores(self.range.scaled(x))

    def logits_tensor(self, x: Any) -> Any:
        """Logits as a tensor; see `Target.logits_tensor`."""
        return self.inner.logits_tensor(self.range.scaled(x))

    def loss_gradient(
        self, loss: LossFunction, x: np.ndarray, y: np.ndarray, aux: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Logits, losses and gradients for images in [0, 1]; see `Target.loss_gradient`."""
        x = np.ascontiguousarray(x, dtype=np.float32)
        logits, losses, slope = self.inner.loss_gradient(loss, self.range.scaled(x), y, aux)
        self.gradients += len(x)
        return logits, losses, slope * self.range.span


@dataclass(frozen=True)
class RangeTrials:
    """The accuracy of a model on the same images, put on each of several ranges.

    Attributes:
        ranges: What was tried.
        accuracies: One for each; None where the model refuses such images.
        chosen: The range of the highest accuracy; of equal ones that nearest to the input's grid.
        images: How many images.
        chance: Share of the commonest class among them, which a constant answer reaches.
    """

    ranges: tuple[InputRange, ...]
    accuracies: tuple[Proportion | None, ...]
    chosen: InputRange
    images: int
    chance: float

    @property
    def at_chance(self) -> bool:
        """Whether the best accuracy can't be told from that of a constant answer."""
        best = max((a.low for a in self.accuracies if a is not None), default=0.0)
        return best <= self.chance

    def to_dict(self) -> dict[str, Any]:
        """Return number of images and accuracy of each range as plain data."""
        found = {
            tried.name: None if accuracy is None else accuracy.value
            for tried, accuracy in zip(self.ranges, self.accuracies, strict=True)
        }
        return {"images": self.images, "accuracy": found}

    def __str__(self) -> str:
        """The accuracies in one line."""
        parts = [
            f"{tried.name} {'refused' if accuracy is None else f'{100 * accuracy.value:.1f} %'}"
            for tried, accuracy in zip(self.ranges, self.accuracies, strict=True)
        ]
        return f"accuracy on {self.images} images by input range: {', '.join(parts)}"


def find_input_range(
    target: Target,
    images: np.ndarray,
    labels: np.ndarray,
    *,
    grid: tuple[float, float] | None = None,
    ranges: Sequence[InputRange] = USUAL,
    seed: int = 0,
) -> RangeTrials:
    """Try the usual input ranges of image models on a few images.

    Args:
        target: The model, in its own units.
        images: Images in [0, 1], float32 (n, height, width, channels).
        labels: Their classes, (n,).
        grid: Smallest and largest value of the model's input, where it is quantized.
        ranges: What to try; those of other numbers of channels are passed over.
        seed: Of the choice of at most 200 images.

    Returns:
        The accuracies and the choice.

    Raises:
        ValueError: The model refuses all of the ranges.
    """
    count = min(TRIED_IMAGES, len(images))
    rows = np.random.default_rng([seed, 41]).choice(len(images), count, replace=False)
    x, y = images[rows], labels[rows]
    tried = tuple(r for r in ranges if len(r.low) in (1, images.shape[-1]))
    if not tried:
        given = ", ".join(f"{candidate.name} has {len(candidate.low)}" for candidate in ranges)
        raise ValueError(
            f"no range fits the channels of the images, {images.shape[-1]}: {given}; give one "
            "number for each channel, or one for all"
        )
    found: list[Proportion | None] = []
    refusal = ""
    for candidate in tried:
        try:
            right = int((target.predict(candidate.scaled(x)) == y).sum())
        except ValueError as error:
            found.append(None)
            refusal = str(error)
        else:
            found.append(wilson(right, count))
    if all(accuracy is None for accuracy in found):
        names = ", ".join(candidate.name for candidate in tried)
        raise ValueError(f"none of {names} fits the input: {refusal}")

    def rank(at: int) -> tuple[float, float]:
        accuracy = found[at]
        ends = np.array([min(tried[at].low), max(tried[at].high)])
        away = 0.0 if grid is None else float(np.abs(ends - grid).sum())
        return (-1.0 if accuracy is None else accuracy.value, -away)

    chosen = tried[max(range(len(tried)), key=rank)]
    chance = float(np.bincount(y).max() / count)
    return RangeTrials(tried, tuple(found), chosen, count, chance)
