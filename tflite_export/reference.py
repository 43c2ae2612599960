"""The reference interpreter: an integer graph run in NumPy as the kernels compute it.

It needs nothing but NumPy, so that a board can say with it where its runtime departs from the
trained integers. One function per operator, all collected in `KERNELS`; `rounding` holds the two
ways of rescaling.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from tflite_export.graph import (
    DTYPES,
    INTEGER_RANGES,
    Concatenation,
    Convolution,
    Elementwise,
    FullyConnected,
    IntegerGraph,
    MirrorPadding,
    Operator,
    Pooling,
    Softmax,
    Tensor,
    activation_range,
)
from tflite_export.rounding import (
    Rescale,
    mean_in_float32,
    requantization_scale,
    round_half_away_array,
    scale_away,
    scale_in_eights,
    scale_in_float32,
    scale_mean,
    scale_on_avx2,
    scale_once,
    scale_upward,
    weighted_factors,
)


@dataclass(frozen=True)
class KernelSet:
    """A family of kernels, by how each rescales its accumulator.

    Attributes:
        convolution: rounding of ``CONV_2D``.
        depthwise: of ``DEPTHWISE_CONV_2D``.
        dense: of ``FULLY_CONNECTED``.
        sixteens: ``ADD`` takes sixteen integers at a time, and rounds these otherwise.
        divides: ``QUANTIZE`` divides floats by the scale; else it multiplies by its inverse.
        xnnpack: XNNPACK runs first and leaves to the above only what it does not take.
    """

    convolution: Rescale
    depthwise: Rescale
    dense: Rescale
    sixteens: bool = False
    divides: bool = False
    xnnpack: bool = False


KERNEL_SETS: dict[str, KernelSet] = {
    "xnnpack": KernelSet(scale_upward, scale_in_eights, scale_upward, sixteens=True, xnnpack=True),
    "builtin": KernelSet(scale_upward, scale_in_eights, scale_upward, sixteens=True),
    "reference": KernelSet(scale_away, scale_away, scale_once, divides=True),
    "builtin-2.14": KernelSet(scale_upward, scale_away, scale_upward),
    "reference-2.14": KernelSet(scale_away, scale_away, scale_away, divides=True),
}
"""The kernel sets whose arithmetic is known.

