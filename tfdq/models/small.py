"""A residual network small enough to train on the embedded 8x8 digits in seconds."""

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


def small_cnn(
    input_shape: tuple[int, int, int] = (8, 8, 1),
    classes: int = 10,
    width: int = 16,
    stem_strides: int = 1,
    *,
    keras: Keras = 2,
) -> Any:
    """Build conv-bn-relu, one post-activation residual block, 2x2 max pool, dense logits.

    Every kind of step that a larger network has, in 4 weight layers: a fused convolution, a
    residual add behind a ReLU, a pool and a classifier.

    Args:
        input_shape: `(height, width, channels)`; height and width multiples of
            `2 * stem_strides`, at least twice that.
        classes: Number of logits, at least 2.
        width: Channels of every convolution.
        stem_strides: Stride of the first convolution; 2 takes a quarter of the computation.
        keras: 3 for a Keras 3 model, 2 for one of tf_keras.

    Returns:
        An uncompiled model from `(None, height, width, channels)` to `(None, classes)`.

    Raises:
        ValueError: If an argument is out of range.
    """
    classes = check_count("classes", classes, 2)
    width = check_count("width", width)
    stem_strides = check_count("stem_strides", stem_strides)
    image, _ = image_input(
        input_shape, multiple_of=2 * stem_strides, minimum=4 * stem_strides, keras=keras
    )
    x = conv_bn_relu(image, width, 3, stem_strides, "stem")
    x = post_activation_block(x, width, 1, "block1")
    x = layers_of(x).MaxPooling2D(2, name="pool")(x)
    x = layers_of(x).Flatten(name="flatten")(x)
    return network(image, logits(x, classes), "small_cnn")
