"""What a user's model says besides its layers: outputs, frozen halves, losses, own functions."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
import tensorflow_model_optimization as tfmot
import tf_keras

import tfdq
from tfdq.quantization import DefensiveQuantizeConfig, FixedRangeQuantizer, KernelQuantizer

L = tf_keras.layers
RNG = np.random.default_rng(0)
IMAGES = RNG.uniform(size=(32, 6, 6, 2)).astype(np.float32)
TARGETS = {"kind": RNG.integers(0, 3, 32), "age": RNG.uniform(size=(32, 1)).astype(np.float32)}
LOSSES = {"kind": "sparse_categorical_crossentropy", "age": "mse"}


def two_headed(library: Any, form: type) -> Any:
    """Return a model of two named outputs, in a list or a dictionary, one of them fused."""
    layers = library.layers
    image = library.Input((6, 6, 2), name="photo" if form is dict else "image")
    x = layers.Flatten()(layers.Conv2D(4, 3, activation="relu")(image))
    kind = layers.Dense(3, activation="softmax", name="kind")(x)
    age = layers.ReLU(name="age")(layers.Dense(1, name="age_linear")(x))
    outputs = {"kind": kind, "age": age} if form is dict else [kind, age]
    return library.Model({"photo": image} if form is dict else image, outputs)


@pytest.mark.parametrize("form", [list, dict])
@pytest.mark.parametrize(
    ("library", "file"),
    [(tf_keras, "model.keras"), (tf_keras, "model.h5"), (keras, "model.keras")],
    ids=["tf_keras", "tf_keras, h5", "Keras 3"],
)
def test_losses_by_name_work_as_before(library: Any, form: type, file: str, tmp_path: Path) -> None:
    qat = tfdq.quantize_model(two_headed(library, form), 0.0)
    qat.save(tmp_path / file)
    x = {"photo": IMAGES} if form is dict else IMAGES
    for model in (qat, tfdq.load_model(tmp_path / file)):
        model.compile(
            "sgd", LOSSES, metrics={"kind": "accuracy"}, loss_weights={"kind": 1.0, "age": 2.0}
        )
        history = model.fit(x, TARGETS, verbose=0).history
        assert {"kind_loss", "age_loss", "kind_accuracy"} <= set(history)
        predicted = model.predict(x, verbose=0)
        assert type(predicted) is form
        if form is dict:
            assert {k: v.shape for k, v in predicted.items()} == {"kind": (32, 3), "age": (32, 1)}


def test_each_part_of_a_fused_layer_is_frozen_alone(tmp_path: Path) -> None:
    """A kernel without its BatchNorm, or the other way round: the weights and the statistics."""
    for kernel_trains, norm_trains in ((True, False), (False, True), (False, False)):
        image = L.Input((6, 6, 2))
        x = image
        for layer in (
            L.Conv2D(4, 3, name="conv", trainable=kernel_trains),
            L.BatchNormalization(name="a", trainable=norm_trains),
            L.SeparableConv2D(4, 3, name="separable", trainable=kernel_trains),
            L.BatchNormalization(name="b", trainable=norm_trains),
        ):
            x = layer(x)
        model = tf_keras.Model(image, L.Dense(3, name="head")(L.Flatten()(x)))
        qat = tfdq.quantize_model(model, 0.0)
        assert sizes(qat) == sizes(model)
        qat.save(tmp_path / "model.h5")
        qat.save(tmp_path / "model.keras")
        for file in ("model.h5", "model.keras"):
            loaded = tfdq.load_model(tmp_path / file)
            assert sizes(loaded) == sizes(model)
            for one, two in zip(loaded.weights, qat.weights, strict=True):
                np.testing.assert_array_equal(one, two)
        before = {w.name: w.numpy().copy() for w in qat.weights}
        qat.compile("sgd", tf_keras.losses.SparseCategoricalCrossentropy(from_logits=True))
        qat.fit(IMAGES, TARGETS["kind"], verbose=0)
        moved = {w.name for w in qat.weights if np.any(w.numpy() != before[w.name])}
        for part, trains in (("kernel", kernel_trains), ("gamma", norm_trains)):
            named = {name for name in before if part in name and "head" not in name}
            assert named & moved == (named if trains else set()), (part, trains)
        statistics = {name for name in before if "moving" in name}
        assert statistics & moved == (statistics if norm_trains else set())
        # The ranges of frozen layers are observed: the float model had none to keep.
        assert qat.get_layer("quant_conv").output_grid().scale > 0


def sizes(model: tf_keras.Model) -> list[tuple[int, ...]]:
    return sorted(tuple(w.shape) for w in model.trainable_weights)


def test_frozen_xception_trains_its_head_alone() -> None:
    base = tf_keras.applications.Xception(include_top=False, weights=None, input_shape=(71, 71, 3))
    base.trainable = False
    image = L.Input((71, 71, 3))
    x = L.GlobalAveragePooling2D()(base(image, training=False))
    qat = tfdq.quantize_model(tf_keras.Model(image, L.Dense(3)(x)), 0.0)
    assert len(qat.trainable_weights) == 2


def test_trainable_inside_a_frozen_model_is_refused() -> None:
    image = L.Input((4,))
    inner = tf_keras.Model(image, L.Dense(2, name="inside")(image), name="base")
    inner.trainable = False
    inner.get_layer("inside").trainable = True
    model = tf_keras.Model(image, inner(image))
    assert not model.trainable_weights
    with pytest.raises(ValueError, match=r"'inside'.*trainable inside the model 'base'"):
        tfdq.quantize_model(model)


def relu(x: tf.Tensor) -> tf.Tensor:
    """Compute something else than Keras' function of that name."""
    return tf.nn.relu(x) * 1.25


