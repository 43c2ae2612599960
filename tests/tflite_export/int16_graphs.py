"""Random graphs of one operator on int16, made of those on int8."""

import dataclasses

import numpy as np

from tests.tflite_export.draw import Draw, grid
from tflite_export.ir.graph import Quantization

WIDER = 256
"""Steps of int16 in one of int8."""

WEIGHTED = ("CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED", "TRANSPOSE_CONV")


def widened(graph, seed):
    """The graph with activations of int16, whose range is that of the int8 they take the place of.

    Weights stay, biases get 64 bits, and constant operands are drawn anew.
    """
    (operator,) = graph.operators
    rng = np.random.default_rng(seed)
    weights = ()
    if operator.kind in WEIGHTED:
        weights = tuple(i for i in operator.inputs if graph.tensors[i].data is not None)
    for index, tensor in enumerate(graph.tensors):
        if tensor.dtype == "int8" and index not in weights:
            data = tensor.data
            if data is not None:
                data = rng.integers(-(2**15), 2**15, data.shape).astype(np.int16)
            step = grid(float(tensor.scale) / WIDER)
            tensor = dataclasses.replace(tensor, dtype="int16", quantization=step, data=data)
        elif tensor.dtype == "int32" and index in weights and tensor.quantization is not None:
            values = tensor.data.astype(np.int64) * WIDER + rng.integers(0, WIDER, tensor.shape)
            unit = Quantization(tensor.quantization.scale / WIDER, tensor.quantization.zero_point)
            tensor = dataclasses.replace(tensor, dtype="int64", quantization=unit, data=values)
        graph.tensors[index] = tensor
    options = operator.options
    if operator.kind in ("ADD", "SUB"):
        options = dataclasses.replace(options, pot_scale_int16=seed % 2 == 1)
    graph.operators = [dataclasses.replace(operator, options=options)]
    return graph


def requantize(seed):
    """Between two grids of int16, and from one of int8 or to one."""
    draw = Draw(seed)
    kinds = (("int16", "int16"), ("int8", "int16"), ("int16", "int8"))[seed % 3]
    shape = (-1, draw.integer(1, 40), draw.integer(1, 3))
    zeros = [0 if kind == "int16" else None for kind in kinds]
    source = draw.value("x", shape, zero=zeros[0], dtype=kinds[0])
    wider = {"int8": 1, "int16": WIDER}
    factor = float(np.exp(draw.rng.uniform(-1, 1))) * wider[kinds[1]] / wider[kinds[0]]
    scale = draw.scale_of(source) / min(factor, 100.0)
    return draw.done("QUANTIZE", (source,), draw.value("y", shape, scale, zeros[1], kinds[1]))
