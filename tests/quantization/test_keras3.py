"""Keras 3 models become tf_keras models that compute the same, or the reasons are listed."""

import keras
import numpy as np
import pytest
import tensorflow as tf
import tf_keras

from tests.exhaustive import only
from tfdq.quantization.keras3 import (
    from_keras3,
    is_keras3_model,
)

layers = keras.layers


def randomize(model, seed=0):
    """Give every weight a value of its own, so that no two can be confused; variances > 0."""
    rng = np.random.default_rng(seed)
    for variable in model.weights:
        shape = tuple(variable.shape)
        if any(word in variable.path for word in ("variance", "gamma")):
            variable.assign(rng.uniform(0.5, 1.5, shape))
        elif "kernel" not in variable.path and "count" not in variable.path:
            variable.assign(rng.normal(0, 0.2, shape))
    for layer in model.layers:
        if isinstance(layer, layers.Normalization) and layer.input_mean is None:
            layer.finalize_state()
    return model


def relative_difference(model, converted, inputs):
    """Largest difference of the outputs of `predict`, relative to each output's largest value."""
    pairs = zip(
        keras.tree.flatten(model.predict(inputs, verbose=0)),
        keras.tree.flatten(converted.predict(inputs, verbose=0)),
        strict=True,
    )
    return max(float(np.abs(a - b).max() / np.abs(a).max()) for a, b in pairs)


def layer_names(model):
    """Names of layers and operations, without the input layers a Sequential model hides."""
    return {op.name for op in model.operations}


APPLICATIONS = {
    "ResNet50": keras.applications.ResNet50,
    "VGG16": keras.applications.VGG16,
    "MobileNetV2": keras.applications.MobileNetV2,
    "MobileNetV3Small": keras.applications.MobileNetV3Small,
    "MobileNetV3Large": keras.applications.MobileNetV3Large,
    "EfficientNetB0": keras.applications.EfficientNetB0,
    "DenseNet121": keras.applications.DenseNet121,
}


@pytest.mark.parametrize("name", only([*APPLICATIONS], "ResNet50", "MobileNetV3Small"))
def test_applications(name):
    model = APPLICATIONS[name](
        input_shape=(32, 32, 3), weights=None, classes=10, classifier_activation=None
    )
    randomize(model)
    before = [w.numpy() for w in model.weights]
    converted = from_keras3(model)
    assert isinstance(converted, tf_keras.Model)
    assert converted.name == model.name
    assert [layer.name for layer in converted.layers] == [op.name for op in model.operations]
    assert converted.count_params() == model.count_params()
    assert not any("Lambda" in type(layer).__name__ for layer in converted.layers)
    images = np.random.default_rng(1).uniform(0, 255, (3, 32, 32, 3)).astype(np.float32)
    assert relative_difference(model, converted, images) < 1e-5
    for a, b in zip(before, model.weights, strict=True):
        np.testing.assert_array_equal(a, b.numpy())


def test_shared_and_nested_layers_with_several_inputs_and_outputs():
    inner_input = keras.Input((8, 8, 4), name="inner_image")
    shared_inside = layers.Conv2D(4, 3, padding="same", name="shared_inside")
    inner = keras.Model(
        inner_input,
        [shared_inside(shared_inside(inner_input)), layers.ReLU(name="inner_relu")(inner_input)],
        name="inner",
    )
    tail = keras.Sequential(
        [layers.BatchNormalization(name="tail_bn"), layers.Conv2D(3, 1, name="tail_conv")],
        name="tail",
    )
    left, right = keras.Input((8, 8, 4), name="left"), keras.Input((8, 8, 4), name="right")
    shared = layers.DepthwiseConv2D(3, padding="same", activation="silu", name="shared")
    a, b = inner(shared(left))
    c, d = inner(shared(right))
    joined = layers.Concatenate(name="join")([a, b, c, d])
    pooled = layers.GlobalAveragePooling2D(name="pool")(tail(joined))
    model = keras.Model(
        {"right": right, "left": left},
        {"pooled": pooled, "sum": layers.Add(name="sum")([a, c])},
        name="siamese",
    )
    randomize(model)
    converted = from_keras3(model)
    assert layer_names(model) == {layer.name for layer in converted.layers}
    nested = converted.get_layer("inner")
    assert [layer.name for layer in nested.layers] == ["inner_image", "shared_inside", "inner_relu"]
    assert converted.count_params() == model.count_params()
    assert len(converted.get_layer("shared").inbound_nodes) == 2
    rng = np.random.default_rng(0)
    inputs = {k: rng.normal(size=(5, 8, 8, 4)).astype(np.float32) for k in ("left", "right")}
    ours, theirs = converted(inputs), model(inputs)
    assert set(ours) == {"pooled", "sum"}
    for key in ours:
        np.testing.assert_allclose(ours[key], theirs[key], rtol=1e-5, atol=1e-5)


