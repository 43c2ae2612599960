"""Graphs of one operator whose results lie half-way between two integers, or a hair beside it."""

from dataclasses import replace

import numpy as np

from tflite_export.ir.graph import (
    Convolution,
    Elementwise,
    FullyConnected,
    IntegerGraph,
    NoOptions,
    Operator,
    Options,
    Pooling,
    Quantization,
    Reduction,
    Softmax,
    Tensor,
)
from tflite_export.ops.arg_max import ArgMax
from tflite_export.ops.batch_matmul import BatchMatMul
from tflite_export.ops.gelu import Gelu
from tflite_export.ops.l2_normalization import L2Normalization
from tflite_export.ops.leaky_relu import LeakyRelu
from tflite_export.ops.resizing import Resizing
from tflite_export.ops.transpose_conv import TransposedConvolution

grid = Quantization.per_tensor
CHANNELS = 2000


def one_operator(
    kind: str, operands: list[Tensor], output: Tensor, options: Options
) -> IntegerGraph:
    graph = IntegerGraph([*operands, output])
    indices = tuple(range(len(operands)))
    graph.operators.append(Operator(kind, indices, (len(operands),), options))
    graph.inputs = tuple(i for i in indices if not operands[i].is_constant)
    graph.outputs = (len(operands),)
    return graph


def _scale(rng: np.random.Generator, low: float, high: float) -> float:
    return float(np.float32(np.exp(rng.uniform(np.log(low), np.log(high)))))


def weighted(kind: str, seed: int, per_channel: bool):
    """A weight of 1 and an input of 0: the bias is the accumulator, drawn next to a tie.

    Even seeds have steps whose quotient is a power of 2, so that ties are exact.
    """
    rng = np.random.default_rng(seed)
    source = _scale(rng, 1e-3, 0.5)
    weights = np.float32([_scale(rng, 5e-3, 0.05) for _ in range(CHANNELS if per_channel else 1)])
    output = float(np.float32(source * float(weights.max()) * np.exp(rng.uniform(0.7, 11))))
    if seed % 2 == 0:
        source = float(2.0 ** rng.integers(-8, 0))
        weights = np.float32(2.0 ** rng.integers(-8, -4, weights.size))
        output = source * float(weights.max()) * 2.0 ** int(rng.integers(1, 12))
    factors = source * weights.astype(np.float64) / output
    ties = (rng.integers(-127, 127, CHANNELS) + 0.5) / factors
    bias = (np.rint(ties) + rng.integers(-1, 2, CHANNELS)).astype(np.int32)
    shape = {
        "CONV_2D": (CHANNELS, 1, 1, 1),
        "DEPTHWISE_CONV_2D": (1, 1, 1, CHANNELS),
        "FULLY_CONNECTED": (CHANNELS, 1),
    }[kind]
    axis = 3 if kind == "DEPTHWISE_CONV_2D" else 0
    unit = np.float32(source) * weights
    options: Options = Convolution()
    if kind == "DEPTHWISE_CONV_2D":
        options = Convolution(depth_multiplier=CHANNELS)
    image: tuple[int, ...] = (-1, 1, 1, 1)
    if kind == "FULLY_CONNECTED":
        options, image = FullyConnected(), (-1, 1)
    operands = [
        Tensor("x", image, "int8", grid(source, 0)),
        Tensor(
            "w",
            shape,
            "int8",
            Quantization.per_channel(weights, axis) if per_channel else grid(float(weights[0])),
            np.ones(shape, np.int8),
        ),
        Tensor("b", (CHANNELS,), "int32", Quantization.per_channel(unit, 0), bias),
    ]
    result = Tensor("y", (*image[:-1], CHANNELS), "int8", grid(output, int(rng.integers(-9, 9))))
    return one_operator(kind, operands, result, options), [np.zeros((1, *image[1:]), np.int8)]


def transpose_conv(seed: int, per_channel: bool):
    """As `weighted`: one pixel, a weight of 1, the accumulator is the bias."""
    graph, values = weighted("CONV_2D", seed, per_channel)
    x, w, b, y = graph.tensors
    size = Tensor("size", (4,), "int32", None, np.array([1, 1, 1, CHANNELS], np.int32))
    operands = [size, w, replace(x, shape=(1, 1, 1, 1)), b]
    result = replace(y, shape=(1, 1, 1, CHANNELS))
    return one_operator("TRANSPOSE_CONV", operands, result, TransposedConvolution()), values


