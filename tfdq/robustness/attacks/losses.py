"""Losses of logits that attacks climb, one value per image; `aux` is one number per image.

Module-level functions, so that a target traces each of them once.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import tensorflow as tf


def cross_entropy(logits: tf.Tensor, labels: tf.Tensor, aux: tf.Tensor) -> tf.Tensor:
    """Cross-entropy of softmax(logits); `aux` is not used."""
    import tensorflow as tf

    return tf.nn.sparse_softmax_cross_entropy_with_logits(labels=labels, logits=logits)


def scaled_cross_entropy(logits: tf.Tensor, labels: tf.Tensor, aux: tf.Tensor) -> tf.Tensor:
    """Cross-entropy of softmax(aux * logits): `aux` is the inverse temperature of each image."""
    import tensorflow as tf

    return tf.nn.sparse_softmax_cross_entropy_with_logits(
        labels=labels, logits=logits * aux[:, tf.newaxis]
    )


def margin(logits: tf.Tensor, labels: tf.Tensor, aux: tf.Tensor) -> tf.Tensor:
    """Largest wrong logit minus the true one, max_{i != y} z_i - z_y; `aux` is not used."""
    import tensorflow as tf

    true = tf.gather(logits, labels, batch_dims=1)
    hidden = tf.one_hot(labels, tf.shape(logits)[1], on_value=-float("inf"), off_value=0.0)
    return tf.reduce_max(logits + hidden, axis=1) - true


def targeted_margin(logits: tf.Tensor, labels: tf.Tensor, aux: tf.Tensor) -> tf.Tensor:
    """Logit of the class `aux` minus the true one, z_t - z_y."""
    import tensorflow as tf

    target = tf.cast(aux, tf.int32)
    return tf.gather(logits, target, batch_dims=1) - tf.gather(logits, labels, batch_dims=1)


def difference_of_logits_ratio(logits: tf.Tensor, labels: tf.Tensor, aux: tf.Tensor) -> tf.Tensor:
    """DLR, -(z_y - max_{i != y} z_i) / (z_1st - z_3rd); `aux` is not used.

    Invariant to shift and scale of the logits. Needs three classes. Croce & Hein 2020, eq. 6.
    """
    import tensorflow as tf

    ordered = tf.sort(logits, axis=1)
    true = tf.gather(logits, labels, batch_dims=1)
    leading = tf.cast(tf.argmax(logits, axis=1), labels.dtype) == labels
    other = tf.where(leading, ordered[:, -2], ordered[:, -1])
    return -(true - other) / (ordered[:, -1] - ordered[:, -3] + 1e-12)


def targeted_dlr(logits: tf.Tensor, labels: tf.Tensor, aux: tf.Tensor) -> tf.Tensor:
    """Targeted DLR, -(z_y - z_t) / (z_1st - (z_3rd + z_4th) / 2) with t = `aux`.

    Needs four classes. Croce & Hein 2020, eq. 7.
    """
    import tensorflow as tf

    ordered = tf.sort(logits, axis=1)
    spread = ordered[:, -1] - 0.5 * (ordered[:, -3] + ordered[:, -4]) + 1e-12
    return targeted_margin(logits, labels, aux) / spread


def single_logit(logits: tf.Tensor, labels: tf.Tensor, aux: tf.Tensor) -> tf.Tensor:
    """The logit of the class `aux`, z_aux: a row of the Jacobian when differentiated."""
    import tensorflow as tf

    return tf.gather(logits, tf.cast(aux, tf.int32), batch_dims=1)
