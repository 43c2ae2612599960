r"""Steps of quantizers that training learns: LSQ.

A step :math:`s` that `n` values share is divided into the values before they are rounded and
multiplied back afterwards, so the straight-through gradient reaches it:

.. math:: \frac{\partial\, s \lfloor v / s \rceil}{\partial s} =
    \begin{cases} \lfloor v / s \rceil - v / s & \text{inside the grid} \\
    \text{the lowest or the highest integer} & \text{beyond it} \end{cases}

It is multiplied by :math:`1 / \sqrt{n Q_P}`, and the step starts at
:math:`2 \langle |v| \rangle / \sqrt{Q_P}`, where :math:`Q_P` is the highest integer.

Source: Esser, McKinstry, Bablani, Appuswamy, Modha, *Learned Step Size Quantization*, ICLR 2020.
"""

from __future__ import annotations

import math
from typing import Any

import keras
import numpy as np
from keras import ops

from tfdq.grid import INT8_MIN, Grid
from tfdq.keras3.ranges import SMALLEST_RANGE, OutputRange, RangeSettings, Steps
from tfdq.keras3.rounding import with_gradient_of

STEP_FACTOR = "step_factor"
"""End of the names of what trains; weight decay has to leave it alone."""


class LearnedSteps:
    r"""One or more learned steps, in variables of a layer.

    A step is kept as where it started, which does not train, times a factor, which does. The
    gradient of the factor is scaled so that a step of plain gradient descent moves the step as
    published; an optimizer that normalizes gradients (Adam) moves it by its learning rate relative
    to where it started, whatever the number of bits.

    Args:
        layer: the layer, in its ``build``.
        name: beginning of the variables' names.
        shape: of the steps.
        highest: the highest integer, :math:`Q_P`, >= 1.
        trainable: whether they train.
    """

    def __init__(
        self,
        layer: keras.layers.Layer,
        name: str,
        shape: tuple[int, ...],
        highest: float,
        trainable: bool,
    ) -> None:
        self._highest = highest
        self._least = np.float32(SMALLEST_RANGE / highest)
        self.start, self.factor = (
            layer.add_weight(
                name=f"{name}_{part}",
                shape=shape,
                initializer=initializer,
                dtype="float32",
                trainable=trains,
                autocast=False,
            )
            for part, initializer, trains in (
                ("start", "zeros", False),
                ("factor", "ones", trainable),
            )
        )

    def begin(self, magnitudes: Any) -> None:
        """Let steps that have not started start; those of zeros do not.

        Args:
            magnitudes: mean magnitudes of the values that share each step, in the steps' shape.
        """
        self.start.assign(self._started(magnitudes))

    def present(self, count: int, magnitudes: Any = None) -> Any:
        """Return the steps with their gradient, float32.

        Args:
            count: number of values that share one step.
            magnitudes: as in `begin`, of steps that may not have started; they do not start here.
        """
        start = ops.convert_to_tensor(self.start)
        if magnitudes is not None:
            start = self._started(magnitudes)
        start = ops.maximum(start, self._least)
        factor = ops.convert_to_tensor(self.factor)
        scale = 1.0 / math.sqrt(count * self._highest)
        return with_gradient_of(ops.maximum(start * factor, self._least), factor * (scale / start))

    def deployed(self, magnitudes: np.ndarray | None = None) -> np.ndarray:
        """Return the steps as they are, float32.

        Args:
            magnitudes: as in `present`.
        """
        start, factor = (
            np.asarray(ops.convert_to_numpy(variable), np.float32)
            for variable in (self.start, self.factor)
        )
        if magnitudes is not None:
            first = np.float32(2.0 / math.sqrt(self._highest)) * magnitudes
            start = np.where(start > 0.0, start, first)
        return np.maximum(np.maximum(start, self._least) * factor, self._least)

    @property
    def have_started(self) -> bool:
        """Whether all of them have seen values other than zeros."""
        return bool((ops.convert_to_numpy(self.start) > 0.0).all())

    def _started(self, magnitudes: Any) -> Any:
        first = np.float32(2.0 / math.sqrt(self._highest)) * ops.stop_gradient(magnitudes)
        start = ops.convert_to_tensor(self.start)
        return ops.where(start > 0.0, start, first)


class LearnedRange:
    """The range of a layer's output that is >= 0, by a learned step: an `OutputRange`'s place.

    Args:
        layer: the layer, in its ``build``.
        settings: ``update`` is ``"learned"``.
    """

    def __init__(self, layer: keras.layers.Layer, settings: RangeSettings) -> None:
        self.settings = settings
        self._levels = float(2**settings.bits - 1)
        self._layer_name = layer.name
        trainable = not getattr(layer, "frozen", False)
        self.steps = LearnedSteps(layer, "range_step", (), self._levels, trainable)

    def take(self, values: Any, follow: bool) -> Steps:
        """Start the step at the first batch that is not all zeros, and return the grid.

        Args:
            values: float32 ``(batch, ...)``, >= 0.
            follow: as in `OutputRange.take`; a step that has started is the optimizer's.
        """
        self.steps.begin(ops.mean(ops.stop_gradient(values)))
        step = self.steps.present(math.prod(values.shape[1:]))
        return Steps(step, ops.zeros(()), ops.convert_to_tensor(self._levels, "float32"))

    def grid(self) -> Grid:
        """Return the int8 grid that the output is deployed on.

        Raises:
            ValueError: the step has seen no data, nothing but zeros, or NaN or infinite values; or
                training has made it 0, NaN or infinite.
        """
        if not self.steps.have_started:
            raise ValueError(
                f"the step of layer {self._layer_name!r} has not seen any data yet, or none but "
                "zeros or NaN: train the model, or pass images through it with "
                "tfdq.keras3.calibrate(model, images)"
            )
        if not self.has_step:
            raise ValueError(
                f"training has made the step of layer {self._layer_name!r} "
                f"{float(self.steps.deployed()):g}: look for NaN or infinite values in the images, "
                "then quantize the float model again and train it at a lower learning rate, or "
                "with activation_range='moving_average'"
            )
        highest = INT8_MIN + int(self._levels)
        return Grid(float(self.steps.deployed()), INT8_MIN, INT8_MIN, highest)

    @property
    def has_step(self) -> bool:
        """Whether the step has started and is neither the smallest there is nor infinite."""
        step = self.steps.deployed()
        reach = float(step) * self._levels
        return self.steps.have_started and 2 * SMALLEST_RANGE < reach < math.inf


def range_of(layer: keras.layers.Layer, settings: RangeSettings) -> OutputRange | LearnedRange:
    """Return the range of a layer's output, as its settings say.

    Args:
        layer: the layer, in its ``build``.
        settings: how the range is found.
    """
    return (LearnedRange if settings.update == "learned" else OutputRange)(layer, settings)
