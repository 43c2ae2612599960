"""REDUCE_MIN: the smallest entry along dimensions other than the batch."""

import numpy as np

from tflite_export.ops.extremes import extreme_spec

SPEC = extreme_spec("REDUCE_MIN", np.min)
