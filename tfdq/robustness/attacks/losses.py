"""Losses of logits that attacks climb, one value per image; `aux` is one number per image.

Module-level functions, so that a target compiles each of them once; they take tensors of Keras'
backend: logits, float32 (n, classes), labels, int32 (n,), and aux, float32 (n,).
"""

from __future__ import annotations

from typing import Any


def cross_entropy(logits: Any, labels: Any, aux: Any) -> Any:
    """Cross-entropy of softmax(logits); `aux` is not used."""
    from keras import ops

    # On TensorFlow Keras takes what is before a softmax or sigmoid layer for the logits; a sum is
    # behind none.
    return ops.sparse_categorical_crossentropy(labels, logits + 0.0, from_logits=True)


def scaled_cross_entropy(logits: Any, labels: Any, aux: Any) -> Any:
    """Cross-entropy of softmax(aux * logits): `aux` is the inverse temperature of each image."""
    return cross_entropy(logits * aux[:, None], labels, aux)


def margin(logits: Any, labels: Any, aux: Any) -> Any:
    """Largest wrong logit minus the true one, max_{i != y} z_i - z_y; `aux` is not used."""
    from keras import ops

    wrong = ops.where(_is_of(labels, logits), -float("inf"), logits)
    return ops.max(wrong, axis=1) - _logit_of(labels, logits)


def targeted_margin(logits: Any, labels: Any, aux: Any) -> Any:
    """Logit of the class `aux` minus the true one, z_t - z_y."""
    return single_logit(logits, labels, aux) - _logit_of(labels, logits)


def difference_of_logits_ratio(logits: Any, labels: Any, aux: Any) -> Any:
    """DLR, -(z_y - max_{i != y} z_i) / (z_1st - z_3rd); `aux` is not used.

    Invariant to shift and scale of the logits. Needs three classes. Croce & Hein 2020, eq. 6.
    """
    from keras import ops

    ordered = ops.sort(logits, axis=1)
    leading = ops.cast(ops.argmax(logits, axis=1), "int32") == ops.cast(labels, "int32")
    other = ops.where(leading, ordered[:, -2], ordered[:, -1])
    return -(_logit_of(labels, logits) - other) / (ordered[:, -1] - ordered[:, -3] + 1e-12)


def targeted_dlr(logits: Any, labels: Any, aux: Any) -> Any:
    """Targeted DLR, -(z_y - z_t) / (z_1st - (z_3rd + z_4th) / 2) with t = `aux`.

    Needs four classes. Croce & Hein 2020, eq. 7.
    """
    from keras import ops

    ordered = ops.sort(logits, axis=1)
    spread = ordered[:, -1] - 0.5 * (ordered[:, -3] + ordered[:, -4]) + 1e-12
    return targeted_margin(logits, labels, aux) / spread


def single_logit(logits: Any, labels: Any, aux: Any) -> Any:
    """The logit of the class `aux`, z_aux: a row of the Jacobian when differentiated."""
    return _logit_of(aux, logits)


def _is_of(classes: Any, logits: Any) -> Any:
    """Which logit is that of a class of each image, boolean (n, classes)."""
    from keras import ops

    return ops.arange(logits.shape[-1], dtype="int32") == ops.cast(classes, "int32")[:, None]


def _logit_of(classes: Any, logits: Any) -> Any:
    """The logit of a class of each image, (n,), exactly."""
    from keras import ops

    return ops.sum(ops.where(_is_of(classes, logits), logits, 0.0), axis=1)
