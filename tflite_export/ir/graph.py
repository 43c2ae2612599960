"""The integer graph: a quantized network as plain data.

Every part of the package meets here. `lower` makes an `IntegerGraph` from a trained Keras model,
`write` and `read` turn it into a ``.tflite`` file and back, the interpreters run it, `validate`
checks it, `inspect` prints it.

A real number is represented by an integer ``q`` on an affine grid, ``real = scale * (q -
zero_point)``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np

BATCH = -1
"""The size of a dimension that is only known when the graph runs (the batch)."""

DTYPES: Mapping[str, np.dtype] = {
    "float32": np.dtype(np.float32),
    "int32": np.dtype(np.int32),
    "uint8": np.dtype(np.uint8),
    "int64": np.dtype(np.int64),
    "bool": np.dtype(np.bool_),
    "int16": np.dtype(np.int16),
    "int8": np.dtype(np.int8),
    "int4": np.dtype(np.int8),
}
"""The NumPy type that holds a tensor of each type; ``int4`` values are held one to an int8."""

INTEGER_RANGES: Mapping[str, tuple[int, int]] = {
    "int4": (-8, 7),
    "int8": (-128, 127),
    "uint8": (0, 255),
    "int16": (-(2**15), 2**15 - 1),
    "int32": (-(2**31), 2**31 - 1),
    "int64": (-(2**63), 2**63 - 1),
}
"""Smallest and largest value of each integer type."""


@dataclass(frozen=True)
class Quantization:
    """An affine grid, ``real = scale * (q - zero_point)``, of a tensor or of each channel.

    Attributes:
        scale: float32, shape ``(1,)`` for one grid per tensor or ``(channels,)`` for one per
            channel; positive.
        zero_point: int64, same shape as ``scale``.
        axis: the dimension that the channels are on; 0 for one grid per tensor.
    """

    scale: np.ndarray
    zero_point: np.ndarray
    axis: int = 0

    @classmethod
    def per_tensor(cls, scale: float, zero_point: int = 0) -> Quantization:
        """One grid for the whole tensor.

        Args:
            scale: step of the grid, positive; rounded to float32.
            zero_point: the integer that stands for 0.0.
        """
        return cls(np.array([scale], np.float32), np.array([zero_point], np.int64))

    @classmethod
    def per_channel(cls, scale: np.ndarray, axis: int) -> Quantization:
        """One symmetric grid (zero point 0) for each channel.

        Args:
            scale: steps, shape ``(channels,)``, positive.
            axis: the dimension that the channels are on.
        """
        steps = np.asarray(scale, np.float32).reshape(-1)
        return cls(steps, np.zeros(steps.shape, np.int64), axis)


@dataclass(frozen=True)
class Tensor:
    """A value that flows through the graph, or a constant.

    Attributes:
        name: unique within the graph.
        shape: sizes; `BATCH` (-1) where the size is known only at run time.
        dtype: a key of `DTYPES` (a file from another tool may carry other names; `validate` rejects
            them).
        quantization: the grid, or None for floats, indices and shapes.
        data: the values of a constant (int4: one value to an int8), or None.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    quantization: Quantization | None = None
    data: np.ndarray | None = None

    @property
    def scale(self) -> np.float32:
        """The step of a tensor with one grid (float32).

        Raises:
            ValueError: if the tensor has no grid or one for each channel.
        """
        return np.float32(self._one_grid().scale[0])

    @property
    def zero_point(self) -> int:
        """The integer that stands for 0.0 in a tensor with one grid.

        Raises:
            ValueError: if the tensor has no grid or one for each channel.
        """
        return int(self._one_grid().zero_point[0])

    def _one_grid(self) -> Quantization:
        if self.quantization is None or self.quantization.scale.size != 1:
            raise ValueError(f"tensor {self.name!r} does not have exactly one scale and zero point")
        return self.quantization

    @property
    def is_constant(self) -> bool:
        """Whether the values are part of the graph."""
        return self.data is not None


@dataclass(frozen=True)
class Options:
    """What an operator is besides its tensors; an operator with options of its own derives them."""


@dataclass(frozen=True)
class Convolution(Options):
    """Options of ``CONV_2D`` and ``DEPTHWISE_CONV_2D`` (with ``depth_multiplier``)."""

    padding: str = "VALID"
    stride_w: int = 1
    stride_h: int = 1
    activation: str = "NONE"
    dilation_w: int = 1
    dilation_h: int = 1
    depth_multiplier: int = 1


@dataclass(frozen=True)
class Pooling(Options):
    """Options of ``MAX_POOL_2D`` and ``AVERAGE_POOL_2D``."""

    padding: str = "VALID"
    stride_w: int = 1
    stride_h: int = 1
    filter_w: int = 1
    filter_h: int = 1
    activation: str = "NONE"


@dataclass(frozen=True)
class Reduction(Options):
    """Options of ``MEAN``; the axes are its second operand."""

    keep_dims: bool = False


@dataclass(frozen=True)
class FullyConnected(Options):
    """Options of ``FULLY_CONNECTED``; only ``activation`` is ever written as non-zero.

    ``quantized_bias_type`` says how wide the sums of int16 are where there is no bias.
    """

    activation: str = "NONE"
    weights_format: int = 0
    keep_num_dims: bool = False
    quantized_bias_type: str = "float32"


