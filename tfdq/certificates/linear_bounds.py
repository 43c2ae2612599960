"""Linear bounds of an integer network: backwards from its outputs, sound in spite of rounding.

An operator with weights computes ``v = clip(round(y), L, H)``, ``y`` an affine function of the
integers before it. The rounding errs by at most ``e``, so ``clip(y - e) <= v <= clip(y + e)``, and
over a known range of ``y`` both sides have a linear bound (the relaxation of CROWN, for a rectifier
with two ends). Substituted from the output to the input, they bound a difference of two logits by a
linear function of the input's integers, which is smallest at a corner of the box.

Dependencies between neurons are kept, which intervals lose. Operators without a linear form end the
substitution: what they compute is bounded by its interval there.

Everything is computed in float64. What that can be off is bounded with the standard error bound of
a dot product, and taken off the result.

Source: Zhang et al., *Efficient Neural Network Robustness Certification with General Activation
Functions*, NeurIPS 2018.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import sparse

from tfdq.certificates.intervals import IntervalBounds, bound_result, last_arithmetic, renames
from tflite_export.ir.graph import (
    DTYPES,
    INTEGER_RANGES,
    Convolution,
    IntegerGraph,
    Operator,
    Tensor,
    activation_range,
)
from tflite_export.ops import OPERATORS
from tflite_export.ops.spec import Box
from tflite_export.ops.windows import windows
from tflite_export.runtime.reference import run

Array = npt.NDArray[np.float64]
Range = tuple[Array, Array]
"""Smallest and largest ``y`` of every entry, float64 ``(n, size)``."""

_RESHAPING = ("RESHAPE", "SQUEEZE", "EXPAND_DIMS")
_WEIGHTED = ("CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED")
_MOST_ROWS = 256
"""Linear functions of a box that are substituted at once."""
_COEFFICIENTS = 1 << 22
"""Coefficients that are held at once, 32 MiB; a few arrays of them come and go."""
_ROUNDINGS = 16
"""Times ``terms * 2**-53`` that a sum of products may be off, its factors' own errors included."""


@dataclass(frozen=True)
class _Affine:
    """One operator as ``clip(round(y), lowest, highest)``, in steps of its result.

    Attributes:
        output: the tensor that it computes.
        terms: the tensors that it reads and the matrix ``(entries, entries of the result)`` that
            each is multiplied by.
        offset: ``(entries of the result,)``.
        error: of the rounding, in steps; 0 for an operator that renames integers.
        lowest: end of the result's range, counted from its zero point.
        highest: the other end.
        magnitude: ``(entries of the result,)``, what ``|y|`` stays below.
    """

    output: int
    terms: tuple[tuple[int, Any], ...]
    offset: Array
    error: float
    lowest: float
    highest: float
    magnitude: Array


@dataclass(frozen=True)
class _Lines:
    """Linear bounds of one operator's results over ranges of ``y``; all ``(n, entries)``."""

    lower_slope: Array
    lower_offset: Array
    upper_slope: Array
    upper_offset: Array


@dataclass(frozen=True)
class Relaxation:
    """What is known of a network over boxes of inputs.

    Attributes:
        bounds: smallest and largest integer of every tensor.
        ranges: of ``y`` of every operator that has a linear form, by the tensor that it computes.
    """

    bounds: IntervalBounds
    ranges: dict[int, Range]


@dataclass(frozen=True)
class Margins:
    """Lower bounds of the label's logit minus each other one, in steps of the output.

    Attributes:
        least: float64 ``(n, classes)``; +inf for the label itself, and where none was asked for.
        slope: float64 ``(n, entries of the input)``, of the linear bound that is the least.
    """

    least: Array
    slope: Array


