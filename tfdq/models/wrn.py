"""Wide residual networks of Zagoruyko and Komodakis 2016 (arXiv 1605.07146)."""

from __future__ import annotations

from collections.abc import Callable

import tf_keras

from tfdq.models.blocks import (
    Symbolic,
    bn_relu,
    check_count,
    check_fraction,
    conv,
    image_input,
    layers,
    logits,
)

Aggregate = Callable[[list[Symbolic], str], Symbolic]


def wide_resnet(
    depth: int = 28,
    width: int = 10,
    input_shape: tuple[int, int, int] = (32, 32, 3),
    classes: int = 10,
    residual: str = "add",
    dropout: float = 0.0,
) -> tf_keras.Model:
    """Build WRN-depth-width: three groups of pre-activation BN-ReLU-conv blocks.

    WRN-28-10, the defaults, is the Defensive Quantization paper's network (36.5 M parameters).
    A block computes `x + conv(bn_relu(conv(bn_relu(x))))`; where the channels or the stride
    change, the first BN-ReLU feeds the shortcut's 1x1 convolution too.

    Args:
        depth: Number of convolutions, `6 n + 4` for n blocks per group: 10, 16, 22, 28, 34, 40...
        width: Widening factor: the groups have 16, 32 and 64 times `width` channels.
        input_shape: `(height, width, channels)`; height and width multiples of 4.
        classes: Number of logits, at least 2.
        residual: `"add"`, or `"convex"` for the trained convex combination
            `a * x + (1 - a) * f(x)`, `0 <= a <= 1`, that keeps a sum of non-expansive branches
            non-expansive (Cisse et al. 2017, Parseval networks).
        dropout: Rate between the two convolutions of a block, in [0, 1); the paper's is 0 or 0.3.

    Returns:
        An uncompiled tf_keras model from `(None, height, width, channels)` to `(None, classes)`.

    Raises:
        ValueError: If an argument is out of range.
    """
    depth = check_count("depth", depth, 10)
    if (depth - 4) % 6:
        below = depth - (depth - 4) % 6
        raise ValueError(
            f"depth is {depth}, but a wide residual network has 6 n + 4 convolutions: "
            f"the nearest are {below} and {below + 6}."
        )
    width = check_count("width", width)
    classes = check_count("classes", classes, 2)
    dropout = check_fraction("dropout", dropout)
    aggregate = _aggregation(residual)
    image, _ = image_input(input_shape, multiple_of=4, minimum=4)

    x = conv(image, 16, 3, 1, "stem_conv")
    for group in range(3):
        for block in range((depth - 4) // 6):
            strides = 2 if group > 0 and block == 0 else 1
            name = f"group{group + 1}_block{block + 1}"
            x = _block(x, 16 * width * 2**group, strides, dropout, aggregate, name)
    x = bn_relu(x, "head")
    x = layers.GlobalAveragePooling2D(name="pool")(x)
    return tf_keras.Model(image, logits(x, classes), name=f"wrn_{depth}_{width}")


def _block(
    x: Symbolic,
    filters: int,
    strides: int,
    dropout: float,
    aggregate: Aggregate,
    name: str,
) -> Symbolic:
    """Apply one pre-activation block (Zagoruyko and Komodakis 2016, figure 1c and 1d)."""
    y = bn_relu(x, f"{name}_1")
    shortcut = x
    if strides != 1 or x.shape[-1] != filters:
        shortcut = conv(y, filters, 1, strides, f"{name}_shortcut_conv")
    y = conv(y, filters, 3, strides, f"{name}_1_conv")
    y = bn_relu(y, f"{name}_2")
    if dropout:
        y = layers.Dropout(dropout, name=f"{name}_dropout")(y)
    y = conv(y, filters, 3, 1, f"{name}_2_conv")
    return aggregate([shortcut, y], name)


def _aggregation(residual: str) -> Aggregate:
    """Return the function that joins shortcut and branch."""
    if residual == "add":
        return lambda branches, name: layers.Add(name=f"{name}_add")(branches)
    if residual == "convex":
        # Imported here: the quantization package loads tfmot, which a float model can do without.
        from tfdq.quantization import ConvexCombination

        return lambda branches, name: ConvexCombination(name=f"{name}_convex")(branches)
    raise ValueError(f'residual is {residual!r}, but must be "add" or "convex".')
