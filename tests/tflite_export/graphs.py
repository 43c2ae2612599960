"""Random graphs of one operator, with values drawn so that outputs spread over the whole range."""

import dataclasses
import math

import numpy as np
import pytest

from tests.tflite_export import int16_graphs
from tests.tflite_export.draw import Draw, grid, like
from tests.tflite_export.moving_graphs import MOVING_GRAPHS
from tflite_export.ir.graph import (
    DTYPES,
    INTEGER_RANGES,
    Concatenation,
    Convolution,
    Elementwise,
    FullyConnected,
    MirrorPadding,
    NoOptions,
    Pooling,
    Reduction,
    Softmax,
    Tensor,
)
from tflite_export.ops import OPERATORS
from tflite_export.ops.arg_max import ArgMax
from tflite_export.ops.batch_matmul import BatchMatMul
from tflite_export.ops.gelu import Gelu
from tflite_export.ops.l2_normalization import L2Normalization
from tflite_export.ops.leaky_relu import LeakyRelu
from tflite_export.ops.resizing import Resizing
from tflite_export.ops.transpose_conv import TransposedConvolution


def _windowed(draw, most_dilation=1):
    size, window = draw.integer(4, 11), draw.integer(1, 4)
    stride = draw.integer(1, 3)
    dilation = draw.integer(1, most_dilation) if stride == 1 else 1
    padding = ("SAME", "VALID")[draw.integer(0, 1)]
    span = (window - 1) * dilation + 1
    if span > size:
        padding = "SAME"
    out = -(-size // stride) if padding == "SAME" else (size - span) // stride + 1
    return size, window, stride, dilation, padding, out


def convolution(seed, int4=False):
    draw = Draw(seed)
    size, window, stride, dilation, padding, out = _windowed(draw, 2)
    inputs, outputs = draw.integer(1, 40), draw.integer(1, 40)
    activation = ("NONE", "RELU", "RELU6")[draw.integer(0, 2)]
    source = draw.value("x", (-1, size, size, inputs))
    options = Convolution(padding, stride, stride, activation, dilation, dilation)
    shape = (outputs, window, window, inputs)
    return draw.weighted("CONV_2D", source, shape, 0, options, (-1, out, out, outputs), int4)


def grouped_convolution(seed):
    draw = Draw(seed)
    size, window, stride, _, padding, out = _windowed(draw)
    groups, inputs, outputs = draw.integer(2, 4), draw.integer(1, 8), draw.integer(1, 8)
    source = draw.value("x", (-1, size, size, groups * inputs))
    options = Convolution(padding, stride, stride)
    shape = (groups * outputs, window, window, inputs)
    out_shape = (-1, out, out, groups * outputs)
    return draw.weighted("CONV_2D", source, shape, 0, options, out_shape)


def depthwise(seed, int4=False):
    draw = Draw(seed)
    size, window, stride, _, padding, out = _windowed(draw)
    inputs, multiplier = draw.integer(1, 40), draw.integer(1, 2)
    channels = inputs * multiplier
    source = draw.value("x", (-1, size, size, inputs))
    options = Convolution(padding, stride, stride, "NONE", 1, 1, multiplier)
    shape = (1, window, window, channels)
    out_shape = (-1, out, out, channels)
    return draw.weighted("DEPTHWISE_CONV_2D", source, shape, 3, options, out_shape, int4)


def transpose_conv(seed):
    draw = Draw(seed)
    size, window, stride, _, padding, _ = _windowed(draw)
    inputs, outputs = draw.integer(1, 20), draw.integer(1, 20)
    if padding == "SAME":
        window = max(window, stride)
        result = size * stride - draw.integer(0, stride - 1)
    else:
        result = (size - 1) * stride + window + draw.integer(0, stride - 1)
    options = TransposedConvolution(padding, stride, stride, ("NONE", "RELU6")[seed % 2])
    source = draw.value("x", (1, size, size, inputs))
    shape, out_shape = (outputs, window, window, inputs), (1, result, result, outputs)
    bias = draw.integer(0, 3) > 0
    graph = draw.weighted("TRANSPOSE_CONV", source, shape, 0, options, out_shape, bias=bias)
    wanted = draw.constant("size", np.array(out_shape, np.int32), None, "int32")
    return rewired(graph, wanted)


def rewired(graph, size):
    """A convolution's operands in the order of TRANSPOSE_CONV, the size of the result first."""
    (operator,) = graph.operators
    source, weights, *bias = operator.inputs
    graph.operators[0] = dataclasses.replace(operator, inputs=(size, weights, source, *bias))
    return graph


def fully_connected(seed):
    draw = Draw(seed)
    inputs, outputs = draw.integer(1, 300), draw.integer(1, 40)
    source = draw.value("x", (-1, inputs))
    options = FullyConnected(("NONE", "RELU6")[draw.integer(0, 1)])
    out_shape = (-1, outputs)
    shape = (outputs, inputs)
    bias = draw.integer(0, 3) > 0
    return draw.weighted("FULLY_CONNECTED", source, shape, 0, options, out_shape, bias=bias)


def add(seed):
    draw = Draw(seed)
    shape = (-1, 5, 5, 8)
    left, right = draw.value("a", shape), draw.value("b", shape)
    if draw.integer(0, 4) == 0:
        right = draw.value("tiny", shape, draw.scale_of(left) / draw.integer(500, 4000))
    scale = (draw.scale_of(left) + draw.scale_of(right)) * float(draw.rng.uniform(0.3, 1.2))
    output = draw.value("y", shape, scale)
    options = Elementwise(("NONE", "RELU", "RELU6")[draw.integer(0, 2)])
    return draw.done("ADD", (left, right), output, options, (left, right))


def multiply(seed):
    draw = Draw(seed)
    size, channels = draw.integer(3, 8), draw.integer(1, 20)
    source = draw.value("x", (-1, size, size, channels))
    factors = draw.rng.integers(20, 128, (1, size, size, 1)).astype(np.int8)
    scale = float(draw.rng.uniform(0.01, 0.03))
    constant = draw.constant("m", factors, grid(scale), "int8")
    target = draw.scale_of(source) * float(draw.rng.uniform(0.3, 1.5))
    output = draw.value("y", (-1, size, size, channels), target)
    return draw.done("MUL", (source, constant), output, Elementwise())


def repeated(seed):
    """Two shapes that repeat along each other, and whether the second is a constant."""
    shapes = (
        ((-1, 5, 4, 7), (-1, 5, 4, 7), False),
        ((-1, 5, 4, 7), (-1, 1, 1, 7), False),
        ((-1, 1, 4, 1), (-1, 5, 1, 7), False),
        ((-1, 5, 4, 7), (-1, 5, 4, 1), False),
        ((-1, 20), (-1, 1), False),
        ((-1, 5, 4, 7), (7,), True),
        ((-1, 1, 1, 7), (1, 5, 4, 7), True),
        ((-1, 20), (), True),
    )
    return shapes[seed % len(shapes)]


def _pair(kind, seed, reach):
    """An operator on two operands, either of them first, on a grid made for a reach of both."""
    draw = Draw(seed)
    *shapes, fixed = repeated(seed)
    left = draw.value("a", shapes[0])
    if fixed:
        data = draw.rng.integers(-128, 128, shapes[1]).astype(np.int8)
        step = grid(float(np.exp(draw.rng.uniform(-5, -1))), draw.integer(-128, 127))
        right = draw.constant("c", data, step, "int8")
    else:
        right = draw.value("b", shapes[1])
    shape = (-1, *np.broadcast_shapes(*(tuple(abs(n) for n in s) for s in shapes))[1:])
    output = draw.value("y", shape, reach(draw, draw.scale_of(left), draw.scale_of(right)))
    options = Elementwise(("NONE", "RELU", "RELU6", "RELU_N1_TO_1")[draw.integer(0, 3)])
    operands = (left, right) if draw.integer(0, 1) else (right, left)
    sources = [index for index in operands if not draw.graph.tensors[index].is_constant]
    return draw.done(kind, operands, output, options, sources)


def product_of_two(seed):
    return _pair("MUL", seed, lambda draw, a, b: a * b * float(draw.rng.uniform(40, 120)))


def sum_of_two(seed):
    return _pair("ADD", seed, lambda draw, a, b: (a + b) * float(draw.rng.uniform(0.3, 1.2)))


def difference(seed):
    return _pair("SUB", seed, lambda draw, a, b: (a + b) * float(draw.rng.uniform(0.3, 1.2)))


def _pool(kind, seed):
    draw = Draw(seed)
    size, window, stride, _, padding, out = _windowed(draw)
    channels = draw.integer(1, 20)
    source = draw.value("x", (-1, size, size, channels))
    tensor = draw.graph.tensors[source]
    output = draw.value("y", (-1, out, out, channels), float(tensor.scale), tensor.zero_point)
    options = Pooling(padding, stride, stride, window, window)
    return draw.done(kind, (source,), output, options)


def max_pool(seed):
    return _pool("MAX_POOL_2D", seed)


def average_pool(seed):
    return _pool("AVERAGE_POOL_2D", seed)


def mean(seed):
    """Odd seeds: few-bit grids, whose means fall half-way between two integers again and again."""
    draw = Draw(seed)
    height, width, channels = (draw.integer(1, most) for most in (12, 12, 70))
    steps = 2 ** draw.integer(1, 8) - 1
    if seed % 2:
        source = draw.value("x", (-1, height, width, channels), 6 / steps, -128)
        scale = draw.scale_of(source) * float(draw.rng.choice([1, 1 / 2, 1 / 3, 1 / 8, 0.1]))
    else:
        source = draw.value("x", (-1, height, width, channels))
        scale = draw.scale_of(source) * float(np.exp(draw.rng.uniform(-4, 1)))
    axes = draw.constant("axes", np.array([1, 2], np.int32), None, "int32")
    output = draw.value("y", (-1, channels), scale)
    return draw.done("MEAN", (source, axes), output, Reduction())


def mean_of_any(seed):
    """Over any dimensions but the batch, which stay with size 1 or go; of images every third."""
    draw = Draw(seed)
    sizes = (-1, 5, 4, 20)[: draw.integer(2, 4)]
    axes = sorted(1 + draw.rng.permutation(len(sizes) - 1)[: draw.integer(1, len(sizes) - 1)])
    keep = draw.integer(0, 1) == 1
    if seed % 3 == 0:
        sizes, axes, keep = (-1, 5, 4, draw.integer(1, 40)), [2, 1], True
    shape = tuple(1 if i in axes else n for i, n in enumerate(sizes) if keep or i not in axes)
    source = draw.value("x", sizes)
    output = draw.value("y", shape, draw.scale_of(source) * float(np.exp(draw.rng.uniform(-2, 0))))
    constant = draw.constant("axes", np.array(axes, np.int32), None, "int32")
    return draw.done("MEAN", (source, constant), output, Reduction(keep))


def total(seed):
    """Like a mean, on a grid of up to half of what the terms reach."""
    graph = mean_of_any(seed)
    operator, output = graph.operators[0], graph.outputs[0]
    source, axes = (graph.tensors[i] for i in operator.inputs)
    terms = math.prod(source.shape[axis] for axis in axes.data)
    spread = float(np.random.default_rng(seed).uniform(0.4, 4)) * np.sqrt(terms)
    step = grid(float(source.scale) * spread, graph.tensors[output].zero_point)
    graph.tensors[output] = dataclasses.replace(graph.tensors[output], quantization=step)
    graph.operators[0] = dataclasses.replace(operator, kind="SUM")
    return graph


def batch_matmul(seed):
    """Two activations, or one and a constant whose matrix is repeated; either side exchanged.

    XNNPACK takes those whose right operand has the zero point 0.
    """
    draw = Draw(seed)
    rows, inner, columns = (draw.integer(1, most) for most in (6, 40, 6))
    lead = ((-1,), (-1, 3))[seed % 2]
    turned = [seed // 2 % 2 == 1, seed // 4 % 2 == 1]
    shapes = [(rows, inner), (inner, columns)]
    shapes = [shape[::-1] if turn else shape for shape, turn in zip(shapes, turned, strict=True)]
    zeros = [draw.integer(-60, 60), 0 if seed % 4 < 2 else draw.integer(-60, 60)]
    constant = (1, 0, None)[seed % 3]
    operands = []
    for place, (name, shape, zero) in enumerate(zip("ab", shapes, zeros, strict=True)):
        if place == constant:
            size = (*(1,) * (seed % 4 // 2), *shape)
            data = draw.rng.integers(-128, 128, size).astype(np.int8)
            step = grid(float(draw.rng.uniform(0.01, 0.1)), zero)
            operands.append(draw.constant(name, data, step, "int8"))
        else:
            operands.append(draw.value(name, (*lead, *shape), zero=zero))
    products = math.prod(draw.scale_of(index) for index in operands)
    scale = products * np.sqrt(inner) * float(draw.rng.uniform(40, 120))
    output = draw.value("y", (*lead, rows, columns), scale)
    sources = [index for index in operands if not draw.graph.tensors[index].is_constant]
    return draw.done("BATCH_MATMUL", operands, output, BatchMatMul(*turned), sources)


def arg_max(seed):
    """Few integers, so that the largest is there more than once; positions of both types."""
    draw = Draw(seed)
    sizes = ((-1, 9), (-1, 5, 6), (-1, 4, 1, 5))[seed % 3]
    axis = draw.integer(1, len(sizes) - 1)
    dtype = ("int64", "int32")[seed % 2]
    named = np.array([axis - len(sizes)] if seed % 4 > 1 else axis, np.int32)
    constant = draw.constant("axis", named, None, "int32")
    shape = (*sizes[:axis], *sizes[axis + 1 :])
    output = draw.graph.add_tensor(Tensor("y", shape, dtype))
    return draw.done("ARG_MAX", (draw.value("x", sizes), constant), output, ArgMax(dtype))


def softmax(seed):
    draw = Draw(seed)
    classes = draw.integer(2, 200)
    source = draw.value("x", (-1, classes))
    output = draw.value("y", (-1, classes), 1 / 256, -128)
    return draw.done("SOFTMAX", (source,), output, Softmax(1.0))


def l2_normalization(seed):
    draw = Draw(seed)
    shape = ((-1, 20), (-1, 3, 7), (-1, 2, 3, 200))[seed % 3]
    output = draw.value("y", shape, 1 / 128, 0)
    return draw.done("L2_NORMALIZATION", (draw.value("x", shape),), output, L2Normalization())


def pad(seed):
    draw = Draw(seed)
    source = draw.value("x", (-1, 5, 6, 3))
    tensor = draw.graph.tensors[source]
    pairs = draw.rng.integers(0, 3, (4, 2)).astype(np.int32)
    pairs[0] = 0
    rest = [int(n + sum(p)) for n, p in zip((5, 6, 3), pairs[1:], strict=True)]
    shape = (-1, *rest)
    output = draw.value("y", shape, float(tensor.scale), tensor.zero_point)
    return draw.done("PAD", (source, draw.constant("p", pairs, None, "int32")), output)


def mirror_pad(seed):
    draw = Draw(seed)
    source = draw.value("x", (-1, 5, 6, 3))
    mode = ("SYMMETRIC", "REFLECT")[seed % 2]
    pairs = np.zeros((4, 2), np.int32)
    pairs[1:] = draw.rng.integers(0, 3, (3, 2))
    shape = (-1, *(int(n + sum(p)) for n, p in zip((5, 6, 3), pairs[1:], strict=True)))
    output = like(draw, source, shape)
    amounts = draw.constant("p", pairs, None, "int32")
    return draw.done("MIRROR_PAD", (source, amounts), output, MirrorPadding(mode))


def cut(seed):
    draw = Draw(seed)
    source = draw.value("x", (-1, 7, 8, 4))
    begin = [0, *(draw.integer(0, 3) for _ in range(3))]
    shape = (-1, *(draw.integer(1, n - b) for n, b in zip((7, 8, 4), begin[1:], strict=True)))
    constants = [
        draw.constant(name, np.array(values, np.int32), None, "int32")
        for name, values in (("begin", begin), ("size", shape))
    ]
    return draw.done("SLICE", (source, *constants), like(draw, source, shape))


def resize_nearest_neighbor(seed):
    draw = Draw(seed)
    height, width = draw.integer(1, 9), draw.integer(1, 9)
    source = draw.value("x", (-1, height, width, draw.integer(1, 5)))
    size = np.array([draw.integer(1, 20), draw.integer(1, 20)], np.int32)
    if seed % 3 == 0:  # as a layer that repeats each pixel has it
        size = np.array([height, width], np.int32) * draw.integer(2, 4)
    options = Resizing(align_corners=seed % 4 == 1, half_pixel_centers=seed % 4 > 1)
    output = like(draw, source, (-1, *map(int, size), draw.graph.tensors[source].shape[3]))
    constant = draw.constant("size", size, None, "int32")
    return draw.done("RESIZE_NEAREST_NEIGHBOR", (source, constant), output, options)


def resize_bilinear(seed):
    graph = resize_nearest_neighbor(seed)
    (operator,) = graph.operators
    options = Resizing(operator.options.align_corners, operator.options.half_pixel_centers)
    graph.operators = [dataclasses.replace(operator, kind="RESIZE_BILINEAR", options=options)]
    return graph


def leaky_relu(seed):
    """Odd seeds: the output has the source's grid."""
    draw = Draw(seed)
    shape = (-1, draw.integer(1, 9), draw.integer(1, 9), draw.integer(1, 5))
    source = draw.value("x", shape)
    alpha = float(np.float32(draw.rng.uniform(0.01, 1.0)))
    if seed % 2:
        output = like(draw, source, shape)
    else:
        output = draw.value("y", shape, draw.scale_of(source) * float(draw.rng.uniform(0.2, 1.5)))
    return draw.done("LEAKY_RELU", (source,), output, LeakyRelu(alpha))


def _tabulated(kind, seed, options=NoOptions()):  # noqa: B008
    """Odd seeds: the output has the source's grid."""
    draw = Draw(seed)
    shape = (-1, draw.integer(1, 9), draw.integer(1, 9), draw.integer(1, 5))
    source = draw.value("x", shape, float(np.exp(draw.rng.uniform(-5, -1))))
    output = like(draw, source, shape)
    if seed % 2 == 0:
        scale = draw.scale_of(source) * float(np.exp(draw.rng.uniform(-1, 1)))
        step = grid(scale, draw.integer(-128, 60))
        draw.graph.tensors[output] = Tensor("y", shape, "int8", step)
    return draw.done(kind, (source,), output, options)


def prelu(seed):
    draw = Draw(seed)
    slopes = ((5,), (1, 1, 5), (1, 3, 4, 5), (1, 1, 1, 5))[seed % 4]
    source = draw.value("x", (-1, 3, 4, 5))
    data = draw.rng.integers(-128, 128, slopes).astype(np.int8)
    constant = draw.constant("slopes", data, grid(2.0**-7, draw.integer(-9, 9)), "int8")
    scale = draw.scale_of(source) * float(np.exp(draw.rng.uniform(-1, 1)))
    output = draw.value("y", (-1, 3, 4, 5), scale)
    return draw.done("PRELU", (source, constant), output)


def _curve(kind, grid_of_result, seed):
    draw = Draw(seed)
    shape = (-1, draw.integer(1, 9), draw.integer(1, 9), draw.integer(1, 5))
    source = draw.value("x", shape, float(np.exp(draw.rng.uniform(-7, -1))))
    return draw.done(kind, (source,), draw.value("y", shape, *grid_of_result))


def _choice(kind, seed):
    """Two activations of one shape, or any two operands that repeat along each other."""
    draw = Draw(seed)
    *shapes, fixed = repeated(seed // 2) if seed % 2 else ((-1, 9, 5, 8), (-1, 9, 5, 8), False)
    left = draw.value("a", shapes[0])
    if fixed:
        data = draw.rng.integers(-128, 128, shapes[1]).astype(np.int8)
        right = draw.constant("c", data, draw.graph.tensors[left].quantization, "int8")
    else:
        right = like(draw, left, shapes[1], "b")
    shape = (-1, *np.broadcast_shapes(*(tuple(abs(n) for n in s) for s in shapes))[1:])
    sources = (left,) if fixed else (left, right)
    return draw.done(kind, (left, right), like(draw, left, shape), sources=sources)


def concatenation(seed):
    draw = Draw(seed)
    scale, zero = 0.1, draw.integer(-128, 127)
    sources = [draw.value(f"x{i}", (-1, 4, 4, draw.integer(1, 9)), scale, zero) for i in range(3)]
    channels = sum(draw.graph.tensors[i].shape[3] for i in sources)
    output = draw.value("y", (-1, 4, 4, channels), scale, zero)
    return draw.done("CONCATENATION", sources, output, Concatenation(3), sources)


def reshape(seed):
    draw = Draw(seed)
    source = draw.value("x", (-1, 4, 4, 3))
    tensor = draw.graph.tensors[source]
    goal = draw.constant("shape", np.array([-1, 48], np.int32), None, "int32")
    output = draw.value("y", (-1, 48), float(tensor.scale), tensor.zero_point)
    return draw.done("RESHAPE", (source, goal), output)


def quantize(seed):
    draw = Draw(seed)
    source = draw.graph.add_tensor(Tensor("x", (-1, 500), "float32"))
    return draw.done("QUANTIZE", (source,), draw.value("y", (-1, 500)))


def quantize_uint8(seed):
    draw = Draw(seed)
    zero = draw.integer(0, 255)
    source = draw.value("x", (-1, 500), 0.02, zero, "uint8")
    return draw.done("QUANTIZE", (source,), draw.value("y", (-1, 500), 0.02, zero - 128))


def quantize_to_uint8(seed):
    draw = Draw(seed)
    source = draw.value("x", (-1, 500), 0.02)
    zero = draw.graph.tensors[source].zero_point + 128
    return draw.done("QUANTIZE", (source,), draw.value("y", (-1, 500), 0.02, zero, "uint8"))


def requantize(seed):
    """To the same type and to the other one, up to steps that XNNPACK leaves to other kernels."""
    draw = Draw(seed)
    kinds = (("int8", "int8"), ("uint8", "uint8"), ("int8", "uint8"), ("uint8", "int8"))[seed % 4]
    shape = (-1, draw.integer(1, 40), draw.integer(1, 3))
    source = draw.value("x", shape, dtype=kinds[0])
    factor = float(np.exp(draw.rng.uniform(-3, 1))) if seed % 8 < 6 else 1 / 300
    output = draw.value("y", shape, draw.scale_of(source) / factor, dtype=kinds[1])
    return draw.done("QUANTIZE", (source,), output)


def dequantize(seed):
    draw = Draw(seed)
    source = draw.value("x", (-1, 500))
    return draw.done(
        "DEQUANTIZE", (source,), draw.graph.add_tensor(Tensor("y", (-1, 500), "float32"))
    )


GRAPHS = {
    "convolution": convolution,
    "grouped_convolution": grouped_convolution,
    "convolution_int4": lambda seed: convolution(seed, int4=True),
    "depthwise": depthwise,
    "depthwise_int4": lambda seed: depthwise(seed, int4=True),
    "transpose_conv": transpose_conv,
    "fully_connected": fully_connected,
    "add": add,
    "multiply": multiply,
    "product_of_two": product_of_two,
    "sum_of_two": sum_of_two,
    "difference": difference,
    "max_pool": max_pool,
    "average_pool": average_pool,
    "mean": mean,
    "mean_of_any": mean_of_any,
    "sum": total,
    "batch_matmul": batch_matmul,
    "arg_max": arg_max,
    "leaky_relu": leaky_relu,
    "relu": lambda seed: _tabulated("RELU", seed),
    "relu6": lambda seed: _tabulated("RELU6", seed),
    "relu_n1_to_1": lambda seed: _tabulated("RELU_N1_TO_1", seed),
    "relu_0_to_1": lambda seed: _tabulated("RELU_0_TO_1", seed),
    "hard_swish": lambda seed: _tabulated("HARD_SWISH", seed),
    "l2_normalization": l2_normalization,
    "elu": lambda seed: _tabulated("ELU", seed),
    "gelu": lambda seed: _tabulated("GELU", seed, Gelu(seed % 4 > 1)),
    "prelu": prelu,
    "logistic": lambda seed: _curve("LOGISTIC", (1 / 256, -128), seed),
    "tanh": lambda seed: _curve("TANH", (1 / 128, 0), seed),
    "resize_nearest_neighbor": resize_nearest_neighbor,
    "resize_bilinear": resize_bilinear,
    "softmax": softmax,
    "pad": pad,
    "mirror_pad": mirror_pad,
    "slice": cut,
    "minimum": lambda seed: _choice("MINIMUM", seed),
    "maximum": lambda seed: _choice("MAXIMUM", seed),
    "concatenation": concatenation,
    "reshape": reshape,
    "quantize": quantize,
    "quantize_uint8": quantize_uint8,
    "quantize_to_uint8": quantize_to_uint8,
    "requantize": requantize,
    "dequantize": dequantize,
    **MOVING_GRAPHS,
}


INT16 = (
    *("convolution", "grouped_convolution", "depthwise", "fully_connected"),
    *("add", "multiply", "product_of_two", "sum_of_two", "difference"),
    *("max_pool", "average_pool", "mean", "mean_of_any", "relu", "relu6"),
    *("pad", "concatenation", "reshape", "quantize", "dequantize"),
)
"""Graphs that are also drawn on int16."""


def _widened(name):
    narrow = GRAPHS[name]
    return lambda seed: int16_graphs.widened(narrow(seed), seed)


GRAPHS["requantize_int16"] = int16_graphs.requantize
GRAPHS |= {f"{name}_int16": _widened(name) for name in INT16}


def lacking(graph):
    """The kernel sets that lack each operator."""
    return [
        OPERATORS[operator.kind].lacking(graph.tensors[operator.outputs[0]])
        for operator in graph.operators
    ]


def skip_if_missing(graph, kernels):
    """Skip a test where a kernel set lacks one of the operators."""
    for operator, sets in zip(graph.operators, lacking(graph), strict=True):
        if kernels in sets:
            pytest.skip(f"the kernel set {kernels} lacks {operator.kind}")


def feeds(graph, count, seed=0):
    """Random inputs in the inputs' own types; half of the samples keep to a part of the range."""
    rng = np.random.default_rng(seed)
    values = []
    for index in graph.inputs:
        tensor = graph.tensors[index]
        shape = (count, *tensor.shape[1:])
        if tensor.dtype == "float32":
            values.append(rng.uniform(-10, 10, shape).astype(np.float32))
        else:
            low, high = INTEGER_RANGES[tensor.dtype]
            drawn = rng.integers(low, high + 1, shape)
            part = rng.random((count // 2, *(1 for _ in shape[2:]), shape[-1]))
            drawn[: count // 2] = low + np.floor((drawn[: count // 2] - low) * part)
            values.append(drawn.astype(DTYPES[tensor.dtype]))
    return values
