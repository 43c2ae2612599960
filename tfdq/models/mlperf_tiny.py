"""ResNet-8, the image classification network of the MLPerf Tiny benchmark."""

from __future__ import annotations

from typing import Any

from tfdq.models.blocks import (
    Keras,
    Symbolic,
    batch_norm,
    check_count,
    image_input,
    layers_of,
    logits,
    network,
)


def resnet8(
    input_shape: tuple[int, int, int] = (32, 32, 3),
    classes: int = 10,
    width: int = 16,
    *,
    keras: Keras = 2,
) -> Any:
    """Build ResNet-8: three stages of one post-activation block, 78 k parameters at width 16.

    The layers of Banbury et al. 2021, "MLPerf Tiny Benchmark": convolutions have a bias, also in
    front of batch normalization, and the shortcuts' 1x1 convolutions have no normalization. It
    ends in logits; the reference's softmax is the loss's business.

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
    classes = check_count("classes", classes, 2)
    width = check_count("width", width)
    image, _ = image_input(input_shape, multiple_of=4, minimum=4, keras=keras)
    x = batch_norm(_convolution(image, width, 3, 1, "stem_conv"), "stem_bn")
    x = layers_of(x).ReLU(name="stem_relu")(x)
    for stage in range(3):
        x = _block(x, width * 2**stage, 1 if stage == 0 else 2, f"stage{stage + 1}")
    x = layers_of(x).GlobalAveragePooling2D(name="pool")(x)
    return network(image, logits(x, classes), "resnet8")


def _convolution(x: Symbolic, filters: int, size: int, strides: int, name: str) -> Symbolic:
    """Apply a "same" convolution with a bias."""
    return layers_of(x).Conv2D(
        filters, size, strides, padding="same", kernel_initializer="he_normal", name=name
    )(x)


def _block(x: Symbolic, filters: int, strides: int, name: str) -> Symbolic:
    layers = layers_of(x)
    y = batch_norm(_convolution(x, filters, 3, strides, f"{name}_1_conv"), f"{name}_1_bn")
    y = layers.ReLU(name=f"{name}_1_relu")(y)
    y = batch_norm(_convolution(y, filters, 3, 1, f"{name}_2_conv"), f"{name}_2_bn")
    if strides != 1:
        x = _convolution(x, filters, 1, strides, f"{name}_shortcut_conv")
    y = layers.Add(name=f"{name}_add")([x, y])
    return layers.ReLU(name=f"{name}_relu")(y)
