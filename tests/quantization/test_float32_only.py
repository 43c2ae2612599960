"""A model that computes in 16 or 64 bits somewhere is refused, by the names of its layers."""

from collections.abc import Callable, Iterator

import keras
import numpy as np
import pytest
import tensorflow_model_optimization as tfmot
import tf_keras

import tfdq

L = tf_keras.layers


@pytest.fixture(params=["mixed_float16", "mixed_bfloat16", "float64"])
def policy(request: pytest.FixtureRequest) -> Iterator[str]:
    """Set a global policy other than float32, of both Keras."""
    for library in (tf_keras, keras):
        library.mixed_precision.set_dtype_policy(request.param) if library is keras else (
            library.mixed_precision.set_global_policy(request.param)
        )
    yield request.param
    tf_keras.mixed_precision.set_global_policy("float32")
    keras.mixed_precision.set_dtype_policy("float32")


def whole(library: object = tf_keras) -> object:
    layers = library.layers
    image = library.Input((4, 4, 2), name="image")
    x = layers.Conv2D(3, 3, name="conv")(image)
    x = layers.Flatten(name="flatten")(layers.ReLU(name="relu")(x))
    return library.Model(image, layers.Dense(2, name="head", dtype="float32")(x))


def test_a_half_model_with_a_float32_head_names_the_half_layers(policy: str) -> None:
    for model in (whole(), tfdq.from_keras3(whole(keras))):
        with pytest.raises(ValueError, match="do not compute in float32") as error:
            tfdq.quantize_model(model)
        for name in ("conv", "relu", "flatten"):
            assert f"'{name}' ({policy})" in str(error.value)
        assert "'head'" not in str(error.value)
    annotated = tfmot.quantization.keras.quantize_annotate_model(
        tf_keras.Sequential([L.Dense(2, input_shape=(3,), name="half")])
    )
    with pytest.raises(ValueError, match=f"'half' \\({policy}\\)"):
        tfmot.quantization.keras.quantize_apply(annotated, tfdq.DefensiveQuantizeScheme())


@pytest.mark.parametrize(
    "layer",
    [
        lambda: L.Activation("softmax", dtype="float16", name="it"),
        lambda: L.Dense(2, dtype="mixed_bfloat16", name="it"),
        lambda: L.BatchNormalization(dtype="float64", name="it"),
    ],
)
@pytest.mark.parametrize("skip", [(), ("it",)])
def test_one_layer_of_another_type_is_refused(
    layer: Callable[[], L.Layer], skip: tuple[str, ...]
) -> None:
    x = image = L.Input((3,))
    model = tf_keras.Model(image, layer()(L.Dense(4, name="dense")(x)))
    with pytest.raises(ValueError, match=r"1 layer\(s\) do not compute in float32: 'it' \("):
        tfdq.quantize_model(model, skip=skip)
    half = L.Input((3,), dtype="float16", name="image")
    with pytest.raises(ValueError, match=r"'image' \(float16\)"):
        tfdq.quantize_model(tf_keras.Model(half, L.Dense(2)(half)))


def test_the_remedy_of_the_message_works() -> None:
    def build() -> tf_keras.Model:
        return whole()

    tf_keras.mixed_precision.set_global_policy("mixed_bfloat16")
    try:
        model = build()
        with pytest.raises(ValueError, match="float32") as error:
            tfdq.quantize_model(model)
    finally:
        tf_keras.mixed_precision.set_global_policy("float32")
    lines = [line.strip() for line in str(error.value).splitlines()[1:]]
    assert len(lines) == 2
    given = {"tf_keras": tf_keras, "build": build, "model": model}
    exec("\n".join(lines), given)
    qat = tfdq.quantize_model(given["float_model"])
    np.testing.assert_array_equal(qat.get_layer("quant_conv").layer.kernel, model.weights[0])


def test_a_float32_model_is_quantized_in_float32_whatever_the_policy_is_now() -> None:
    model = whole()
    tf_keras.mixed_precision.set_global_policy("mixed_float16")
    try:
        qat = tfdq.quantize_model(model)
    finally:
        tf_keras.mixed_precision.set_global_policy("float32")
    assert {layer.compute_dtype for layer in qat._flatten_layers(include_self=False)} == {"float32"}
    assert qat(np.ones((1, 4, 4, 2), np.float32)).dtype == np.float32
