"""REDUCE_MAX: the largest entry along dimensions other than the batch."""

import numpy as np

from tflite_export.ops.extremes import extreme_spec

SPEC = extreme_spec("REDUCE_MAX", np.max)
