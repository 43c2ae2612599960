"""The description that a quantized model gives of itself: what its layers compute in integers.

It lies between training and export. Whatever a model was trained with describes it by the
dataclasses here, NumPy arrays and plain values alone; `tflite_export` turns a description into
operators and never looks at a layer. This module imports neither TensorFlow nor Keras.

A `Description` is a list of calls in topological order. Its values are numbered: first the
quantized inputs, ``0 .. len(inputs) - 1``, then the results of the calls, ``len(inputs)`` plus the
call's position. Every value is on an int8 grid, ``real = scale * (q - zero_point)``. Shapes have
the batch axis first, as None; images are ``(None, height, width, channels)``.

Example:
    >>> import numpy as np
    >>> from tfdq.grid import Grid
    >>> kernel = Kernel(
    ...     integers=np.array([[1, -7], [3, 0]], np.int8),
    ...     scale=np.float32([0.5, 0.25]),
    ...     multiplier=np.array([1.0, 2.0]),
    ...     offset=np.array([0.0, -1.0]),
    ...     bits=4,
    ... )
    >>> logits = Call("logits", Dense(kernel), (0,), (None, 2), Grid(0.1, 0, -128, 127))
    >>> image = Input("x", "x", (None, 2), Grid(1.0, -128, -128, 127))
    >>> description = Description("tiny", (image,), (logits,), (1,))
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from tfdq.grid import Grid

Shape = tuple[int | None, ...]
"""A shape with its batch axis, which is None."""


def repeated_shape(left: Shape, right: Shape) -> Shape:
    """Return the shape of a merge of two shapes of one rank, in which axes of size 1 repeat."""
    return tuple(b if a == 1 else a for a, b in zip(left, right, strict=True))


Pair = tuple[int, int]
"""Two numbers, that of the height first."""

ACTIVATIONS = ("linear", "relu", "relu6")
"""What a call may end with, before its result is rounded to its grid."""


@dataclass(frozen=True)
class Kernel:
    """A quantized kernel, with the bias and BatchNorm behind it as one affine map per channel.

    The layer computes ``multiplier * scale * sum(integers * x) + offset``, then its activation.

    Attributes:
        integers: int8, in Keras' layout: ``(height, width, in / groups, out)`` of a convolution,
            ``(height, width, in, depth_multiplier)`` of a depthwise one, ``(in, out)`` of a dense
            layer; magnitudes of at most ``2**(bits - 1) - 1``, or 1 with one bit.
        scale: float32, positive: the step of the integers, a scalar or ``(channels,)``, one for
            each output channel.
        multiplier: float64 ``(channels,)``, BatchNorm's factor; 1 without one. Negative factors
            are allowed.
        offset: float64 ``(channels,)``, in units of the result: bias and BatchNorm together.
        bits: of the integers, 1 to 8.
    """

    integers: np.ndarray
    scale: np.ndarray
    multiplier: np.ndarray
    offset: np.ndarray
    bits: int


@dataclass(frozen=True)
class Computation:
    """What a call computes: arrays and numbers, for which a `lowering` is registered.

    Those of this module are what the library's own layers compute; a layer of another kind derives
    one of its own, and registers its integer form with `tflite_export.lowering.lower.lowering`.
    """


@dataclass(frozen=True)
class Conv2D(Computation):
    """A 2-D convolution; its groups follow from the kernel's and the source's channels.

    Attributes:
        kernel: the kernel, ``(height, width, in / groups, out)``.
        padding: ``"valid"`` or ``"same"``; padded values are the zero point, 0.0.
        strides: of the height and of the width.
        dilation: of the height and of the width, 1 for none.
    """

    kernel: Kernel
    padding: str
    strides: Pair
    dilation: Pair


@dataclass(frozen=True)
class DepthwiseConv2D(Computation):
    """A 2-D convolution of each channel by itself.

    Attributes:
        kernel: the kernel, ``(height, width, in, depth_multiplier)``; output channel
            ``c * depth_multiplier + m`` is made of input channel ``c``.
        padding: as in `Conv2D`.
        strides: as in `Conv2D`.
        dilation: as in `Conv2D`.
    """

    kernel: Kernel
    padding: str
    strides: Pair
    dilation: Pair


@dataclass(frozen=True)
class Dense(Computation):
    """A matrix product on ``(batch, in)``.

    Attributes:
        kernel: the kernel, ``(in, out)``. One scale for all channels (and multipliers of one
            magnitude) makes the fastest operator.
    """

    kernel: Kernel


@dataclass(frozen=True)
class Affine(Computation):
    """``factor * x + offset``: a BatchNormalization of its own, a Rescaling, a change of grid.

    Attributes:
        factor: float64, a scalar or ``(channels,)``; may be negative.
        offset: float64, a scalar or ``(channels,)``.
    """

    factor: np.ndarray
    offset: np.ndarray


@dataclass(frozen=True)
class Activation(Computation):
    """The activation of the call and nothing else: a ReLU that no layer before it took in."""


@dataclass(frozen=True)
class Add(Computation):
    """``sum(coefficient * x)`` over the sources.

    Attributes:
        coefficients: not 0, one for each source: 1.0 in a sum, 1.0 and -1.0 in a difference, shares
            in a convex combination.
    """

    coefficients: tuple[float, ...]


@dataclass(frozen=True)
class Concatenate(Computation):
    """The sources side by side, brought onto the grid of the call; without one, that of the first.

    Attributes:
        axis: counted with the batch axis, positive.
    """

    axis: int


@dataclass(frozen=True)
class MaxPool2D(Computation):
    """The largest value of each window; the call has no grid of its own.

    Attributes:
        pool_size: height and width of the windows.
        strides: of the height and of the width.
        padding: ``"valid"`` or ``"same"``.
    """

    pool_size: Pair
    strides: Pair
    padding: str


@dataclass(frozen=True)
class AveragePool2D(Computation):
    """The mean of each window, over the pixels inside the image only.

    Attributes:
        pool_size: as in `MaxPool2D`.
        strides: as in `MaxPool2D`.
        padding: as in `MaxPool2D`.
    """

    pool_size: Pair
    strides: Pair
    padding: str


@dataclass(frozen=True)
class GlobalMaxPool2D(Computation):
    """The largest value of each channel; the axes of the image are kept if the shape has them."""


@dataclass(frozen=True)
class GlobalAveragePool2D(Computation):
    """The mean of each channel; the axes of the image are kept if the shape has them."""


@dataclass(frozen=True)
class Reshape(Computation):
    """The same values in the shape of the call, row by row: also Flatten."""


@dataclass(frozen=True)
class ZeroPad2D(Computation):
    """Zeros around an image.

    Attributes:
        amounts: ``((top, bottom), (left, right))``.
    """

    amounts: tuple[Pair, Pair]


@dataclass(frozen=True)
class Identity(Computation):
    """The source itself: Dropout and noise at inference."""


@dataclass(frozen=True)
class Softmax(Computation):
    """Probabilities over the last axis, in units of 1/256 (the runtime's fixed grid)."""


@dataclass(frozen=True)
class Requantize(Computation):
    """The source rounded to the grid of the call, value by value as a table says.

    What a bit-depth squeezer does, and the input quantizer of a quantized model behind squeezers.
    The export proves that its operators give the table's values.

    Attributes:
        first: the lowest ``q - zero_point`` of the source that the table has.
        values: float32 ``(n,)``: what the trained layer makes of the source's values, ``scale * d``
            for ``d = first, first + 1, ...``. It holds every integer that the source can have.
    """

    first: int
    values: np.ndarray


@dataclass(frozen=True)
class Median2D(Computation):
    """The upper median of each pixel's window, channel by channel; edges are mirrored.

    Attributes:
        size: side of the window, 2 to 7. An even window reaches one pixel further up and left.
    """

    size: int


@dataclass(frozen=True)
class Input:
    """An input of the model, after its rounding to a grid.

    Attributes:
        name: of the input in the file's signature.
        label: of the input's tensor; the name, unless the input's quantizer has another.
        shape: of the input.
        grid: the grid that the model rounds it to, ties to even.
    """

    name: str
    label: str
    shape: Shape
    grid: Grid


@dataclass(frozen=True)
class Call:
    """One call of one layer.

    Attributes:
        label: name of the layer: operators, tensors and errors carry it.
        computation: what it computes.
        sources: the values that it reads, in order.
        shape: of its result.
        grid: grid of its result, before the activation takes integers away. None where the result
            stays on the grid of the first source (pools of maxima, reshapes, padding, Identity,
            Median2D), or where the runtime fixes it (Softmax).
        activation: one of `ACTIVATIONS`, between the computation and the rounding.
        bits: of the kernel and of the result, for the record in the file, None where one is not
            quantized. None for a call that is not the trained network's own (a squeezer in front).
        penalty: weight of the penalty on the kernel, for the record in the file; None without one.
    """

    label: str
    computation: Computation
    sources: tuple[int, ...]
    shape: Shape
    grid: Grid | None = None
    activation: str = "linear"
    bits: tuple[int | None, int | None] | None = None
    penalty: float | None = None


@dataclass(frozen=True)
class Description:
    """A quantized model.

    Attributes:
        name: of the model.
        inputs: its inputs, in the model's order.
        calls: its calls in topological order: a call reads inputs and results of calls before it.
        outputs: the values that are its outputs, in the model's order.
    """

    name: str
    inputs: tuple[Input, ...]
    calls: tuple[Call, ...]
    outputs: tuple[int, ...]

    def label(self, value: int) -> str:
        """Return the label of the input or call that a value comes from."""
        count = len(self.inputs)
        return (self.inputs[value] if value < count else self.calls[value - count]).label


class TrainedModel(Protocol):
    """A trained model that can be exported: its description, and the means to check the export.

    `tflite_export` asks a model for it by a method ``as_trained()``, for a file of another size
    ``as_trained(input_shape)``; for tf_keras models of ``tfdq.quantize_model``, which have none,
    `tfdq.quantization.describe` makes it.
    """

    @property
    def description(self) -> Description:
        """The model as it is now: every constant is read from the variables anew."""
        ...

    def outputs(self, inputs: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Return the model's outputs at inference.

        Args:
            inputs: float32 ``(n, ...)``, one for each input.

        Returns:
            One array ``(n, ...)`` of reals for each output.
        """
        ...

    def outputs_with_statistics_of(self, inputs: Sequence[np.ndarray]) -> list[np.ndarray] | None:
        """Return the outputs with the inputs' own statistics in each BatchNormalization.

        Only in those that follow training: with moving statistics that kept up, the decisions are
        those of `outputs`.

        Args:
            inputs: float32 ``(n, ...)``, one for each input, taken as one batch.

        Returns:
            One array ``(n, ...)`` of reals for each output; None where no BatchNormalization
            follows training, or the model cannot tell.
        """
        ...

    def infer(self, value: int, sources: Sequence[np.ndarray]) -> np.ndarray:
        """Return one value of the description as the trained layer makes it.

        Args:
            value: number of the value. For an input the layer is its quantizer.
            sources: reals ``(n, ...)`` of the call's sources, or the input as it is fed.

        Returns:
            Reals on the value's grid, ``(n, ...)``.
        """
        ...

    def shift_offsets(self, stored: Mapping[str, np.ndarray]) -> float:
        """Set the offsets of layers to those that the file stores, in place.

        Args:
            stored: for a layer, by label, its offset after bias and BatchNorm, float64
                ``(channels,)``. Layers without a bias are left alone.

        Returns:
            The largest change, in the units of a layer's output.
        """
        ...
