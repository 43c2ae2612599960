"""SLICE in keras.ops, with straight-through gradients."""

from __future__ import annotations

import numpy as np

from tflite_export.ops.twin_site import Kernel, Site


def build(site: Site) -> Kernel:
    """The operator at a site."""
    begin, size = (np.asarray(tensor.data).tolist() for tensor in site.inputs[1:])
    taken = (
        slice(None),
        *(
            slice(first, None if count < 0 else first + count)
            for first, count in zip(begin[1:], size[1:], strict=True)
        ),
    )
    return lambda operands: operands[0][taken]
