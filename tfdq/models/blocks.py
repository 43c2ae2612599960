"""Building blocks the model builders share: argument checks and convolution-BN-ReLU."""

from __future__ import annotations

import numbers
from collections.abc import Sequence
from typing import Any, TypeAlias

import tf_keras

layers = tf_keras.layers

# A symbolic batch, as Keras layers take and return it; tf_keras does not export its class.
Symbolic: TypeAlias = Any


def image_input(
    input_shape: Sequence[int], multiple_of: int, minimum: int
) -> tuple[Symbolic, tuple[int, int, int]]:
    """Return a symbolic image batch after checking its shape.

    Args:
        input_shape: `(height, width, channels)`.
        multiple_of: The product of the model's strides; height and width must be multiples of
            it, so that no pixel is treated differently at the border.
        minimum: Smallest height and width that leave at least one pixel at the last layer.

    Returns:
        The symbolic input, shape `(None, height, width, channels)`, and the checked shape.

    Raises:
        ValueError: If the shape is not three positive integers, or too small, or no multiple.
    """
    shape = tuple(input_shape) if isinstance(input_shape, Sequence) else (input_shape,)
    if len(shape) != 3 or not all(isinstance(n, numbers.Integral) and n > 0 for n in shape):
        raise ValueError(
            f"input_shape is {input_shape!r}, but must be three positive integers "
            "(height, width, channels), for example (32, 32, 3)."
        )
    height, width, channels = (int(n) for n in shape)
    if min(height, width) < minimum or height % multiple_of or width % multiple_of:
        raise ValueError(
            f"input_shape is {(height, width, channels)}, but height and width must be at least "
            f"{minimum} and multiples of {multiple_of} for this model: pad the images "
            "(`Dataset.padded`), or choose another model."
        )
    return layers.Input((height, width, channels), name="image"), (height, width, channels)


def check_count(name: str, value: Any, minimum: int = 1) -> int:
    """Return `value` as an int, or raise a ValueError naming the argument and its minimum."""
    if isinstance(value, bool) or not isinstance(value, numbers.Integral) or value < minimum:
        raise ValueError(f"{name} is {value!r}, but must be an integer of at least {minimum}.")
    return int(value)


def check_fraction(name: str, value: Any) -> float:
    """Return `value` as a float in [0, 1), or raise a ValueError naming the argument."""
    if isinstance(value, bool) or not isinstance(value, numbers.Real) or not 0 <= float(value) < 1:
        raise ValueError(f"{name} is {value!r}, but must be a number in [0, 1).")
    return float(value)


def conv(x: Symbolic, filters: int, kernel_size: int, strides: int, name: str) -> Symbolic:
    """Apply a bias-free "same" convolution with He-normal kernels (He et al. 2015, eq. 10)."""
    return layers.Conv2D(
        filters,
        kernel_size,
        strides=strides,
        padding="same",
        use_bias=False,
        kernel_initializer="he_normal",
        name=name,
    )(x)


def batch_norm(x: Symbolic, name: str) -> Symbolic:
    """Apply batch normalization with epsilon 1e-5 and a moving average that forgets in 10 steps.

    Keras' default momentum of 0.99 needs hundreds of steps before inference matches training;
    0.9 is what the reference implementations of these networks use.
    """
    return layers.BatchNormalization(momentum=0.9, epsilon=1e-5, name=name)(x)


def conv_bn(x: Symbolic, filters: int, kernel_size: int, strides: int, name: str) -> Symbolic:
    """Apply convolution and batch normalization, named `{name}_conv` and `{name}_bn`."""
    x = conv(x, filters, kernel_size, strides, f"{name}_conv")
    return batch_norm(x, f"{name}_bn")


def conv_bn_relu(x: Symbolic, filters: int, kernel_size: int, strides: int, name: str) -> Symbolic:
    """Apply convolution, batch normalization and ReLU (`{name}_relu`)."""
    return layers.ReLU(name=f"{name}_relu")(conv_bn(x, filters, kernel_size, strides, name))


def bn_relu(x: Symbolic, name: str) -> Symbolic:
    """Apply batch normalization and ReLU: the pre-activation of He et al. 2016b."""
    return layers.ReLU(name=f"{name}_relu")(batch_norm(x, f"{name}_bn"))


def post_activation_block(x: Symbolic, filters: int, strides: int, name: str) -> Symbolic:
    """Apply one basic residual block, `relu(shortcut(x) + bn(conv(relu(bn(conv(x))))))`.

    The shortcut is the identity, or a 1x1 convolution with batch normalization where the stride
    or the number of channels changes (He et al. 2016, option B).

    Args:
        x: Shape `(None, height, width, channels)`.
        filters: Output channels.
        strides: Stride of the first convolution and of the shortcut.
        name: Prefix of the layers' names.

    Returns:
        Shape `(None, ceil(height / strides), ceil(width / strides), filters)`.
    """
    shortcut = x
    if strides != 1 or x.shape[-1] != filters:
        shortcut = conv_bn(x, filters, 1, strides, f"{name}_shortcut")
    y = conv_bn_relu(x, filters, 3, strides, f"{name}_1")
    y = conv_bn(y, filters, 3, 1, f"{name}_2")
    y = layers.Add(name=f"{name}_add")([shortcut, y])
    return layers.ReLU(name=f"{name}_relu")(y)


def logits(x: Symbolic, classes: int) -> Symbolic:
    """Apply the classifier, a dense layer without activation; shape `(None, classes)`."""
    return layers.Dense(classes, name="logits")(x)