``xnnpack`` is what LiteRT runs by default, ``builtin`` its own kernels without XNNPACK,
``reference`` the plain C++ ones; ``-2.14`` are those of tflite-runtime 2.14, which uses no XNNPACK
for int8 by itself. TensorFlow Lite Micro computes as ``reference-2.14``. The vectors are those of
x86-64 with AVX2.
"""


@dataclass(frozen=True)
class Step:
    """An operator about to run: its options, the tensors it connects, the kernel set to imitate."""

    operator: Operator
    inputs: list[Tensor]
    output: Tensor
    kernels: KernelSet

    @property
    def xnnpack(self) -> bool:
        """Whether XNNPACK takes this operator."""
        return self.kernels.xnnpack and xnnpack_takes(self.operator, self.inputs, self.output)


def xnnpack_takes(operator: Operator, inputs: Sequence[Tensor], output: Tensor) -> bool:
    """Whether XNNPACK computes an operator, or leaves it to the built-in kernels.

    It takes no int4 convolutions, and no addition of a very much smaller or larger step than the
    result's.

    Args:
        operator: the operator.
        inputs: the operands that are present.
        output: its result.
    """
    if any(tensor.dtype == "int4" for tensor in inputs):
        return False
    if operator.kind == "ADD":
        ratios = np.array([tensor.scale / output.scale for tensor in inputs])
        return bool((ratios >= 2.0**-10).all() and (ratios < 2.0**8).all())
    return True


def run(
    graph: IntegerGraph, inputs: Sequence[np.ndarray], kernels: str = "xnnpack"
) -> dict[int, np.ndarray]:
    """Run a graph on a batch.

    Args:
        graph: a valid graph (see `validate`).
        inputs: one array per graph input, shape ``(batch, ...)``, in the input's type.
        kernels: whose arithmetic to follow, a key of `KERNEL_SETS`.

    Returns:
        The integers (or floats) of every tensor that is not a constant, by tensor index.

    Raises:
        ValueError: for an unknown kernel set or operator, or a wrong number of inputs.
    """
    if kernels not in KERNEL_SETS:
        raise ValueError(f"kernels is {kernels!r}; known: {', '.join(KERNEL_SETS)}")
    if len(inputs) != len(graph.inputs):
        raise ValueError(f"{len(inputs)} inputs given, the graph has {len(graph.inputs)}")
    values: dict[int, np.ndarray] = {}
    for index, value in zip(graph.inputs, inputs, strict=True):
        values[index] = np.asarray(value, DTYPES[graph.tensors[index].dtype])
    for operator in graph.operators:
        values[operator.outputs[0]] = run_operator(graph, operator, values, kernels)
    return values


def run_operator(
    graph: IntegerGraph,
    operator: Operator,
    values: Mapping[int, np.ndarray],
    kernels: str = "xnnpack",
) -> np.ndarray:
    """Run one operator.

    Args:
        graph: the graph that it is in.
        operator: the operator.
        values: the tensors it reads that are not constants, by index.
        kernels: as for `run`.

    Returns:
        Its result, in the type of its output.

    Raises:
        ValueError: if the operator has no reference.
    """
    if operator.kind not in KERNELS:
        raise ValueError(
            f"no reference for operator {operator.kind!r}; known: {', '.join(KERNELS)}"
        )
    present = [i for i in operator.inputs if i >= 0]
    tensors = [graph.tensors[i] for i in present]
    operands = [
        tensor.data if tensor.data is not None else values[index]
        for index, tensor in zip(present, tensors, strict=True)
    ]
    output = graph.tensors[operator.outputs[0]]
    step = Step(operator, tensors, output, KERNEL_SETS[kernels])
    return KERNELS[operator.kind](step, operands).astype(DTYPES[output.dtype])


def _finish(step: Step, scaled: np.ndarray, activation: str) -> np.ndarray:
    """Add the zero point, clamp to the type and the fused activation."""
    low, high = activation_range(activation, step.output)
    return np.clip(scaled + step.output.zero_point, low, high)


def _rescale(step: Step, accumulator: np.ndarray, fixed: Rescale) -> np.ndarray:
    """From accumulator to output steps, for the operators that multiply by weights."""
    grid = step.inputs[1].quantization
    if grid is None:
        raise ValueError(f"the weights {step.inputs[1].name!r} have no scale")
    if step.xnnpack:
        factors = requantization_scale(step.inputs[0].scale, grid.scale, step.output.scale)
        return scale_in_float32(accumulator, factors)
    dense = step.operator.kind == "FULLY_CONNECTED"
    factors = weighted_factors(step.inputs[0].scale, grid.scale, step.output.scale, fixed, dense)
    return fixed(accumulator, np.broadcast_to(factors, accumulator.shape[-1:]))


def same_padding(size: int, window: int, stride: int, dilation: int = 1) -> tuple[int, int]:
    """Zeros before and after one dimension under ``SAME`` padding."""
    span = (window - 1) * dilation + 1
    total = max((-(-size // stride) - 1) * stride + span - size, 0)
    return total // 2, total - total // 2


def _windows(
    values: np.ndarray, window: tuple[int, int], options: Convolution | Pooling, fill: int
) -> np.ndarray:
    """All windows of an image, shape ``(batch, out_h, out_w, channels, window_h, window_w)``."""
    dilation = (1, 1)
    if isinstance(options, Convolution):
        dilation = (options.dilation_h, options.dilation_w)
    stride = (options.stride_h, options.stride_w)
    if options.padding == "SAME":
        pads = [
            same_padding(values.shape[1 + i], window[i], stride[i], dilation[i]) for i in (0, 1)
        ]
        values = np.pad(values, ((0, 0), *pads, (0, 0)), constant_values=fill)
    span = tuple((window[i] - 1) * dilation[i] + 1 for i in (0, 1))
    view = np.lib.stride_tricks.sliding_window_view(values, span, axis=(1, 2))
    return view[:, :: stride[0], :: stride[1], :, :: dilation[0], :: dilation[1]]


def _bias(step: Step, operands: list[np.ndarray]) -> np.ndarray:
    return operands[2].astype(np.int64) if len(operands) > 2 else np.zeros(1, np.int64)


def _convolution(step: Step, operands: list[np.ndarray], depthwise: bool) -> np.ndarray:
    options = step.operator.options
    assert isinstance(options, Convolution)
    # float64 holds every partial sum of int8 products exactly and is fast in NumPy
    values = operands[0].astype(np.float64) - step.inputs[0].zero_point
    weights = operands[1].astype(np.float64)
    windows = _windows(values, (weights.shape[1], weights.shape[2]), options, 0)
    if depthwise:
        kernel = weights[0].reshape(*weights.shape[1:3], values.shape[3], -1)
        sums = np.einsum("nhwcij,ijcm->nhwcm", windows, kernel).reshape(*windows.shape[:3], -1)
    else:
        sums = np.tensordot(windows, weights, axes=([3, 4, 5], [3, 1, 2]))
    accumulator = sums.astype(np.int64) + _bias(step, operands)
    fixed = step.kernels.depthwise if depthwise else step.kernels.convolution
    return _finish(step, _rescale(step, accumulator, fixed), options.activation)


def _conv_2d(step: Step, operands: list[np.ndarray]) -> np.ndarray:
    return _convolution(step, operands, depthwise=False)


def _depthwise_conv_2d(step: Step, operands: list[np.ndarray]) -> np.ndarray:
    return _convolution(step, operands, depthwise=True)


def _fully_connected(step: Step, operands: list[np.ndarray]) -> np.ndarray:
    options = step.operator.options
    assert isinstance(options, FullyConnected)
    weights = operands[1].astype(np.float64)
    values = (
        operands[0].reshape(-1, weights.shape[1]).astype(np.float64) - step.inputs[0].zero_point
    )
    accumulator = (values @ weights.T).astype(np.int64) + _bias(step, operands)
    return _finish(step, _rescale(step, accumulator, step.kernels.dense), options.activation)


def _add(step: Step, operands: list[np.ndarray]) -> np.ndarray:
    options = step.operator.options
    assert isinstance(options, Elementwise)
    terms = [v.astype(np.int64) - t.zero_point for v, t in zip(operands, step.inputs, strict=True)]
    scales = [t.scale for t in step.inputs]
    if step.xnnpack:
        return _finish(step, _add_xnnpack(terms, scales, step.output.scale), options.activation)
    sums = _add_builtin(terms, scales, step.output.scale, scale_away)
    if step.kernels.sixteens:
        whole = sums.size // 16 * 16
        vectors = _add_builtin(terms, scales, step.output.scale, scale_on_avx2)
        sums.reshape(-1)[:whole] = vectors.reshape(-1)[:whole]
    return _finish(step, sums, options.activation)


def add_multipliers(scales: Sequence[np.float32], output: np.float32) -> tuple[list[int], int]:
    """XNNPACK's fixed-point factors of an addition: about 20 bits each, one common shift."""
    ratios = [np.float32(scale / output) for scale in scales]
    shift = 20 - (int(np.frexp(max(ratios))[1]) - 1)
    return [int(np.rint(np.ldexp(np.float64(ratio), shift))) for ratio in ratios], shift


