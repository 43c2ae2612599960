"""What a model calls with `training=False` stays in inference mode while the rest is trained."""

from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tf_keras

import tfdq

L = tf_keras.layers
RNG = np.random.default_rng(0)
IMAGES = RNG.uniform(size=(32, 6, 6, 2)).astype(np.float32)
LABELS = RNG.integers(0, 3, 32)


def backbone(layers: object) -> list:
    """Return the layers of a small network with each way to fuse a BatchNormalization, or not."""
    return [
        layers.Conv2D(4, 3, padding="same", use_bias=False, name="conv"),
        layers.BatchNormalization(name="conv_norm"),
        layers.ReLU(name="relu"),
        layers.SeparableConv2D(4, 3, padding="same", name="separable"),
        layers.BatchNormalization(name="separable_norm"),
        layers.MaxPooling2D(name="pool"),
        layers.BatchNormalization(name="alone"),
        layers.Dropout(0.9, name="dropout"),
    ]


def held_layer_by_layer(library: object, layers: object) -> object:
    image = x = library.Input((6, 6, 2))
    # Keras 3 writes training=False into each call of a Dropout, whether it was said or not.
    moded = ("BatchNormalization",) if library is keras else ("BatchNormalization", "Dropout")
    for layer in backbone(layers):
        takes_mode = type(layer).__name__ in moded
        x = layer(x, training=False) if takes_mode else layer(x)
    return library.Model(image, layers.Dense(3, name="logits")(layers.Flatten()(x)))


def held_as_a_whole(library: object, layers: object) -> object:
    image, inner = library.Input((6, 6, 2)), library.Input((6, 6, 2))
    x = inner
    for layer in backbone(layers):
        x = layer(x)
    middle = library.Model(inner, x, name="middle")
    # The outer of two nested models is called in inference mode; the inner says nothing.
    around = library.Input((6, 6, 2))
    outer = library.Model(around, middle(around), name="outer")
    x = outer(image, training=False)
    return library.Model(image, layers.Dense(3, name="logits")(layers.Flatten()(x)))


MODELS = {
    "direct": lambda: held_layer_by_layer(tf_keras, L),
    "nested": lambda: held_as_a_whole(tf_keras, L),
    "Keras 3, direct": lambda: tfdq.from_keras3(held_layer_by_layer(keras, keras.layers)),
    "Keras 3, nested": lambda: tfdq.from_keras3(held_as_a_whole(keras, keras.layers)),
}


def statistics(model: tf_keras.Model) -> list[np.ndarray]:
    return [w.numpy().copy() for w in model.weights if "moving" in w.name]


def trained(model: tf_keras.Model) -> tf_keras.Model:
    loss = tf_keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(tf_keras.optimizers.SGD(0.1), loss)
    model.fit(IMAGES, LABELS, batch_size=16, epochs=2, verbose=0)
    return model


@pytest.mark.parametrize("case", MODELS)
def test_statistics_stay_and_everything_else_is_trained(case: str, tmp_path: Path) -> None:
    qat = tfdq.quantize_model(MODELS[case](), 0.0)
    qat.save(tmp_path / "model.keras")
    for model in (qat, tfdq.load_model(tmp_path / "model.keras")):
        before, kernel = statistics(model), model.get_layer("quant_conv").layer.kernel.numpy()
        trained(model)
        assert len(before) == 6
        for old, new in zip(before, statistics(model), strict=True):
            np.testing.assert_array_equal(old, new)
        # Inference mode is not trainable=False: weights move, and ranges see the batches.
        assert np.abs(kernel - model.get_layer("quant_conv").layer.kernel.numpy()).max() > 0
        assert model.get_layer("quant_alone").output_grid().scale > 0
        dropout = model.get_layer("quant_dropout")
        ends = tf_keras.Model(model.input, [dropout.input, dropout.output])
        taken, given = ends(IMAGES, training=True)
        assert np.array_equal(taken, given) == (case != "Keras 3, direct")


@pytest.mark.parametrize("library", [tf_keras, keras], ids=["tf_keras", "Keras 3"])
def test_without_the_argument_statistics_move_and_dropout_drops(library: Any) -> None:
    layers = library.layers
    image = x = library.Input((6, 6, 2))
    for layer in backbone(layers):
        x = layer(x)
    model = library.Model(image, layers.Dense(3)(layers.Flatten()(x)))
    model = tfdq.from_keras3(model) if library is keras else model
    model = tfdq.quantize_model(model, 0.0)
    before = statistics(model)
    trained(model)
    assert all(np.abs(a - b).max() > 0 for a, b in zip(before, statistics(model), strict=True))
    dropped = tf_keras.Model(model.input, model.get_layer("quant_dropout").output)
    assert np.mean(dropped(IMAGES, training=True).numpy() == 0) > 0.8


def test_a_call_inside_says_more_than_one_around() -> None:
    inner = x = L.Input((6, 6, 2))
    x = L.BatchNormalization(name="says")(x, training=False)
    middle = tf_keras.Model(inner, L.BatchNormalization(name="does_not")(x), name="middle")
    image = L.Input((6, 6, 2))
    model = tf_keras.Model(image, middle(image, training=False))
    assert {n.layer.name: n.training for n in tfdq.quantization.walk(model)[1:]} == {
        "says": False,
        "does_not": False,
    }
    model = tf_keras.Model(image, middle(image))
    assert [n.training for n in tfdq.quantization.walk(model)] == [None, False, None]


@pytest.mark.parametrize("layer", [L.Dropout(0.5, name="it"), L.BatchNormalization(name="it")])
@pytest.mark.parametrize("nested", [False, True])
def test_training_mode_at_inference_is_refused_by_name(layer: L.Layer, nested: bool) -> None:
    image = L.Input((3,))
    inner = tf_keras.Model(image, layer(image) if nested else layer(image, training=True))
    x = inner(image, training=True) if nested else inner(image)
    model = tf_keras.Model(image, L.Dense(2, name="dense")(x))
    with pytest.raises(ValueError, match=r"'it' \(\w+\): called with training=True; only"):
        tfdq.quantize_model(model)
    # Left in float it is called as it was.
    qat = tfdq.calibrate(tfdq.quantize_model(model, skip=["it"]), np.eye(3, dtype=np.float32))
    x = RNG.uniform(1, 2, (64, 3)).astype(np.float32)
    ends = tf_keras.Model(qat.input, qat.get_layer("it").output)
    assert np.abs(ends(x, training=False) - x).max() > 0.1


def test_a_frozen_part_of_a_network_that_people_use() -> None:
    """Every way to freeze: no statistics move, and the trainable weights are the head's."""
    base = tf_keras.applications.MobileNetV2(
        (32, 32, 3), alpha=0.35, include_top=False, weights=None, pooling="avg"
    )
    image = L.Input((32, 32, 3))
    model = tf_keras.Model(image, L.Dense(3, name="head")(base(image, training=False)))
    qat = tfdq.quantize_model(model, 0.0)
    before = statistics(qat)
    assert len(before) == 104
    qat(RNG.uniform(size=(4, 32, 32, 3)).astype(np.float32), training=True)
    for old, new in zip(before, statistics(qat), strict=True):
        np.testing.assert_array_equal(old, new)
    base.trainable = False
    assert len(tfdq.quantize_model(model, 0.0).trainable_weights) == 2
