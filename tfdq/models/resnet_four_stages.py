"""ResNet-18 with the strides of 32x32 images, activations behind or in front of convolutions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tfdq.models.blocks import (
    Keras,
    bn_relu,
    check_count,
    conv,
    conv_bn_relu,
    image_input,
    layers_of,
    logits,
    network,
    post_activation_block,
    pre_activation_block,
)

_STAGES = 4
_BLOCKS = 2


def resnet18(
    input_shape: tuple[int, int, int] = (32, 32, 3),
    classes: int = 10,
    width: int = 64,
    *,
    keras: Keras = 2,
) -> Any:
    """Build ResNet-18, post-activation: the network of most robust CIFAR-10 records.

    He et al. 2016, table 1, with a 3x3 stem at stride 1 and no pool behind it, as implementations
    for 32x32 images have it: 11.17 M parameters at width 64.

    Args:
        input_shape: `(height, width, channels)`; height and width multiples of 8.
        classes: Number of logits, at least 2.
        width: Channels of the first stage; the others have 2, 4 and 8 times as many.
        keras: 3 for a Keras 3 model, 2 for one of tf_keras.

    Returns:
        An uncompiled model from `(None, height, width, channels)` to `(None, classes)`.

    Raises:
        ValueError: If an argument is out of range.
    """
    classes = check_count("classes", classes, 2)
    width = check_count("width", width)
    image, _ = image_input(input_shape, multiple_of=8, minimum=8, keras=keras)
    x = conv_bn_relu(image, width, 3, 1, "stem")
    x = _stages(x, width, post_activation_block)
    x = layers_of(x).GlobalAveragePooling2D(name="pool")(x)
    return network(image, logits(x, classes), "resnet18")


def preact_resnet18(
    input_shape: tuple[int, int, int] = (32, 32, 3),
    classes: int = 10,
    width: int = 64,
    *,
    keras: Keras = 2,
) -> Any:
    """Build PreAct-ResNet-18: batch normalization and ReLU in front of each convolution.

    He et al. 2016, "Identity Mappings in Deep Residual Networks", with a last BatchNormalization
    and ReLU in front of the pool, as in Wong et al. 2020 and Rice et al. 2020: 11.17 M parameters
    at width 64.

    Args:
        input_shape: `(height, width, channels)`; height and width multiples of 8.
        classes: Number of logits, at least 2.
        width: Channels of the first stage; the others have 2, 4 and 8 times as many.
        keras: 3 for a Keras 3 model, 2 for one of tf_keras.

    Returns:
        An uncompiled model from `(None, height, width, channels)` to `(None, classes)`.

    Raises:
        ValueError: If an argument is out of range.
    """
    classes = check_count("classes", classes, 2)
    width = check_count("width", width)
    image, _ = image_input(input_shape, multiple_of=8, minimum=8, keras=keras)
    x = conv(image, width, 3, 1, "stem_conv")
    x = _stages(x, width, pre_activation_block)
    x = bn_relu(x, "head")
    x = layers_of(x).GlobalAveragePooling2D(name="pool")(x)
    return network(image, logits(x, classes), "preact_resnet18")


def _stages(x: Any, width: int, block_of: Callable[[Any, int, int, str], Any]) -> Any:
    """Return what four stages of two blocks give; each but the first halves height and width."""
    for stage in range(_STAGES):
        for block in range(_BLOCKS):
            strides = 2 if stage > 0 and block == 0 else 1
            name = f"stage{stage + 1}_block{block + 1}"
            x = block_of(x, width * 2**stage, strides, name)
    return x
