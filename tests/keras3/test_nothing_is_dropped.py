"""Every argument and flag of every layer that is taken is kept, or refused by the layer's name.

Kept is proved by behaviour: outputs, statistics, losses, constraints and what is trained are those
of the float model.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import keras
import numpy as np
import pytest

from tests.exhaustive import only
from tests.quantization.kept import behaviour, constructor_parameters, randomize
from tfdq.keras3 import QuantizedModel, calibrate, quantize_model
from tfdq.keras3.layer_kinds import KINDS

L = keras.layers
# 8-bit rounding of inputs, kernels and outputs.
TOLERANCE = 0.05


def relu(x: Any) -> Any:
    """Compute something else than Keras' function of that name."""
    return keras.ops.relu(x) * 1.5


def softmax(x: Any) -> Any:
    """Compute a softmax over the rows of an image."""
    return keras.ops.softmax(x, axis=1)


REQUIRED: dict[str, dict[str, Any]] = {
    **{name: {} for name in ("BatchNormalization", "LeakyReLU", "PReLU", "ReLU", "Softmax")},
    **{f"{kind}Normalization": {} for kind in ("Layer", "RMS")},
    **{name: {} for name in ("ELU", "Flatten", "Identity", "RandomFlip", "UnitNormalization")},
    **{f"Global{kind}Pooling{rank}D": {} for kind in ("Average", "Max") for rank in (1, 2)},
    **{name: {} for name in ("Add", "Average", "Concatenate", "Maximum", "Minimum")},
    **{name: {} for name in ("Multiply", "Subtract")},
    **{f"{kind}Pooling{rank}D": {"pool_size": 2} for kind in ("Average", "Max") for rank in (1, 2)},
    **{f"DepthwiseConv{rank}D": {"kernel_size": 3} for rank in (1, 2)},
    **{f"{kind}{rank}D": {} for kind in ("Cropping", "ZeroPadding") for rank in (1, 2)},
    **{f"UpSampling{rank}D": {} for rank in (1, 2)},
    **{f"SpatialDropout{rank}D": {"rate": 0.4} for rank in (1, 2, 3)},
    **{name: {"rate": 0.4} for name in ("Dropout", "AlphaDropout", "GaussianDropout")},
    "Activation": {"activation": "relu"},
    "Resizing": {"height": 4, "width": 4},
    **{f"Random{name}": {"factor": 0.2} for name in ("Rotation", "Contrast", "Brightness")},
    "Conv1D": {"filters": 4, "kernel_size": 3},
    "Conv2D": {"filters": 4, "kernel_size": 3},
    "Conv2DTranspose": {"filters": 4, "kernel_size": 3},
    "Dense": {"units": 4},
    "GaussianNoise": {"stddev": 0.4},
    "Normalization": {"mean": 1.0, "variance": 2.0},
    "Permute": {"dims": (2, 1, 3)},
    "RandomTranslation": {"height_factor": 0.2, "width_factor": 0.2},
    "RandomZoom": {"height_factor": 0.2},
    "RepeatVector": {"n": 3},
    "Rescaling": {"scale": 2.0},
    "Reshape": {"target_shape": (9, 4, 4)},
    "SeparableConv1D": {"filters": 4, "kernel_size": 3},
    "SeparableConv2D": {"filters": 4, "kernel_size": 3},
    "TimeDistributed": {"layer": L.Dense(4)},
}
REGULARIZER = keras.regularizers.L1(0.1)
CONSTRAINT = keras.constraints.MaxNorm(0.5)
VALUES: dict[str, list[Any]] = {
    "activation": ["relu", "relu6", "sigmoid", "elu", relu, softmax],
    "alpha": [0.5],
    "antialias": [True],
    "activity_regularizer": [keras.regularizers.L2(0.1)],
    "axis": [1, 2],
    "center": [False],
    "crop_to_aspect_ratio": [True],
    "cropping": [1],
    "data_format": ["channels_first"],
    "depth_multiplier": [2],
    "dilation_rate": [2],
    "dtype": ["mixed_bfloat16", "float16"],
    "epsilon": [0.5],
    "groups": [2],
    "interpolation": ["bilinear"],
    "invert": [True],
    "keepdims": [True],
    "kernel_size": [2],
    "lora_rank": [2],
    "max_value": [3.0, 6.0],
    "momentum": [0.5],
    "negative_slope": [0.3],
    "offset": [0.5],
    "output_padding": [1],
    "padding": ["same"],
    "pad_to_aspect_ratio": [True],
    "pool_size": [3],
    "renorm": [True],
    "scale": [False],
    "shared_axes": [(1, 2)],
    "size": [3],
    "strides": [2],
    "synchronized": [True],
    "threshold": [0.4],
    "trainable": [False],
    "use_bias": [False],
    **{
        f"{part}_{what}": [value]
        for part in ("kernel", "bias", "depthwise", "pointwise", "gamma", "beta", "alpha")
        for what, value in (("regularizer", REGULARIZER), ("constraint", CONSTRAINT))
    },
}
OF_CLASS: dict[tuple[str, str], list[Any]] = {
    ("ZeroPadding2D", "padding"): [((0, 2), (1, 0))],
    ("ZeroPadding1D", "padding"): [(0, 2)],
    ("Rescaling", "scale"): [3.0],
}
# Not here: what makes weights that are copied anyway, draws other numbers, or is of augmentation.
LEFT_OUT = {
    *(f"{p}_initializer" for p in ("kernel", "bias", "depthwise", "pointwise", "gamma", "beta")),
    *("moving_mean_initializer", "moving_variance_initializer", "renorm_clipping"),
    *("renorm_momentum", "rank", "pool_dimensions", "pool_mode", "autocast", "seed", "name"),
    *("lora_alpha", "quantization_config", "filters", "units", "target_shape", "dims", "mean"),
    *("layer", "n"),
    *("variance", "stddev", "factor", "height_factor", "width_factor", "mode", "fill_mode"),
    *(
        "fill_value",
        "value_range",
        "bounding_box_format",
        "noise_shape",
        "rate",
        "height",
        "width",
        "alpha_initializer",
    ),
}
MERGING = ("Add", "Average", "Concatenate", "Maximum", "Minimum", "Multiply", "Subtract")
FUSED = ("Conv2D", "DepthwiseConv2D", "Dense")