def product(seed: int):
    """Every int8 times every int8."""
    rng = np.random.default_rng(seed)
    left, right = _scale(rng, 1e-3, 0.5), _scale(rng, 1e-3, 0.5)
    output = left * right * float(rng.choice([2.0, 4.0, 6.0, 128.0, rng.uniform(2, 250)]))
    constant = np.arange(-128, 128, dtype=np.int8)[None]
    operands = [
        Tensor("x", (-1, 256), "int8", grid(left, int(rng.integers(-128, 128)))),
        Tensor("c", (1, 256), "int8", grid(right, int(rng.integers(-128, 128))), constant),
    ]
    result = Tensor("y", (-1, 256), "int8", grid(output, int(rng.integers(-20, 20))))
    values = np.repeat(np.arange(-128, 128, dtype=np.int8)[:, None], 256, axis=1)
    return one_operator("MUL", operands, result, Elementwise()), [values]


def product_of_two(seed: int):
    """The same of two activations, of which one is repeated."""
    graph, (values,) = product(seed)
    x, c, y = graph.tensors
    assert c.data is not None
    operands = [replace(x, shape=(-1, 256, 1)), replace(c, shape=(-1, 1, 256), data=None)]
    result = replace(y, shape=(-1, 256, 256))
    every = [values[None, :, :1], c.data[None]]
    return one_operator("MUL", operands, result, Elementwise()), every


def difference(seed: int):
    """Every int8 minus every int8, of which one is repeated."""
    graph, values = addition(seed)
    a, b, y = graph.tensors
    operands = [replace(a, shape=(-1, 256, 1)), replace(b, shape=(-1, 1, 256))]
    result = replace(y, shape=(-1, 256, 256))
    every = [values[0][None, :, :1], values[1][None, :1]]
    return one_operator("SUB", operands, result, Elementwise()), every


