"""SUM in keras.ops, with straight-through gradients."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from keras import ops

from tflite_export.ir.graph import Reduction
from tflite_export.ir.requantization import scale_once
from tflite_export.ops.mean import count_of
from tflite_export.ops.moving import axes_of
from tflite_export.ops.sum import sum_in_float32
from tflite_export.ops.twin_rounding import in_steps, rescaler
from tflite_export.ops.twin_site import Kernel, Site, finish

_BEYOND = 2.0**40
"""More than any sum in steps of its result."""


def build(site: Site) -> Kernel:
    """The operator at a site."""
    options, source, output = site.operator.options, site.inputs[0], site.output
    assert isinstance(options, Reduction)
    axes = axes_of(site.inputs[1], len(source.shape))
    terms = count_of(source, axes)
    real = float(source.scale) / float(output.scale)
    factor, offset = sum_in_float32(source, output, terms)
    shift = float(terms * source.zero_point)
    fixed = rescaler(scale_once, np.array([real]))

    def kernel(operands: Sequence[Any]) -> Any:
        centred = ops.sum(operands[0], axis=axes, keepdims=options.keep_dims)
        fixed_sum = ops.stop_gradient(centred)
        if site.xnnpack:
            # the clip keeps a compiler from fusing product and sum, which would round once
            product = ops.clip((fixed_sum + shift) * float(factor), -_BEYOND, _BEYOND)
            exact = ops.round(product + float(offset)) - float(output.zero_point)
        else:
            exact = in_steps(fixed, fixed_sum)
        return finish(site, exact, centred * real)

    return kernel