class LinearBounds:
    """The linear form of an integer network, made once and evaluated on many boxes.

    Args:
        graph: a graph with one input and one output, which has integers from its input on.
        kernels: whose arithmetic, a key of `tflite_export.ops.spec.KERNEL_SETS`.
    """

    def __init__(self, graph: IntegerGraph, kernels: str = "xnnpack") -> None:
        self.graph = graph
        self.kernels = kernels
        self._sizes = {graph.inputs[0]: _size(graph.tensors[graph.inputs[0]])}
        self._affine: dict[int, _Affine] = {}
        for index, operator in graph.activations():
            self._sizes[index] = _size(graph.tensors[index])
            found = self._linear_form(operator, index)
            if found is not None:
                self._affine[index] = found
        # A sum may run over the entries of a tensor, or over an operator's own terms.
        self._unit = _ROUNDINGS * 2.0**-53 * (max(self._sizes.values()) + 64)
        last = last_arithmetic(graph)
        self.logits = graph.inputs[0] if last is None else last.outputs[0]

    @property
    def reaches_logits(self) -> bool:
        """Whether the logits are computed by an operator that has a linear form."""
        return self.logits in self._affine

    def _linear_form(self, operator: Operator, index: int) -> _Affine | None:
        """Return an operator as an affine map, None if it is not taken as one."""
        graph, output = self.graph, self.graph.tensors[index]
        present = [i for i in operator.inputs if i >= 0]
        tensors = [graph.tensors[i] for i in present]
        size = self._sizes[index]
        if output.dtype == "float32":
            return None
        terms: list[tuple[int, Any]]
        offset: Any
        if operator.kind in _RESHAPING or renames(graph, operator):
            terms, offset, error = [(present[0], sparse.identity(size, format="csr"))], 0.0, 0.0
            lowest, highest = _span(output)
        elif operator.kind in _WEIGHTED or (
            operator.kind == "ADD" and tensors[0].shape == tensors[1].shape == output.shape
        ):
            step = OPERATORS[operator.kind].step(operator, tensors, output, self.kernels)
            error = OPERATORS[operator.kind].rounding_error(step)
            ends = activation_range(getattr(operator.options, "activation", "NONE"), output)
            lowest, highest = (float(end - output.zero_point) for end in ends)
            if operator.kind == "ADD":
                factors = [float(t.scale) / float(output.scale) for t in tensors]
                terms = [
                    (i, sparse.identity(size, format="csr") * factor)
                    for i, factor in zip(present, factors, strict=True)
                ]
                offset = 0.0
            else:
                matrix, offset = _weights(operator, tensors, output, size)
                terms = [(present[0], matrix)]
        else:
            return None
        if any(graph.tensors[i].is_constant for i, _ in terms):
            return None
        offsets = np.broadcast_to(np.asarray(offset, np.float64), (size,))
        magnitude = np.abs(offsets)
        for i, matrix in terms:
            widest = max(abs(end) for end in _span(graph.tensors[i]))
            magnitude = magnitude + widest * np.asarray(abs(matrix).sum(axis=0)).ravel()
        return _Affine(index, tuple(terms), offsets, error, lowest, highest, magnitude)

    def relax(
        self,
        low: npt.NDArray[Any],
        high: npt.NDArray[Any],
        known: Mapping[int, Range] | None = None,
    ) -> Relaxation:
        """Bound every tensor over boxes of inputs by intervals, and by ranges known before.

        Args:
            low: the boxes' smallest inputs ``(n, ...)``, in the type of the graph's input.
            high: their largest inputs.
            known: ranges ``(1, size)`` or ``(n, size)`` that hold all over the boxes.
        """
        kind = DTYPES[self.graph.tensors[self.graph.inputs[0]].dtype]
        values: dict[int, Box] = {self.graph.inputs[0]: (low.astype(kind), high.astype(kind))}
        ranges: dict[int, Range] = {}
        for index, operator in self.graph.activations():
            box = bound_result(self.graph, operator, values, self.kernels, index)
            affine = self._affine.get(index)
            if affine is not None:
                bottom, top = self._range(affine, values)
                if known is not None and index in known:
                    bottom = np.maximum(bottom, known[index][0])
                    top = np.minimum(top, known[index][1])
                    box = self._narrowed(affine, box, (bottom, top))
                ranges[index] = (bottom, top)
            values[index] = box
        return Relaxation(IntervalBounds(values), ranges)

    def _range(self, affine: _Affine, values: Mapping[int, Box]) -> Range:
        """Bound ``y`` of an operator from the boxes of what it reads."""
        middle: Array = affine.offset[None]
        spread: Array = self._unit * affine.magnitude[None]
        for index, matrix in affine.terms:
            low, high = self._centred(values[index], index)
            middle = middle + (low + high) / 2 @ matrix
            spread = spread + (high - low) / 2 @ abs(matrix)
        return middle - spread, middle + spread

    def _narrowed(self, affine: _Affine, box: Box, span: Range) -> Box:
        """Cut a box of results to those that a range of ``y`` leaves."""
        zero = self.graph.tensors[affine.output].zero_point
        slack = affine.error + 1e-6
        bottom = np.clip(np.ceil(span[0] - slack), affine.lowest, affine.highest) + zero
        top = np.clip(np.floor(span[1] + slack), affine.lowest, affine.highest) + zero
        low, high = box
        shape = low.shape
        return (
            np.maximum(low, bottom.reshape(shape)).astype(low.dtype),
            np.minimum(high, top.reshape(shape)).astype(high.dtype),
        )

    def _centred(self, box: Box, index: int) -> Range:
        zero = self.graph.tensors[index].zero_point
        low, high = (np.asarray(side, np.float64).reshape(len(side), -1) - zero for side in box)
        return low, high

    def tightened(
        self, low: npt.NDArray[Any], high: npt.NDArray[Any], deadline: float = math.inf
    ) -> dict[int, Range]:
        """Bound ``y`` of every operator behind another one by substitution, for one box.

        Entries that intervals leave one integer only are left out: they have no slack.

        Args:
            low: the box' smallest input ``(1, ...)``.
            high: its largest input.
            deadline: `time.monotonic` at which to stop; what is known by then holds.

        Returns:
            Ranges ``(1, size)``, for `relax`.
        """
        known: dict[int, Range] = {}
        for index, affine in self._affine.items():
            if affine.error == 0 or all(i == self.graph.inputs[0] for i, _ in affine.terms):
                continue
            relaxation = self.relax(low, high, known)
            bottom, top = (side.copy() for side in relaxation.ranges[index])
            box = relaxation.bounds.values[index]
            undecided = np.flatnonzero((box[0] < box[1]).reshape(-1))
            for rows in _pieces(undecided, self._rows_at_once(1)):
                for sign in (1.0, -1.0):
                    if time.monotonic() > deadline:
                        return known | {index: (bottom, top)}
                    before = {
                        i: sign * matrix[:, rows].T.toarray()[None] for i, matrix in affine.terms
                    }
                    least, _ = self._substitute(before, relaxation, affine.output)
                    least = least + sign * affine.offset[rows]
                    slack = self._unit * affine.magnitude[rows]
                    if sign > 0:
                        bottom[0, rows] = np.maximum(bottom[0, rows], least[0] - slack)
                    else:
                        top[0, rows] = np.minimum(top[0, rows], slack - least[0])
            known[index] = (bottom, top)
        return known

    def margins(
        self,
        relaxation: Relaxation,
        classes: npt.NDArray[np.intp],
        wanted: npt.NDArray[np.bool_] | None = None,
    ) -> Margins:
        """Bound the differences of the label's logit and others.

        Args:
            relaxation: of ``n`` boxes.
            classes: ``(n,)``, the label of each box.
            wanted: ``(n, classes)``, the others that are asked for; None: all.
        """
        size, count = self._sizes[self.logits], len(classes)
        asked = np.ones((count, size), bool) if wanted is None else wanted.copy()
        rows = np.arange(count)
        asked[rows, classes] = False
        unit = np.eye(size)
        least = np.full((count, size), np.inf)
        slope = np.zeros((count, self._sizes[self.graph.inputs[0]]))
        worst = np.full(count, np.inf)
        for others in _pieces(np.flatnonzero(asked.any(axis=0)), self._rows_at_once(count)):
            difference = unit[classes][:, None] - unit[others][None]
            found, slopes = self._substitute({self.logits: difference}, relaxation, None)
            found = np.where(asked[:, others], found, np.inf)
            least[:, others] = found
            at = np.argmin(found, axis=1)
            worse = found[rows, at] < worst
            worst = np.where(worse, found[rows, at], worst)
            slope[worse] = slopes[rows, at][worse]
        return Margins(least, slope)

    def _rows_at_once(self, boxes: int) -> int:
        """Return how many linear functions of each box to substitute at once."""
        return max(1, min(_MOST_ROWS, _COEFFICIENTS // (boxes * max(self._sizes.values()))))

    def gradient(
        self, points: npt.NDArray[Any], classes: npt.NDArray[np.intp], others: npt.NDArray[np.intp]
    ) -> tuple[Array, npt.NDArray[Any]]:
        """Differentiate a difference of two logits at inputs, straight through the rounding.

        Args:
            points: integers ``(n, ...)``, in the type of the graph's input.
            classes: ``(n,)``, the class whose logit counts with a plus.
            others: ``(n,)``, the class whose logit counts with a minus.

        Returns:
            float64 ``(n, entries of the input)``, in steps of the output for a step of the input;
            and the output's values ``(n, classes)``.
        """
        values = run(self.graph, [points], self.kernels)
        boxes = {index: (value, value) for index, value in values.items()}
        ranges = {i: self._range(affine, boxes) for i, affine in self._affine.items()}
        relaxation = Relaxation(IntervalBounds(boxes), ranges)
        unit = np.eye(self._sizes[self.logits])
        wanted = (unit[classes] - unit[others])[:, None]

        def active(affine: _Affine, at: Relaxation) -> _Lines:
            value = at.ranges[affine.output][0]
            passes = ((value >= affine.lowest) & (value <= affine.highest)).astype(np.float64)
            nothing = np.zeros_like(passes)
            return _Lines(passes, nothing, passes, nothing)

        _, slope = self._substitute({self.logits: wanted}, relaxation, None, active)
        return slope[:, 0], values[self.graph.outputs[0]].reshape(len(points), -1)

    def _substitute(
        self,
        wanted: Mapping[int, Array],
        relaxation: Relaxation,
        before: int | None,
        lines_of: Callable[[_Affine, Relaxation], _Lines] | None = None,
    ) -> tuple[Array, Array]:
        """Bound linear functions of tensors from below.

        Args:
            wanted: coefficients ``(n or 1, rows, size)`` by tensor.
            relaxation: of the ``n`` boxes.
            before: a tensor; only operators before the one that computes it are substituted.
            lines_of: what the clipping of an operator is replaced by; None: its relaxation.

        Returns:
            The bounds ``(n, rows)`` and their coefficients of the input ``(n, rows, size)``.
        """
        count = len(relaxation.bounds.values[self.graph.inputs[0]][0])
        left = {
            i: np.broadcast_to(part, (count, *part.shape[1:])).copy() for i, part in wanted.items()
        }
        some = next(iter(left.values()))
        least = np.zeros(some.shape[:2])
        slack = np.zeros(some.shape[:2])
        order = [index for index, _ in self.graph.activations()]
        if before is not None:
            order = order[: order.index(before)]
        for index in reversed(order):
            affine = self._affine.get(index)
            if affine is None or index not in left:
                continue
            taken = left.pop(index)
            ends = 8.0 * max(abs(affine.lowest), abs(affine.highest), 1.0)
            slack += self._unit * (np.abs(taken) @ (2 * affine.magnitude + ends))
            if affine.error:
                lines = (lines_of or self._lines)(affine, relaxation)
                positive, negative = np.maximum(taken, 0.0), np.minimum(taken, 0.0)
                least += np.einsum("nrs,ns->nr", positive, lines.lower_offset)
                least += np.einsum("nrs,ns->nr", negative, lines.upper_offset)
                taken = (
                    positive * lines.lower_slope[:, None] + negative * lines.upper_slope[:, None]
                )
            least += taken @ affine.offset
            flat = taken.reshape(-1, taken.shape[2])
            for source, matrix in affine.terms:
                more = (matrix @ flat.T).T.reshape(*taken.shape[:2], -1)
                left[source] = left[source] + more if source in left else more
        slope = left.get(self.graph.inputs[0])
        for index, part in left.items():
            low, high = self._centred(relaxation.bounds.values[index], index)
            least += np.einsum("nrs,ns->nr", np.maximum(part, 0.0), low)
            least += np.einsum("nrs,ns->nr", np.minimum(part, 0.0), high)
            widest = max(abs(end) for end in _span(self.graph.tensors[index]))
            slack += self._unit * widest * np.abs(part).sum(axis=2)
        if slope is None:
            slope = np.zeros((*least.shape, self._sizes[self.graph.inputs[0]]))
        return least - slack, slope

    def _lines(self, affine: _Affine, relaxation: Relaxation) -> _Lines:
        """Relax the clipping of one operator over the ranges of its ``y``."""
        bottom, top = relaxation.ranges[affine.output]
        low, high = self._centred(relaxation.bounds.values[affine.output], affine.output)
        # A result never leaves its interval, which may be narrower than the clipping.
        upper_slope, upper_offset = _upper_line(bottom, top, affine.error, low, high)
        lower_slope, lower_offset = _upper_line(-top, -bottom, affine.error, -high, -low)
        fixed = low == high
        return _Lines(
            np.where(fixed, 0.0, lower_slope),
            np.where(fixed, low, -lower_offset),
            np.where(fixed, 0.0, upper_slope),
            np.where(fixed, high, upper_offset),
        )


def _upper_line(
    bottom: Array, top: Array, error: float, least: Array, most: Array
) -> tuple[Array, Array]:
    """Return slope and offset of a line above ``clip(y + error, least, most)``.

    Args:
        bottom: smallest ``y``.
        top: largest ``y``.
        error: of the rounding.
        least: smallest result.
        most: largest result; the line of slope 0.
    """
    first, last = bottom + error, top + error
    inside = np.minimum(last, most)
    # Below the lower end the chord, else the identity; both hold up to the upper end and beyond.
    below = first < least
    with np.errstate(divide="ignore", invalid="ignore"):
        chord = np.where(below, (inside - least) / (inside - first), 1.0)
    slope = np.where(np.isfinite(chord), np.clip(chord, 0.0, 1.0), 0.0)
    at_first = np.where(below, least, first)
    offset = at_first + slope * (error - first)
    # The line through the end is off by what its products were rounded.
    offset = offset + 1e-12 * (1.0 + np.abs(at_first) + slope * np.maximum(np.abs(first), abs(top)))
    level = (last <= least) | (first >= most) | (last - most > most - first)
    return np.where(level, 0.0, slope), np.where(level, most, offset)


def _pieces(rows: npt.NDArray[np.intp], most: int) -> list[npt.NDArray[np.intp]]:
    """Return rows in pieces of at most ``most``, none of them empty."""
    return np.array_split(rows, -(-len(rows) // most)) if len(rows) else []


def _size(tensor: Tensor) -> int:
    """Return the entries of one sample."""
    return int(np.prod(tensor.shape[1:]))


def _span(tensor: Tensor) -> tuple[float, float]:
    """Return the smallest and largest integer of a tensor, counted from its zero point."""
    low, high = INTEGER_RANGES[tensor.dtype]
    return float(low - tensor.zero_point), float(high - tensor.zero_point)


def _weights(
    operator: Operator, tensors: list[Tensor], output: Tensor, size: int
) -> tuple[Any, Array]:
    """Return matrix and offset of an operator with weights, in steps of its result."""
    source, weight = tensors[:2]
    assert weight.data is not None
    assert weight.quantization is not None
    values = weight.data.astype(np.float64)
    scales = weight.quantization.scale.astype(np.float64)
    factor = float(source.scale) * scales / float(output.scale)
    if operator.kind == "FULLY_CONNECTED":
        matrix = sparse.csr_matrix(values.T)
    else:
        matrix = _convolution_matrix(operator, source, values)
    channels = size // output.shape[-1]
    columns = np.tile(np.broadcast_to(factor, (output.shape[-1],)), channels)
    offset = np.zeros(size)
    if len(tensors) > 2:
        assert tensors[2].data is not None
        offset = np.tile(tensors[2].data.astype(np.float64), channels) * columns
    return (matrix @ sparse.diags(columns)).tocsr(), offset


def _convolution_matrix(operator: Operator, source: Tensor, values: Array) -> Any:
    """Return a convolution of integers as a sparse matrix ``(inputs, outputs)``."""
    options = operator.options
    assert isinstance(options, Convolution)
    entries = _size(source)
    # Entries are numbered from 1; 0 is the padding.
    numbers = np.arange(1, entries + 1).reshape(1, *source.shape[1:])
    view = windows(numbers, values.shape[1:3], options, 0)[0]
    height, width, channels = view.shape[:3]
    if operator.kind == "DEPTHWISE_CONV_2D":
        filters = values.shape[3]
        taken = np.repeat(view, filters // channels, axis=2)
        weights = np.broadcast_to(values[0].transpose(2, 0, 1), taken.shape)
    else:
        filters, inner = values.shape[0], values.shape[3]
        grouped = view.reshape(height, width, channels // inner, inner, *view.shape[3:])
        taken = np.repeat(grouped, filters // (channels // inner), axis=2)
        weights = np.broadcast_to(values.transpose(0, 3, 1, 2), taken.shape)
    results = np.arange(height * width * filters).reshape(height, width, filters)
    columns = np.broadcast_to(results.reshape(*results.shape, *[1] * (taken.ndim - 3)), taken.shape)
    inside = taken > 0
    return sparse.csr_matrix(
        (weights[inside], (taken[inside] - 1, columns[inside])), (entries, results.size)
    )