def test_frozen_and_inference_mode_parts_stay_so():
    base = keras.Sequential(
        [
            keras.Input((6, 6, 2)),
            layers.Conv2D(4, 3, name="base_conv"),
            layers.BatchNormalization(name="base_bn"),
        ],
        name="base",
    )
    base.trainable = False
    image = keras.Input((6, 6, 2), name="image")
    x = base(image, training=False)
    x = layers.Flatten(name="flatten")(x)
    model = keras.Model(image, layers.Dense(3, name="logits")(x))
    randomize(model)
    converted = from_keras3(model)
    assert [w.name.split("/")[0] for w in converted.trainable_weights] == ["logits", "logits"]
    # Unfrozen, the nested BatchNormalization still runs in inference mode.
    converted.get_layer("base").trainable = True
    assert len(converted.trainable_weights) == 6
    images = np.random.default_rng(0).normal(size=(4, 6, 6, 2)).astype(np.float32)
    np.testing.assert_array_equal(converted(images, training=True), converted(images))
    np.testing.assert_allclose(converted(images), model(images), rtol=1e-5, atol=1e-5)


ACTIVATIONS = """
    elu exponential gelu hard_sigmoid hard_silu leaky_relu linear log_softmax mish relu relu6 selu
    sigmoid silu softmax softplus softsign tanh
""".split()  # noqa: SIM905


