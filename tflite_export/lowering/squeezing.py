"""The integer forms of the feature squeezers: fewer levels, and medians, by exact operators.

Rounding to fewer levels is a 1 x 1 depthwise convolution between two grids. A median is a network
of minima and maxima on shifted images, all on one grid, so no kernel set can compute it otherwise.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from tfdq.description import Requantize
from tfdq.grid import Grid
from tflite_export.ir.affine import quantize
from tflite_export.ir.graph import MirrorPadding, NoOptions
from tflite_export.lowering.assemble import Assembler
from tflite_export.lowering.grids import on_grid
from tflite_export.runtime.reference import run_operator

Node = int | None
"""A value in a sorting network; None is above every value."""


@dataclass
class SortingNetwork:
    """Minima and maxima of pairs, in the order they are made.

    Attributes:
        leaves: number of values to sort; they are the nodes ``0 .. leaves - 1``.
        steps: for each further node what it is: ("MINIMUM" or "MAXIMUM", node, node).
    """

    leaves: int
    steps: list[tuple[str, int, int]] = field(default_factory=list)

    def merge(self, left: list[Node], right: list[Node]) -> list[Node]:
        """Two sorted lists of one length, a power of 2, as one (Batcher's odd-even merge)."""
        if len(left) == 1:
            return list(self._exchange(left[0], right[0]))
        even = self.merge(left[0::2], right[0::2])
        odd = self.merge(left[1::2], right[1::2])
        inner = zip(odd[:-1], even[1:], strict=True)
        pairs = [self._exchange(first, second) for first, second in inner]
        return [even[0], *(node for pair in pairs for node in pair), odd[-1]]

    def sort(self, lists: list[list[Node]]) -> list[Node]:
        """Sorted lists as one sorted list."""
        if len(lists) == 1:
            return lists[0]
        half = (len(lists) + 1) // 2
        halves = [self.sort(lists[:half]), self.sort(lists[half:])]
        length = 1 << (max(map(len, halves)) - 1).bit_length()
        left, right = (part + [None] * (length - len(part)) for part in halves)
        merged = self.merge(left, right)
        return merged[: sum(map(len, lists))]

    def _exchange(self, left: Node, right: Node) -> tuple[Node, Node]:
        if left is None or right is None:
            return (right if left is None else left), None
        return self._step("MINIMUM", left, right), self._step("MAXIMUM", left, right)

    def _step(self, kind: str, left: int, right: int) -> int:
        self.steps.append((kind, left, right))
        return self.leaves + len(self.steps) - 1

    def evaluate(
        self, wanted: list[int], leaf: Callable[[int], int], step: Callable[[str, int, int], int]
    ) -> list[int]:
        """Some nodes, made from only what they depend on.

        Args:
            wanted: the nodes.
            leaf: makes a leaf.
            step: makes the minimum or maximum of two values that ``leaf`` or ``step`` made.

        Returns:
            What was made of each wanted node.
        """
        needed, made = set(wanted), {}
        for position in range(len(self.steps) - 1, -1, -1):
            if self.leaves + position in needed:
                needed.update(self.steps[position][1:])
        for node in sorted(needed):
            if node < self.leaves:
                made[node] = leaf(node)
            else:
                kind, left, right = self.steps[node - self.leaves]
                made[node] = step(kind, made[left], made[right])
        return [made[node] for node in wanted]


def median_networks(size: int) -> tuple[SortingNetwork, list[int], SortingNetwork, int]:
    """How to find the (upper) median of a square window: sort columns, then merge them.

    A column is sorted once for all windows that it is in.

    Args:
        size: side of the window, at least 2.

    Returns:
        (network that sorts ``size`` values, its nodes from small to large, network that takes
        ``size`` sorted columns one after the other, its node that is the median).
    """
    column = SortingNetwork(size)
    ranks = column.sort([[leaf] for leaf in range(size)])
    window = SortingNetwork(size * size)
    columns = [[*range(first, first + size)] for first in range(0, size * size, size)]
    median = window.sort([list(nodes) for nodes in columns])[size * size // 2]
    return column, [rank for rank in ranks if rank is not None], window, int(median or 0)


def median(assembler: Assembler, source: int, size: int, label: str) -> int:
    """The median of each pixel's neighbourhood, channel by channel, edges mirrored.

    Args:
        assembler: where the operators go.
        source: the images, ``(batch, height, width, channels)``.
        size: side of the window; an even one reaches further up and left.
        label: name of the layer.

    Returns:
        Images of the same shape, on the same grid.
    """
    batch, height, width, channels = assembler.shape(source)
    grid = assembler.grid(source)
    before, after = size // 2, (size - 1) // 2
    pairs = np.array([(0, 0), (before, after), (before, after), (0, 0)], np.int32)
    amounts = assembler.constant(f"{label}/amounts", pairs, None, "int32")
    shape = (batch, height + size - 1, width + size - 1, channels)
    padded = assembler.value(f"{label}/padded", shape, grid)
    assembler.emit("MIRROR_PAD", (source, amounts), padded, MirrorPadding(), label)
    column, ranks, window, middle = median_networks(size)

    def choose(kind: str, left: int, right: int) -> int:
        output = assembler.value(f"{label}/{kind.lower()}", assembler.shape(left), grid)
        return assembler.emit(kind, (left, right), output, NoOptions(), label)

    def row(first: int) -> int:
        return _cut(assembler, padded, 1, first, height, label)

    columns = column.evaluate(ranks, row, choose)

    def shifted(leaf: int) -> int:
        return _cut(assembler, columns[leaf % size], 2, leaf // size, width, label)

    return window.evaluate([middle], shifted, choose)[0]


def _cut(assembler: Assembler, source: int, axis: int, first: int, length: int, label: str) -> int:
    """``length`` rows (axis 1) or columns (axis 2) from ``first`` on."""
    shape = [*assembler.shape(source)]
    shape[axis] = length
    begin = [0] * len(shape)
    begin[axis] = first
    constants = [
        assembler.constant(f"{label}/{name}", np.array(values, np.int32), None, "int32")
        for name, values in (("begin", begin), ("size", shape))
    ]
    output = assembler.value(f"{label}/cut", tuple(shape), assembler.grid(source))
    return assembler.emit("SLICE", (source, *constants), output, NoOptions(), label)


def regrid(
    assembler: Assembler,
    source: int,
    target: Grid,
    label: str,
    table: Requantize,
) -> int:
    """Integers of one grid on another, proven to be what the trained layer makes of each.

    Proven for XNNPACK, which is what an export promises. Fixed-point kernels round twice, which is
    a step off where a value is very close to a half: one of 256 pixels squeezed to 7 bits.

    Args:
        assembler: where the operators go.
        source: the input; all its integers in use are tried.
        target: grid of the result.
        label: name of the layer.
        table: what the trained layer makes of each integer.

    Returns:
        The result; the source itself where the grids are the same.

    Raises:
        ValueError: an integer would not become what the trained layer makes of it, or is not in
            the table.
    """
    begin = len(assembler.graph.operators)
    low, high = assembler.in_use[source]
    if on_grid(assembler.grid(source), target.scale, target.zero_point) and (
        target.qmin <= low and high <= target.qmax
    ):
        result = source
    else:
        result = assembler.rescale(source, target, label)
    graph = assembler.graph
    integers = np.arange(low, high + 1, dtype=np.int8).reshape(-1, 1, 1, 1)
    output = graph.tensors[result]
    first = low - assembler.grid(source).zero_point - table.first
    if first < 0 or first + len(integers) > len(table.values):
        raise ValueError(
            f"layer {label!r} has a table of {len(table.values)} values from {table.first} on, but "
            f"its source has the integers {low} to {high}, zero point "
            f"{assembler.grid(source).zero_point}: its description is of another grid"
        )
    wanted = quantize(table.values[first : first + len(integers)].reshape(integers.shape), output)
    value = np.repeat(integers, assembler.shape(source)[-1], axis=3)
    for operator in graph.operators[begin:]:
        if operator.kind == "DEPTHWISE_CONV_2D":
            value = run_operator(graph, operator, {operator.inputs[0]: value})
    differing = int((value != wanted).any(axis=(1, 2, 3)).sum())
    if differing:
        raise ValueError(
            f"layer {label!r} rounds values half-way between two of its integers: {differing} of "
            f"{len(integers)} would differ from training; quantize the model with the input_range "
            "that the squeezer declares"
        )
    return result
