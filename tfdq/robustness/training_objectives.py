"""What TRADES and MART add to the loss, on the logits of clean and attacked images."""

from __future__ import annotations

from typing import Any

from keras import ops

# Of the authors of MART: the logarithms stay finite where a probability is 1 or 0.
_ABOVE_ONE = 1.0001
_ABOVE_ZERO = 1e-12


def divergence(clean: Any, attacked: Any) -> Any:
    """Return the Kullback-Leibler divergence of each pair of outputs, shape `(n,)`.

    Args:
        clean: Logits of the distribution that is the reference, shape `(n, classes)`.
        attacked: Logits of the other, shape `(n, classes)`.
    """
    reference, other = ops.log_softmax(clean, axis=-1), ops.log_softmax(attacked, axis=-1)
    return ops.sum(ops.exp(reference) * (reference - other), axis=-1)


def trades(y: Any, clean: Any, attacked: Any, trade_off: float) -> Any:
    """Return what TRADES adds to the cross-entropy of the clean images, shape `(n,)`.

    Args:
        y: Labels; TRADES pulls without them.
        clean: Logits of the images, shape `(n, classes)`.
        attacked: Logits of the attacked images, shape `(n, classes)`.
        trade_off: The weight, 1 / lambda of the paper.

    Source: Zhang et al., Theoretically Principled Trade-off between Robustness and Accuracy, ICML
    2019, equation 5.
    """
    del y
    return trade_off * divergence(clean, attacked)


def mart(y: Any, clean: Any, attacked: Any, trade_off: float) -> Any:
    """Return what MART adds to the cross-entropy of the attacked images, shape `(n,)`.

    The margin term of its boosted cross-entropy, and the divergence, weighted by how far the
    network is from sure of the clean image.

    Args:
        y: Labels, `(n,)`, `(n, 1)` or one-hot `(n, classes)`.
        clean: Logits of the images, shape `(n, classes)`.
        attacked: Logits of the attacked images, shape `(n, classes)`.
        trade_off: The weight, lambda of the paper.

    Source: Wang et al., Improving Adversarial Robustness Requires Revisiting Misclassified
    Examples, ICLR 2020, equations 9 and 11.
    """
    classes = clean.shape[-1]
    one_hot = len(y.shape) > 1 and y.shape[-1] == classes and classes > 1
    labels = ops.argmax(y, axis=-1) if one_hot else ops.reshape(y, (-1,))
    right = ops.one_hot(ops.cast(labels, "int32"), classes, dtype="float32")
    wrongest = ops.max(ops.softmax(attacked, axis=-1) * (1.0 - right), axis=-1)
    margin = -ops.log(_ABOVE_ONE - wrongest + _ABOVE_ZERO)
    sure = ops.sum(ops.softmax(clean, axis=-1) * right, axis=-1)
    return margin + trade_off * divergence(clean, attacked) * (1.0 - sure)


ADDED = {"trades": trades, "mart": mart}
