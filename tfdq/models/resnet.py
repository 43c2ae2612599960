"""The CIFAR ResNets of He et al. 2016, "Deep Residual Learning for Image Recognition"."""

from __future__ import annotations

from typing import Any

from tfdq.models.blocks import (
    Keras,
    check_count,
    conv_bn_relu,
    image_input,
    layers_of,
    logits,
    network,
    post_activation_block,
)


def resnet20(
    input_shape: tuple[int, int, int] = (32, 32, 3),
    classes: int = 10,
    width: int = 16,
    *,
    keras: Keras = 2,
) -> Any:
    """Build ResNet-20: three stages of three post-activation blocks, then global average pool.

    He et al. 2016, section 4.2, with projection shortcuts (their option B; option A pads
    channels with zeros, which has no integer operator of its own): 0.27 M parameters at width 16.

    Args:
        input_shape: `(height, width, channels)`; height and width multiples of 4.
        classes: Number of logits, at least 2.
        width: Channels of the first stage; the others have 2 and 4 times as many.
        keras: 3 for a Keras 3 model, 2 for one of tf_keras.

    Returns:
        An uncompiled model from `(None, height, width, channels)` to `(None, classes)`.

    Raises:
        ValueError: If an argument is out of range.
    """
    return _three_stages(input_shape, classes, width, 3, "resnet20", keras)


def resnet32(
    input_shape: tuple[int, int, int] = (32, 32, 3),
    classes: int = 10,
    width: int = 16,
    *,
    keras: Keras = 2,
) -> Any:
    """Build ResNet-32: `resnet20` with five blocks a stage, 0.47 M parameters at width 16.

    Args:
        input_shape: `(height, width, channels)`; height and width multiples of 4.
        classes: Number of logits, at least 2.
        width: Channels of the first stage; the others have 2 and 4 times as many.
        keras: 3 for a Keras 3 model, 2 for one of tf_keras.

    Returns:
        An uncompiled model from `(None, height, width, channels)` to `(None, classes)`.

    Raises:
        ValueError: If an argument is out of range.
    """
    return _three_stages(input_shape, classes, width, 5, "resnet32", keras)


def _three_stages(
    input_shape: tuple[int, int, int],
    classes: int,
    width: int,
    blocks: int,
    name: str,
    keras: Keras,
) -> Any:
    classes = check_count("classes", classes, 2)
    width = check_count("width", width)
    image, _ = image_input(input_shape, multiple_of=4, minimum=4, keras=keras)
    x = conv_bn_relu(image, width, 3, 1, "stem")
    for stage in range(3):
        for block in range(blocks):
            strides = 2 if stage > 0 and block == 0 else 1
            x = post_activation_block(
                x, width * 2**stage, strides, f"stage{stage + 1}_block{block + 1}"
            )
    x = layers_of(x).GlobalAveragePooling2D(name="pool")(x)
    return network(image, logits(x, classes), name)
