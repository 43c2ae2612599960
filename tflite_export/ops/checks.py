"""What the operators' checks share: what is wrong with operands, grids, windows, activations."""

from __future__ import annotations

from collections.abc import Sequence

from tflite_export.ir.graph import Options, Tensor
from tflite_export.ops.spec import Operands, Shape

LARGEST_STEP = 1 << 15
LARGEST_FACTOR = 256.0
SMALLEST_FACTOR = 2.0**-16


class Problem(ValueError):
    """An operator that breaks its rule; the message says how."""


def require(condition: bool, message: str) -> None:
    """Raise `Problem` unless a condition holds."""
    if not condition:
        raise Problem(message)


def operands_of(operands: Operands, least: int, most: int) -> list[Tensor]:
    """The operands, of which the last may be left out when ``most > least``."""
    present = [tensor for tensor in operands if tensor is not None]
    require(
        least <= len(present) <= most and all(tensor is not None for tensor in operands[:least]),
        f"{len(present)} operands, expected {least}" + (f" to {most}" if most > least else ""),
    )
    return present


def same_grid(tensors: Sequence[Tensor]) -> None:
    """All tensors have one type and, unless they are floats, one grid."""
    first = tensors[0]
    for tensor in tensors:
        require(tensor.dtype == first.dtype, f"types {first.dtype} and {tensor.dtype} differ")
        quantized_or_float(tensor)
        if first.dtype != "float32":
            same = (tensor.scale, tensor.zero_point) == (first.scale, first.zero_point)
            require(same, f"{first.name!r} and {tensor.name!r} must have one scale and zero point")


def quantized_or_float(tensor: Tensor) -> None:
    """The tensor is a float, or an int8, uint8 or symmetric int16 with one grid."""
    require(
        tensor.dtype in ("int8", "uint8", "int16", "float32"),
        f"{tensor.name!r} has type {tensor.dtype}",
    )
    one_grid = tensor.quantization is not None and tensor.quantization.scale.size == 1
    require(
        tensor.dtype == "float32" or one_grid, f"{tensor.name!r} needs one scale and zero point"
    )
    require(
        tensor.dtype != "int16" or tensor.zero_point == 0,
        f"{tensor.name!r} is int16 and its zero point is not 0",
    )


def output_size(size: int, window: int, stride: int, dilation: int, padding: str) -> int:
    """The size of one output dimension."""
    for value in (window, stride, dilation):
        require(1 <= value <= LARGEST_STEP, f"window, stride or dilation {value} is out of range")
    span = (window - 1) * dilation + 1
    result = -(-size // stride) if padding == "SAME" else (size - span) // stride + 1
    require(
        result >= 1 and (padding == "SAME" or size >= span),
        f"a window of {span} does not fit {size}",
    )
    require(span <= LARGEST_STEP, f"a window of {span} is too large")
    return result


def check_activation(
    options: Options, allowed: Sequence[str] = ("NONE", "RELU", "RELU6", "RELU_N1_TO_1")
) -> None:
    """The fused activation is one of those allowed."""
    activation = getattr(options, "activation", "NONE")
    require(activation in allowed, f"fused activation {activation} is not supported")


def image(tensor: Tensor) -> Shape:
    """The shape of an image, four dimensions."""
    require(
        len(tensor.shape) == 4, f"{tensor.name!r} has shape {tensor.shape}, expected 4 dimensions"
    )
    return tensor.shape
