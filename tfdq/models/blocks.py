"""Building blocks the model builders share: argument checks and convolution-BN-ReLU.

Each builds layers of the Keras that the symbolic batch it is given is of, tf_keras or Keras 3.
"""

from __future__ import annotations

import importlib
import numbers
from collections.abc import Callable, Sequence
from typing import Any, Literal, TypeAlias

# A symbolic batch, as Keras layers take and return it; tf_keras does not export its class.
Symbolic: TypeAlias = Any
Aggregate: TypeAlias = Callable[[list[Symbolic], str], Symbolic]
Keras: TypeAlias = Literal[2, 3]

_LIBRARIES = {2: "tf_keras", 3: "keras"}


def library_of(x: Symbolic) -> Any:
    """Return the package that a symbolic batch is of, `tf_keras` or `keras`."""
    return importlib.import_module(type(x).__module__.partition(".")[0])


def layers_of(x: Symbolic) -> Any:
    """Return the layers of the Keras that a symbolic batch is of."""
    return library_of(x).layers


def network(image: Symbolic, outputs: Symbolic, name: str) -> Any:
    """Return the model between two symbolic batches, of their Keras."""
    return library_of(image).Model(image, outputs, name=name)


def image_input(
    input_shape: Sequence[int], multiple_of: int, minimum: int, keras: Keras = 2
) -> tuple[Symbolic, tuple[int, int, int]]:
    """Return a symbolic image batch after checking its shape.

    Args:
        input_shape: `(height, width, channels)`.
        multiple_of: The product of the model's strides; height and width must be multiples of
            it, so that no pixel is treated differently at the border.
        minimum: Smallest height and width that leave at least one pixel at the last layer.
        keras: 2 for layers of tf_keras, 3 for those of Keras 3; the other is not imported.

    Returns:
        The symbolic input, shape `(None, height, width, channels)`, and the checked shape.

    Raises:
        ValueError: If the shape is not three positive integers, or too small, or no multiple; or
            `keras` is neither 2 nor 3.
    """
    if keras not in _LIBRARIES:
        raise ValueError(
            f"keras is {keras!r}, but must be 3 for a Keras 3 model or 2 for a tf_keras one."
        )
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
    layers = importlib.import_module(_LIBRARIES[keras]).layers
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
    return layers_of(x).Conv2D(
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
    return layers_of(x).BatchNormalization(momentum=0.9, epsilon=1e-5, name=name)(x)


def conv_bn(x: Symbolic, filters: int, kernel_size: int, strides: int, name: str) -> Symbolic:
    """Apply convolution and batch normalization, named `{name}_conv` and `{name}_bn`."""
    x = conv(x, filters, kernel_size, strides, f"{name}_conv")
    return batch_norm(x, f"{name}_bn")


def conv_bn_relu(x: Symbolic, filters: int, kernel_size: int, strides: int, name: str) -> Symbolic:
    """Apply convolution, batch normalization and ReLU (`{name}_relu`)."""
    return layers_of(x).ReLU(name=f"{name}_relu")(conv_bn(x, filters, kernel_size, strides, name))


def bn_relu(x: Symbolic, name: str) -> Symbolic:
    """Apply batch normalization and ReLU: the pre-activation of He et al. 2016b."""
    return layers_of(x).ReLU(name=f"{name}_relu")(batch_norm(x, f"{name}_bn"))


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
    y = layers_of(x).Add(name=f"{name}_add")([shortcut, y])
    return layers_of(x).ReLU(name=f"{name}_relu")(y)


def pre_activation_block(
    x: Symbolic,
    filters: int,
    strides: int,
    name: str,
    *,
    dropout: float = 0.0,
    aggregate: Aggregate | None = None,
) -> Symbolic:
    """Apply one basic pre-activation block, `x + conv(bn_relu(conv(bn_relu(x))))`.

    Where the stride or the number of channels changes, the shortcut is a 1x1 convolution of the
    first ReLU's output (Zagoruyko and Komodakis 2016, figure 1c and 1d).

    Args:
        x: Shape `(None, height, width, channels)`.
        filters: Output channels.
        strides: Stride of the first convolution and of the shortcut.
        name: Prefix of the layers' names.
        dropout: Rate between the two convolutions, in [0, 1).
        aggregate: Joins shortcut and branch, under a name; by default a sum.

    Returns:
        Shape `(None, ceil(height / strides), ceil(width / strides), filters)`.
    """
    y = bn_relu(x, f"{name}_1")
    shortcut = x
    if strides != 1 or x.shape[-1] != filters:
        shortcut = conv(y, filters, 1, strides, f"{name}_shortcut_conv")
    y = conv(y, filters, 3, strides, f"{name}_1_conv")
    y = bn_relu(y, f"{name}_2")
    if dropout:
        y = layers_of(y).Dropout(dropout, name=f"{name}_dropout")(y)
    y = conv(y, filters, 3, 1, f"{name}_2_conv")
    if aggregate is not None:
        return aggregate([shortcut, y], name)
    return layers_of(y).Add(name=f"{name}_add")([shortcut, y])


def logits(x: Symbolic, classes: int) -> Symbolic:
    """Apply the classifier, a dense layer without activation; shape `(None, classes)`."""
    return layers_of(x).Dense(classes, name="logits")(x)
