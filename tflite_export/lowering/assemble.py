"""Build an `IntegerGraph` operator by operator, each exact in integers.

This module knows what int8 kernels can and can't do, and nothing of Keras:

- A convolution, a dense layer, a BatchNorm, a pool and a change of grid are all "sums times a
  factor, plus an offset"; each becomes one operator whose rounding is known.
- An activation of few bits lives on an int8 grid; its clamp is a fused ReLU6, or, where the range
  is not [0, 6], the end of the int8 range itself, to which the zero point is moved.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np

from tfdq.description import repeated_shape
from tfdq.grid import INT8_MIN, Grid
from tflite_export.ir.graph import (
    BATCH,
    Concatenation,
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
from tflite_export.lowering.grids import (
    UNIT,
    clamp_plan,
    covering,
    mean_takes,
    on_grid,
    scale_of_means,
    ties_up,
    units_for,
)
from tflite_export.ops.checks import LARGEST_FACTOR, SMALLEST_FACTOR
from tflite_export.ops.windows import pool_counts

_LARGEST_BIAS = 2**30
_SMALLEST_FACTOR = 2.0**-30
_LARGEST_FACTOR = 255.0
_SMALLEST_TERM = 2.0**-9


@dataclass(frozen=True)
class Affine:
    """A linear layer in integers: ``scale * sum(weights * x) + offset`` for each channel.

    Attributes:
        weights: int8 in the layout of the file (see `Assembler.weighted`), magnitudes up to
            ``largest``.
        scale: float64, ``(channels,)``, positive.
        offset: float64, ``(channels,)``.
        largest: magnitude up to which the weights may be stretched in storage: 127 for int8, 7 for
            int4.
    """

    weights: np.ndarray
    scale: np.ndarray
    offset: np.ndarray
    largest: int = UNIT


class Assembler:
    """Appends operators to a graph.

    Args:
        name: of the graph.
        int4: store weights of at most 4 bits as packed INT4 tensors.

    Attributes:
        graph: what has been built.
        in_use: smallest and largest integer of each tensor built, by index.
        biases: for each layer with weights the bias as stored, a real number for each channel.
        slack: for each layer that rounds between its operators, by how many steps of its result
            that can move it, beyond the last rounding.
    """

    def __init__(self, name: str, int4: bool = False) -> None:
        self.graph = IntegerGraph(name=name)
        self.int4 = int4
        self.in_use: dict[int, tuple[int, int]] = {}
        self.biases: dict[str, np.ndarray] = {}
        self.slack: dict[str, int] = {}
        self._names: set[str] = set()

    def unique(self, name: str) -> str:
        """A tensor name not used yet."""
        candidate, count = name, 1
        while candidate in self._names:
            candidate, count = f"{name}_{count}", count + 1
        self._names.add(candidate)
        return candidate

    def value(self, name: str, shape: tuple[int, ...], target: Grid) -> int:
        """A new int8 tensor on a grid; returns its index."""
        grid = Quantization.per_tensor(target.scale, target.zero_point)
        index = self.graph.add_tensor(Tensor(self.unique(name), shape, "int8", grid))
        self.in_use[index] = (target.qmin, target.qmax)
        return index

    def constant(self, name: str, data: np.ndarray, grid: Quantization | None, dtype: str) -> int:
        """A new constant; returns its index."""
        return self.graph.add_tensor(Tensor(self.unique(name), data.shape, dtype, grid, data))

    def emit(
        self, kind: str, inputs: tuple[int, ...], output: int, options: Options, label: str
    ) -> int:
        """Append an operator; returns its output."""
        self.graph.operators.append(Operator(kind, inputs, (output,), options, label))
        return output

    def shape(self, index: int) -> tuple[int, ...]:
        """Shape of a tensor, the batch `BATCH`."""
        return self.graph.tensors[index].shape

    def grid(self, index: int) -> Grid:
        """The grid of a tensor, with the integers in use."""
        tensor = self.graph.tensors[index]
        return Grid(float(tensor.scale), tensor.zero_point, *self.in_use[index])

    def weighted(
        self,
        kind: str,
        source: int,
        affine: Affine,
        target: Grid,
        options: Convolution | FullyConnected,
        shape: tuple[int, ...],
        label: str,
    ) -> int:
        """A convolution or dense layer.

        Args:
            kind: ``CONV_2D`` with weights (out, h, w, in), ``DEPTHWISE_CONV_2D`` with (1, h, w,
                out), or ``FULLY_CONNECTED`` with (out, in) and one scale for all channels.
            source: the input.
            affine: what to compute.
            target: grid of the result.
            options: strides, padding, dilation; the activation is set here.
            shape: of the result.
            label: name of the layer.

        Returns:
            The result.
        """
        axis = 3 if kind == "DEPTHWISE_CONV_2D" else 0
        stored, scale = _stretched(affine)
        source_scale = float(self.graph.tensors[source].scale)
        stored, scale = _representable(
            stored, scale, affine.offset, axis, source_scale, target.scale
        )
        dtype = "int4" if affine.largest < 8 else "int8"
        lift = np.zeros(scale.size)
        if dtype == "int4":
            lift = target.scale * _rounding_lift(scale * source_scale / target.scale, kind)
        bias = np.rint((affine.offset - lift) / (scale * source_scale)).astype(np.int32)
        self.biases.setdefault(label, bias * (scale * source_scale) + lift)
        # beyond this factor one unit of the sum saturates the output, and so it does at it
        scale = np.minimum(scale, _LARGEST_FACTOR * target.scale / source_scale)
        steps = scale.astype(np.float32)
        unit = np.float32(source_scale) * steps
        one_scale = kind == "FULLY_CONNECTED"
        weight_grid = Quantization.per_channel(
            steps[:1] if one_scale else steps, axis if not one_scale else 0
        )
        bias_grid = Quantization.per_channel(unit[:1] if one_scale else unit, 0)
        weights = self.constant(f"{label}/weights", stored.astype(np.int8), weight_grid, dtype)
        biases = self.constant(f"{label}/bias", bias, bias_grid, "int32")
        first, activation, second = clamp_plan(target)
        output = self.value(label, shape, first)
        self.emit(
            kind, (source, weights, biases), output, replace(options, activation=activation), label
        )
        return output if second is None else self._lowered(output, second, label)

    def rescale(
        self,
        source: int,
        target: Grid,
        label: str,
        factor: np.ndarray | float = 1.0,
        offset: np.ndarray | float = 0.0,
    ) -> int:
        """``factor * x + offset`` on another grid, as a 1 x 1 depthwise convolution.

        With factor 1, offset 0 and the same scale the integers are unchanged but for the zero
        point.

        Args:
            source: the input, any rank; the last dimension holds the channels.
            target: grid of the result.
            label: name of the layer.
            factor: float64, a number or ``(channels,)``; may be negative.
            offset: float64, a number or ``(channels,)``.
        """
        shape = self.shape(source)
        channels = shape[-1]
        factors = np.broadcast_to(np.asarray(factor, np.float64), (channels,))
        offsets = np.broadcast_to(np.asarray(offset, np.float64), (channels,))
        image = shape
        if len(shape) != 4:
            image = (BATCH, 1, int(np.prod(shape[1:-1])), channels)
            source = self.reshape(source, image, label)
        sizes = np.maximum(np.abs(factors), 1e-30)
        units = units_for(sizes, offsets, float(self.graph.tensors[source].scale))
        weights = np.where(factors < 0, -units, units).reshape(1, 1, 1, channels)
        affine = Affine(weights, sizes / units, offsets)
        result = self.weighted(
            "DEPTHWISE_CONV_2D", source, affine, target, Convolution(), image, label
        )
        return result if len(shape) == 4 else self.reshape(result, shape, label)

    def _lowered(self, source: int, target: Grid, label: str) -> int:
        """The same integers moved down so that int8 ends at the lowest wanted; nothing is above."""
        result = self.rescale(source, Grid(target.scale, target.zero_point), label)
        self.in_use[result] = (target.qmin, target.qmax)
        return result

    def reshape(self, source: int, shape: tuple[int, ...], label: str) -> int:
        """The same integers in another shape (the batch first)."""
        if self.shape(source) == shape:
            return source
        goal = self.constant(f"{label}/shape", np.array(shape, np.int32), None, "int32")
        output = self.value(label, shape, self.grid(source))
        return self.emit("RESHAPE", (source, goal), output, NoOptions(), label)

    def pad(self, source: int, amounts: tuple[tuple[int, int], tuple[int, int]], label: str) -> int:
        """Zeros (the zero point) around an image: ((top, bottom), (left, right))."""
        pairs = np.array([(0, 0), *amounts, (0, 0)], np.int32)
        batch, height, width, channels = self.shape(source)
        shape = (batch, height + sum(amounts[0]), width + sum(amounts[1]), channels)
        goal = self.constant(f"{label}/amounts", pairs, None, "int32")
        output = self.value(label, shape, self.grid(source))
        return self.emit("PAD", (source, goal), output, NoOptions(), label)

    def max_pool(self, source: int, options: Pooling, label: str) -> int:
        """The largest integer of each window; the grid stays."""
        output = self.value(label, self._pooled(source, options), self.grid(source))
        return self.emit("MAX_POOL_2D", (source,), output, options, label)

    def average_pool(self, source: int, options: Pooling, target: Grid, label: str) -> int:
        """The mean of each window on a grid of its own, rounded once.

        It is a depthwise convolution with equal weights. Where ``SAME`` padding cuts windows off at
        the border, there is one for each number of pixels that is left, of which a ``MUL`` by 0 and
        1 keeps the windows of that number; the sum of these is exact.
        """
        counts = pool_counts(self.shape(source)[1:3], options)
        window = (options.filter_h, options.filter_w)
        # ties abound among the means of few-bit integers
        self.slack[label] = 0
        sizes = [int(size) for size in np.unique(counts)]
        if sizes == [window[0] * window[1]]:
            options = replace(options, padding="VALID")
        means = [self._window_means(source, options, size, target, label) for size in sizes]
        if len(sizes) == 1:
            return means[0]
        kept = [
            self._masked(mean, counts == size, label)
            for mean, size in zip(means, sizes, strict=True)
        ]
        total = kept[0]
        for part in kept[1:]:
            output = self.value(label, self.shape(part), self.grid(part))
            total = self.emit("ADD", (total, part), output, Elementwise(), label)
        return total

    def _window_means(
        self, source: int, options: Pooling, count: int, target: Grid, label: str
    ) -> int:
        """The sum of each window over ``count``."""
        shape = self._pooled(source, options)
        grid = self.grid(source)
        unit = grid.scale / (UNIT * count)
        channels = shape[3]
        affine = Affine(
            np.full((1, options.filter_h, options.filter_w, channels), UNIT),
            np.full(channels, 1.0 / (UNIT * count)),
            np.full(channels, unit * ties_up(grid, count, target)),
        )
        geometry = Convolution(options.padding, options.stride_w, options.stride_h)
        return self.weighted("DEPTHWISE_CONV_2D", source, affine, target, geometry, shape, label)

    def _masked(self, source: int, mask: np.ndarray, label: str) -> int:
        """The same integers where ``mask``, ``(1, h, w, 1)``, is true, the zero point elsewhere."""
        ones = Quantization.per_tensor(1.0)
        constant = self.constant(f"{label}/mask", mask.astype(np.int8), ones, "int8")
        grid = self.grid(source)
        grid = replace(
            grid, qmin=min(grid.qmin, grid.zero_point), qmax=max(grid.qmax, grid.zero_point)
        )
        output = self.value(label, self.shape(source), grid)
        return self.emit("MUL", (source, constant), output, Elementwise(), label)

    def mean(self, source: int, target: Grid, label: str) -> int:
        """The mean over height and width, ``(batch, channels)``, on a grid of its own.

        ``MEAN`` is many times faster than a depthwise convolution with so large a window; where its
        kernels do not reach, that takes its place.
        """
        batch, height, width, channels = self.shape(source)
        grid, count = self.grid(source), height * width
        if not mean_takes(grid, count, target):
            whole = Pooling("VALID", 1, 1, width, height)
            pooled = self.average_pool(source, whole, target, label)
            return self.reshape(pooled, (batch, channels), label)
        # ties abound among the means of few-bit integers
        self.slack[label] = 0
        axes = self.constant(f"{label}/axes", np.array([1, 2], np.int32), None, "int32")
        goal = replace(target, scale=scale_of_means(grid, count, target))
        output = self.value(label, (batch, channels), goal)
        return self.emit("MEAN", (source, axes), output, Reduction(), label)

    def softmax(self, source: int, label: str) -> int:
        """Probabilities in units of 1/256."""
        output = self.value(label, self.shape(source), Grid(1 / 256, INT8_MIN))
        return self.emit("SOFTMAX", (source,), output, Softmax(1.0), label)

    def concatenate(self, sources: list[int], axis: int, target: Grid, label: str) -> int:
        """Tensors side by side; those on another grid than ``target`` are brought onto it first."""
        goal, aligned = self._aligned(sources, target, label)
        shapes = [self.shape(s) for s in aligned]
        total = sum(shape[axis] for shape in shapes)
        shape = (*shapes[0][:axis], total, *shapes[0][axis + 1 :])
        output = self.value(label, shape, goal)
        return self.emit("CONCATENATION", tuple(aligned), output, Concatenation(axis), label)

    def choose(self, kind: str, sources: list[int], target: Grid, label: str) -> int:
        """The ``MAXIMUM`` or ``MINIMUM`` of tensors of one shape, entry by entry, on one grid."""
        goal, (chosen, *others) = self._aligned(sources, target, label)
        for other in others:
            output = self.value(label, self.shape(chosen), goal)
            chosen = self.emit(kind, (chosen, other), output, NoOptions(), label)
        return chosen

    def _aligned(self, sources: list[int], target: Grid, label: str) -> tuple[Grid, list[int]]:
        """Tensors brought onto one grid, and that grid with the integers in use."""
        goal, _, _ = clamp_plan(target)
        same = [s for s in sources if on_grid(self.grid(s), target.scale, None)]
        if len(same) == len(sources) and len({self.grid(s).zero_point for s in sources}) == 1:
            goal = replace(goal, zero_point=self.grid(sources[0]).zero_point)
        aligned = [
            s
            if on_grid(self.grid(s), goal.scale, goal.zero_point)
            else self.rescale(s, target, label)
            for s in sources
        ]
        low, high = zip(*(self.in_use[s] for s in aligned), strict=True)
        return replace(goal, qmin=min(low), qmax=max(high)), aligned

    def add(self, terms: list[tuple[int, float]], target: Grid, label: str) -> int:
        """``sum(coefficient * x)`` on a grid; partial sums of more terms have 8-bit grids.

        Args:
            terms: pairs (tensor, coefficient, not 0).
            target: grid of the result.
            label: name of the layer.
        """
        if [coefficient for _, coefficient in terms] == [1.0, -1.0]:
            (left, _), (right, _) = terms
            return self._add_two(left, right, target, label, "SUB")
        scaled = [self._in_units(tensor, coefficient, label) for tensor, coefficient in terms]
        total = scaled[0]
        for position, term in enumerate(scaled[1:], 2):
            last = position == len(scaled)
            goal = target if last else covering(self.grid(total), self.grid(term))
            if not last:
                self._loosen(label, goal, target, 1)
            total = self._add_two(total, term, goal, label)
        return total

    def multiply(self, left: int, right: int, target: Grid, label: str) -> int:
        """The product of two tensors of one rank; axes of size 1 repeat along the other's.

        Raises:
            ValueError: a product of one step each is not worth 2^-16 to 256 steps of the result.
        """
        ratio = self.grid(left).scale * self.grid(right).scale / target.scale
        if not SMALLEST_FACTOR <= ratio < LARGEST_FACTOR:
            raise ValueError(
                f"layer {label!r} multiplies steps whose product is {ratio:.3g} steps of its "
                "result, and kernels take 2^-16 to 256; train further, so that neither a factor "
                "nor the result is nearly zero, or let its range follow the data "
                '(activation_range="moving_average")'
            )
        first, activation, second = clamp_plan(target)
        output = self.value(label, self._repeated(left, right), first)
        self.emit("MUL", (left, right), output, Elementwise(activation), label)
        return output if second is None else self._lowered(output, second, label)

    def _repeated(self, left: int, right: int) -> tuple[int, ...]:
        shape = repeated_shape(self.shape(left), self.shape(right))
        return tuple(BATCH if size is None else size for size in shape)

    def _add_two(self, left: int, right: int, target: Grid, label: str, kind: str = "ADD") -> int:
        left, right = (self._within_reach(term, target, label) for term in (left, right))
        first, activation, second = clamp_plan(target)
        output = self.value(label, self._repeated(left, right), first)
        self.emit(kind, (left, right), output, Elementwise(activation), label)
        return output if second is None else self._lowered(output, second, label)

    def _within_reach(self, source: int, target: Grid, label: str) -> int:
        """A term whose step the default kernels can add.

        A step of 256 steps of the sum or more is more than the sum's whole range (the term was
        always zero): a coarser form of it that saturates the sum as well stands in. For one below
        1/1024 step of the sum, which they leave to other kernels, a form in steps of 1/256 does:
        such a term is less than half a step in all.
        """
        if self.grid(source).scale < _SMALLEST_TERM * target.scale:
            return self.rescale(source, Grid(2 * _SMALLEST_TERM * target.scale, 0), label)
        if self.grid(source).scale <= _LARGEST_FACTOR * target.scale:
            return source
        return self.rescale(source, Grid(_LARGEST_FACTOR * target.scale, 0), label)

    def _loosen(self, label: str, between: Grid, target: Grid, roundings: int) -> None:
        """Note ``roundings`` roundings to a grid in between, half a step each."""
        steps = math.ceil(0.5 * roundings * between.scale / target.scale)
        self.slack[label] = self.slack.get(label, 0) + steps

    def _in_units(self, source: int, coefficient: float, label: str) -> int:
        """``coefficient * x`` with the same steps: only what one is worth changes, and its sign."""
        if coefficient == 1.0:
            return source
        grid = self.grid(source)
        goal = replace(grid, scale=grid.scale * abs(coefficient))
        if coefficient < 0:
            # Counted downward from the zero point, -128..127 stays -128..127.
            zero = -1 - grid.zero_point
            goal = replace(goal, zero_point=zero, qmin=-1 - grid.qmax, qmax=-1 - grid.qmin)
        return self.rescale(source, goal, label, coefficient)

    def _pooled(self, source: int, options: Pooling) -> tuple[int, ...]:
        batch, height, width, channels = self.shape(source)
        rows = window_count(height, options.filter_h, options.stride_h, options.padding)
        columns = window_count(width, options.filter_w, options.stride_w, options.padding)
        return (batch, rows, columns, channels)


def window_count(size: int, window: int, stride: int, padding: str, dilation: int = 1) -> int:
    """How many windows fit one dimension."""
    span = (window - 1) * dilation + 1
    return -(-size // stride) if padding == "SAME" else (size - span) // stride + 1


def _stretched(affine: Affine) -> tuple[np.ndarray, np.ndarray]:
    """Weights times a whole number that fills the storage, their scale divided by it.

    The bias is counted in units of input step times weight step; of few-bit weights that step is
    large and would round the bias away.
    """
    largest = max(int(np.abs(affine.weights).max(initial=0)), 1)
    stretch = affine.largest // largest
    return affine.weights.astype(np.int64) * stretch, affine.scale / stretch


def _rounding_lift(factor: np.ndarray, kind: str) -> np.ndarray:
    """What the kernels that take int4 add by rounding twice, in steps of the output.

    They round the scaled sum to ``2**-k`` of a step first, ties up, then to whole steps, ties up: a
    value rounds up from ``1/2 - 2**-(k+1)`` on. With sums of few units that is much; as part of the
    bias it is undone.

    Args:
        factor: from the sum to steps of the output, ``(channels,)``.
        kind: the operator; a depthwise convolution's channels beyond whole eights round ties away
            from zero.
    """
    exponent = np.maximum(-np.frexp(factor)[1], 0)
    lift = np.where(exponent > 0, np.ldexp(1.0, -(exponent + 1)), 0.0)
    if kind == "DEPTHWISE_CONV_2D":
        lift[factor.size // 8 * 8 :] = 0.0
    return lift


def _representable(
    weights: np.ndarray,
    scale: np.ndarray,
    offset: np.ndarray,
    axis: int,
    source_scale: float,
    target_scale: float,
) -> tuple[np.ndarray, np.ndarray]:
    """Widen the step of channels whose bias or factor would leave its number range.

    Such a channel is all but constant (BatchNorm's gamma is near 0, or the kernel is); its weights
    are rounded to the wider step.
    """
    least = np.maximum(
        np.abs(offset) / (_LARGEST_BIAS * source_scale),
        _SMALLEST_FACTOR * target_scale / source_scale,
    )
    if scale.size == 1 or np.ptp(scale) == 0.0:
        least = np.full_like(scale, least.max()) if axis == 0 and weights.ndim == 2 else least
    wider = np.maximum(scale, least)
    ratio = np.ones(weights.ndim, int)
    ratio[axis] = -1
    shrunk = np.rint(weights * (scale / wider).reshape([int(n) for n in ratio]))
    return np.where((scale < wider).reshape([int(n) for n in ratio]), shrunk, weights), wider