def each_layer():
    """One instance of the layers whose configuration or meaning could be mistaken on the way."""
    one, vector = (8, 8, 4), (6,)
    return {
        "Conv1D": (layers.Conv1D(3, 3, padding="causal"), (9, 4)),
        "Conv2D": (layers.Conv2D(6, 3, strides=2, groups=2, activation="gelu"), one),
        "Conv2D dilated": (layers.Conv2D(3, 3, dilation_rate=2, activation="hard_sigmoid"), one),
        "Conv2DTranspose": (layers.Conv2DTranspose(3, 3, strides=2, padding="same"), one),
        "Conv3D": (layers.Conv3D(2, 2), (4, 4, 4, 2)),
        "DepthwiseConv2D": (layers.DepthwiseConv2D(3, strides=2, depth_multiplier=2), one),
        "SeparableConv2D": (layers.SeparableConv2D(5, 3, activation="relu6"), one),
        "Dense": (layers.Dense(5, activation="mish", kernel_constraint="non_neg"), vector),
        "Dense softmax": (layers.Dense(5, activation="softmax"), vector),
        "LayerNormalization": (layers.LayerNormalization(epsilon=0.1), one),
        "GroupNormalization": (layers.GroupNormalization(2), one),
        "BatchNormalization": (layers.BatchNormalization(axis=1, scale=False, epsilon=0.1), one),
        "Normalization": (layers.Normalization(), one),
        "Normalization fixed": (layers.Normalization(mean=[1.0] * 4, variance=[4.0] * 4), one),
        "UnitNormalization": (layers.UnitNormalization(), one),
        "ReLU": (layers.ReLU(max_value=3.0, negative_slope=0.1, threshold=0.2), one),
        "LeakyReLU": (layers.LeakyReLU(0.05), one),
        "PReLU": (layers.PReLU(shared_axes=[1, 2]), one),
        "ELU": (layers.ELU(0.7), one),
        "Softmax": (layers.Softmax(axis=1), one),
        "AveragePooling2D": (layers.AveragePooling2D(3, strides=2, padding="same"), one),
        "MaxPooling2D": (layers.MaxPooling2D((3, 2), padding="same"), one),
        "GlobalMaxPooling2D": (layers.GlobalMaxPooling2D(keepdims=True), one),
        "UpSampling2D": (layers.UpSampling2D((2, 3), interpolation="bilinear"), one),
        "ZeroPadding2D": (layers.ZeroPadding2D(((0, 1), (2, 0))), one),
        "Cropping2D": (layers.Cropping2D(((0, 1), (2, 0))), one),
        "Permute": (layers.Permute((3, 1, 2)), one),
        "Reshape": (layers.Reshape((-1, 8)), one),
        "Resizing": (layers.Resizing(5, 6), one),
        "CenterCrop": (layers.CenterCrop(5, 6), one),
        "Rescaling": (layers.Rescaling([1.0, 2.0, 3.0, 4.0], offset=-0.5), one),
        "Dropout": (layers.Dropout(0.5), one),
        "SpatialDropout2D": (layers.SpatialDropout2D(0.5), one),
        "AlphaDropout": (layers.AlphaDropout(0.5), one),
        "GaussianNoise": (layers.GaussianNoise(0.5), one),
        "RandomFlip": (layers.RandomFlip("horizontal"), one),
        "RandomRotation": (layers.RandomRotation(0.1), one),
        "RandomZoom": (layers.RandomZoom(0.1), one),
        "RandomContrast": (layers.RandomContrast(0.1), one),
        "RandomBrightness": (layers.RandomBrightness(0.1), one),
        "ActivityRegularization": (layers.ActivityRegularization(l2=0.1), one),
    } | {f"Activation {name}": (layers.Activation(name), one) for name in ACTIVATIONS}


@pytest.mark.parametrize("case", each_layer())
def test_each_layer(case):
    layer, shape = each_layer()[case]
    image = keras.Input(shape)
    model = randomize(keras.Model(image, layer(image)))
    converted = from_keras3(model)
    assert converted.layers[1].name == layer.name
    x = np.random.default_rng(2).normal(0, 3, (4, *shape)).astype(np.float32)
    ours, theirs = converted(x, training=False), model(x, training=False)
    np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-5)
    # What was made is plain configuration: it is saved and read without the conversion.
    again = tf_keras.Model.from_config(converted.get_config())
    again.set_weights(converted.get_weights())
    if isinstance(layer, layers.Normalization):
        again.layers[1].finalize_state()
    np.testing.assert_array_equal(again(x, training=False), ours)


def test_adapted_normalization():
    layer = layers.Normalization()
    layer.adapt(np.random.default_rng(0).normal(5, 3, (100, 4)))
    image = keras.Input((4,))
    model = keras.Model(image, layer(image))
    x = np.random.default_rng(1).normal(5, 3, (7, 4)).astype(np.float32)
    np.testing.assert_allclose(from_keras3(model)(x), model(x), rtol=1e-5, atol=1e-6)


