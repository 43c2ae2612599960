"""Cross-entropy of labels that are smoothed, of Keras 3."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops


@keras.saving.register_keras_serializable(package="tfdq")
class SmoothedCrossentropy(keras.losses.Loss):
    r"""Cross-entropy between logits and labels of which a share is spread over all classes.

    .. math:: -\sum_k \left( (1 - a)\, [k = y] + \frac{a}{K} \right) \log p_k

    What `keras.losses.CategoricalCrossentropy(label_smoothing=a)` is for one-hot labels, for labels
    that are numbers.

    Args:
        smoothing: the share :math:`a`, in [0, 1).
        **kwargs: passed to ``keras.losses.Loss``.

    Source: Szegedy et al., *Rethinking the Inception Architecture for Computer Vision*, CVPR 2016,
    section 7.
    """

    from_logits = True

    def __init__(self, smoothing: float, **kwargs: Any) -> None:
        super().__init__(**{"name": "smoothed_crossentropy", **kwargs})
        self.smoothing = float(smoothing)

    def call(self, y_true: Any, y_pred: Any) -> Any:
        """Return the loss of each example, shape ``(n,)``.

        Args:
            y_true: labels, integers, ``(n,)`` or ``(n, 1)``.
            y_pred: logits, ``(n, classes)``.
        """
        labels = ops.cast(ops.reshape(y_true, (-1,)), "int32")
        return keras.losses.categorical_crossentropy(
            ops.one_hot(labels, y_pred.shape[-1], dtype="float32"),
            y_pred,
            from_logits=True,
            label_smoothing=self.smoothing,
        )

    def get_config(self) -> dict[str, Any]:
        """Return the arguments of the constructor."""
        return {**super().get_config(), "smoothing": self.smoothing}
