"""MobileNetV2 (Sandler et al. 2018, arXiv 1801.04381) with the strides of 32x32 images."""

from __future__ import annotations

import numbers
from typing import Any

from tfdq.models.blocks import (
    Keras,
    Symbolic,
    batch_norm,
    check_count,
    check_fraction,
    conv,
    conv_bn,
    image_input,
    layers_of,
    logits,
    network,
)

# (expansion, channels, repeats, stride): Sandler et al. 2018, table 2; the strides of the stem and
# of the second stage are 1 instead of 2, so that 32x32 images end in 4x4, not 1x1.
_STAGES = (
    (1, 16, 1, 1),
    (6, 24, 2, 1),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)


def mobilenet_v2(
    input_shape: tuple[int, int, int] = (32, 32, 3),
    classes: int = 10,
    alpha: float = 1.0,
    dropout: float = 0.0,
    *,
    keras: Keras = 2,
) -> Any:
    """Build MobileNetV2: inverted residuals with linear bottlenecks, depthwise 3x3, ReLU6.

    The layers, and so the parameters (2.24 M at 10 classes, 3.50 M at 1,000), are the paper's;
    the total stride is 8 instead of 32.

    Args:
        input_shape: `(height, width, channels)`; height and width multiples of 8.
        classes: Number of logits, at least 2.
        alpha: Width multiplier; channels are rounded to multiples of 8 (the paper's rule).
        dropout: Rate before the classifier, in [0, 1).
        keras: 3 for a Keras 3 model, 2 for one of tf_keras.

    Returns:
        An uncompiled model from `(None, height, width, channels)` to `(None, classes)`.

    Raises:
        ValueError: If an argument is out of range.
    """
    classes = check_count("classes", classes, 2)
    dropout = check_fraction("dropout", dropout)
    if isinstance(alpha, bool) or not isinstance(alpha, numbers.Real) or not 0 < float(alpha) <= 4:
        raise ValueError(f"alpha is {alpha!r}, but must be a number in (0, 4].")
    image, _ = image_input(input_shape, multiple_of=8, minimum=8, keras=keras)

    x = conv_bn(image, _channels(32 * alpha), 3, 1, "stem")
    x = layers_of(x).ReLU(6.0, name="stem_relu")(x)
    for stage, (expansion, channels, repeats, stride) in enumerate(_STAGES, start=1):
        for index in range(repeats):
            x = _inverted_residual(
                x,
                expansion,
                _channels(channels * alpha),
                stride if index == 0 else 1,
                f"stage{stage}_block{index + 1}",
            )
    x = conv_bn(x, _channels(1280 * max(1.0, alpha)), 1, 1, "head")
    x = layers_of(x).ReLU(6.0, name="head_relu")(x)
    x = layers_of(x).GlobalAveragePooling2D(name="pool")(x)
    if dropout:
        x = layers_of(x).Dropout(dropout, name="dropout")(x)
    return network(image, logits(x, classes), "mobilenet_v2")


def _inverted_residual(
    x: Symbolic, expansion: int, filters: int, strides: int, name: str
) -> Symbolic:
    """Apply expand 1x1, depthwise 3x3, project 1x1 (linear), and the shortcut where it fits."""
    inputs, channels = x, x.shape[-1]
    if expansion != 1:
        x = conv_bn(x, channels * expansion, 1, 1, f"{name}_expand")
        x = layers_of(x).ReLU(6.0, name=f"{name}_expand_relu")(x)
    x = layers_of(x).DepthwiseConv2D(
        3,
        strides=strides,
        padding="same",
        use_bias=False,
        depthwise_initializer="he_normal",
        name=f"{name}_depthwise_conv",
    )(x)
    x = layers_of(x).ReLU(6.0, name=f"{name}_depthwise_relu")(batch_norm(x, f"{name}_depthwise_bn"))
    x = conv(x, filters, 1, 1, f"{name}_project_conv")
    x = batch_norm(x, f"{name}_project_bn")
    if strides == 1 and channels == filters:
        x = layers_of(x).Add(name=f"{name}_add")([inputs, x])
    return x


def _channels(value: float) -> int:
    """Round to the nearest multiple of 8 that is not more than 10 % below `value`."""
    rounded = max(8, int(value + 4) // 8 * 8)
    return rounded + 8 if rounded < 0.9 * value else rounded
