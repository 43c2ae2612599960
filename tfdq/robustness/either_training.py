"""`AdversarialTraining` where tf_keras is installed, and where it is not."""

from __future__ import annotations

from typing import Any

from tfdq.which_keras import installed

AdversarialTraining: Any
"""Trains a model of either Keras; without tf_keras, of Keras 3 alone."""

if installed("tf_keras"):
    from tfdq.robustness import adversarial_training

    AdversarialTraining = adversarial_training.AdversarialTraining
else:
    from tfdq.robustness import keras3_adversarial_training

    AdversarialTraining = keras3_adversarial_training.Keras3AdversarialTraining