def sum_of_two(seed: int):
    """Every int8 and every int8 in rows of 256 and of 20, of one entry repeated, and of neither."""
    graph, values = addition(seed // 4)
    a, b, y = graph.tensors
    shapes = (
        ((-1, 256, 256), (-1, 1, 256)),
        ((-1, 256, 20), (-1, 1, 20)),
        ((-1, 256, 20), (-1, 256, 1)),
        ((-1, 256, 1), (-1, 1, 256)),
    )[seed % 4]
    operands = [replace(t, shape=shape) for t, shape in zip((a, b), shapes, strict=True)]
    wide = max(shape[2] for shape in shapes)
    result = replace(y, shape=(-1, 256, wide))
    whole = values[0].T if shapes[1][2] == 1 else values[0]
    every = [
        np.ascontiguousarray(v[None, : shape[1], : shape[2]])
        for v, shape in zip(
            (whole, values[1].T if shapes[1][2] == 1 else values[1]), shapes, strict=True
        )
    ]
    return one_operator("ADD", operands, result, Elementwise()), every


def addition(seed: int):
    """Every int8 and every int8; even seeds have steps of whole quotients."""
    rng = np.random.default_rng(seed)
    left, right = _scale(rng, 1e-3, 0.5), _scale(rng, 1e-3, 0.5)
    output = (left + right) * float(rng.uniform(0.5, 1.5))
    if seed % 2 == 0:
        left = float(np.float32(left))
        right, output = left * int(rng.integers(1, 4)), left * int(rng.integers(2, 9))
    operands = [
        Tensor(name, (-1, 256), "int8", grid(scale, int(rng.integers(-128, 128))))
        for name, scale in (("a", left), ("b", right))
    ]
    result = Tensor("y", (-1, 256), "int8", grid(output, int(rng.integers(-20, 20))))
    every = np.arange(-128, 128, dtype=np.int8)
    values = [np.repeat(every[:, None], 256, axis=1), np.repeat(every[None], 256, axis=0)]
    return one_operator("ADD", operands, result, Elementwise()), values


def wide_sum(kind: str, seed: int):
    """Pairs of int16 whose sum or difference is within 1e-4 of a tie; rows of 45.

    Differences: of one shape, with either operand repeated for each row, and for each entry. Sums:
    every fourth of steps so far apart that a term is shifted to the right.
    """
    rng = np.random.default_rng(seed)
    left, right = _scale(rng, 1e-4, 7e-3), _scale(rng, 1e-4, 7e-3)
    if kind == "ADD" and seed % 4 == 3:
        left = float(np.float32(right * 2.0 ** -rng.uniform(14.5, 17)))
    output = float(np.float32(max(left, right) * np.exp(rng.uniform(-1, 2))))
    every, few = np.arange(-(2**15), 2**15), rng.integers(-(2**15), 2**15, 45)
    sign = 1 if kind == "ADD" else -1
    reals = (every[:, None] * left + sign * few * right) / output
    near = (np.abs(np.abs(reals) % 1 - 0.5) < 1e-4) & (np.abs(reals) < 2**15 - 2)
    many = [rng.choice(every[column] if column.any() else every, 41) for column in near.T]
    values = [np.stack(many, -1)[None], few[None, None]]
    form = seed % 4 if kind == "SUB" else 0
    if form == 0:
        values = [v.reshape(-1, 45) for v in np.broadcast_arrays(*values)]
    if form == 2:  # a difference of the opposite sign has the same ties
        values, left, right = values[::-1], right, left
    if form == 3:
        values = [v.transpose(0, 2, 1) for v in values]
    operands = [
        Tensor(name, (-1, *v.shape[1:]), "int16", grid(scale, 0))
        for name, v, scale in zip("ab", values, (left, right), strict=True)
    ]
    shape = np.broadcast_shapes(*(v.shape for v in values))
    result = Tensor("y", (-1, *shape[1:]), "int16", grid(output, 0))
    graph = one_operator(kind, operands, result, Elementwise())
    return graph, [np.ascontiguousarray(v, np.int16) for v in values]


def wide_rectifier(kind: str, seed: int):
    """Every int16, with steps of whose quotient some multiple is near a tie."""
    rng = np.random.default_rng(seed)
    source = _scale(rng, 1e-4, 1e-3)
    output = float(np.float32(source / np.exp(rng.uniform(0, 1))))
    x, y = (
        Tensor(name, (-1, 256), "int16", grid(scale, 0))
        for name, scale in (("x", source), ("y", output))
    )
    every = np.arange(-(2**15), 2**15).astype(np.int16).reshape(-1, 256)
    return one_operator(kind, [x], y, NoOptions()), [every]


def _sums(height: int, width: int) -> np.ndarray:
    """Images of one channel, one for each sum that their pixels can have."""
    count = height * width
    total = np.arange(-128 * count, 127 * count + 1)
    low, more = np.divmod(total + 128 * count, count)
    pixels = (low - 128)[:, None] + (np.arange(count)[None] < more[:, None])
    return pixels.astype(np.int8).reshape(-1, height, width, 1)


def mean(seed: int):
    """Every sum of an image; even seeds have steps whose quotient is simple."""
    rng = np.random.default_rng(seed)
    height, width = (int(n) for n in rng.integers(1, 9, 2))
    source = _scale(rng, 1e-3, 0.5)
    output = source * float(rng.choice([1, 0.5, 0.25]) if seed % 2 == 0 else rng.uniform(0.1, 2))
    operands = [
        Tensor("x", (-1, height, width, 1), "int8", grid(source, int(rng.integers(-128, 128)))),
        Tensor("axes", (2,), "int32", None, np.array([1, 2], np.int32)),
    ]
    result = Tensor("y", (-1, 1), "int8", grid(output, int(rng.integers(-128, 128))))
    return one_operator("MEAN", operands, result, Reduction()), [_sums(height, width)]


def kept_mean(seed: int):
    """The same for 17 channels, with height and width kept."""
    graph, (values,) = mean(seed)
    x, axes, y = graph.tensors
    operands = [replace(x, shape=(*x.shape[:3], 17)), axes]
    result = replace(y, shape=(-1, 1, 1, 17))
    options = Reduction(keep_dims=True)
    return one_operator("MEAN", operands, result, options), [np.repeat(values[::3], 17, axis=3)]


def total(seed: int):
    """Every integer twice: a sum of two is any even and odd number; even seeds have exact ties."""
    rng = np.random.default_rng(seed)
    source = 2.0 ** int(rng.integers(-8, 0)) if seed % 2 == 0 else _scale(rng, 1e-3, 0.5)
    factor = 2.0 ** int(rng.integers(0, 3)) if seed % 2 == 0 else np.exp(rng.uniform(0, 2))
    x = Tensor("x", (-1, 500, 2), "int8", grid(source, int(rng.integers(-128, 128))))
    axes = Tensor("axes", (1,), "int32", None, np.array([2], np.int32))
    y = Tensor("y", (-1, 500), "int8", grid(float(np.float32(source * factor)), 5))
    values = rng.integers(-128, 128, (4, 500, 2)).astype(np.int8)
    return one_operator("SUM", [x, axes], y, Reduction()), [values]


def batch_matmul(seed: int):
    """Every product of two integers, with ties in three seeds of four.

    Where the scales are no powers of two these are ties of their product in float32 only. In half
    of the seeds the zero point of the right operand is 0.
    """
    rng = np.random.default_rng(seed)
    scales = (2.0 ** rng.integers(-8, -2, 2)).tolist()
    if seed % 2:
        scales = [_scale(rng, 1e-3, 0.1) for _ in "ab"]
    factor = 2.0 ** int(rng.integers(6, 9)) if seed % 4 < 3 else np.exp(rng.uniform(4, 6))
    result = float(np.float32(scales[0] * scales[1] * factor))
    zeros = [int(zero) for zero in rng.integers(-60, 60, 3)]
    zeros[1] *= 1 - seed // 2 % 2
    a, b, y = (
        Tensor(name, (-1, *shape), "int8", grid(scale, zero))
        for name, shape, scale, zero in zip(
            "aby", ((256, 1), (1, 256), (256, 256)), (*scales, result), zeros, strict=True
        )
    )
    every = np.arange(-128, 128, dtype=np.int8)
    graph = one_operator("BATCH_MATMUL", [a, b], y, BatchMatMul())
    return graph, [every.reshape(1, 256, 1), every.reshape(1, 1, 256)]


def arg_max(seed: int):
    """Rows of few integers, of which most have their largest several times."""
    rng = np.random.default_rng(seed)
    x = Tensor("x", (-1, 7), "int8", grid(_scale(rng, 1e-3, 0.5), 0))
    axis = Tensor("axis", (), "int32", None, np.array(1, np.int32))
    dtype = ("int32", "int64")[seed % 2]
    values = rng.integers(-2, 3, (300, 7)).astype(np.int8)
    return one_operator("ARG_MAX", [x, axis], Tensor("y", (-1,), dtype), ArgMax(dtype)), [values]


def average_pool(seed: int):
    """Every sum of a window."""
    rng = np.random.default_rng(seed)
    height, width = (int(n) for n in rng.integers(1, 9, 2))
    step = grid(_scale(rng, 1e-3, 0.5), int(rng.integers(-128, 128)))
    source = Tensor("x", (-1, height, width, 1), "int8", step)
    result = Tensor("y", (-1, 1, 1, 1), "int8", step)
    options = Pooling("VALID", 1, 1, width, height)
    return one_operator("AVERAGE_POOL_2D", [source], result, options), [_sums(height, width)]


def resize_bilinear(seed: int):
    """All pairs of an int8 with every other one, of which many mixtures are exact halves."""
    rng = np.random.default_rng(seed)
    step = grid(_scale(rng, 1e-3, 0.5), int(rng.integers(-128, 128)))
    first, second = np.meshgrid(np.arange(-128, 128), np.arange(-128, 128, 5))
    pairs = np.stack([first.ravel(), second.ravel()], -1).astype(np.int8)
    images = pairs.reshape(1, 1, -1, 2).transpose(0, 3, 1, 2)
    height = int(rng.integers(2, 12))
    x = Tensor("x", (-1, 2, 1, len(pairs)), "int8", step)
    size = Tensor("size", (2,), "int32", None, np.array([height, 1], np.int32))
    y = Tensor("y", (-1, height, 1, len(pairs)), "int8", step)
    options = Resizing(align_corners=seed % 2 == 1, half_pixel_centers=seed % 4 == 2)
    return one_operator("RESIZE_BILINEAR", [x, size], y, options), [images]


def softmax(seed: int):
    """Rows of two to ten classes, most of them with one logit far above or all near each other."""
    rng = np.random.default_rng(seed)
    classes = int(rng.integers(2, 11))
    spread = rng.integers(1, 256, (3000, 1))
    values = (rng.integers(0, 256, (3000, classes)) % spread - 128).astype(np.int8)
    source = Tensor("x", (-1, classes), "int8", grid(_scale(rng, 1e-3, 1.0), 0))
    result = Tensor("y", (-1, classes), "int8", grid(1 / 256, -128))
    return one_operator("SOFTMAX", [source], result, Softmax(float(rng.choice([1.0, 0.3])))), [
        values
    ]


def l2_normalization(seed: int):
    """Vectors of a length of 256 or hardly more or less: odd entries are halves; one is all 0."""
    rng = np.random.default_rng(seed)
    rows = np.zeros((200, 40), np.int64)
    for row in rows[1:]:
        left, place = 65536 + int(rng.integers(-1, 2)), 0
        while left and place < 40:
            most = min(127, int(np.sqrt(left)))
            row[place] = int(rng.integers(1, most + 1)) if place < 5 else most
            left -= row[place] ** 2
            place += 1
    rows *= rng.choice([-1, 1], rows.shape)
    x = Tensor("x", (-1, 40), "int8", grid(_scale(rng, 1e-3, 0.5), 0))
    y = Tensor("y", (-1, 40), "int8", grid(1 / 128, 0))
    return one_operator("L2_NORMALIZATION", [x], y, L2Normalization()), [rows.astype(np.int8)]


def quantization(seed: int):
    """Floats half-way between two steps, and the floats next to them."""
    rng = np.random.default_rng(seed)
    scale = np.float32(_scale(rng, 1e-4, 5.0) if seed % 2 else 2.0 ** rng.integers(-9, 3))
    ties = (np.arange(-140, 140) + 0.5).astype(np.float32) * scale
    values = np.concatenate([ties, np.nextafter(ties, -np.inf), np.nextafter(ties, np.inf)])
    source = Tensor("x", (-1, 1), "float32")
    result = Tensor("y", (-1, 1), "int8", grid(float(scale), int(rng.integers(-20, 20))))
    graph = one_operator("QUANTIZE", [source], result, NoOptions())
    return graph, [values.astype(np.float32)[:, None]]


def requantization(seed: int):
    """Every integer; the steps' quotient is a binary fraction if the seed is even: exact ties.

    Built-in kernels round whole vectors of 16 otherwise than what is left over: rows of 250.
    """
    rng = np.random.default_rng(seed)
    types = (("int8", "int8"), ("int8", "uint8"), ("uint8", "int8"), ("uint8", "uint8"))
    low = {"int8": -128, "uint8": 0}
    kinds = types[seed // 2 % 4]
    source = 2.0 ** int(rng.integers(-6, -1)) if seed % 2 == 0 else _scale(rng, 1e-3, 0.5)
    factor = int(rng.integers(1, 9)) / 16 if seed % 2 == 0 else np.exp(rng.uniform(-5, 2))
    grids = [
        grid(float(np.float32(scale)), low[kind] + int(rng.integers(0, 256)))
        for scale, kind in zip((source, source / factor), kinds, strict=True)
    ]
    x, y = (
        Tensor(name, (-1, 250), kind, step)
        for name, kind, step in zip("xy", kinds, grids, strict=True)
    )
    values = (np.arange(3 * 250).reshape(3, 250) % 256 + low[kinds[0]]).astype(kinds[0])
    return one_operator("QUANTIZE", [x], y, NoOptions()), [values]


def leaky_relu(seed: int):
    """Every integer; with even seeds both factors are binary fractions, so that ties are exact."""
    rng = np.random.default_rng(seed)
    source, output = _scale(rng, 1e-3, 0.5), _scale(rng, 1e-3, 0.5)
    alpha = float(np.float32(rng.uniform(0.02, 1.0)))
    if seed % 2 == 0:
        source, output = 1.0, 2.0 ** int(rng.integers(-1, 3))
        alpha = int(rng.integers(1, 16)) / 16
    else:
        output = source * float(np.float32(np.exp(rng.uniform(-1, 2))))
    values = np.arange(-128, 128, dtype=np.int8)[None]
    grids = [grid(scale, int(rng.integers(-128, 128))) for scale in (source, output)]
    x, y = (Tensor(n, (-1, 256), "int8", g) for n, g in zip("xy", grids, strict=True))
    return one_operator("LEAKY_RELU", [x], y, LeakyRelu(alpha)), [values]


def curve(kind: str, result: tuple[float, int], seed: int):
    """Every integer, on grids fine and coarse: some result lies near a tie."""
    rng = np.random.default_rng(seed)
    source = grid(_scale(rng, 1e-4, 0.3), int(rng.integers(-128, 128)))
    x = Tensor("x", (-1, 256), "int8", source)
    y = Tensor("y", (-1, 256), "int8", grid(*result))
    return one_operator(kind, [x], y, NoOptions()), [np.arange(-128, 128, dtype=np.int8)[None]]


def tabulated(kind: str, seed: int, options: Options = NoOptions()):  # noqa: B008
    """Every integer, on grids of simple quotients if the seed is even."""
    rng = np.random.default_rng(seed)
    scales = [_scale(rng, 1e-3, 0.5)]
    scales.append(scales[0] * float(np.exp(rng.uniform(-1, 2))))
    if seed % 2 == 0:
        scales = (2.0 ** rng.integers(-6, -1, 2)).tolist()
    grids = [grid(scale, int(rng.integers(-128, 128))) for scale in scales]
    x, y = (Tensor(n, (-1, 256), "int8", g) for n, g in zip("xy", grids, strict=True))
    return one_operator(kind, [x], y, options), [np.arange(-128, 128, dtype=np.int8)[None]]


def prelu(seed: int):
    """Every integer times every slope."""
    graph, (values,) = product(seed)
    x, slopes, y = graph.tensors
    scale = x.scale * 2.0 ** (seed % 4 - 2) if seed % 2 else x.scale * slopes.scale * 64
    output = replace(y, quantization=grid(float(scale), y.zero_point))
    return one_operator("PRELU", [x, slopes], output, NoOptions()), [values]


NEAR_TIES = {
    "relu": lambda seed: tabulated("RELU", seed),
    "relu6": lambda seed: tabulated("RELU6", seed),
    "relu_n1_to_1": lambda seed: tabulated("RELU_N1_TO_1", seed),
    "relu_0_to_1": lambda seed: tabulated("RELU_0_TO_1", seed),
    "relu_int16": lambda seed: wide_rectifier("RELU", seed),
    "relu6_int16": lambda seed: wide_rectifier("RELU6", seed),
    "hard_swish": lambda seed: tabulated("HARD_SWISH", seed),
    "l2_normalization": l2_normalization,
    "elu": lambda seed: tabulated("ELU", seed),
    "gelu": lambda seed: tabulated("GELU", seed, Gelu(seed % 4 > 1)),
    "prelu": prelu,
    "logistic": lambda seed: curve("LOGISTIC", (1 / 256, -128), seed),
    "tanh": lambda seed: curve("TANH", (1 / 128, 0), seed),
    "leaky_relu": leaky_relu,
    "convolution": lambda seed: weighted("CONV_2D", seed, False),
    "convolution_per_channel": lambda seed: weighted("CONV_2D", seed, True),
    "depthwise": lambda seed: weighted("DEPTHWISE_CONV_2D", seed, False),
    "depthwise_per_channel": lambda seed: weighted("DEPTHWISE_CONV_2D", seed, True),
    "fully_connected": lambda seed: weighted("FULLY_CONNECTED", seed, False),
    "fully_connected_per_channel": lambda seed: weighted("FULLY_CONNECTED", seed, True),
    "transpose_conv": lambda seed: transpose_conv(seed, False),
    "transpose_conv_per_channel": lambda seed: transpose_conv(seed, True),
    "multiply": product,
    "product_of_two": product_of_two,
    "sum_of_two": sum_of_two,
    "difference": difference,
    "add": addition,
    "add_int16": lambda seed: wide_sum("ADD", seed),
    "difference_int16": lambda seed: wide_sum("SUB", seed),
    "mean": mean,
    "kept_mean": kept_mean,
    "sum": total,
    "batch_matmul": batch_matmul,
    "arg_max": arg_max,
    "average_pool": average_pool,
    "resize_bilinear": resize_bilinear,
    "softmax": softmax,
    "quantize": quantization,
    "requantize": requantization,
}
