"""What is in a file: layers, types, grids, bits in use, multiply-accumulates."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from tflite_export.files.cost import macs
from tflite_export.files.validate import check_graph
from tflite_export.ir.graph import INTEGER_RANGES, IntegerGraph, Tensor
from tflite_export.runtime.in_use import integers_in_use


def bits_for(levels: int) -> int:
    """Bits that tell ``levels`` values apart."""
    return max(math.ceil(math.log2(max(levels, 1))), 1)


def weight_bits(weights: np.ndarray) -> int:
    """Bits that the integers of a symmetric weight tensor use.

    Weights of few bits are stored stretched by a whole number; it is found and divided out.

    Args:
        weights: stored integers.
    """
    values = np.abs(np.asarray(weights).astype(np.int64))
    divisor = max(int(np.gcd.reduce(values, axis=None)), 1)
    return bits_for(2 * int(values.max(initial=0)) // divisor + 1)


def describe(graph: IntegerGraph) -> list[dict[str, Any]]:
    """One entry for each operator that has a result.

    Args:
        graph: the graph, which may hold operators this package does not know.

    Returns:
        Mappings with ``layer``, ``operator``, ``shape`` (of the result), ``type``, ``scale``,
        ``zero_point``, ``activation_bits`` (in use), ``weight_type``, ``weight_bits`` (in use),
        ``weight_scales`` (how many), ``parameters``, ``macs``; None where it does not apply.
    """
    used = _in_use(graph)
    rows = []
    for operator in graph.operators:
        if not operator.outputs:
            continue
        output = graph.tensors[operator.outputs[0]]
        constants = [t for t in graph.operands(operator) if t is not None and _is_parameter(t)]
        products = macs(graph, operator)
        weights = constants[0] if products and constants else None
        grid = output.quantization
        one_grid = grid is not None and grid.scale.size == 1
        low, high = used.get(operator.outputs[0], (0, 0))
        rows.append(
            {
                "layer": output.name,
                "operator": operator.kind,
                "shape": list(output.shape),
                "type": output.dtype,
                "scale": float(output.scale) if one_grid else None,
                "zero_point": output.zero_point if one_grid else None,
                "activation_bits": bits_for(high - low + 1)
                if operator.outputs[0] in used
                else None,
                "weight_type": weights.dtype if weights else None,
                "weight_bits": _bits_of(weights),
                "weight_scales": _scales_of(weights),
                "parameters": sum(t.data.size for t in constants if t.data is not None)
                if weights
                else 0,
                "macs": products,
            }
        )
    return rows


def _is_parameter(tensor: Tensor) -> bool:
    """Whether it is a constant that stands for real numbers, and no list of sizes or axes."""
    return tensor.is_constant and (tensor.quantization is not None or tensor.dtype == "float32")


def _in_use(graph: IntegerGraph) -> dict[int, tuple[int, int]]:
    """`integers_in_use` of a graph that this package runs; of another nothing is known."""
    try:
        check_graph(graph)
    except ValueError:
        return {}
    return integers_in_use(graph)


def table(graph: IntegerGraph, size: int) -> str:
    """The description as text, for a terminal.

    Args:
        graph: the graph.
        size: bytes of the file.
    """
    header = ("layer", "operator", "shape", "type", "bits", "scale", "zero", "weights", "macs")
    lines = [header]
    rows = describe(graph)
    for row in rows:
        weights = "" if row["weight_type"] is None else _weights_text(row)
        lines.append(
            (
                row["layer"],
                row["operator"],
                "x".join("n" if n < 0 else str(n) for n in row["shape"]),
                row["type"],
                "" if row["activation_bits"] is None else str(row["activation_bits"]),
                "" if row["scale"] is None else f"{row['scale']:.6g}",
                "" if row["zero_point"] is None else str(row["zero_point"]),
                weights,
                f"{row['macs']:,}" if row["macs"] else "",
            )
        )
    widths = [max(len(line[i]) for line in lines) for i in range(len(header))]
    text = [
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    ]
    text.insert(1, "  ".join("-" * width for width in widths))
    parameters, total = sum(row["parameters"] for row in rows), sum(row["macs"] for row in rows)
    text.append(
        f"{len(rows)} operators, {parameters:,} parameters, {total:,} MACs a sample, {size:,} bytes"
    )
    return "\n".join(text)


def _weights_text(row: dict[str, Any]) -> str:
    bits = "" if row["weight_bits"] is None else f", {row['weight_bits']} bits used"
    scales = "" if row["weight_scales"] is None else f", {row['weight_scales']} scales"
    return f"{row['weight_type']}{bits}{scales}"


def _bits_of(weights: Tensor | None) -> int | None:
    if weights is None or weights.data is None or weights.quantization is None:
        return None
    if weights.dtype not in INTEGER_RANGES:
        return None
    return weight_bits(weights.data)


def _scales_of(weights: Tensor | None) -> int | None:
    return (
        None
        if weights is None or weights.quantization is None
        else int(weights.quantization.scale.size)
    )
