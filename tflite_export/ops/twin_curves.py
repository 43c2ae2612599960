"""Operators that map each integer by itself, in keras.ops: a table, and the curve's gradient."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from keras import ops

from tflite_export.ir.graph import INTEGER_RANGES
from tflite_export.ops import spec
from tflite_export.ops.twin_rounding import with_gradient
from tflite_export.ops.twin_site import Kernel, Site


def looked_up(site: Site, operator: spec.OperatorSpec, curve: Callable[[Any], Any]) -> Kernel:
    """Return the operator at a site.

    Args:
        site: where it stands.
        operator: its specification, which has the integers.
        curve: the function on reals, for the gradient.
    """
    source, output = site.inputs[0], site.output
    step = spec.Step(site.operator, site.inputs, output, site.kernels, site.xnnpack)
    low, high = INTEGER_RANGES[source.dtype]
    every = np.arange(low, high + 1)
    results = operator.reference(step, [every]).astype(np.float32) - np.float32(output.zero_point)
    table = site.constant(results)
    first = low - source.zero_point
    scale, unit = float(source.scale), float(output.scale)

    def kernel(operands: Sequence[Any]) -> Any:
        (values,) = operands
        places = ops.cast(ops.stop_gradient(values), "int32") - first
        exact = ops.take(ops.convert_to_tensor(table), places, axis=0)
        return with_gradient(exact, curve(values * scale) / unit)

    return kernel
