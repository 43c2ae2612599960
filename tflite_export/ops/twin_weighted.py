"""The differentiable form of convolutions and dense layers: sums, a bias, a factor per channel."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from keras import ops

from tflite_export.ir.requantization import Rescale, requantization_scale, weighted_factors
from tflite_export.ops.twin_rounding import in_steps, reach_of_sums, rescaler, with_gradient
from tflite_export.ops.twin_site import Kernel, Site, finish

EXACT = 2**24
"""Integers below this magnitude, and their sums, are exact in float32."""

_HALF = 2**8
"""An int16 is multiplied in two halves: a high one in units of this, and a low one from 0 on."""


def weighted(
    site: Site,
    multiply: Callable[[Any, Any], Any],
    layout: Callable[[np.ndarray], np.ndarray],
    axis: int,
    fixed: Rescale,
) -> Kernel:
    """Convolution or matrix product, bias, rescaling.

    Args:
        site: where.
        multiply: (centred input, weights in Keras' layout) to sums.
        layout: from weights as in the file to weights in Keras' layout.
        axis: the dimension of the weights in the file that the output channels are on.
        fixed: the rounding if XNNPACK does not take the operator.
    """
    weights = np.asarray(site.inputs[1].data)
    grid = site.inputs[1].quantization
    if grid is None:
        raise ValueError(f"the weights {site.inputs[1].name!r} have no scale")
    wide = site.output.dtype == "int16"
    channels = weights.shape[axis]
    bias = np.zeros(channels, np.int64)
    if len(site.inputs) > 2:
        bias = np.asarray(site.inputs[2].data).astype(np.int64)
    divisor = max(int(np.gcd.reduce(weights, axis=None)), 1)
    largest = _HALF - 1 if wide else site.largest
    parts = [
        (begin, end, site.constant(layout(part).astype(np.float32)))
        for begin, end, part in _exact_parts(site, weights // divisor, axis, largest)
    ]
    rows = np.moveaxis(weights, axis, 0).reshape(channels, -1).astype(np.int64)
    narrow = int((np.abs(rows).sum(axis=1) * site.largest + np.abs(bias)).max()) < EXACT
    whole = len(parts) == 1
    in_floats = narrow or wide
    offset = site.constant(bias.astype(np.float32) if in_floats else bias.astype(np.int32))
    scales = (site.inputs[0].scale, grid.scale, site.output.scale)
    scale = site.constant(np.broadcast_to(requantization_scale(*scales), (channels,)))
    real = weighted_factors(*scales, fixed, dense=weights.ndim == 2)
    reach = reach_of_sums(rows, bias, site.spans[0], np.broadcast_to(real, (channels,)))
    rescale = None if site.xnnpack else rescaler(fixed, np.broadcast_to(real, (channels,)))

    def multiplied(centred: Any) -> list[Any]:
        return [
            multiply(centred if whole else centred[..., begin:end], ops.convert_to_tensor(weight))
            for begin, end, weight in parts
        ]

    def rescaled_halves(halves: Sequence[Sequence[Any]]) -> Any:
        high, low = (_sum([ops.cast(part, "int64") for part in half]) for half in halves)
        sums = (high * _HALF + low) * divisor + ops.convert_to_tensor(bias, "int64")
        return sums if rescale is None else rescale(sums)

    def kernel(operands: Sequence[Any]) -> Any:
        centred = operands[0]
        products = multiplied(centred)
        smooth = _sum(products) * float(divisor)
        if wide:
            steps = (smooth + ops.convert_to_tensor(offset)) * ops.convert_to_tensor(scale)
            fixed_input = ops.stop_gradient(centred)
            high = ops.floor(fixed_input / _HALF)
            halves = [multiplied(half) for half in (high, fixed_input - high * _HALF)]
            return finish(site, in_steps(rescaled_halves, halves), steps, reach)
        if narrow:
            integers = accumulator = smooth + ops.convert_to_tensor(offset)
        else:
            total = _sum([ops.cast(ops.stop_gradient(product), "int32") for product in products])
            integers = total * divisor + ops.convert_to_tensor(offset)
            accumulator = with_gradient(ops.cast(integers, "float32"), smooth)
        steps = accumulator * ops.convert_to_tensor(scale)
        if rescale is None:
            return finish(site, ops.round(steps), steps, reach)
        return finish(site, in_steps(rescale, ops.stop_gradient(integers)), steps, reach)

    return kernel


def _sum(terms: Sequence[Any]) -> Any:
    total = terms[0]
    for term in terms[1:]:
        total = total + term
    return total


def _exact_parts(
    site: Site, weights: np.ndarray, axis: int, largest: int
) -> list[tuple[int, int, np.ndarray]]:
    """Weights cut along the input channels so that no partial sum of a part can reach `EXACT`.

    Args:
        site: where.
        weights: of the operator.
        axis: as of `weighted`.
        largest: the largest magnitude of what they are multiplied with.

    Returns:
        (first input channel, last + 1, weights of the part) of each part.
    """
    rows = np.abs(np.moveaxis(weights, axis, 0).astype(np.int64))
    if axis == weights.ndim - 1:
        most = int(rows.reshape(rows.shape[0], -1).sum(axis=1).max()) * largest
        if most >= EXACT:
            raise ValueError(
                f"{site.output.name!r}: sums of up to {most} in one depthwise window are not "
                "exact in float32"
            )
        return [(0, 0, weights)]
    inputs = weights.shape[-1]
    each = rows.reshape(rows.shape[0], -1, inputs).sum(axis=1) * largest
    parts, begin, running = [], 0, np.zeros(rows.shape[0], np.int64)
    for channel in range(inputs):
        running = running + each[:, channel]
        if running.max() >= EXACT and channel > begin:
            parts.append((begin, channel, weights[..., begin:channel]))
            begin, running = channel, each[:, channel].copy()
    return [*parts, (begin, inputs, weights[..., begin:])]