def _add_xnnpack(
    terms: list[np.ndarray], scales: list[np.float32], output: np.float32
) -> np.ndarray:
    (first, second), shift = add_multipliers(scales, output)
    return (terms[0] * first + terms[1] * second + (1 << (shift - 1))) >> shift


def _add_builtin(
    terms: list[np.ndarray], scales: list[np.float32], output: np.float32, first: Rescale
) -> np.ndarray:
    largest = 2.0 * max(float(scale) for scale in scales)
    shifted = [
        first(term << 20, np.array([float(scale) / largest]))
        for term, scale in zip(terms, scales, strict=True)
    ]
    return scale_away(shifted[0] + shifted[1], np.array([largest / (2**20 * float(output))]))


def _mul(step: Step, operands: list[np.ndarray]) -> np.ndarray:
    options = step.operator.options
    assert isinstance(options, Elementwise)
    left, right = (
        v.astype(np.int64) - t.zero_point for v, t in zip(operands, step.inputs, strict=True)
    )
    scales = [tensor.scale for tensor in step.inputs]
    factor = requantization_scale(scales[0], scales[1].reshape(1), step.output.scale)
    scale = scale_in_float32 if step.xnnpack else scale_away
    return _finish(step, scale(left * right, factor), options.activation)


def _max_pool_2d(step: Step, operands: list[np.ndarray]) -> np.ndarray:
    options = step.operator.options
    assert isinstance(options, Pooling)
    lowest = INTEGER_RANGES[step.output.dtype][0]
    windows = _windows(operands[0], (options.filter_h, options.filter_w), options, lowest)
    low, high = activation_range(options.activation, step.output)
    return np.clip(windows.max(axis=(4, 5)), low, high)


