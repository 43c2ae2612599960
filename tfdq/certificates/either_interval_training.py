"""`IntervalTraining` where tf_keras is installed, and where it is not."""

from __future__ import annotations

from typing import Any

from tfdq.which_keras import installed

IntervalTraining: Any
"""Trains a model of either Keras; without tf_keras, of Keras 3 alone."""

if installed("tf_keras"):
    from tfdq.certificates import interval_training

    IntervalTraining = interval_training.IntervalTraining
else:
    from tfdq.certificates import keras3_interval_training

    IntervalTraining = keras3_interval_training.Keras3IntervalTraining
