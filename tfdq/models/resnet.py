"""The CIFAR ResNet-20 of He et al. 2016, "Deep Residual Learning for Image Recognition"."""

from __future__ import annotations

import tf_keras

from tfdq.models.blocks import (
    check_count,
    conv_bn_relu,
    image_input,
    layers,
    logits,
    post_activation_block,
)


def resnet20(
    input_shape: tuple[int, int, int] = (32, 32, 3), classes: int = 10, width: int = 16
) -> tf_keras.Model:
    """Build ResNet-20: three stages of three post-activation blocks, then global average pool.

    He et al. 2016, section 4.2, with projection shortcuts (their option B; option A pads
    channels with zeros, which has no integer operator of its own): 0.27 M parameters at width 16.

    Args:
        input_shape: `(height, width, channels)`; height and width multiples of 4.
        classes: Number of logits, at least 2.
        width: Channels of the first stage; the others have 2 and 4 times as many.

    Returns:
        An uncompiled tf_keras model from `(None, height, width, channels)` to `(None, classes)`.

    Raises:
        ValueError: If an argument is out of range.
    """
    classes = check_count("classes", classes, 2)
    width = check_count("width", width)
    image, _ = image_input(input_shape, multiple_of=4, minimum=4)
    x = conv_bn_relu(image, width, 3, 1, "stem")
    for stage in range(3):
        for block in range(3):
            strides = 2 if stage > 0 and block == 0 else 1
            x = post_activation_block(
                x, width * 2**stage, strides, f"stage{stage + 1}_block{block + 1}"
            )
    x = layers.GlobalAveragePooling2D(name="pool")(x)
    return tf_keras.Model(image, logits(x, classes), name="resnet20")
