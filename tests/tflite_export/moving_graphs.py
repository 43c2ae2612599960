"""Random graphs of one operator that only moves integers."""

import numpy as np

from tests.tflite_export.draw import Draw, like
from tflite_export.ir.graph import NoOptions, Operator, Reduction
from tflite_export.ops.blocks import Blocks
from tflite_export.ops.gather import Gather
from tflite_export.ops.pack import Pack
from tflite_export.ops.split import Split
from tflite_export.ops.squeeze import Squeeze
from tflite_export.ops.strided_slice import StridedSlice
from tflite_export.ops.unpack import Unpack


def _numbers(draw, name, values):
    return draw.constant(name, np.array(values, np.int32), None, "int32")


def _moved(draw, kind, source, shape, options=NoOptions(), constants=()):  # noqa: B008
    return draw.done(kind, (source, *constants), like(draw, source, shape), options)


def transpose(seed):
    draw = Draw(seed)
    sizes = [-1, *(draw.integer(1, 6) for _ in range(draw.integer(1, 4)))]
    order = [0, *(1 + draw.rng.permutation(len(sizes) - 1))]
    source = draw.value("x", tuple(sizes))
    shape = tuple(sizes[axis] for axis in order)
    return _moved(draw, "TRANSPOSE", source, shape, constants=[_numbers(draw, "order", order)])


def squeeze(seed):
    draw = Draw(seed)
    kept, dims = (((-1, 3, 5), (1, -1)), ((-1, 4), (2,)), ((-1,), (1,)))[seed % 3]
    sizes = list(kept)
    for axis in sorted(axis % (len(kept) + len(dims)) for axis in dims):
        sizes.insert(axis, 1)
    return _moved(draw, "SQUEEZE", draw.value("x", tuple(sizes)), kept, Squeeze(dims))


def expand_dims(seed):
    draw = Draw(seed)
    sizes = (-1, 4, 3)[: draw.integer(2, 3)]
    axis = draw.integer(1, len(sizes))
    shape = (*sizes[:axis], 1, *sizes[axis:])
    named = axis - len(shape) if seed % 2 else axis
    constant = _numbers(draw, "axis", named if seed % 3 else [named])
    return _moved(draw, "EXPAND_DIMS", draw.value("x", sizes), shape, constants=[constant])


def strided_slice(seed):
    """The batch whole; of the rest an entry, or a range forward or backward."""
    draw = Draw(seed)
    sizes = (-1, 7, 8, 4)
    begin, end, strides, shape = [0], [0], [1], [-1]
    masks = [1, 1, 0]
    for axis, size in enumerate(sizes[1:], start=1):
        first, last = sorted(draw.rng.choice(size + 1, 2, replace=False).tolist())
        stride = draw.integer(1, 3)
        kind = draw.integer(0, 4)
        span = range(first, last, stride)
        if kind == 0:
            masks[2] |= 1 << axis
            first, last, stride, span = draw.integer(-size, size - 1), 0, 1, None
        elif kind == 1:
            masks[0] |= 1 << axis
            span = range(0, last, stride)
        elif kind == 2:
            masks[1] |= 1 << axis
            span, last = range(first, size, stride), 0
        elif kind == 3:
            first, last, stride = last - 1 - size, first - 1 - size, -stride
            span = range(first + size, last + size, stride)
        begin, end, strides = [*begin, first], [*end, last], [*strides, stride]
        shape += [] if span is None else [len(span)]
    constants = [_numbers(draw, *pair) for pair in (("b", begin), ("e", end), ("s", strides))]
    options = StridedSlice(masks[0], masks[1], shrink_axis_mask=masks[2])
    source = draw.value("x", sizes)
    return _moved(draw, "STRIDED_SLICE", source, tuple(shape), options, constants)


def pack(seed):
    draw = Draw(seed)
    sizes = (-1, 3, 4)[: draw.integer(2, 3)]
    axis, count = draw.integer(1, len(sizes)), draw.integer(1, 4)
    sources = [draw.value("x", sizes)]
    sources += [like(draw, sources[0], sizes, f"x{i}") for i in range(1, count)]
    shape = (*sizes[:axis], count, *sizes[axis:])
    options = Pack(count, axis - len(shape) if seed % 2 else axis)
    return draw.done("PACK", sources, like(draw, sources[0], shape), options, sources)


