"""Every argument, flag and call argument of every layer is kept, or refused by the layer's name.

Kept is proved by an effect: a model with the argument behaves otherwise than one without, and the
quantized model behaves as the float one does.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
import tf_keras

import tfdq
from tests.quantization.kept import behaviour, constructor_parameters, randomize
from tfdq.quantization import ConvexCombination
from tfdq.quantization.layers import FusedReLU
from tfdq.quantization.plan import ROLES
from tfdq.quantization.squeezing import BitDepthSqueeze, MedianSqueeze

L = tf_keras.layers
SHAPE = (6, 6, 4)
IMAGES = np.random.default_rng(0).uniform(-2, 7.5, (4, *SHAPE)).astype(np.float32)
# 8-bit rounding of inputs, kernels and outputs; arguments change more than twice as much.
TOLERANCE = 0.05


def relu(x: tf.Tensor) -> tf.Tensor:
    """Compute something else than Keras' function of that name."""
    return tf.nn.relu(x) * 1.5


REQUIRED: dict[type, dict[str, Any]] = {
    L.Conv2D: {"filters": 4, "kernel_size": 3},
    L.DepthwiseConv2D: {"kernel_size": 3},
    L.SeparableConv2D: {"filters": 4, "kernel_size": 3},
    L.Dense: {"units": 4},
    L.BatchNormalization: {"momentum": 0.5},
    L.Add: {},
    ConvexCombination: {},
    L.Concatenate: {},
    L.ReLU: {},
    L.Activation: {"activation": "relu"},
    L.Softmax: {},
    L.Rescaling: {"scale": 2.0},
    BitDepthSqueeze: {"bits": 4},
    MedianSqueeze: {"size": 2},
    L.AveragePooling2D: {"pool_size": 4},
    L.GlobalAveragePooling2D: {},
    L.MaxPooling2D: {"pool_size": 4},
    L.GlobalMaxPooling2D: {},
    L.Flatten: {},
    L.Reshape: {"target_shape": (9, 4, 4)},
    L.ZeroPadding2D: {},
    L.Dropout: {"rate": 0.4},
}
CHAINS: dict[type, tuple[bool, ...]] = {
    L.Conv2D: (False, True),
    L.BatchNormalization: (False, True),
    L.DepthwiseConv2D: (True,),
    L.SeparableConv2D: (True,),
    L.Dense: (True,),
}
MERGING = (L.Add, ConvexCombination, L.Concatenate)
KERNELS = (L.Conv2D, L.DepthwiseConv2D, L.SeparableConv2D, L.Dense)

