"""SOFTMAX in keras.ops, with straight-through gradients."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from keras import ops

from tflite_export.ir.graph import Softmax
from tflite_export.ops.gemmlowp import for_sum
from tflite_export.ops.softmax import fixed_point_table, softmax_table
from tflite_export.ops.spec import Step
from tflite_export.ops.twin_gemmlowp import softmax
from tflite_export.ops.twin_rounding import half_away, in_steps, with_gradient
from tflite_export.ops.twin_site import Kernel, Site, clamp_range


def build(site: Site) -> Kernel:
    """The operator at a site."""
    options = site.operator.options
    assert isinstance(options, Softmax)
    scale, step = site.inputs[0].scale, float(site.output.scale)
    table = site.constant(softmax_table(scale, options.beta))
    factor = float(scale) * options.beta
    fixed = _in_fixed_point(site) if site.kernels.divides else None

    def kernel(operands: Sequence[Any]) -> Any:
        logits = operands[0]
        smooth = ops.softmax(factor * logits, axis=-1) / step
        centred = ops.stop_gradient(logits)
        distance = ops.cast(ops.max(centred, axis=-1, keepdims=True) - centred, "int32")
        if fixed is not None:
            return _finish(site, in_steps(fixed, distance), smooth)
        weights = ops.take(ops.convert_to_tensor(table), distance, axis=0)
        scaled = weights * (1.0 / (_sum_in_order(weights) * step))
        return _finish(site, half_away(scaled), smooth)

    return kernel


def _sum_in_order(weights: Any) -> Any:
    """Add one class after the other, as the kernels do; any other order may round differently."""
    total, *rest = ops.split(weights, weights.shape[-1], axis=-1)
    for weight in rest:
        total = total + weight
    return total


def _in_fixed_point(site: Site) -> Callable[[Any], Any]:
    """From the distances to the largest logit to whole steps, as reference kernels compute."""
    step = Step(site.operator, site.inputs, site.output, site.kernels, site.xnnpack)
    exponentials = fixed_point_table(step)
    tables = [
        site.constant(values.astype(np.int32)) for values in (exponentials, for_sum(exponentials))
    ]

    def fixed(distance: Any) -> Any:
        taken = [ops.take(ops.convert_to_tensor(table), distance, axis=0) for table in tables]
        return softmax(*(ops.cast(values, "int64") for values in taken))

    return fixed


def _finish(site: Site, exact: Any, smooth: Any) -> Any:
    """Clamp to 255/256, which would stop the gradient of a sure prediction; let it pass instead."""
    low, high = clamp_range(site.operator, site.output)
    return with_gradient(ops.clip(exact, low, high), smooth)