def taken() -> list[str]:
    """Return the names of Keras' layers that are quantized."""
    layers = {kind for kind in KINDS if issubclass(kind, L.Layer)}
    return sorted(kind.__name__ for kind in layers if getattr(L, kind.__name__, None) is kind)


def shape_of(name: str) -> tuple[int, ...]:
    if name in ("Dense", "RepeatVector"):
        return (6,)
    rank = next((int(c) for c in name if c.isdigit()), 2)
    return (12, 4) if rank == 1 else (6,) * rank + (4,)


def build(name: str, arguments: dict[str, Any], fused: bool = False) -> keras.Model:
    """Return a float model with the layer, alone or with what it is fused with behind it."""
    image = keras.Input(shape_of(name), name="image")
    x = [image, L.ReLU(name="other")(image)] if name in MERGING else image
    settings = {"name": "it", **REQUIRED[name], **arguments}
    if "layer" in settings:
        settings["layer"] = settings["layer"].__class__.from_config(settings["layer"].get_config())
    x = getattr(L, name)(**settings)(x)
    if fused:
        x = L.ReLU(name="after")(L.BatchNormalization(momentum=0.5, name="norm")(x))
    return randomize(keras.Model(image, x))


def values(name: str) -> Iterator[tuple[str, Any]]:
    """Yield each argument of a layer with each value to try."""
    accepted = constructor_parameters(getattr(L, name)) | {"activity_regularizer"}
    for argument in sorted(accepted - LEFT_OUT):
        for value in OF_CLASS.get((name, argument), VALUES[argument]):
            yield argument, value


def quantized_or_refused(model: keras.Model) -> tuple[QuantizedModel | None, str]:
    """Return the quantized model, or None and the message that refuses it."""
    try:
        return quantize_model(model, 0.0), ""
    except ValueError as error:
        return None, str(error)


def check(name: str, arguments: dict[str, Any], fused: bool) -> None:
    """Check that quantization keeps what is given, or refuses it by the layer's name."""
    try:
        model = build(name, arguments, fused)
    except (TypeError, ValueError, NotImplementedError):
        return  # Keras itself does not take it.
    quantized, refusal = quantized_or_refused(model)
    if quantized is None:
        assert "'it' (" in refusal, arguments
        return
    images = np.random.default_rng(0).uniform(-2, 7.5, (8, *shape_of(name))).astype(np.float32)
    calibrate(quantized, images)
    expected, found = behaviour(model, images), behaviour(quantized, images)
    # Zeros are of noise, of which `test_call_mode` is, and of few levels.
    differing = set(found.differs(expected, TOLERANCE)) - {"zeros"}
    assert not differing, (arguments, fused, differing)


def test_the_walk_knows_every_layer_and_every_argument() -> None:
    assert set(taken()) <= set(REQUIRED)
    for name in taken():
        assert build(name, {}).get_layer("it")
        assert all(argument for argument, _ in values(name))


@pytest.mark.parametrize("name", only(taken(), "Conv2D", "BatchNormalization", "Softmax", "ReLU"))
def test_every_argument_is_kept_or_refused(name: str) -> None:
    for argument, value in values(name):
        for fused in (False, True) if name in FUSED else (False,):
            check(name, {argument: value}, fused)


@pytest.mark.parametrize("name", taken())
def test_an_activity_regularizer_is_refused(name: str) -> None:
    model = build(name, {})
    # Some constructors do not take it, but every layer has it.
    model.get_layer("it").activity_regularizer = keras.regularizers.L2(0.1)
    with pytest.raises(ValueError, match=rf"'it' \({name}\): .*activity_regularizer"):
        quantize_model(model)


class Unregistered(keras.regularizers.Regularizer):
    """A regularizer that Keras does not know by a name."""

    def __call__(self, x: Any) -> Any:
        return keras.ops.sum(x)


@pytest.mark.parametrize("own", [Unregistered(), keras.ops.sum], ids=["class", "function"])
@pytest.mark.parametrize("name", ["Conv1D", "Conv2D", "Dense"])
def test_what_a_saved_model_would_not_find_is_refused(name: str, own: Any) -> None:
    with pytest.raises(
        ValueError, match=rf"'it' \({name}\): its kernel_regularizer cannot be made"
    ):
        quantize_model(build(name, {"kernel_regularizer": own}))


@pytest.mark.parametrize("what", ["kernel_constraint", "kernel_regularizer"])
def test_what_depends_on_the_axes_of_a_kernel_is_refused_where_it_gets_others(what: str) -> None:
    image = keras.Input((12, 4), name="image")
    value = {"kernel_constraint": CONSTRAINT, "kernel_regularizer": "orthogonal_regularizer"}[what]
    for layer in (
        L.Conv1D(4, 3, name="it", **{what: value}),
        L.Dense(4, name="it", **{what: value}),
    ):
        if what == "kernel_regularizer" and isinstance(layer, L.Conv1D):
            continue  # It takes matrices only.
        with pytest.raises(ValueError, match=rf"its {what}, \w+, may depend on the axes"):
            quantize_model(keras.Model(image, layer(image)))