OPERATIONS = {
    "x + 3": lambda x: x + 3.0,
    "3 + x": lambda x: 3.0 + x,
    "x - 3": lambda x: x - 3.0,
    "3 - x": lambda x: 3.0 - x,
    "x * 3": lambda x: x * 3.0,
    "x / 3": lambda x: x / 3.0,
    "x + x": lambda x: x + x,
    "x - y": lambda x: x - layers.Conv2D(3, 1)(x),
    "x * y": lambda x: x * layers.Conv2D(3, 1)(x),
    "maximum": lambda x: keras.ops.maximum(x, layers.Conv2D(3, 1)(x)),
    "minimum": lambda x: keras.ops.minimum(x, layers.Conv2D(3, 1)(x)),
    "mean": lambda x: keras.ops.mean(x, axis=(1, 2)),
    "mean kept": lambda x: keras.ops.mean(x, axis=[-2, -3], keepdims=True),
    "max": lambda x: keras.ops.max(x, axis=(1, 2)),
    "concatenate": lambda x: keras.ops.concatenate([x, x], axis=-1),
    "reshape": lambda x: keras.ops.reshape(x, (-1, 24, 2)),
    "relu": keras.ops.relu,
    "relu6": keras.ops.relu6,
    "sigmoid": keras.ops.sigmoid,
    "silu": keras.ops.silu,
    "tanh": keras.ops.tanh,
    "selu": keras.ops.selu,
    "softplus": keras.ops.softplus,
    "softsign": keras.ops.softsign,
    "hard_sigmoid": keras.ops.hard_sigmoid,
    "hard_silu": keras.ops.hard_silu,
    "softmax": lambda x: keras.ops.softmax(x, axis=1),
}


@pytest.mark.parametrize("case", OPERATIONS)
def test_operations_become_layers(case):
    image = keras.Input((4, 4, 3))
    model = keras.Model(image, OPERATIONS[case](image))
    converted = from_keras3(model)
    assert not any("Lambda" in type(layer).__name__ for layer in converted.layers)
    x = np.random.default_rng(3).normal(0, 3, (4, 4, 4, 3)).astype(np.float32)
    np.testing.assert_allclose(converted(x), model(x), rtol=1e-5, atol=1e-5)


@keras.saving.register_keras_serializable("test_keras3")
class Scale(layers.Layer):
    """A custom layer: one factor per channel."""

    def build(self, shape):
        self.factor = self.add_weight(shape=(shape[-1],), initializer="ones", name="factor")

    def call(self, x):
        return x * self.factor


class LegacyScale(tf_keras.layers.Layer):
    """The same for tf_keras."""

    def build(self, shape):
        self.factor = self.add_weight("factor", shape=(shape[-1],), initializer="ones")

    def call(self, x):
        return x * self.factor


def test_everything_that_can_not_cross_is_listed_at_once():
    image = keras.Input((8, 8, 3), name="image")
    inner_image = keras.Input((8, 8, 3))
    inner = keras.Model(inner_image, Scale(name="inner_scale")(inner_image), name="inner")
    x = layers.Conv2D(3, 3, padding="same", activation=lambda v: v * 2, name="odd_activation")(
        image
    )
    x = Scale(name="scale")(x)
    x = inner(x)
    x = layers.Lambda(lambda v: v + 1, name="lambda")(x)
    x = layers.LayerNormalization(rms_scaling=True, name="rms")(x)
    x = layers.Dropout(0.5, name="always")(x, training=True)
    x = layers.Conv2D(3, 1, data_format="channels_first", name="first")(x)
    x = layers.Resizing(8, 8, antialias=True, name="smooth")(x)
    x = keras.ops.flip(x, axis=1)
    x = layers.Flatten(name="fine")(x)
    model = keras.Model(image, x, name="odd")
    with pytest.raises(ValueError, match="model 'odd' can't be converted") as caught:
        from_keras3(model)
    message = str(caught.value)
    for line in (
        "odd_activation (Conv2D): the activation",
        "scale (Scale): no tf_keras layer is known",
        "inner/inner_scale (Scale): no tf_keras layer is known",
        "lambda (Lambda): it is Python code",
        "rms (LayerNormalization): tf_keras has no rms_scaling=True",
        "always (Dropout): it is called with training=True",
        "first (Conv2D): data_format is channels_first",
        "smooth (Resizing): tf_keras has no antialias=True",
        "(Flip): no layer is known",
    ):
        assert line in message
    assert len(message.splitlines()) == 10
    assert "fine" not in message


def make_scaled():
    image = keras.Input((5,), name="image")
    return randomize(keras.Model(image, layers.Dense(2, name="out")(Scale(name="scale")(image))))


