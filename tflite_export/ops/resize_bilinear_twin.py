"""RESIZE_BILINEAR in keras.ops, with straight-through gradients."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from keras import ops

from tflite_export.ops.resize_bilinear import mixes
from tflite_export.ops.spec import Step
from tflite_export.ops.twin_site import Kernel, Site, finish


def build(site: Site) -> Kernel:
    """The operator at a site."""
    step = Step(site.operator, site.inputs, site.output, site.kernels, site.xnnpack)
    axes = tuple(enumerate(mixes(step), start=1))
    whole = int(axes[0][1].unit * axes[1][1].unit)
    zero = site.output.zero_point

    def mixed(values: Any, kind: str) -> Any:
        """Sums in multiples of ``1 / whole``; of whole numbers, below 2**31."""
        for axis, mix in axes:
            share = mix.share.reshape(-1, *(1,) * (3 - axis))
            shares = ops.convert_to_tensor(share.astype(kind), kind)
            first, second = (ops.take(values, at, axis=axis) for at in (mix.first, mix.second))
            values = first * (int(mix.unit) - shares) + second * shares
        return values

    def kernel(operands: Sequence[Any]) -> Any:
        sums = mixed(ops.cast(ops.stop_gradient(operands[0]), "int32") + zero, "int32")
        if site.xnnpack:
            exact = (sums + whole // 2) // whole
        else:
            exact = ops.sign(sums) * ((ops.absolute(sums) + whole // 2) // whole)
        smooth = mixed(operands[0], "float32") / whole
        return finish(site, ops.cast(exact - zero, "float32"), smooth)

    return kernel
