"""The gradient of MINIMUM and MAXIMUM: shared between operands that are near each other."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from keras import ops

from tflite_export.ops.twin_rounding import with_gradient
from tflite_export.ops.twin_site import Kernel, Site, both_operands


def choice(site: Site, choose: Callable[..., Any], sign: float) -> Kernel:
    """Share the gradient between operands that are near each other, as MedianSqueeze does."""
    temperature = 0.01 * max(1, *(high - low for low, high in site.spans))
    every = both_operands(site)

    def kernel(operands: Sequence[Any]) -> Any:
        left, right = every(operands)
        share = ops.stop_gradient(ops.sigmoid((left - right) * (sign / temperature)))
        return with_gradient(choose(left, right), share * left + (1.0 - share) * right)

    return kernel