VALUES: dict[str, list[Any]] = {
    "activation": ["relu", "relu6", "softmax", "tanh", relu],
    "activity_regularizer": [tf_keras.regularizers.L2(0.1)],
    "adjustment": [lambda shape: (tf.ones(shape[-1:]), tf.ones(shape[-1:]))],
    "axis": [1, 2],
    "bits": [1],
    "center": [False],
    "data_format": ["channels_first"],
    "depth_multiplier": [2],
    "dilation_rate": [(2, 2)],
    "dtype": ["float16"],
    "dynamic": [True],
    "epsilon": [0.5],
    "filters": [5],
    "fused": [False],
    "fused_activation": ["relu", "relu6"],
    "gradient": ["exact"],
    "groups": [2],
    "input_range": [(0.0, 0.5)],
    "keepdims": [True],
    "kernel_size": [(2, 1)],
    "max_value": [0.3, 6.0],
    "momentum": [0.9],
    "name": ["another"],
    "negative_slope": [0.3],
    "noise_shape": [(None, 1, 1, 4)],
    "offset": [5.0],
    "padding": ["same"],
    "pool_size": [3],
    "rate": [0.8],
    "renorm": [True],
    "scale": [False, 3.0],
    "seed": [7],
    "size": [4],
    "strides": [(2, 2)],
    "synchronized": [True],
    "target_shape": [(36, 2, 2)],
    "temperature": [0.5],
    "threshold": [0.4],
    "trainable": [False],
    "units": [5],
    "use_bias": [False],
    "virtual_batch_size": [2],
} | {
    f"{part}_{what}": [value]
    for part in ("kernel", "bias", "depthwise", "pointwise", "gamma", "beta")
    for what, value in (
        ("regularizer", tf_keras.regularizers.L1(0.1)),
        ("constraint", tf_keras.constraints.MaxNorm(0.5)),
    )
}
# Values for one class only, where those above are its default or none that it takes.
OF_CLASS: dict[tuple[type, str], list[Any]] = {
    (L.Activation, "activation"): ["relu6", "softmax", "linear", "tanh", relu],
    (L.AveragePooling2D, "strides"): [1],
    (L.MaxPooling2D, "strides"): [1],
    (L.BatchNormalization, "scale"): [False],
    (L.Rescaling, "scale"): [3.0],
    (L.Softmax, "axis"): [1],
    (L.ZeroPadding2D, "padding"): [((0, 2), (1, 0))],
}
# The weights are copied, which may be initialized as they like. The others are between Keras'
# own classes, or without effect in inference and on a gradient.
WITHOUT_EFFECT = {
    *(f"{p}_initializer" for p in ("kernel", "bias", "depthwise", "pointwise", "gamma", "beta")),
    *("moving_mean_initializer", "moving_variance_initializer"),
    *("renorm_clipping", "renorm_momentum"),  # they say how renorm works, which is refused
    *("rank", "pool_function", "conv_op", "force_generator", "rng_type", "robust_masking"),
}
# Arguments that Keras' own layer takes from a base class and does nothing with.
UNUSED = {
    (L.DepthwiseConv2D, name)
    for name in ("filters", "groups", "kernel_constraint", "kernel_regularizer")
} | {(L.SeparableConv2D, name) for name in ("groups", "kernel_constraint", "kernel_regularizer")}
# What they change is the gradient, random numbers, statistics by less than is measured here.
KEPT_IN_THE_CONFIG = {"gradient", "temperature", "seed", "synchronized", "noise_shape", "fused"}


def cases() -> Iterator[Any]:
    """Yield each class with each argument and value, by itself and in what it is fused into."""
    for kind in REQUIRED:
        names = constructor_parameters(kind) | {"activity_regularizer"}
        for argument in sorted(names - WITHOUT_EFFECT - {n for k, n in UNUSED if k is kind}):
            values = OF_CLASS.get((kind, argument), VALUES[argument])
            for number, value in enumerate(values):
                label = f"{kind.__name__}-{argument}-{number}"
                yield pytest.param(kind, argument, value, id=label)


def build(kind: type, arguments: dict[str, Any], fused: bool, call: dict[str, Any]) -> Any:
    """Return a float model with the layer, alone or with what it is fused with around it."""
    image = L.Input(SHAPE, name="image")
    x = L.GlobalAveragePooling2D(name="pooled")(image) if kind is L.Dense else image
    if fused and kind is L.BatchNormalization:
        x = L.Conv2D(4, 2, name="before")(x)
    taken = [x, L.Rescaling(0.5, 0.1, name="other")(x)] if kind in MERGING else x
    x = kind(**{"name": "it", **arguments})(taken, **call)
    if fused and kind in KERNELS:
        # Of one batch its statistics are to show what was before.
        x = L.ReLU(name="after")(L.BatchNormalization(momentum=0.5, name="norm")(x))
    return randomize(tf_keras.Model(image, x))


def quantized_or_refused(model: tf_keras.Model) -> tuple[tf_keras.Model | None, str]:
    """Return the quantized model, or None and the message that refuses it."""
    try:
        return tfdq.quantize_model(model, 0.0), ""
    except ValueError as error:
        return None, str(error)


