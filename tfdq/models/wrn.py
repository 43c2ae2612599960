"""Wide residual networks of Zagoruyko and Komodakis 2016 (arXiv 1605.07146)."""

from __future__ import annotations

from typing import Any

from tfdq.models.blocks import (
    Aggregate,
    Keras,
    bn_relu,
    check_count,
    check_fraction,
    conv,
    image_input,
    layers_of,
    logits,
    network,
    pre_activation_block,
)


def wide_resnet(
    depth: int = 28,
    width: int = 10,
    input_shape: tuple[int, int, int] = (32, 32, 3),
    classes: int = 10,
    residual: str = "add",
    dropout: float = 0.0,
    *,
    keras: Keras = 2,
) -> Any:
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
        keras: 3 for a Keras 3 model, 2 for one of tf_keras.

    Returns:
        An uncompiled model from `(None, height, width, channels)` to `(None, classes)`.

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
    aggregate = _aggregation(residual, keras)
    image, _ = image_input(input_shape, multiple_of=4, minimum=4, keras=keras)

    x = conv(image, 16, 3, 1, "stem_conv")
    for group in range(3):
        for block in range((depth - 4) // 6):
            strides = 2 if group > 0 and block == 0 else 1
            name = f"group{group + 1}_block{block + 1}"
            x = pre_activation_block(
                x, 16 * width * 2**group, strides, name, dropout=dropout, aggregate=aggregate
            )
    x = bn_relu(x, "head")
    x = layers_of(x).GlobalAveragePooling2D(name="pool")(x)
    return network(image, logits(x, classes), f"wrn_{depth}_{width}")


def _aggregation(residual: str, keras: Keras) -> Aggregate | None:
    """Return the function that joins shortcut and branch; None for a sum."""
    if residual == "add":
        return None
    if residual != "convex":
        raise ValueError(f'residual is {residual!r}, but must be "add" or "convex".')
    if keras == 3:
        raise ValueError(
            'residual="convex" is a layer of tf_keras: build with keras=2, or residual="add".'
        )
    # Imported here: the quantization package loads tfmot, which a float model can do without.
    from tfdq.quantization import ConvexCombination

    return lambda branches, name: ConvexCombination(name=f"{name}_convex")(branches)
