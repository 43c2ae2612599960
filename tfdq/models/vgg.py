"""VGG-16 for 32x32 images, with batch normalization."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tfdq.models.blocks import (
    Keras,
    check_count,
    check_fraction,
    conv_bn_relu,
    image_input,
    layers_of,
    logits,
    network,
)

_STAGES = ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3))


def vgg16(
    input_shape: tuple[int, int, int] = (32, 32, 3),
    classes: int = 10,
    hidden: Sequence[int] = (),
    dropout: float = 0.0,
    *,
    keras: Keras = 2,
) -> Any:
    """Build VGG-16 (Simonyan and Zisserman 2015, configuration D) in its CIFAR form.

    Thirteen 3x3 convolutions, each with batch normalization and ReLU, in five stages that end in
    a 2x2 max pool; 14.7 M parameters at 32x32. The two 4096-unit layers of the ImageNet network
    are dropped, as CIFAR implementations do; `hidden=(512,)` gives the 15.0 M form of Liu and
    Deng 2015 ("Very deep convolutional neural network based image classification using small
    training sample size").

    Args:
        input_shape: `(height, width, channels)`; height and width multiples of 32.
        classes: Number of logits, at least 2.
        hidden: Units of dense ReLU layers between the convolutions and the logits.
        dropout: Rate before each dense layer, in [0, 1).
        keras: 3 for a Keras 3 model, 2 for one of tf_keras.

    Returns:
        An uncompiled model from `(None, height, width, channels)` to `(None, classes)`.

    Raises:
        ValueError: If an argument is out of range.
    """
    classes = check_count("classes", classes, 2)
    units = [check_count("hidden", n) for n in hidden]
    dropout = check_fraction("dropout", dropout)
    image, _ = image_input(input_shape, multiple_of=32, minimum=32, keras=keras)
    x = image
    for stage, (filters, convolutions) in enumerate(_STAGES, start=1):
        for index in range(1, convolutions + 1):
            x = conv_bn_relu(x, filters, 3, 1, f"stage{stage}_{index}")
        x = layers_of(x).MaxPooling2D(2, name=f"stage{stage}_pool")(x)
    x = layers_of(x).Flatten(name="flatten")(x)
    for index, size in enumerate(units, start=1):
        if dropout:
            x = layers_of(x).Dropout(dropout, name=f"hidden{index}_dropout")(x)
        x = layers_of(x).Dense(size, kernel_initializer="he_normal", name=f"hidden{index}")(x)
        x = layers_of(x).ReLU(name=f"hidden{index}_relu")(x)
    if dropout:
        x = layers_of(x).Dropout(dropout, name="dropout")(x)
    return network(image, logits(x, classes), "vgg16")
