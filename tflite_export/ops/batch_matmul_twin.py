"""BATCH_MATMUL in keras.ops, with straight-through gradients."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from keras import ops

from tflite_export.ir.requantization import scale_away
from tflite_export.ops.batch_matmul import BatchMatMul, float32_factor, in_order, real_factor
from tflite_export.ops.twin_rounding import in_steps, rescaler
from tflite_export.ops.twin_site import Kernel, Site, both_operands, finish
from tflite_export.ops.twin_weighted import EXACT


def build(site: Site) -> Kernel:
    """The operator at a site."""
    options = site.operator.options
    assert isinstance(options, BatchMatMul)
    factor = real_factor(site.inputs, site.output)
    fixed = rescaler(scale_away, np.array([factor]))
    single = float(float32_factor(site.inputs, site.output)[0])
    every = both_operands(site)
    turned = (options.adj_x, options.adj_y)
    (*_, inner), _ = in_order(site.operator, [tensor.shape for tensor in site.inputs])
    each = (EXACT - 1) // _largest_product(site)
    ranks = [len(tensor.shape) for tensor in site.inputs]

    def kernel(operands: Sequence[Any]) -> Any:
        left, right = (
            ops.reshape(value, (*[1] * (max(ranks) - rank), *value.shape))
            if rank < max(ranks)
            else value
            for value, rank in zip(every(operands), ranks, strict=True)
        )
        left, right = (
            ops.swapaxes(value, -1, -2) if turn else value
            for value, turn in zip((left, right), turned, strict=True)
        )
        smooth = ops.matmul(left, right)
        fixed_left, fixed_right = ops.stop_gradient(left), ops.stop_gradient(right)
        sums = None
        for begin in range(0, inner, each):
            part = ops.matmul(
                fixed_left[..., begin : begin + each], fixed_right[..., begin : begin + each, :]
            )
            whole = ops.cast(part, "int32")
            sums = whole if sums is None else sums + whole
        if site.xnnpack:
            steps = ops.round(ops.cast(sums, "float32") * single)
        else:
            steps = in_steps(fixed, sums)
        return finish(site, steps, smooth * factor)

    return kernel


def _largest_product(site: Site) -> int:
    """The largest product of two centred integers, at least 1."""
    reach = []
    for tensor, (low, high) in zip(site.inputs, site.spans, strict=True):
        if tensor.data is not None:
            centred = tensor.data.astype(np.int64) - tensor.zero_point
            low, high = int(centred.min()), int(centred.max())
        reach.append(max(abs(low), abs(high), 1))
    return reach[0] * reach[1]
