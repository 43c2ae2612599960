"""Feature squeezing: layers that take detail out of the input before the network sees it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import tensorflow as tf
import tf_keras

from tfdq.grid import Grid, nudged_grid


def _check_gradient(gradient: str, known: Sequence[str]) -> str:
    if gradient not in known:
        raise ValueError(f"gradient must be one of {tuple(known)}, got {gradient!r}")
    return gradient


@tf_keras.utils.register_keras_serializable(package="tfdq")
class BitDepthSqueeze(tf_keras.layers.Layer):
    r"""Round every pixel to `2**bits` levels.

    `q(x) = lo + (hi - lo) * rint(clip(u, 0, 1) * n) / n`, `u = (x - lo) / (hi - lo)`,
    `n = 2**bits - 1`; `rint` rounds ties to even.

    Args:
        bits: Bits kept per channel, 1 to 8.
        input_range: `(lo, hi)` of the images, in input units.
        gradient: `"straight_through"` (the default) passes the gradient of values inside the range
            unchanged, so that a gradient attack through the layer is the adaptive one (BPDA).
            `"exact"` is the true derivative, zero almost everywhere: it hides the gradient and
            makes every white-box figure meaningless; it exists to demonstrate that.
        **kwargs: Passed to `tf_keras.layers.Layer`.

    Raises:
        ValueError: If an argument is out of range.

    Input shape: `(batch, ...)` floats. Output shape: the same.

    Source: Xu, Evans, Qi, Feature Squeezing, NDSS 2018, section III-A; the gradient: Athalye et
    al., Obfuscated Gradients, ICML 2018, section 4.1.
    """

    def __init__(
        self,
        bits: int,
        input_range: Sequence[float] = (0.0, 1.0),
        gradient: str = "straight_through",
        **kwargs: Any,
    ) -> None:
        if isinstance(bits, bool) or int(bits) != bits or not 1 <= bits <= 8:
            raise ValueError(f"bits must be a whole number from 1 to 8, got {bits!r}")
        lo, hi = (float(v) for v in input_range)
        if not lo < hi:
            raise ValueError(f"input_range must be (lo, hi) with lo < hi, got {tuple(input_range)}")
        super().__init__(**kwargs)
        self.bits = int(bits)
        self.input_range = (lo, hi)
        self.gradient = _check_gradient(gradient, ("straight_through", "exact"))

    def call(self, inputs: tf.Tensor) -> tf.Tensor:
        """Return the rounded images, shape and dtype of `inputs`."""
        lo, hi = self.input_range
        steps = 2**self.bits - 1
        clipped = tf.clip_by_value(inputs, lo, hi)
        rounded = lo + (hi - lo) * tf.round((clipped - lo) * (steps / (hi - lo))) / steps
        rounded = tf.cast(rounded, inputs.dtype)
        if self.gradient == "exact":
            return rounded
        return clipped + tf.stop_gradient(rounded - clipped)

    def grid(self) -> Grid:
        """Return the int8 grid that the levels are: `2**bits` integers from -128 on.

        Raises:
            ValueError: 0 is not one of the levels, as affine int8 tensors demand.
        """
        lo, hi = self.input_range
        zero = -lo * (2**self.bits - 1) / (hi - lo)
        if not 0.0 <= zero < 2**self.bits or abs(zero - round(zero)) > 1e-6:
            raise ValueError(
                f"BitDepthSqueeze({self.bits}, input_range={self.input_range}) has no level at 0, "
                "which its integer form needs: squeeze images in a range that starts at 0, such "
                "as (0, 1), and put what shifts them (a Rescaling) behind the squeezer"
            )
        return nudged_grid(lo, hi, self.bits)

    def compute_output_shape(self, input_shape: Any) -> Any:
        """Return the shape of the input."""
        return input_shape

    def get_config(self) -> dict[str, Any]:
        """Return the constructor's arguments."""
        own = {"bits": self.bits, "input_range": self.input_range, "gradient": self.gradient}
        return {**super().get_config(), **own}


