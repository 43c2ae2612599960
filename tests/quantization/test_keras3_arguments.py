"""Every argument of every Keras 3 layer crosses to tf_keras with its effect, or is refused."""

from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests.quantization.kept import behaviour, constructor_parameters, randomize
from tfdq.quantization.keras3 import from_keras3
from tfdq.quantization.keras3_layers import SAME_NAMED

layers = keras.layers
REGULARIZER = keras.regularizers.L1(0.1)
CONSTRAINT = keras.constraints.MaxNorm(0.5)


def relu(x: Any) -> Any:
    """Compute something else than Keras' function of that name."""
    return keras.ops.relu(x) * 1.5


REQUIRED: dict[str, dict[str, Any]] = {
    **{f"Conv{rank}D": {"filters": 4, "kernel_size": 3} for rank in (1, 2, 3)},
    **{f"Cropping{rank}D": {"cropping": 1} for rank in (1, 2, 3)},
    **{f"UpSampling{rank}D": {"size": 2} for rank in (1, 2, 3)},
    **{f"SpatialDropout{rank}D": {"rate": 0.4} for rank in (1, 2, 3)},
    **{name: {"rate": 0.4} for name in ("Dropout", "AlphaDropout", "GaussianDropout")},
    **{name: {"height": 4, "width": 4} for name in ("Resizing", "CenterCrop", "RandomCrop")},
    **{f"Random{name}": {"factor": 0.2} for name in ("Rotation", "Contrast", "Brightness")},
    "Activation": {"activation": "relu"},
    "Conv2DTranspose": {"filters": 4, "kernel_size": 3},
    "Dense": {"units": 4},
    "DepthwiseConv2D": {"kernel_size": 3},
    "GaussianNoise": {"stddev": 0.4},
    "GroupNormalization": {"groups": 2},
    "Normalization": {"mean": 1.0, "variance": 2.0},
    "Permute": {"dims": (2, 1, 3)},
    "RandomTranslation": {"height_factor": 0.2, "width_factor": 0.2},
    "RandomZoom": {"height_factor": 0.2},
    "RepeatVector": {"n": 3},
    "Rescaling": {"scale": 2.0},
    "Reshape": {"target_shape": (9, 4, 4)},
    "SeparableConv2D": {"filters": 4, "kernel_size": 3},
}
VALUES: dict[str, Any] = {
    "activation": relu,
    "activity_regularizer": REGULARIZER,
    "autocast": False,
    "dtype": "mixed_bfloat16",
    "name": "another",
    "trainable": False,
    "use_bias": False,
    **{f"{p}_regularizer": REGULARIZER for p in ("kernel", "bias", "depthwise", "pointwise")},
    **{f"{p}_regularizer": REGULARIZER for p in ("gamma", "beta", "alpha")},
    **{f"{p}_constraint": CONSTRAINT for p in ("kernel", "bias", "depthwise", "pointwise")},
    **{f"{p}_constraint": CONSTRAINT for p in ("gamma", "beta", "alpha")},
    "axis": 1,
    "center": False,
    "epsilon": 0.5,
    "momentum": 0.5,
    "scale": False,
    "synchronized": True,
    "renorm": True,
    "rms_scaling": True,
    "data_format": "channels_first",
    "dilation_rate": 2,
    "groups": 2,
    "depth_multiplier": 2,
    "keepdims": True,
    "offset": 0.5,
    "padding": "same",
    "strides": 2,
    "seed": 7,
    "value_range": (0, 1),
    "lora_rank": 2,
}


def shape_of(name: str) -> tuple[int, ...]:
    """Return the shape of an image that a layer takes."""
    rank = next((int(c) for c in name if c.isdigit()), 2)
    if name in ("Dense", "RepeatVector"):
        return (6,)
    return (6,) * rank + (4,)


def build(name: str, arguments: dict[str, Any]) -> Any:
    """Return a Keras 3 model with the layer, on one input or, for a merging layer, on two."""
    image = keras.Input(shape_of(name), name="image")
    kind = getattr(layers, name)
    merging = issubclass(kind, type(layers.Add()).__mro__[1])
    taken = [image, layers.Rescaling(0.5, 0.1, name="other")(image)] if merging else image
    layer = kind(**{"name": "it", **REQUIRED.get(name, {}), **arguments})
    return randomize(keras.Model(image, layer(taken)))


@pytest.mark.parametrize("name", sorted(SAME_NAMED))
def test_every_argument_crosses_or_is_refused(name: str) -> None:
    x = np.random.default_rng(0).uniform(-2, 7, (4, *shape_of(name))).astype(np.float32)
    random = name.startswith(("Random", "Gaussian", "Alpha", "Spatial", "Dropout"))
    accepted = constructor_parameters(getattr(layers, name)) | {"activity_regularizer"}
    for argument in sorted(accepted & set(VALUES)):
        given = {argument: VALUES[argument]}
        model = made(name, given, x)
        if model is None:
            continue
        converted, refusal = converted_or_refused(model)
        label = given.get("name", "it")
        if converted is None:
            assert f"{label} ({name})" in refusal, (argument, refusal)
            continue
        counterpart = converted.get_layer(label)
        if argument == "dtype":
            assert counterpart.compute_dtype == "bfloat16"
            continue
        theirs, ours = behaviour(model, x), behaviour(converted, x)
        # The moving variances have other divisors, n and n - 1; outputs are compared to 1e-5.
        differing = set(ours.differs(theirs, 0.02)) - ({"zeros"} if random else set())
        assert not differing, (argument, differing)
        found = counterpart.get_config().get(argument)
        if isinstance(found, (int, float, str, bool)) and argument != "activation":
            assert found == model.get_layer(label).get_config()[argument], argument


def made(name: str, arguments: dict[str, Any], x: np.ndarray) -> Any:
    """Return the model, or None where Keras itself does not take or compute such a layer."""
    try:
        model = build(name, arguments)
        if "data_format" not in arguments:
            model(x)
        return model
    except (TypeError, ValueError, NotImplementedError, tf.errors.InvalidArgumentError):
        return None


def converted_or_refused(model: Any) -> tuple[Any, str]:
    """Return the tf_keras model, or None and the message that refuses it."""
    try:
        return from_keras3(model), ""
    except ValueError as error:
        return None, str(error)


def test_a_weight_frozen_alone_is_refused() -> None:
    image = keras.Input((4,))
    layer = layers.Dense(2, name="it")
    model = keras.Model(image, layer(image))
    layer.bias.trainable = False
    with pytest.raises(ValueError, match=r"it \(Dense\): its bias alone is not trainable"):
        from_keras3(model)
    layer.trainable = False
    assert not from_keras3(model).trainable_weights
