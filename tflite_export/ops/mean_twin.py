"""MEAN in keras.ops, with straight-through gradients."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from keras import ops

from tflite_export.ir.graph import Reduction
from tflite_export.ir.requantization import mean_multiplier, scale_away, scale_upward
from tflite_export.ops.mean import (
    count_of,
    is_of_stored_integers,
    mean_factors,
    stored_factors,
)
from tflite_export.ops.moving import axes_of
from tflite_export.ops.twin_rounding import in_steps, multiplier_rescaler, rescaler
from tflite_export.ops.twin_site import Kernel, Site, finish

Rounding = Callable[[Any], Any]
"""From sums of centred integers to centred integers of the result, float32."""

_BEYOND = 2.0**40
"""More than any mean in steps of its result."""


def build(site: Site) -> Kernel:
    """The operator at a site."""
    options, source = site.operator.options, site.inputs[0]
    assert isinstance(options, Reduction)
    axes = axes_of(site.inputs[1], len(source.shape))
    count = count_of(source, axes)
    real = float(source.scale) / float(site.output.scale)
    fixed = multiplier_rescaler(scale_away, [mean_multiplier(real, count)])
    if site.xnnpack:
        exact = _in_float32(site, axes)
    elif not site.kernels.divides and is_of_stored_integers(site.operator, source, axes):
        exact = _of_stored(site, count)
    else:

        def exact(centred: Any) -> Any:
            return in_steps(fixed, centred)

    def summed(values: Any) -> Any:
        return ops.sum(values, axis=axes, keepdims=options.keep_dims)

    def of_sums(values: Any) -> Any:
        return fixed(summed(ops.cast(values, "int64")))

    def kernel(operands: Sequence[Any]) -> Any:
        (values,) = operands
        centred = summed(values)
        if source.dtype == "int16":  # sums beyond what float32 has exactly
            integers = in_steps(of_sums, ops.stop_gradient(values))
            return finish(site, integers, centred * (real / count))
        return finish(site, exact(ops.stop_gradient(centred)), centred * (real / count))

    return kernel


def _in_float32(site: Site, axes: tuple[int, ...]) -> Rounding:
    source, output = site.inputs[0], site.output
    factor, offset = mean_factors(source, output, axes)
    shift = float(count_of(source, axes) * source.zero_point)

    def exact(centred: Any) -> Any:
        # the clip keeps a compiler from fusing product and sum, which would round once
        product = ops.clip((centred + shift) * float(factor), -_BEYOND, _BEYOND)
        return ops.round(product + float(offset)) - float(output.zero_point)

    return exact


def _of_stored(site: Site, count: int) -> Rounding:
    source, output = site.inputs[0], site.output
    real, offset = stored_factors(source, output, count)
    away, upward = (rescaler(way, np.array([real])) for way in (scale_away, scale_upward))
    whole = source.shape[-1] // 16 * 16 if site.kernels.sixteens else 0
    in_vectors = np.arange(source.shape[-1]) < whole

    def scaled_sums(centred: Any) -> Any:
        stored = ops.cast(centred, "int64") + count * source.zero_point
        scaled = ops.where(ops.convert_to_tensor(in_vectors), upward(stored), away(stored))
        return scaled + int(offset) - output.zero_point

    return lambda centred: in_steps(scaled_sums, centred)