@pytest.mark.parametrize("library", [tf_keras, keras], ids=["tf_keras", "Keras 3"])
@pytest.mark.parametrize("layer", ["Activation", "Conv2D", "Dense"])
def test_a_function_of_ones_own_named_relu_is_refused(library: Any, layer: str) -> None:
    layers = library.layers
    image = library.Input((4,) if layer == "Dense" else (4, 4, 2))
    made = {
        "Activation": lambda: layers.Activation(relu, name="it"),
        "Conv2D": lambda: layers.Conv2D(2, 1, activation=relu, name="it"),
        "Dense": lambda: layers.Dense(2, activation=relu, name="it"),
    }[layer]()
    with pytest.raises(ValueError, match=rf"it'? \({layer}\): .*activation '?[\w.]+\.relu"):
        tfdq.quantize_model(library.Model(image, made(image)))


@pytest.mark.parametrize(
    "function", [tf_keras.activations.relu, tf.nn.relu, keras.activations.relu, keras.ops.relu]
)
def test_relu_is_known_by_the_function(function: Callable) -> None:
    image = L.Input((4,))
    qat = tfdq.quantize_model(tf_keras.Model(image, L.Dense(2, activation=function)(image)))
    assert qat.layers[-1].layer.fused_activation == "relu"


def own_call() -> tf_keras.Model:
    class Doubled(tf_keras.Model):
        def call(self, inputs: Any, training: Any = None, mask: Any = None) -> Any:
            return 2.0 * super().call(inputs, training, mask)

    image = L.Input((4,))
    return Doubled(image, L.Dense(2)(image), name="it")


def with_loss(symbolic: bool) -> tf_keras.Model:
    image = L.Input((4,))
    x = L.Dense(2, name="it")(image)
    model = tf_keras.Model(image, x, name="model" if symbolic else "it")
    model.add_loss(tf.reduce_mean(x) if symbolic else lambda: tf.constant(1.0))
    return model


def with_loss_of_a_layer() -> tf_keras.Model:
    image = L.Input((4,))
    layer = L.Dense(2, name="it")
    model = tf_keras.Model(image, layer(image))
    layer.add_loss(lambda: tf.reduce_sum(layer.kernel))
    return model


def masked() -> tf_keras.Model:
    image = L.Input((3, 4))
    x = L.Flatten(name="it")(L.Masking(name="masking")(image))
    return tf_keras.Model(image, x)


def with_a_constant() -> tf_keras.Model:
    image = L.Input((4,))
    return tf_keras.Model(image, L.Add(name="it")([image, tf.ones((1, 4))]))


def sparse() -> tf_keras.Model:
    image = L.Input((4,), sparse=True, name="it")
    return tf_keras.Model(image, L.Dense(2)(image))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (own_call, r"model 'it' \(Doubled\) has a call method of its own"),
        (lambda: with_loss(symbolic=False), r"model 'it' has a loss of its own"),
        (lambda: with_loss(symbolic=True), r"\(AddLoss\): a loss or metric added"),
        (with_loss_of_a_layer, r"'it' \(Dense\): a loss of its own"),
        (masked, r"'it' \(Flatten\): its input carries a mask"),
        (with_a_constant, r"'it' \(Add\): called on something else than tensors"),
        (sparse, r"'it' \(InputLayer\): a sparse input"),
    ],
)
def test_what_cannot_be_kept_is_refused_by_name(
    make: Callable[[], tf_keras.Model], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        tfdq.quantize_model(make(), skip=["masking"] if make is masked else ())


def test_regularizers_and_constraints_of_ones_own_are_used_not_their_names() -> None:
    class L2(tf_keras.regularizers.Regularizer):
        def __call__(self, x: tf.Tensor) -> tf.Tensor:
            return 7.0 * tf.reduce_sum(x)

        def get_config(self) -> dict[str, Any]:
            return {}

    class NonNeg(tf_keras.constraints.Constraint):
        def __call__(self, w: tf.Tensor) -> tf.Tensor:
            return w * 3.0

    image = L.Input((6, 6, 2))
    x = L.SeparableConv2D(3, 3, pointwise_regularizer=L2(), bias_constraint=NonNeg())(image)
    x = L.BatchNormalization(gamma_regularizer=L2(), beta_constraint=NonNeg())(x)
    model = tf_keras.Model(image, x)
    qat = tfdq.quantize_model(model, 0.0)
    np.testing.assert_allclose(sum(qat.losses), sum(model.losses), rtol=1e-6)
    kinds = [type(w.constraint).__qualname__ for w in qat.weights if w.constraint is not None]
    assert kinds == [NonNeg.__qualname__] * 2


def annotated(layer: L.Layer, **config: Any) -> L.Layer:
    return tfmot.quantization.keras.quantize_annotate_layer(
        layer, DefensiveQuantizeConfig(**config)
    )


@pytest.mark.parametrize(
    ("layers", "name"),
    [
        ([annotated(L.MaxPooling2D(name="it"), output=FixedRangeQuantizer(4))], "output"),
        ([L.Conv2D(2, 1), annotated(L.ReLU(name="it"), output=FixedRangeQuantizer(3))], "output"),
        ([annotated(L.SeparableConv2D(2, 1, name="it"), kernel=KernelQuantizer(4))], "kernel"),
    ],
)
def test_a_quantizer_that_has_no_place_is_refused(layers: list[L.Layer], name: str) -> None:
    image = x = L.Input((6, 6, 2))
    for layer in layers:
        x = layer(x)
    with pytest.raises(ValueError, match=rf"'it' \(\w+\): a DefensiveQuantizeConfig with .*{name}"):
        tfdq.quantize_model(tf_keras.Model(image, x))