def _average_pool_2d(step: Step, operands: list[np.ndarray]) -> np.ndarray:
    options = step.operator.options
    assert isinstance(options, Pooling)
    window = (options.filter_h, options.filter_w)
    sums = _windows(operands[0].astype(np.int64), window, options, 0).sum(axis=(4, 5))
    counts = pool_counts(operands[0].shape[1:3], options)
    low, high = activation_range(options.activation, step.output)
    return np.clip(round_half_away_array(sums, counts), low, high)


def pool_counts(size: tuple[int, ...], options: Pooling) -> np.ndarray:
    """How many pixels each pooling window covers, padding left out.

    Args:
        size: height and width of the image.
        options: window, strides, padding.

    Returns:
        int64, shape ``(1, out_h, out_w, 1)``.
    """
    ones = np.ones((1, size[0], size[1], 1), np.int64)
    return _windows(ones, (options.filter_h, options.filter_w), options, 0).sum(axis=(4, 5))


def mean_factors(source: Tensor, output: Tensor) -> tuple[np.float32, np.float32]:
    """`rounding.mean_in_float32` of an operator's tensors: a mean over height and width."""
    count = source.shape[1] * source.shape[2]
    grids = [(tensor.scale, tensor.zero_point) for tensor in (source, output)]
    return mean_in_float32(grids[0], grids[1], count)


def _mean(step: Step, operands: list[np.ndarray]) -> np.ndarray:
    source, output = step.inputs[0], step.output
    sums = operands[0].astype(np.int64).sum(axis=(1, 2))
    if step.xnnpack:
        factor, offset = mean_factors(source, output)
        scaled = np.rint(sums.astype(np.float32) * factor + offset).astype(np.int64)
        return _finish(step, scaled - output.zero_point, "NONE")
    count = source.shape[1] * source.shape[2]
    real = float(source.scale) / float(output.scale)
    return _finish(step, scale_mean(sums - count * source.zero_point, real, count), "NONE")


def _concatenation(step: Step, operands: list[np.ndarray]) -> np.ndarray:
    options = step.operator.options
    assert isinstance(options, Concatenation)
    return np.concatenate(operands, axis=options.axis)


def _pad(step: Step, operands: list[np.ndarray]) -> np.ndarray:
    return np.pad(operands[0], operands[1].astype(int), constant_values=step.output.zero_point)


def _mirror_pad(step: Step, operands: list[np.ndarray]) -> np.ndarray:
    options = step.operator.options
    assert isinstance(options, MirrorPadding)
    return np.pad(operands[0], operands[1].astype(int), mode=options.mode.lower())  # type: ignore[call-overload]


def _slice(step: Step, operands: list[np.ndarray]) -> np.ndarray:
    ends = [None if size < 0 else begin + size for begin, size in zip(*operands[1:], strict=True)]
    return operands[0][tuple(map(slice, operands[1], ends))]


def _minimum(step: Step, operands: list[np.ndarray]) -> np.ndarray:
    return np.minimum(*operands)


def _maximum(step: Step, operands: list[np.ndarray]) -> np.ndarray:
    return np.maximum(*operands)


def _reshape(step: Step, operands: list[np.ndarray]) -> np.ndarray:
    return operands[0].reshape([int(size) for size in operands[1]])