@dataclass(frozen=True)
class Elementwise(Options):
    """Options of ``ADD``, ``SUB`` and ``MUL``: the activation fused behind it.

    ``pot_scale_int16``, of sums and differences of int16: kernels shift by powers of two where all
    steps are such.
    """

    activation: str = "NONE"
    pot_scale_int16: bool = True


@dataclass(frozen=True)
class Concatenation(Options):
    """Options of ``CONCATENATION``."""

    axis: int = -1
    activation: str = "NONE"


@dataclass(frozen=True)
class Softmax(Options):
    """Options of ``SOFTMAX``: the factor in front of the logits."""

    beta: float = 1.0


@dataclass(frozen=True)
class MirrorPadding(Options):
    """Options of ``MIRROR_PAD``: with ``SYMMETRIC`` the pixel at the edge is repeated too."""

    mode: str = "SYMMETRIC"


@dataclass(frozen=True)
class NoOptions(Options):
    """Operators described by their tensors: RESHAPE, PAD, SLICE, MINIMUM, QUANTIZE and others."""


@dataclass(frozen=True)
class Operator:
    """One step of the graph.

    Attributes:
        kind: TensorFlow Lite's name of the operator, ``"CONV_2D"``.
        inputs: indices of the operands; -1 for an operand that is left out (a missing bias).
        outputs: indices of the results.
        options: the attributes; None for an operator this package does not know (read from another
            tool's file).
        label: the layer of the trained model it belongs to, for reports; not part of the
            arithmetic.
    """

    kind: str
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    options: Options | None = NoOptions()
    label: str = ""


@dataclass
class IntegerGraph:
    """A network in integers: tensors, and operators in the order they run.

    Attributes:
        tensors: every value and constant; operators name them by index.
        operators: in execution order.
        inputs: indices of the tensors the caller fills.
        outputs: indices of the tensors the caller reads.
        name: of the network.
        metadata: named byte strings that travel in the file (see `metadata`).
        signature_inputs: names of the inputs in the signature ``serving_default``.
        signature_outputs: names of the outputs there.
    """

    tensors: list[Tensor] = field(default_factory=list)
    operators: list[Operator] = field(default_factory=list)
    inputs: tuple[int, ...] = ()
    outputs: tuple[int, ...] = ()
    name: str = "main"
    metadata: dict[str, bytes] = field(default_factory=dict)
    signature_inputs: tuple[str, ...] = ()
    signature_outputs: tuple[str, ...] = ()

    def add_tensor(self, tensor: Tensor) -> int:
        """Append ``tensor`` and return its index."""
        self.tensors.append(tensor)
        return len(self.tensors) - 1

    def operands(self, operator: Operator) -> list[Tensor | None]:
        """The input tensors of ``operator``; None where an optional one is left out."""
        return [self.tensors[i] if i >= 0 else None for i in operator.inputs]

    def activations(self) -> Iterator[tuple[int, Operator]]:
        """Pairs (tensor index, the operator that computes it), in execution order."""
        for operator in self.operators:
            for index in operator.outputs:
                yield index, operator

    def integer_output(self, index: int) -> int:
        """The tensor with an output's integers: itself, or what its ``DEQUANTIZE`` reads."""
        for operator in self.operators:
            if operator.outputs == (index,) and operator.kind == "DEQUANTIZE":
                return operator.inputs[0]
        return index

    def constant_bytes(self) -> int:
        """Bytes of all constants as stored in a file (int4 packed two to a byte)."""
        total = 0
        for tensor in self.tensors:
            if tensor.data is not None:
                packed = (tensor.data.size + 1) // 2
                total += packed if tensor.dtype == "int4" else tensor.data.nbytes
        return total


def activation_range(activation: str, tensor: Tensor) -> tuple[int, int]:
    """The integers that a fused activation leaves of an output tensor.

    ``RELU`` clamps at the zero point, ``RELU6`` also at ``zero_point + round(6 / scale)``, both
    inside the type's range.

    Args:
        activation: ``"NONE"``, ``"RELU"``, ``"RELU6"`` or ``"RELU_N1_TO_1"``.
        tensor: the output, of an integer type with one grid.

    Returns:
        Smallest and largest integer, both included.

    Raises:
        ValueError: for another activation.
    """
    low, high = INTEGER_RANGES[tensor.dtype]
    if activation == "NONE":
        return low, high
    bounds = {"RELU": (0.0, None), "RELU6": (0.0, 6.0), "RELU_N1_TO_1": (-1.0, 1.0)}
    if activation not in bounds:
        raise ValueError(
            f"unknown fused activation {activation!r}; known: NONE, {', '.join(bounds)}"
        )
    lowest, highest = bounds[activation]
    low = max(low, tensor.zero_point + round_half_away(np.float32(lowest) / tensor.scale))
    if highest is not None:
        high = min(high, tensor.zero_point + round_half_away(np.float32(highest) / tensor.scale))
    return low, high


def round_half_away(value: float | np.floating) -> int:
    """Round to the nearest integer, ties away from zero, as C's ``round`` does."""
    return int(np.sign(value) * np.floor(abs(float(value)) + 0.5))
