"""Each operator's integer arithmetic in TensorFlow, with straight-through gradients.

Values are *centred integers*, ``q - zero_point``, held in float32, which is exact below 2**24 in
magnitude. A centred zero is the real zero, so zero padding is the kernels' padding. Rounding has
the gradient of the identity, clamping that of clamping, as in training.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import tensorflow as tf

from tflite_export.graph import (
    Concatenation,
    Convolution,
    Elementwise,
    FullyConnected,
    MirrorPadding,
    Operator,
    Pooling,
    Softmax,
    Tensor,
    activation_range,
)
from tflite_export.reference import (
    KERNEL_SETS,
    add_multipliers,
    mean_factors,
    pool_counts,
    same_padding,
    softmax_table,
    xnnpack_takes,
)
from tflite_export.rounding import (
    Rescale,
    mean_multiplier,
    requantization_scale,
    scale_away,
    scale_on_avx2,
    weighted_factors,
)
from tflite_export.twin_rounding import (
    Reach,
    multiplier_rescaler,
    reach_of_sums,
    rescaler,
    shift_right,
    straight_through,
    to_centred,
    with_gradient,
)

EXACT = 2**24
"""Integers below this magnitude, and their sums, are exact in float32."""

Kernel = Callable[[Sequence[tf.Tensor]], tf.Tensor]


@dataclass(frozen=True)
class Site:
    """Where a kernel is built: the operator, its tensors, how large its operands can be.

    Attributes:
        operator: the operator.
        inputs: the operands that are present.
        output: the result.
        spans: for each operand, the smallest and largest ``q - zero_point`` it can hold.
        kernels: name of the kernel set to imitate.
        constant: makes a tensor of an array, in a way that graph optimisers do not fold into
            convolutions.
    """

    operator: Operator
    inputs: list[Tensor]
    output: Tensor
    spans: list[tuple[int, int]]
    kernels: str
    constant: Callable[[np.ndarray], tf.Tensor]

    @property
    def largest(self) -> int:
        """The largest ``|q - zero_point|`` of the first operand."""
        return max(abs(end) for end in self.spans[0])

    @property
    def xnnpack(self) -> bool:
        """Whether XNNPACK takes this operator."""
        return KERNEL_SETS[self.kernels].xnnpack and xnnpack_takes(
            self.operator, self.inputs, self.output
        )


def clamp_range(operator: Operator, output: Tensor) -> tuple[int, int]:
    """The centred integers that an operator can leave in its output: type and fused activation."""
    low, high = activation_range(getattr(operator.options, "activation", "NONE"), output)
    return low - output.zero_point, high - output.zero_point


def _finish(
    site: Site, exact: tf.Tensor, smooth: tf.Tensor, reach: Reach | None = None
) -> tf.Tensor:
    low, high = clamp_range(site.operator, site.output)
    rectified = getattr(site.operator.options, "activation", "NONE").startswith("RELU")
    return straight_through(exact, smooth, low, high, rectified, reach)


def _weighted(
    site: Site,
    multiply: Callable[[tf.Tensor, tf.Tensor], tf.Tensor],
    axis: int,
    fixed: Rescale,
) -> Kernel:
    """Convolution or matrix product, bias, rescaling.

    Args:
        site: where.
        multiply: (centred input, weights in TensorFlow's layout) to sums.
        axis: the dimension of the weights in the file that the output channels are on.
        fixed: the rounding if XNNPACK does not take the operator.
    """
    weights = np.asarray(site.inputs[1].data)
    grid = site.inputs[1].quantization
    if grid is None:
        raise ValueError(f"the weights {site.inputs[1].name!r} have no scale")
    channels = weights.shape[axis]
    bias = np.zeros(channels, np.int64)
    if len(site.inputs) > 2:
        bias = np.asarray(site.inputs[2].data).astype(np.int64)
    divisor = max(int(np.gcd.reduce(weights, axis=None)), 1)
    parts = [
        (begin, end, site.constant(_in_tensorflow(site.operator.kind, part).astype(np.float32)))
        for begin, end, part in _exact_parts(site, weights // divisor, axis)
    ]
    rows = np.moveaxis(weights, axis, 0).reshape(channels, -1).astype(np.int64)
    narrow = int((np.abs(rows).sum(axis=1) * site.largest + np.abs(bias)).max()) < EXACT
    whole = len(parts) == 1
    offset = site.constant(bias.astype(np.float32) if narrow else bias.astype(np.int32))
    scales = (site.inputs[0].scale, grid.scale, site.output.scale)
    scale = site.constant(np.broadcast_to(requantization_scale(*scales), (channels,)))
    real = weighted_factors(*scales, fixed, site.operator.kind == "FULLY_CONNECTED")
    reach = reach_of_sums(rows, bias, site.spans[0], np.broadcast_to(real, (channels,)))
    rescale = None if site.xnnpack else rescaler(fixed, np.broadcast_to(real, (channels,)))

    def kernel(operands: Sequence[tf.Tensor]) -> tf.Tensor:
        centred = operands[0]
        products = [
            multiply(centred if whole else centred[..., begin:end], weight)
            for begin, end, weight in parts
        ]
        if narrow:
            accumulator = tf.add_n(products) * float(divisor) + offset
        else:
            total = tf.add_n([tf.cast(product, tf.int32) for product in products])
            integers = total * divisor + offset
            smooth = tf.add_n(products) * float(divisor)
            accumulator = with_gradient(tf.cast(integers, tf.float32), smooth)
        steps = accumulator * scale
        if rescale is None:
            return _finish(site, tf.round(steps), steps, reach)
        wide = tf.cast(accumulator, tf.int64) if narrow else tf.cast(integers, tf.int64)
        return _finish(site, tf.cast(rescale(wide), tf.float32), steps, reach)

    return kernel


def _exact_parts(site: Site, weights: np.ndarray, axis: int) -> list[tuple[int, int, np.ndarray]]:
    """Weights cut along the input channels so that no partial sum of a part can reach `EXACT`.

    Returns:
        (first input channel, last + 1, weights of the part) of each part.
    """
    rows = np.abs(np.moveaxis(weights, axis, 0).astype(np.int64))
    if site.operator.kind == "DEPTHWISE_CONV_2D":
        largest = int(rows.reshape(rows.shape[0], -1).sum(axis=1).max()) * site.largest
        if largest >= EXACT:
            raise ValueError(
                f"{site.output.name!r}: sums of up to {largest} in one depthwise window are not "
                "exact in float32"
            )
        return [(0, 0, weights)]
    inputs = weights.shape[-1]
    each = rows.reshape(rows.shape[0], -1, inputs).sum(axis=1) * site.largest
    parts, begin, running = [], 0, np.zeros(rows.shape[0], np.int64)
    for channel in range(inputs):
        running = running + each[:, channel]
        if running.max() >= EXACT and channel > begin:
            parts.append((begin, channel, weights[..., begin:channel]))
            begin, running = channel, each[:, channel].copy()
    return [*parts, (begin, inputs, weights[..., begin:])]


def _in_tensorflow(kind: str, weights: np.ndarray) -> np.ndarray:
    """Weights in TensorFlow's layout: (h, w, in, out), (h, w, in * multiplier) or (in, out)."""
    if kind == "CONV_2D":
        return np.transpose(weights, (1, 2, 3, 0))
    return weights[0] if kind == "DEPTHWISE_CONV_2D" else weights.T


def _conv_2d(site: Site) -> Kernel:
    options = site.operator.options
    assert isinstance(options, Convolution)
    strides, dilations = (
        (options.stride_h, options.stride_w),
        (options.dilation_h, options.dilation_w),
    )

    def multiply(centred: tf.Tensor, weights: tf.Tensor) -> tf.Tensor:
        return tf.nn.conv2d(centred, weights, strides, options.padding, dilations=dilations)

    return _weighted(site, multiply, 0, KERNEL_SETS[site.kernels].convolution)


def _depthwise_conv_2d(site: Site) -> Kernel:
    options = site.operator.options
    assert isinstance(options, Convolution)
    height, width = site.inputs[1].shape[1:3]
    shape = (height, width, -1, options.depth_multiplier)
    dilations = (options.dilation_h, options.dilation_w)
    size = site.inputs[0].shape[1:3]
    fixed = KERNEL_SETS[site.kernels].depthwise

    if (height, width) == (1, 1) and options.depth_multiplier == 1:

        def multiply(centred: tf.Tensor, weights: tf.Tensor) -> tf.Tensor:
            return centred[:, :: options.stride_h, :: options.stride_w] * weights[0, 0]

    elif (height, width) == size and options.padding == "VALID" and options.depth_multiplier == 1:

        def multiply(centred: tf.Tensor, weights: tf.Tensor) -> tf.Tensor:
            return tf.reduce_sum(centred * weights, axis=(1, 2), keepdims=True)

    elif options.stride_h == options.stride_w:

        def multiply(centred: tf.Tensor, weights: tf.Tensor) -> tf.Tensor:
            strides = (1, options.stride_h, options.stride_w, 1)
            kernel = tf.reshape(weights, shape)
            return tf.nn.depthwise_conv2d(
                centred, kernel, strides, options.padding, dilations=dilations
            )

    else:
        # TensorFlow has one stride for both dimensions: take every window, keep those wanted
        strides = (options.stride_h, options.stride_w)
        pads = [
            same_padding(size[i], (height, width)[i], strides[i], dilations[i])
            if options.padding == "SAME"
            else (0, 0)
            for i in (0, 1)
        ]

        def multiply(centred: tf.Tensor, weights: tf.Tensor) -> tf.Tensor:
            padded = tf.pad(centred, [(0, 0), *pads, (0, 0)])
            kernel = tf.reshape(weights, shape)
            every = tf.nn.depthwise_conv2d(
                padded, kernel, (1, 1, 1, 1), "VALID", dilations=dilations
            )
            return every[:, :: strides[0], :: strides[1]]

    return _weighted(site, multiply, 3, fixed)


def _fully_connected(site: Site) -> Kernel:
    assert isinstance(site.operator.options, FullyConnected)
    inputs = site.inputs[1].shape[1]

    def multiply(centred: tf.Tensor, weights: tf.Tensor) -> tf.Tensor:
        return tf.matmul(centred, weights)

    kernel = _weighted(site, multiply, 0, KERNEL_SETS[site.kernels].dense)
    return lambda operands: kernel([tf.reshape(operands[0], (-1, inputs))])


def _add(site: Site) -> Kernel:
    assert isinstance(site.operator.options, Elementwise)
    scales = [tensor.scale for tensor in site.inputs]
    ratios = [float(np.float32(scale / site.output.scale)) for scale in scales]
    exact = _add_xnnpack(site) if site.xnnpack else _add_builtin(site)

    def kernel(operands: Sequence[tf.Tensor]) -> tf.Tensor:
        smooth = operands[0] * ratios[0] + operands[1] * ratios[1]
        return _finish(site, tf.cast(exact(operands), tf.float32), smooth)

    return kernel


def _add_xnnpack(site: Site) -> Kernel:
    (first, second), shift = add_multipliers([t.scale for t in site.inputs], site.output.scale)

    def sums(operands: Sequence[tf.Tensor]) -> tf.Tensor:
        left, right = (tf.cast(operand, tf.int32) for operand in operands)
        return shift_right(left * first + right * second + (1 << (shift - 1)), shift)

    return sums


def _add_builtin(site: Site) -> Kernel:
    largest = 2.0 * max(float(tensor.scale) for tensor in site.inputs)
    last = rescaler(scale_away, np.array([largest / (2**20 * float(site.output.scale))]))

    def sums_by(rounding: Rescale) -> Kernel:
        factors = [rescaler(rounding, np.array([float(t.scale) / largest])) for t in site.inputs]

        def sums(operands: Sequence[tf.Tensor]) -> tf.Tensor:
            shifted = [
                factor(tf.cast(operand, tf.int64) * (1 << 20))
                for factor, operand in zip(factors, operands, strict=True)
            ]
            return last(tf.add_n(shifted))

        return sums

    rest, vectors = sums_by(scale_away), sums_by(scale_on_avx2)

    def mixed(operands: Sequence[tf.Tensor]) -> tf.Tensor:
        places = tf.reshape(tf.range(tf.size(operands[0])), tf.shape(operands[0]))
        whole = tf.size(operands[0]) // 16 * 16
        return tf.where(places < whole, vectors(operands), rest(operands))

    return mixed if KERNEL_SETS[site.kernels].sixteens else rest


def _mul(site: Site) -> Kernel:
    source, constant = site.inputs
    values = np.asarray(constant.data).astype(np.float32) - np.float32(constant.zero_point)
    factors = site.constant(values)
    scale = requantization_scale(source.scale, constant.scale.reshape(1), site.output.scale)
    fixed = None if site.xnnpack else rescaler(scale_away, scale.astype(np.float64))

    def kernel(operands: Sequence[tf.Tensor]) -> tf.Tensor:
        product = operands[0] * factors
        steps = product * scale
        exact = tf.round(steps) if fixed is None else fixed(tf.cast(product, tf.int64))
        return _finish(site, tf.cast(exact, tf.float32), steps)

    return kernel


def _max_pool_2d(site: Site) -> Kernel:
    options = site.operator.options
    assert isinstance(options, Pooling)
    low, high = clamp_range(site.operator, site.output)
    window, strides = (options.filter_h, options.filter_w), (options.stride_h, options.stride_w)

    def kernel(operands: Sequence[tf.Tensor]) -> tf.Tensor:
        pooled = tf.nn.max_pool2d(operands[0], window, strides, options.padding)
        return pooled if options.activation == "NONE" else tf.clip_by_value(pooled, low, high)

    return kernel


def _average_pool_2d(site: Site) -> Kernel:
    options = site.operator.options
    assert isinstance(options, Pooling)
    counts = site.constant(pool_counts(site.inputs[0].shape[1:3], options).astype(np.float32))
    window, strides = (options.filter_h, options.filter_w), (options.stride_h, options.stride_w)
    zero = float(site.inputs[0].zero_point)

    def kernel(operands: Sequence[tf.Tensor]) -> tf.Tensor:
        mean = tf.nn.avg_pool2d(operands[0] + zero, window, strides, options.padding)
        sums = tf.round(mean * counts)
        magnitude = tf.floor((2.0 * tf.abs(sums) + counts) / (2.0 * counts))
        return _finish(site, tf.sign(sums) * magnitude - zero, mean - zero)

    return kernel


def _mean(site: Site) -> Kernel:
    source, output = site.inputs[0], site.output
    count = source.shape[1] * source.shape[2]
    factor, offset = mean_factors(source, output)
    real = float(source.scale) / float(output.scale)
    multiplier = mean_multiplier(real, count)
    fixed = None if site.xnnpack else multiplier_rescaler(scale_away, [multiplier])

    def kernel(operands: Sequence[tf.Tensor]) -> tf.Tensor:
        centred = tf.reduce_sum(operands[0], axis=(1, 2))
        if fixed is None:
            stored = centred + float(count * source.zero_point)
            exact = tf.round(stored * factor + offset) - float(output.zero_point)
        else:
            exact = tf.cast(fixed(tf.cast(centred, tf.int64)), tf.float32)
        return _finish(site, exact, centred * (real / count))

    return kernel


def _concatenation(site: Site) -> Kernel:
    options = site.operator.options
    assert isinstance(options, Concatenation)
    return lambda operands: tf.concat(list(operands), axis=options.axis)


def _pad(site: Site) -> Kernel:
    amounts = np.asarray(site.inputs[1].data)
    return lambda operands: tf.pad(operands[0], amounts)


def _mirror_pad(site: Site) -> Kernel:
    options = site.operator.options
    assert isinstance(options, MirrorPadding)
    amounts = np.asarray(site.inputs[1].data)
    return lambda operands: tf.pad(operands[0], amounts, options.mode)


def _slice(site: Site) -> Kernel:
    begin, size = (np.asarray(tensor.data) for tensor in site.inputs[1:])
    return lambda operands: tf.slice(operands[0], begin, size)


def _minimum(site: Site) -> Kernel:
    return _choice(site, tf.minimum, -1.0)


def _maximum(site: Site) -> Kernel:
    return _choice(site, tf.maximum, 1.0)


def _choice(site: Site, choose: Callable[..., tf.Tensor], sign: float) -> Kernel:
    """Share the gradient between operands that are near each other, as MedianSqueeze does."""
    low, high = site.spans[0]
    temperature = 0.01 * max(high - low, 1)

    def kernel(operands: Sequence[tf.Tensor]) -> tf.Tensor:
        left, right = operands
        share = tf.stop_gradient(tf.sigmoid((left - right) * (sign / temperature)))
        return with_gradient(choose(left, right), share * left + (1.0 - share) * right)

    return kernel


def _reshape(site: Site) -> Kernel:
    shape = [-1, *site.output.shape[1:]]
    return lambda operands: tf.reshape(operands[0], shape)


def _softmax(site: Site) -> Kernel:
    options = site.operator.options
    assert isinstance(options, Softmax)
    scale, step = site.inputs[0].scale, site.output.scale
    table = site.constant(softmax_table(scale, options.beta))
    factor = float(scale) * options.beta
    last = site.inputs[0].shape[-1]

    def kernel(operands: Sequence[tf.Tensor]) -> tf.Tensor:
        logits = operands[0]
        distance = tf.reduce_max(logits, axis=-1, keepdims=True) - logits
        weights = tf.gather(table, tf.cast(distance, tf.int32))
        # the kernels add one class after the other; any other order may round differently
        total = tf.cumsum(weights, axis=-1)[..., last - 1 :]
        scaled = weights * (1.0 / (total * step))
        exact = tf.floor(tf.cast(scaled, tf.float64) + 0.5)
        smooth = tf.nn.softmax(factor * logits) / step
        return _finish_softmax(site, tf.cast(exact, tf.float32), smooth)

    return kernel


def _finish_softmax(site: Site, exact: tf.Tensor, smooth: tf.Tensor) -> tf.Tensor:
    """Clamp to 255/256, which would stop the gradient of a sure prediction; let it pass instead."""
    low, high = clamp_range(site.operator, site.output)
    return with_gradient(tf.clip_by_value(exact, low, high), smooth)


def _quantize(site: Site) -> Kernel:
    if site.inputs[0].dtype != "float32":
        return lambda operands: operands[0]
    divides = KERNEL_SETS[site.kernels].divides
    return lambda operands: to_centred(operands[0], site.output, divides)


def _dequantize(site: Site) -> Kernel:
    scale = site.inputs[0].scale
    return lambda operands: operands[0] * scale


KERNELS: dict[str, Callable[[Site], Kernel]] = {
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
"""The builder of every operator's kernel."""