def softmax_table(scale: np.float32, beta: float) -> np.ndarray:
    """``exp(-scale * beta * d)`` for the distances ``d = 0..255`` to the largest logit, float32."""
    factor = np.float32(-np.float32(scale) * np.float32(beta))
    distances = np.arange(256, dtype=np.float32)
    return np.exp((factor * distances).astype(np.float64)).astype(np.float32)


def _softmax(step: Step, operands: list[np.ndarray]) -> np.ndarray:
    options = step.operator.options
    assert isinstance(options, Softmax)
    table = softmax_table(step.inputs[0].scale, options.beta)
    values = operands[0].astype(np.int64)
    weights = table[values.max(axis=-1, keepdims=True) - values]
    total = np.zeros(weights.shape[:-1], np.float32)
    for channel in range(weights.shape[-1]):
        total += weights[..., channel]
    inverse = np.float32(1.0) / (total * step.output.scale)
    scaled = weights * inverse[..., None]
    return _finish(step, np.floor(scaled.astype(np.float64) + 0.5).astype(np.int64), "NONE")


def _quantize(step: Step, operands: list[np.ndarray]) -> np.ndarray:
    source = step.inputs[0]
    if source.dtype == "float32":
        divides = step.kernels.divides
        return (quantize_by_division if divides else quantize)(operands[0], step.output)
    return _finish(step, operands[0].astype(np.int64) - source.zero_point, "NONE")


def _dequantize(step: Step, operands: list[np.ndarray]) -> np.ndarray:
    return dequantize(operands[0], step.inputs[0])


def quantize(values: np.ndarray, grid: Tensor) -> np.ndarray:
    """Floats to integers: ``clip(rint(x * (1 / scale)) + zero_point)``, in float32.

    Args:
        values: real numbers, any shape. Infinities go to the ends of the range.
        grid: a tensor with one scale and zero point.

    Returns:
        Integers in the grid's type.

    Raises:
        ValueError: if a value is not a number.
    """
    reals = np.asarray(values, np.float32)
    if np.isnan(reals).any():
        raise ValueError("the input holds NaN, which no integer stands for; clean the data first")
    low, high = INTEGER_RANGES[grid.dtype]
    steps = reals * (np.float32(1.0) / grid.scale)
    bounded = np.clip(steps, low - grid.zero_point, high - grid.zero_point)
    return (np.rint(bounded) + grid.zero_point).astype(DTYPES[grid.dtype])


def quantize_by_division(values: np.ndarray, grid: Tensor) -> np.ndarray:
    """`quantize` as the reference kernel does: ``x / scale`` in float32, ties away from zero."""
    low, high = INTEGER_RANGES[grid.dtype]
    steps = (np.asarray(values, np.float32) / grid.scale).astype(np.float64)
    rounded = np.sign(steps) * np.floor(np.abs(steps) + 0.5)
    return np.clip(rounded + grid.zero_point, low, high).astype(DTYPES[grid.dtype])


def dequantize(integers: np.ndarray, grid: Tensor) -> np.ndarray:
    """Integers to floats: ``scale * (q - zero_point)``, float32."""
    return grid.scale * (integers.astype(np.int32) - grid.zero_point).astype(np.float32)


KERNELS: dict[str, Callable[[Step, list[np.ndarray]], np.ndarray]] = {
    "ADD": _add,
    "AVERAGE_POOL_2D": _average_pool_2d,
    "CONCATENATION": _concatenation,
    "CONV_2D": _conv_2d,
    "DEPTHWISE_CONV_2D": _depthwise_conv_2d,
    "DEQUANTIZE": _dequantize,
    "FULLY_CONNECTED": _fully_connected,
    "MAXIMUM": _maximum,
    "MAX_POOL_2D": _max_pool_2d,
    "MEAN": _mean,
    "MINIMUM": _minimum,
    "MIRROR_PAD": _mirror_pad,
    "MUL": _mul,
    "PAD": _pad,
    "QUANTIZE": _quantize,
    "RESHAPE": _reshape,
    "SLICE": _slice,
    "SOFTMAX": _softmax,
}
"""The arithmetic of every operator, one entry each."""
