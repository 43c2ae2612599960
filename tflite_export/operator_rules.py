"""What each operator demands of its operands, and the shape of its result."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

from tflite_export.graph import (
    BATCH,
    Concatenation,
    Convolution,
    FullyConnected,
    MirrorPadding,
    Operator,
    Options,
    Pooling,
    Reduction,
    Softmax,
    Tensor,
)
from tflite_export.rounding import requantization_scale

Shape = tuple[int, ...]
Operands = Sequence["Tensor | None"]

_LARGEST_STEP = 1 << 15
_LARGEST_FACTOR = 256.0
_SMALLEST_FACTOR = 2.0**-16
_LARGEST_MEAN = 1 << 16
_SMALLEST_LOGIT_STEP = 2.0**-25
"""Fixed-point softmax counts in 2**-26; it ends the process for a multiplier of at most 1."""


class Problem(ValueError):
    """An operator that breaks its rule; the message says how."""


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise Problem(message)


def _operands(operands: Operands, least: int, most: int) -> list[Tensor]:
    """The operands, of which the last may be left out when ``most > least``."""
    present = [tensor for tensor in operands if tensor is not None]
    _require(
        least <= len(present) <= most and all(tensor is not None for tensor in operands[:least]),
        f"{len(present)} operands, expected {least}" + (f" to {most}" if most > least else ""),
    )
    return present


def _same_grid(tensors: Sequence[Tensor]) -> None:
    """All tensors have one type and, unless they are floats, one grid."""
    first = tensors[0]
    for tensor in tensors:
        _require(tensor.dtype == first.dtype, f"types {first.dtype} and {tensor.dtype} differ")
        _quantized_or_float(tensor)
        if first.dtype != "float32":
            same = (tensor.scale, tensor.zero_point) == (first.scale, first.zero_point)
            _require(same, f"{first.name!r} and {tensor.name!r} must have one scale and zero point")


def _quantized_or_float(tensor: Tensor) -> None:
    _require(
        tensor.dtype in ("int8", "uint8", "float32"), f"{tensor.name!r} has type {tensor.dtype}"
    )
    one_grid = tensor.quantization is not None and tensor.quantization.scale.size == 1
    _require(
        tensor.dtype == "float32" or one_grid, f"{tensor.name!r} needs one scale and zero point"
    )


def _window(size: int, window: int, stride: int, dilation: int, padding: str) -> int:
    """The size of one output dimension."""
    for value in (window, stride, dilation):
        _require(1 <= value <= _LARGEST_STEP, f"window, stride or dilation {value} is out of range")
    span = (window - 1) * dilation + 1
    result = -(-size // stride) if padding == "SAME" else (size - span) // stride + 1
    _require(
        result >= 1 and (padding == "SAME" or size >= span),
        f"a window of {span} does not fit {size}",
    )
    _require(span <= _LARGEST_STEP, f"a window of {span} is too large")
    return result


def _activation(
    options: Options, allowed: Sequence[str] = ("NONE", "RELU", "RELU6", "RELU_N1_TO_1")
) -> None:
    activation = getattr(options, "activation", "NONE")
    _require(activation in allowed, f"fused activation {activation} is not supported")


def _weighted(operands: Sequence[Tensor], output: Tensor, axis: int) -> None:
    """What convolutions and dense layers share: types, grids, bias, room in the accumulator."""
    source, weights = operands[0], operands[1]
    channels = weights.shape[axis]
    _quantized_or_float(source)
    _quantized_or_float(output)
    _require(weights.data is not None, "the weights are not a constant")
    if len(operands) == 3:
        bias = operands[2]
        _require(
            bias.data is not None and bias.shape == (channels,),
            f"the bias is not a constant of {channels}",
        )
    if source.dtype == "float32":
        _require(
            all(tensor.dtype == "float32" for tensor in (*operands, output)),
            "float32 and other types are mixed",
        )
        return
    _require(
        source.dtype == output.dtype == "int8",
        f"{source.dtype} in, {output.dtype} out, expected int8",
    )
    _require(weights.dtype in ("int8", "int4"), f"weights of type {weights.dtype}")
    grid = weights.quantization
    _require(grid is not None, "the weights have no scale")
    if grid is None or weights.data is None:
        return
    _require(not grid.zero_point.any(), "the weights' zero point is not 0")
    _require(
        grid.scale.size == 1 or grid.axis == axis,
        f"weights have channels on {grid.axis}, not {axis}",
    )
    factors = requantization_scale(source.scale, grid.scale, output.scale)
    _require(
        bool(
            np.isfinite(factors).all() and (factors > 0).all() and (factors < _LARGEST_FACTOR).all()
        ),
        f"scales of input * weights / output reach {factors.max()}, kernels take up to "
        f"{_LARGEST_FACTOR}",
    )
    magnitudes = np.abs(
        np.moveaxis(weights.data, axis, 0).reshape(channels, -1).astype(np.int64)
    ).sum(axis=1)
    largest = magnitudes * 255
    if len(operands) == 3:
        _require(operands[2].dtype == "int32", f"bias of type {operands[2].dtype}, expected int32")
        _check_bias_grid(operands[2], source.scale * grid.scale)
        largest = largest + np.abs(np.asarray(operands[2].data).astype(np.int64))
    _require(int(largest.max()) < 2**31, "the sums do not fit the 32-bit accumulator")


def _check_bias_grid(bias: Tensor, products: np.ndarray) -> None:
    """The bias counts in units of input scale times weight scale, as kernels assume."""
    if bias.quantization is None:
        raise Problem("the bias has no scale")
    _require(
        bias.quantization.scale.size in (1, products.size), "the bias has another number of scales"
    )
    close = np.allclose(bias.quantization.scale, products, rtol=1e-3, atol=0.0)
    _require(close, "the bias is not on the grid of input scale times weight scale")
    _require(not bias.quantization.zero_point.any(), "the bias' zero point is not 0")


def _image(tensor: Tensor) -> Shape:
    _require(
        len(tensor.shape) == 4, f"{tensor.name!r} has shape {tensor.shape}, expected 4 dimensions"
    )
    return tensor.shape


def _convolved(options: Convolution, source: Shape, window: Shape, channels: int) -> Shape:
    height = _window(source[1], window[0], options.stride_h, options.dilation_h, options.padding)
    width = _window(source[2], window[1], options.stride_w, options.dilation_w, options.padding)
    return (source[0], height, width, channels)


def _conv_2d(operator: Operator, operands: Operands, output: Tensor) -> Shape:
    options = operator.options
    assert isinstance(options, Convolution)
    # LiteRT has no convolution without a bias; a depthwise one ends the process.
    present = _operands(operands, 3, 3)
    source, kernel = _image(present[0]), _image(present[1])
    _require(kernel[3] == source[3], f"kernel for {kernel[3]} channels, input has {source[3]}")
    _activation(options)
    _weighted(present, output, 0)
    return _convolved(options, source, kernel[1:3], kernel[0])


def _depthwise_conv_2d(operator: Operator, operands: Operands, output: Tensor) -> Shape:
    options = operator.options
    assert isinstance(options, Convolution)
    present = _operands(operands, 3, 3)
    source, kernel = _image(present[0]), _image(present[1])
    _require(kernel[0] == 1, f"depthwise kernel of shape {kernel}, the first size must be 1")
    multiplier = options.depth_multiplier
    _require(
        multiplier >= 1 and kernel[3] == source[3] * multiplier,
        f"{kernel[3]} kernels for {source[3]} channels times {multiplier}",
    )
    _activation(options)
    _weighted(present, output, 3)
    return _convolved(options, source, kernel[1:3], kernel[3])


def _fully_connected(operator: Operator, operands: Operands, output: Tensor) -> Shape:
    options = operator.options
    assert isinstance(options, FullyConnected)
    present = _operands(operands, 2, 3)
    source, weights = present[0], present[1]
    _require(
        options.weights_format == 0 and not options.keep_num_dims,
        "shuffled weights or kept dimensions",
    )
    _require(len(weights.shape) == 2, f"weights of shape {weights.shape}, expected 2 dimensions")
    _require(len(source.shape) >= 2, f"input of shape {source.shape}")
    _require(weights.dtype != "int4", "int4 weights; write the layer as a 1 x 1 convolution")
    size = math.prod(source.shape[1:])
    _require(
        size == weights.shape[1], f"weights for {weights.shape[1]} inputs, the input has {size}"
    )
    _activation(options)
    _weighted(present, output, 0)
    return (source.shape[0], weights.shape[0])


def _add(operator: Operator, operands: Operands, output: Tensor) -> Shape:
    present = _operands(operands, 2, 2)
    _activation(operator.options)  # type: ignore[arg-type]
    for tensor in (*present, output):
        _quantized_or_float(tensor)
        _require(tensor.dtype == output.dtype, f"types {tensor.dtype} and {output.dtype} are mixed")
        _require(not tensor.is_constant, "an operand is a constant")
        if output.dtype != "float32":
            ratio = tensor.scale / output.scale
            _require(
                bool(ratio < _LARGEST_FACTOR),
                f"scale {ratio} times that of the output, kernels take up to 256",
            )
    _require(
        present[0].shape == present[1].shape,
        f"shapes {present[0].shape}, {present[1].shape} differ",
    )
    return present[0].shape


def _mul(operator: Operator, operands: Operands, output: Tensor) -> Shape:
    """An activation times a constant that may repeat along batch and channels."""
    source, factor = _operands(operands, 2, 2)
    _activation(operator.options)  # type: ignore[arg-type]
    for tensor in (source, factor, output):
        _quantized_or_float(tensor)
        _require(tensor.dtype == output.dtype, f"types {tensor.dtype} and {output.dtype} are mixed")
    _require(output.dtype != "uint8", "uint8 operands")
    _require(not source.is_constant and factor.is_constant, "expected an activation, a constant")
    _require(
        len(factor.shape) == len(source.shape)
        and factor.shape[0] == 1
        and all(f in (1, s) for f, s in zip(factor.shape[1:], source.shape[1:], strict=True)),
        f"a constant of shape {factor.shape} does not repeat to {source.shape}",
    )
    if output.dtype == "int8":
        ratio = float(source.scale) * float(factor.scale) / float(output.scale)
        _require(
            _SMALLEST_FACTOR <= ratio < _LARGEST_FACTOR,
            f"scale of the product over output: {ratio}",
        )
    return source.shape


def _pool_2d(operator: Operator, operands: Operands, output: Tensor) -> Shape:
    options = operator.options
    assert isinstance(options, Pooling)
    (source,) = _operands(operands, 1, 1)
    shape = _image(source)
    _same_grid([source, output])
    _activation(options)
    height = _window(shape[1], options.filter_h, options.stride_h, 1, options.padding)
    width = _window(shape[2], options.filter_w, options.stride_w, 1, options.padding)
    return (shape[0], height, width, shape[3])


def _mean(operator: Operator, operands: Operands, output: Tensor) -> Shape:
    """Over height and width of an image, which are left out of the result."""
    options = operator.options
    assert isinstance(options, Reduction)
    source, axes = _operands(operands, 2, 2)
    shape = _image(source)
    for tensor in (source, output):
        _quantized_or_float(tensor)
        _require(tensor.dtype == output.dtype, f"types {tensor.dtype} and {output.dtype} are mixed")
    _require(output.dtype != "uint8" and not source.is_constant, "expected an int8 activation")
    if axes.data is None or axes.dtype != "int32" or sorted(axes.data.reshape(-1)) != [1, 2]:
        raise Problem("the axes are not the constant (1, 2)")
    _require(not options.keep_dims, "kept dimensions, for which built-in kernels round otherwise")
    count = shape[1] * shape[2]
    _require(1 <= count <= _LARGEST_MEAN, f"the mean of {count}, expected up to {_LARGEST_MEAN}")
    if output.dtype == "int8":
        ratio = float(source.scale) / float(output.scale)
        _require(_SMALLEST_FACTOR <= ratio < _LARGEST_FACTOR, f"scale of input over output {ratio}")
    return (shape[0], shape[3])


def _concatenation(operator: Operator, operands: Operands, output: Tensor) -> Shape:
    options = operator.options
    assert isinstance(options, Concatenation)
    present = _operands(operands, 1, 1024)
    _require(len(present) == len(operands), "an operand is left out")
    _same_grid([*present, output])
    _activation(options, ("NONE",))
    first = present[0].shape
    axis = options.axis + len(first) if options.axis < 0 else options.axis
    _require(1 <= axis < len(first), f"axis {options.axis} of {len(first)} dimensions")
    for tensor in present:
        fits = len(tensor.shape) == len(first) and all(
            i == axis or tensor.shape[i] == first[i] for i in range(len(first))
        )
        _require(
            fits and not tensor.is_constant,
            f"{tensor.name!r} of shape {tensor.shape} does not fit {first}",
        )
    total = sum(tensor.shape[axis] for tensor in present)
    return (*first[:axis], total, *first[axis + 1 :])


def _pad(operator: Operator, operands: Operands, output: Tensor) -> Shape:
    """Amounts before and behind each dimension but the batch; a mirror is no deeper than that."""
    source, amounts = _operands(operands, 2, 2)
    _same_grid([source, output])
    _require(not source.is_constant, "the input is a constant")
    pairs = amounts.data
    rank = len(source.shape)
    _require(
        amounts.dtype == "int32" and pairs is not None and amounts.shape == (rank, 2), "bad amounts"
    )
    if pairs is None:
        raise Problem("the amounts are not a constant")
    _require(bool((pairs >= 0).all() and (pairs <= _LARGEST_STEP).all()), "amounts out of range")
    _require(not pairs[0].any(), "the batch is padded")
    _require(1 <= rank <= 4, f"{rank} dimensions, expected up to 4")
    if isinstance(operator.options, MirrorPadding):
        _require(output.dtype != "uint8", "uint8 operands")
        edge = 1 if operator.options.mode == "REFLECT" else 0
        room = zip(source.shape[1:], pairs[1:], strict=True)
        deep = any(pair.max() > size - edge for size, pair in room)
        _require(not deep, f"amounts {pairs[1:].tolist()} mirror more than {source.shape[1:]}")
    rest = (size + int(pair.sum()) for size, pair in zip(source.shape[1:], pairs[1:], strict=True))
    return (source.shape[0], *rest)


def _slice(operator: Operator, operands: Operands, output: Tensor) -> Shape:
    """A part of every dimension but the batch, which is taken whole."""
    source, begin, size = _operands(operands, 3, 3)
    _same_grid([source, output])
    _require(not source.is_constant, "the input is a constant")
    rank = len(source.shape)
    _require(1 <= rank <= 4, f"{rank} dimensions, expected up to 4")
    for tensor in (begin, size):
        if tensor.data is None or tensor.dtype != "int32" or tensor.shape != (rank,):
            raise Problem(f"begin and size are not constant lists of {rank} int32")
    starts, sizes = ([int(value) for value in np.asarray(t.data)] for t in (begin, size))
    _require((starts[0], sizes[0]) == (0, BATCH), "the batch is cut")
    for start, length, whole in zip(starts[1:], sizes[1:], source.shape[1:], strict=True):
        _require(
            start >= 0 and length >= 1 and start + length <= whole,
            f"{length} from {start} on are not within {whole}",
        )
    return (source.shape[0], *sizes[1:])


def _choice(operator: Operator, operands: Operands, output: Tensor) -> Shape:
    """The smaller or larger of two activations of one shape and grid."""
    present = _operands(operands, 2, 2)
    _same_grid([*present, output])
    _require(not any(tensor.is_constant for tensor in present), "an operand is a constant")
    _require(
        present[0].shape == present[1].shape,
        f"shapes {present[0].shape}, {present[1].shape} differ",
    )
    return present[0].shape


def _reshape(operator: Operator, operands: Operands, output: Tensor) -> Shape:
    source, target = _operands(operands, 2, 2)
    _same_grid([source, output])
    _require(not source.is_constant, "the input is a constant")
    if target.data is None or target.dtype != "int32" or len(target.shape) != 1:
        raise Problem("the new shape is not a constant list of int32")
    shape = tuple(int(size) for size in target.data)
    _require(bool(shape) and all(size >= 1 for size in shape[1:]), f"new shape {shape}")
    _require(math.prod(shape[1:]) == math.prod(source.shape[1:]), f"{source.shape} into {shape}")
    _require(shape[0] in (BATCH, source.shape[0]), f"new shape {shape} changes the batch")
    return (source.shape[0], *shape[1:])


def _softmax(operator: Operator, operands: Operands, output: Tensor) -> Shape:
    options = operator.options
    assert isinstance(options, Softmax)
    (source,) = _operands(operands, 1, 1)
    _require(0.0 < options.beta <= 1024.0, f"beta is {options.beta}")
    for tensor in (source, output):
        _quantized_or_float(tensor)
    _require(
        source.dtype == output.dtype and source.dtype != "uint8",
        f"{source.dtype} to {output.dtype}",
    )
    _require(1 <= len(source.shape) <= 4, f"{len(source.shape)} dimensions, expected up to 4")
    if output.dtype == "int8":
        step = options.beta * float(source.scale)
        _require(
            step >= _SMALLEST_LOGIT_STEP,
            f"beta times scale is {step:.3g}, kernels take {_SMALLEST_LOGIT_STEP:.3g} or more",
        )
        exact = bool(output.scale == np.float32(1 / 256)) and output.zero_point == -128
        _require(exact, "the result must have scale 1/256 and zero point -128")
    return source.shape


def _quantize(operator: Operator, operands: Operands, output: Tensor) -> Shape:
    (source,) = _operands(operands, 1, 1)
    for tensor in (source, output):
        _quantized_or_float(tensor)
    _require(output.dtype in ("int8", "uint8") and not source.is_constant, f"to {output.dtype}")
    if source.dtype != "float32":
        shift = 128 if source.dtype == "uint8" else -128
        exact = source.dtype != output.dtype and source.scale == output.scale
        _require(
            exact and source.zero_point - output.zero_point == shift,
            "requantizes to another grid, whose kernels keep only 8 bits of the factor",
        )
    return source.shape


def _dequantize(operator: Operator, operands: Operands, output: Tensor) -> Shape:
    (source,) = _operands(operands, 1, 1)
    _quantized_or_float(source)
    _require(source.dtype in ("int8", "uint8") and not source.is_constant, f"from {source.dtype}")
    _require(output.dtype == "float32", f"to {output.dtype}")
    return source.shape


RULES: dict[str, Callable[[Operator, Operands, Tensor], Shape]] = {
    "ADD": _add,
    "AVERAGE_POOL_2D": _pool_2d,
    "CONCATENATION": _concatenation,
    "CONV_2D": _conv_2d,
    "DEPTHWISE_CONV_2D": _depthwise_conv_2d,
    "DEQUANTIZE": _dequantize,
    "FULLY_CONNECTED": _fully_connected,
    "MAXIMUM": _choice,
    "MAX_POOL_2D": _pool_2d,
    "MEAN": _mean,
    "MINIMUM": _choice,
    "MIRROR_PAD": _pad,
    "MUL": _mul,
    "PAD": _pad,
    "QUANTIZE": _quantize,
    "RESHAPE": _reshape,
    "SLICE": _slice,
    "SOFTMAX": _softmax,
}
"""The rule of every operator: checks the operands, returns the shape that the result must have."""