def test_custom_layers_by_class_and_by_name():
    model = make_scaled()
    x = np.random.default_rng(0).normal(size=(3, 5)).astype(np.float32)
    for key in ("Scale", "scale"):
        converted = from_keras3(
            model, custom_layers={key: lambda layer: LegacyScale(name=layer.name)}
        )
        np.testing.assert_allclose(converted(x), model(x), rtol=1e-5, atol=1e-6)
    with pytest.raises(ValueError, match=r"scale \(Scale\): custom_layers gave.*named 'scale'"):
        from_keras3(model, custom_layers={"Scale": lambda layer: LegacyScale(name="other")})
    with pytest.raises(ValueError, match=r"'scale' \(Scale\) has weights of shapes \[\(5,\)\]"):
        from_keras3(
            model, custom_layers={"Scale": lambda layer: tf_keras.layers.ReLU(name=layer.name)}
        )


def test_a_wrong_counterpart_is_noticed_and_named():
    class Off(LegacyScale):
        def call(self, x):
            return super().call(x) * 1.0001

    with pytest.raises(ValueError, match=r"computes something else.*\n  scale \(Scale\): 0.0001"):
        from_keras3(make_scaled(), custom_layers={"Scale": lambda layer: Off(name=layer.name)})
    from_keras3(
        make_scaled(), rtol=1e-3, custom_layers={"Scale": lambda layer: Off(name=layer.name)}
    )


def test_half_precision_policies_are_kept():
    image = keras.Input((6, 6, 3))
    x = layers.Conv2D(4, 3, dtype="mixed_float16", name="conv")(image)
    x = layers.BatchNormalization(dtype="mixed_bfloat16", name="bn")(x)
    model = randomize(keras.Model(image, layers.Flatten(dtype="float32")(x)))
    converted = from_keras3(model)
    assert converted.get_layer("conv").compute_dtype == "float16"
    assert converted.get_layer("conv").kernel.dtype == tf.float32
    assert converted.get_layer("bn").compute_dtype == "bfloat16"


def test_integer_and_open_inputs():
    image = keras.Input((None, None, 3), dtype="uint8", name="image")
    x = layers.Rescaling(1 / 255)(image)
    model = keras.Model(image, layers.GlobalAveragePooling2D()(layers.Conv2D(4, 3)(x)))
    converted = from_keras3(model)
    assert converted.input.dtype == tf.uint8
    x = np.random.default_rng(0).integers(0, 256, (2, 11, 9, 3), dtype=np.uint8)
    np.testing.assert_allclose(converted(x), model(x), rtol=1e-5, atol=1e-6)


class Subclassed(keras.Model):
    """A model whose call is Python code."""

    def call(self, x):
        return x


class Doubled(keras.Model):
    """A Functional model that does something else when it is called."""

    def call(self, inputs, training=None, mask=None):
        return 2.0 * super().call(inputs, training=training, mask=mask)


def test_a_call_that_is_not_the_graph_is_noticed():
    image = keras.Input((3,))
    model = Doubled(image, layers.Dense(2)(image))
    with pytest.raises(ValueError, match=r"differs by 0\.5 .*own Python code"):
        from_keras3(model)


def test_what_is_not_a_model_with_a_graph():
    image = tf_keras.Input((3,))
    legacy = tf_keras.Model(image, tf_keras.layers.Dense(2)(image))
    assert not is_keras3_model(legacy)
    with pytest.raises(TypeError, match="a tf_keras model already"):
        from_keras3(legacy)
    with pytest.raises(TypeError, match="expected a Keras 3 model, got a str"):
        from_keras3("model.keras")
    with pytest.raises(ValueError, match="subclassed model"):
        from_keras3(Subclassed())
    with pytest.raises(ValueError, match="not built"):
        from_keras3(keras.Sequential([layers.Dense(3)]))


def test_other_backends_are_sent_elsewhere(monkeypatch):
    monkeypatch.setattr(keras.backend, "backend", lambda: "jax")
    image = keras.Input((3,))
    with pytest.raises(ValueError, match=r"runs on the jax backend.*KERAS_BACKEND=tensorflow"):
        from_keras3(keras.Model(image, layers.Dense(2)(image)))