def check(
    kind: type, arguments: dict[str, Any], fused: bool, call: dict[str, Any], quiet: bool
) -> bool:
    """Check that quantization keeps what is given, or refuses it by the layer's name.

    Args:
        kind: of the layer.
        arguments: of its constructor.
        fused: whether it is in a chain that becomes one layer.
        call: arguments of its call.
        quiet: whether what is given has no effect that is measured.

    Returns:
        Whether it is kept.
    """
    name = arguments.get("name", "it")
    model = build(kind, {**REQUIRED[kind], **arguments}, fused, call)
    quantized, refusal = quantized_or_refused(model)
    if quantized is None:
        assert f"{name!r} (" in refusal
        return False
    # A softmax takes the exponential of what is rounded.
    is_softmax = kind is L.Softmax or arguments.get("activation") == "softmax"
    x = IMAGES / 20 if is_softmax else IMAGES
    if kind is not BitDepthSqueeze:
        tfdq.calibrate(quantized, x)
    expected, found = behaviour(model, x), behaviour(quantized, x)
    assert not found.differs(expected, TOLERANCE)
    if not quiet:
        plain = behaviour(build(kind, REQUIRED[kind], fused, {}), x)
        assert plain.differs(expected, 2 * TOLERANCE), "it has no effect"
    return True


def test_the_walk_knows_every_class_and_every_argument() -> None:
    assert {*REQUIRED, L.InputLayer, FusedReLU} == {*ROLES, L.Activation}
    for kind in REQUIRED:
        assert constructor_parameters(kind) <= {*VALUES, *WITHOUT_EFFECT}, kind


@pytest.mark.parametrize(("kind", "argument", "value"), list(cases()))
def test_every_argument_is_kept_or_refused(kind: type, argument: str, value: Any) -> None:
    weightless = not build(kind, REQUIRED[kind], False, {}).weights
    quiet = argument in {*KEPT_IN_THE_CONFIG, "name"} or (argument == "trainable" and weightless)
    for fused in CHAINS.get(kind, (False,)):
        kept = check(kind, {argument: value}, fused, {}, quiet)
    if kept and argument in KEPT_IN_THE_CONFIG:
        model = build(kind, {**REQUIRED[kind], argument: value}, False, {})
        inner = tfdq.quantize_model(model, 0.0).get_layer("quant_it").layer
        assert inner.get_config()[argument] == value


def parameters_of_call(kind: type) -> list[str]:
    """Return what a layer's call takes besides its input."""
    return list(inspect.signature(kind.call).parameters)[2:]


@pytest.mark.parametrize("kind", REQUIRED, ids=lambda kind: kind.__name__)
def test_every_call_argument_is_kept_or_refused(kind: type) -> None:
    masks = {L.Softmax: IMAGES > 0, L.BatchNormalization: IMAGES[..., 0] > 0}
    for name in parameters_of_call(kind):
        for value in {"training": [True, False], "mask": [masks.get(kind)]}[name]:
            for fused in CHAINS.get(kind, (False,)):
                kept = check(kind, {}, fused, {name: value}, quiet=False)
                assert kept == (value is False), name


@pytest.mark.parametrize("fused", [None, False])
def test_the_divisor_of_the_moving_variance_is_that_of_the_float_layer(fused: bool | None) -> None:
    """Keras divides by n with fused=False, else by n - 1; its config does not say which."""
    x = np.random.default_rng(1).uniform(-1, 1, (1, 2, 2, 3)).astype(np.float32)
    image = L.Input((2, 2, 3))
    alone, inside = (L.BatchNormalization(fused=fused, momentum=0.0, name=n) for n in "ab")
    same = L.DepthwiseConv2D(1, depthwise_initializer="ones", name="same")
    qat = tfdq.quantize_model(tf_keras.Model(image, [alone(image), inside(same(image))]), 0.0)
    qat(x, training=True)
    expected = x.astype(np.float64).var((0, 1, 2)) * (1 if fused is False else 4 / 3)
    norms = qat.get_layer("quant_a").layer, qat.get_layer("quant_same").layer.batch_norm
    for norm in norms:
        np.testing.assert_allclose(norm.moving_variance, expected, rtol=0.03)