@tf_keras.utils.register_keras_serializable(package="tfdq")
class MedianSqueeze(tf_keras.layers.Layer):
    """Replace every pixel by the median of its neighbourhood, channel by channel.

    The edges are mirrored (`d c b a | a b c d | d c b a`) and an even window takes the upper of
    the two middle values and reaches one pixel further up and left: the values of
    `scipy.ndimage.median_filter(image, size, mode="reflect")`, which the paper used.

    Args:
        size: Side of the window in pixels, 2 to 7; the paper's best are 2 and 3.
        gradient: `"smooth"` (the default) shares the gradient among the pixels of the window
            whose values are near the median's, with weights `exp(-|value - median| /
            temperature)`: the strongest of the three for an attack through the layer, above all
            behind a bit-depth squeezer, where pixels tie. `"exact"` is the median's own
            derivative: 1 for the pixel that was picked, of several equal ones for any one, 0 for
            the others. `"straight_through"` treats the filter as the identity (BPDA).
        temperature: Of the smooth gradient, in input units.
        **kwargs: Passed to `tf_keras.layers.Layer`.

    Raises:
        ValueError: If an argument is out of range, or an image is smaller than the window.

    Input shape: `(batch, height, width, channels)` floats. Output shape: the same.

    Source: Xu, Evans, Qi, Feature Squeezing, NDSS 2018, section III-B (local smoothing). The smooth
    gradient is our own, found by experiment: docs/evaluation.md has the figures.
    """

    def __init__(
        self, size: int, gradient: str = "smooth", temperature: float = 0.01, **kwargs: Any
    ) -> None:
        if isinstance(size, bool) or int(size) != size or not 2 <= size <= 7:
            raise ValueError(f"size must be a whole number from 2 to 7, got {size!r}")
        if not temperature > 0:
            raise ValueError(f"temperature must be > 0, got {temperature!r}")
        super().__init__(**kwargs)
        self.size = int(size)
        self.gradient = _check_gradient(gradient, ("smooth", "exact", "straight_through"))
        self.temperature = float(temperature)

    def build(self, input_shape: Sequence[int | None]) -> None:
        """Check that the images are 4-D and no smaller than the window."""
        shape = tuple(input_shape)
        sides = [side for side in shape[1:3] if side is not None]
        if len(shape) != 4 or any(side < self.size for side in sides):
            raise ValueError(
                f"MedianSqueeze(size={self.size}) takes images (batch, height, width, channels) "
                f"of at least {self.size}x{self.size} pixels, got shape {shape}"
            )
        super().build(input_shape)

    def call(self, inputs: tf.Tensor) -> tf.Tensor:
        """Return the filtered images, shape and dtype of `inputs`."""
        before, after = self.size // 2, (self.size - 1) // 2
        margins = [[0, 0], [before, after], [before, after], [0, 0]]
        padded = tf.pad(inputs, margins, mode="SYMMETRIC")
        height, width = tf.shape(inputs)[1], tf.shape(inputs)[2]
        window = tf.stack(
            [
                padded[:, row : row + height, column : column + width, :]
                for row in range(self.size)
                for column in range(self.size)
            ],
            axis=-1,
        )
        # The value of rank size**2 // 2 from below is the last of the largest ones from above.
        largest = tf.math.top_k(window, k=self.size**2 - self.size**2 // 2, sorted=True).values
        median = tf.ensure_shape(largest[..., -1], inputs.shape)
        if self.gradient == "exact":
            return median
        median = tf.stop_gradient(median)
        if self.gradient == "straight_through":
            return median + (inputs - tf.stop_gradient(inputs))
        distance = tf.abs(window - median[..., tf.newaxis])
        weights = tf.stop_gradient(tf.nn.softmax(-distance / self.temperature))
        mean = tf.reduce_sum(weights * window, axis=-1)
        # A difference of equal numbers is 0: the values are the median's, the gradient is not.
        return median + (mean - tf.stop_gradient(mean))

    def compute_output_shape(self, input_shape: Any) -> Any:
        """Return the shape of the input."""
        return input_shape

    def get_config(self) -> dict[str, Any]:
        """Return the constructor's arguments."""
        own = {"size": self.size, "gradient": self.gradient, "temperature": self.temperature}
        return {**super().get_config(), **own}