def _several(draw, kind, inputs, source, count, shape, options):
    graph = _moved(draw, kind, source, shape, options)
    first = graph.outputs[0]
    results = (first, *(like(draw, source, shape, f"y{i}") for i in range(1, count)))
    graph.operators[0] = Operator(kind, inputs, results, options)
    graph.outputs = results
    return graph


def split(seed):
    draw = Draw(seed)
    count, each, axis = draw.integer(1, 4), draw.integer(1, 3), draw.integer(1, 2)
    shape = [-1, 4, 4]
    shape[axis] = each
    whole = list(shape)
    whole[axis] = count * each
    source = draw.value("x", tuple(whole))
    constant = _numbers(draw, "axis", axis - 3 if seed % 2 else axis)
    inputs = (constant, source)
    return _several(draw, "SPLIT", inputs, source, count, tuple(shape), Split(count))


def unpack(seed):
    draw = Draw(seed)
    count, axis = draw.integer(1, 4), draw.integer(1, 2)
    shape = [-1, 3]
    whole = [*shape[:axis], count, *shape[axis:]]
    source = draw.value("x", tuple(whole))
    options = Unpack(count, axis - 3 if seed % 2 else axis)
    return _several(draw, "UNPACK", (source,), source, count, tuple(shape), options)


def space_to_depth(seed):
    draw = Draw(seed)
    side, high, wide, deep = (draw.integer(1, 3) for _ in range(4))
    source = draw.value("x", (-1, high * side, wide * side, deep))
    shape = (-1, high, wide, deep * side * side)
    return _moved(draw, "SPACE_TO_DEPTH", source, shape, Blocks(side))


def depth_to_space(seed):
    draw = Draw(seed)
    side, high, wide, deep = (draw.integer(1, 3) for _ in range(4))
    source = draw.value("x", (-1, high, wide, deep * side * side))
    shape = (-1, high * side, wide * side, deep)
    return _moved(draw, "DEPTH_TO_SPACE", source, shape, Blocks(side))


def _reduced(kind, seed):
    draw = Draw(seed)
    sizes = (-1, 5, 3, 4)
    axes = sorted(draw.rng.choice([1, 2, 3], draw.integer(1, 3), replace=False).tolist())
    keep = seed % 2 == 1
    shape = tuple(1 if i in axes else n for i, n in enumerate(sizes) if keep or i not in axes)
    named = [axis - 4 if seed % 3 == 0 else axis for axis in axes]
    source, constant = draw.value("x", sizes), _numbers(draw, "axes", named)
    return _moved(draw, kind, source, shape, Reduction(keep), [constant])


def gather(seed):
    draw = Draw(seed)
    sizes, axis = (-1, 5, 6), draw.integer(1, 2)
    shape = ((), (4,), (2, 3))[seed % 3]
    positions = _numbers(draw, "places", draw.rng.integers(0, sizes[axis], shape))
    result = (*sizes[:axis], *shape, *sizes[axis + 1 :])
    options = Gather(axis - 3 if seed % 2 else axis)
    return _moved(draw, "GATHER", draw.value("x", sizes), result, options, [positions])


def padv2(seed):
    draw = Draw(seed)
    source = draw.value("x", (-1, 5, 6, 3))
    pairs = draw.rng.integers(0, 3, (4, 2))
    pairs[0] = 0
    shape = (-1, *(int(n + sum(p)) for n, p in zip((5, 6, 3), pairs[1:], strict=True)))
    step = draw.graph.tensors[source].quantization
    data = np.full((1,)[seed % 2 :], draw.integer(-128, 127), np.int8)
    constants = [_numbers(draw, "amounts", pairs), draw.constant("value", data, step, "int8")]
    return _moved(draw, "PADV2", source, shape, constants=constants)


MOVING_GRAPHS = {
    "transpose": transpose,
    "squeeze": squeeze,
    "expand_dims": expand_dims,
    "strided_slice": strided_slice,
    "pack": pack,
    "split": split,
    "unpack": unpack,
    "space_to_depth": space_to_depth,
    "depth_to_space": depth_to_space,
    "reduce_max": lambda seed: _reduced("REDUCE_MAX", seed),
    "reduce_min": lambda seed: _reduced("REDUCE_MIN", seed),
    "gather": gather,
    "padv2": padv2,
}
