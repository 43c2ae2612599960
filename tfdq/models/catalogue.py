"""Models by name, for recipes and the command line."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from typing import Any

from tfdq.models.blocks import Keras
from tfdq.models.mlperf_tiny import resnet8
from tfdq.models.mobilenet import mobilenet_v2
from tfdq.models.resnet import resnet20, resnet32
from tfdq.models.resnet_four_stages import preact_resnet18, resnet18
from tfdq.models.small import small_cnn
from tfdq.models.vgg import vgg16
from tfdq.models.wrn import wide_resnet

_BUILDERS: dict[str, Callable[..., Any]] = {
    "small_cnn": small_cnn,
    "resnet8": resnet8,
    "resnet20": resnet20,
    "resnet32": resnet32,
    "resnet18": resnet18,
    "preact_resnet18": preact_resnet18,
    "vgg16": vgg16,
    "mobilenet_v2": mobilenet_v2,
    "wide_resnet": wide_resnet,
}


def names() -> tuple[str, ...]:
    """Return the names `create` takes, besides the short form `wrn-DEPTH-WIDTH`."""
    return tuple(_BUILDERS)


def create(
    name: str,
    input_shape: tuple[int, int, int],
    classes: int,
    *,
    keras: Keras = 2,
    **options: Any,
) -> Any:
    """Build the model called `name` for the given images and classes.

    Args:
        name: One of `names()`, or `wrn-DEPTH-WIDTH` such as `wrn-28-10`.
        input_shape: `(height, width, channels)`.
        classes: Number of logits.
        keras: 3 for a Keras 3 model, 2 for one of tf_keras.
        **options: Further arguments of the builder, for example `width=8`.

    Returns:
        An uncompiled float model that ends in logits.

    Raises:
        ValueError: If the name is unknown or the builder has no such option.

    Example:
        >>> create("wrn-10-1", (32, 32, 3), 10).output_shape
        (None, 10)
    """
    match = re.fullmatch(r"wrn-(\d+)-(\d+)", name)
    if match:
        name = "wide_resnet"
        options = {"depth": int(match[1]), "width": int(match[2]), **options}
    if name not in _BUILDERS:
        raise ValueError(
            f"there is no model {name!r}: choose one of {', '.join(_BUILDERS)}, or wrn-DEPTH-WIDTH."
        )
    builder = _BUILDERS[name]
    allowed = set(inspect.signature(builder).parameters) - {"input_shape", "classes", "keras"}
    unknown = sorted(set(options) - allowed)
    if unknown:
        raise ValueError(
            f"model {name!r} has no option {', '.join(unknown)}: it takes "
            f"{', '.join(sorted(allowed))}."
        )
    return builder(input_shape=input_shape, classes=classes, keras=keras, **options)
