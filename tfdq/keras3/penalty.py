"""The penalty on the kernel of a quantized layer: what is penalized, and with which weight."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
from keras import ops

from tfdq.keras3.deviations import (
    convolution_gram_deviation,
    excess_norm,
    half_gram_deviation,
    leading_vectors,
    smaller_gram,
    worst_gram_deviation,
)
from tfdq.penalties.singular_values import SingularValue

NAMES = ("orthogonal", "srip", "spectral", "conv_orthogonal")
_ITERATED = ("srip", "spectral")


def scale_blind(kernel: Any, rate: float = 1.0) -> Any:
    r"""Return a kernel as it is, with a gradient that leaves the length of each channel alone.

    .. math:: \frac{w_c}{\lVert w_c \rVert} \cdot \mathrm{stop\_gradient}(\lVert w_c \rVert)

    BatchNorm divides by the standard deviation of what the kernel computes, so it undoes any
    length. A penalty on the folded kernel that shortened it would only make the moving statistics
    lag behind.

    Args:
        kernel: float32 ``(n, channels)``. The direction of a channel of zeros is not
            defined; nothing is taken from its gradient.
        rate: factor of the gradient, >= 0.
    """
    # Divided by the largest entry first: the squares of 1e-30 are not float32.
    peaks = ops.stop_gradient(ops.max(ops.abs(kernel), axis=0, keepdims=True))
    peaks = ops.where(peaks > 0.0, peaks, 1.0)
    scaled = kernel / peaks
    # At least 1, but for a channel of zeros.
    squares = ops.sum(ops.square(scaled), axis=0, keepdims=True)
    lengths = ops.sqrt(ops.maximum(squares, 0.5))
    direction = scaled / lengths * ops.stop_gradient(lengths * peaks)
    return ops.stop_gradient(kernel) + rate * (direction - ops.stop_gradient(direction))


def singular_value(target: SingularValue, taps: int) -> float:
    """Return what the singular values are pulled to: ``target``, or 1/k for k * k taps."""
    return 1.0 / math.sqrt(taps) if target == "1/k" else float(target)


class KernelPenalty:
    """The penalty of one layer; what it keeps from step to step are variables of the layer.

    Args:
        layer: the layer, in its ``build``.
        settings: ``on`` and either ``name``, ``target``, and ``beta`` or ``schedule``, or
            ``regularizer``: a serialized Keras regularizer with a weight of its own.
        shape: of the kernel.
        depthwise: the kernel is ``(height, width, in, multiplier)`` and its channels do not mix.
        strides: of the convolution.
        groups: of input channels, each with its own part of the output channels.
    """

    def __init__(
        self,
        layer: keras.layers.Layer,
        settings: dict[str, Any],
        shape: tuple[int, ...],
        depthwise: bool,
        strides: tuple[int, int],
        groups: int = 1,
    ) -> None:
        self.on = settings["on"]
        self._settings = settings
        self._shape = shape
        self._depthwise = depthwise
        self._strides = strides
        self._groups = groups
        self._name = settings.get("name", "orthogonal")
        self._own = keras.regularizers.get(settings.get("regularizer"))
        schedule = settings.get("schedule")
        self._schedule: Callable[[Any], Any] | None = None
        self._vector = None
        if schedule is not None:
            self._schedule = keras.saving.deserialize_keras_object(schedule)
            self._steps = _add(layer, "penalty_steps", (), "zeros")
        if self._own is None and self._name in _ITERATED:
            side = self._matrices(np.zeros(shape, np.float32)).shape
            vector = (*side[:-2], min(side[-2:]), 1)
            start = keras.initializers.RandomNormal(seed=vector[-2])
            self._vector = _add(layer, "penalty_vector", vector, start)

    def __call__(self, kernel: Any, training: bool) -> Any:
        """Return the penalty of a kernel, a float32 scalar.

        Args:
            kernel: float32, in the shape of the layer's kernel.
            training: count a training step.
        """
        if self._own is not None:
            return self._own(kernel)
        return self._weight(training) * self._deviation(kernel, training)

    @property
    def weight(self) -> float | None:
        """The present weight; None of a regularizer that does not tell its own."""
        if self._own is not None:
            beta = getattr(self._own, "beta", None)
            return None if beta is None else float(beta)
        if self._schedule is None:
            return float(self._settings["beta"])
        return float(ops.convert_to_numpy(self._weight(training=False)))

    def _weight(self, training: bool) -> Any:
        if self._schedule is None:
            return self._settings["beta"]
        steps = ops.convert_to_tensor(self._steps)
        if not training:
            return ops.cast(self._schedule(ops.maximum(steps - 1.0, 0.0)), "float32")
        self._steps.assign(steps + 1.0)
        return ops.cast(self._schedule(steps), "float32")

    def _deviation(self, kernel: Any, training: bool) -> Any:
        taps = math.prod(self._shape[:2]) if len(self._shape) == 4 else 1
        target = singular_value(self._settings["target"], taps)
        if self._name == "conv_orthogonal" and taps > 1:
            parts = ops.split(kernel, self._groups, axis=-1)
            return sum(
                convolution_gram_deviation(part, target, self._depthwise, self._strides)
                for part in parts
            )
        matrices = self._matrices(kernel)
        if self._vector is None:
            return half_gram_deviation(matrices, target)
        spectral = self._name == "spectral"
        symmetric = smaller_gram(matrices) if spectral else smaller_gram(matrices, target)
        vectors = leading_vectors(symmetric, ops.convert_to_tensor(self._vector))
        if training:
            self._vector.assign(vectors)
        if spectral:
            return excess_norm(matrices, vectors, target)
        return worst_gram_deviation(symmetric, vectors)

    def _matrices(self, kernel: Any) -> Any:
        """Return the kernel as ``(rows, columns)``; one such matrix for each group or channel."""
        shape = self._shape
        if self._groups > 1:
            return ops.transpose(
                ops.reshape(kernel, (-1, self._groups, shape[-1] // self._groups)), (1, 0, 2)
            )
        if not self._depthwise:
            return ops.reshape(kernel, (-1, shape[-1]))
        return ops.transpose(ops.reshape(kernel, (-1, *shape[2:])), (1, 0, 2))


def _add(layer: keras.layers.Layer, name: str, shape: tuple[int, ...], start: Any) -> Any:
    return layer.add_weight(
        name=name,
        shape=shape,
        initializer=start,
        dtype="float32",
        trainable=False,
        autocast=False,
    )
