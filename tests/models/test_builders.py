"""What every builder promises: logits, quantizable layers, stable names, clear errors."""

import keras
import numpy as np
import pytest
import tf_keras

from tfdq import data, models

BUILDERS = {
    "small_cnn": lambda: models.small_cnn(),
    "small_cnn 28x28": lambda: models.small_cnn((28, 28, 1)),
    "small_cnn strided": lambda: models.small_cnn((28, 28, 1), stem_strides=2),
    "resnet20": lambda: models.resnet20(),
    "resnet20 28x28": lambda: models.resnet20((28, 28, 1)),
    "resnet8": lambda: models.resnet8(),
    "resnet32": lambda: models.resnet32(width=2),
    "resnet18": lambda: models.resnet18(width=2),
    "preact_resnet18": lambda: models.preact_resnet18(width=2),
    "wide_resnet": lambda: models.wide_resnet(10, 1),
    "wide_resnet dropout": lambda: models.wide_resnet(10, 2, dropout=0.3),
    "vgg16": lambda: models.vgg16(hidden=(64,), dropout=0.5),
    "mobilenet_v2": lambda: models.mobilenet_v2(alpha=0.35, dropout=0.2),
}

QUANTIZED_LAYERS = {
    "InputLayer", "Conv2D", "DepthwiseConv2D", "Dense", "BatchNormalization", "ReLU", "Add",
    "MaxPooling2D", "AveragePooling2D", "GlobalAveragePooling2D", "Flatten", "Dropout",
}  # fmt: skip


@pytest.mark.parametrize("build", BUILDERS.values(), ids=BUILDERS.keys())
def test_ends_in_logits_and_uses_quantizable_layers(build):
    model = build()
    assert isinstance(model, tf_keras.Model)
    assert model.output_shape == (None, 10)
    assert model.layers[-1].activation is tf_keras.activations.linear
    assert {type(layer).__name__ for layer in model.layers} <= QUANTIZED_LAYERS
    names = [layer.name for layer in model.layers]
    assert names == [layer.name for layer in build().layers], "names differ from build to build"
    x = np.random.default_rng(0).random((2, *model.input_shape[1:]), np.float32)
    assert np.isfinite(model(x)).all()


KERAS_3 = {
    "small_cnn": lambda **options: models.small_cnn(width=2, **options),
    "resnet8": lambda **options: models.resnet8((8, 8, 3), width=2, **options),
    "resnet18": lambda **options: models.resnet18((8, 8, 3), width=2, **options),
    "preact_resnet18": lambda **options: models.preact_resnet18((8, 8, 3), width=2, **options),
    "vgg16": lambda **options: models.vgg16(hidden=(8,), dropout=0.1, **options),
    "mobilenet_v2": lambda **options: models.mobilenet_v2((8, 8, 3), alpha=0.35, **options),
}


@pytest.mark.parametrize("build", KERAS_3.values(), ids=KERAS_3.keys())
def test_models_of_keras_3_are_those_of_tf_keras(build):
    """Layer by layer the same weights, and the same logits from them."""
    older, model = build(), build(keras=3)
    assert type(model).__module__.startswith("keras.")
    assert [layer.name for layer in model.layers] == [layer.name for layer in older.layers]
    rng = np.random.default_rng(0)
    for layer in model.layers:
        weights = [w + rng.uniform(0, 0.1, w.shape) for w in layer.get_weights()]
        layer.set_weights(weights)
        older.get_layer(layer.name).set_weights(weights)
    x = rng.random((2, *model.input_shape[1:]), np.float32)
    wanted = older(x).numpy()
    found = keras.ops.convert_to_numpy(model(x, training=False))
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-5 * np.abs(wanted).max())


def test_resnet20_block_is_relu_of_shortcut_plus_branch():
    """The second stage's first block, replayed in float64 NumPy and SciPy."""
    from scipy.signal import correlate

    model = models.resnet20((8, 8, 1), width=2)
    rng = np.random.default_rng(1)
    for layer in model.layers:
        if isinstance(layer, tf_keras.layers.BatchNormalization):
            layer.set_weights([rng.uniform(0.5, 1.5, w.shape) for w in layer.get_weights()])
    before = "stage1_block3_relu"
    probe = tf_keras.Model(
        model.input, [model.get_layer(n).output for n in (before, "stage2_block1_relu")]
    )
    x, expected = (a.numpy()[0] for a in probe(rng.random((1, 8, 8, 1), np.float32)))

    def conv(x, name, strides, pad):
        kernel = model.get_layer(name).kernel.numpy()
        x = np.pad(x, (pad, pad, (0, 0)))
        out = np.stack(
            [correlate(x, kernel[..., c], "valid")[..., 0] for c in range(kernel.shape[-1])], -1
        )
        return out[::strides, ::strides]

    def norm(x, name):
        gamma, beta, mean, var = model.get_layer(name).get_weights()
        return gamma * (x - mean) / np.sqrt(var + 1e-5) + beta

    b = "stage2_block1"
    # "same" padding of an even size at stride 2 pads one row and column, at the end.
    y = np.maximum(norm(conv(x, f"{b}_1_conv", 2, (0, 1)), f"{b}_1_bn"), 0)
    y = norm(conv(y, f"{b}_2_conv", 1, (1, 1)), f"{b}_2_bn")
    shortcut = norm(conv(x, f"{b}_shortcut_conv", 2, (0, 0)), f"{b}_shortcut_bn")
    np.testing.assert_allclose(np.maximum(shortcut + y, 0), expected, rtol=1e-4, atol=1e-5)


def test_wide_resnet_is_preactivated():
    """Every 3x3 convolution but the first reads a ReLU or a dropout behind one."""
    model = models.wide_resnet(16, 2, dropout=0.3)
    for layer in model.layers:
        if isinstance(layer, tf_keras.layers.Conv2D) and layer.name != "stem_conv":
            producer = layer.inbound_nodes[0].inbound_layers
            assert isinstance(producer, tf_keras.layers.ReLU | tf_keras.layers.Dropout)


def test_small_cnn_learns_the_digits_in_seconds():
    digits = data.load("digits")
    tf_keras.utils.set_random_seed(0)
    model = models.small_cnn()
    model.compile(
        tf_keras.optimizers.Adam(3e-3),
        tf_keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    batches = data.pipeline(digits, 64, seed=0)
    steps = data.steps_per_epoch(digits, 64)
    model.fit(batches, epochs=12, steps_per_epoch=steps, verbose=0)
    _, accuracy = model.evaluate(data.pipeline(digits, 128, split="test"), verbose=0)
    assert accuracy > 0.97


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: models.small_cnn((8, 8)), "three positive integers"),
        (lambda: models.small_cnn((8, 8, 0)), "three positive integers"),
        (lambda: models.small_cnn((7, 8, 1)), "multiples of 2"),
        (lambda: models.small_cnn(classes=1), "classes is 1"),
        (lambda: models.small_cnn(stem_strides=0), "stem_strides is 0"),
        (lambda: models.small_cnn((10, 8, 1), stem_strides=2), "multiples of 4"),
        (lambda: models.resnet20((30, 30, 3)), "multiples of 4"),
        (lambda: models.resnet20(width=0), "width is 0"),
        (lambda: models.resnet20(width=1.5), "width is 1.5"),
        (lambda: models.vgg16((28, 28, 1)), "at least 32"),
        (lambda: models.vgg16(dropout=1.0), "dropout is 1.0"),
        (lambda: models.vgg16(hidden=(0,)), "hidden is 0"),
        (lambda: models.mobilenet_v2(alpha=0), "alpha is 0"),
        (lambda: models.wide_resnet(27, 10), "nearest are 22 and 28"),
        (lambda: models.wide_resnet(9, 1), "depth is 9"),
        (lambda: models.wide_resnet(10, 1, residual="mean"), "residual is 'mean'"),
        (lambda: models.wide_resnet(10, 1, residual="convex", keras=3), "a layer of tf_keras"),
        (lambda: models.resnet18((12, 12, 3)), "multiples of 8"),
        (lambda: models.resnet8(keras=4), "keras is 4"),
    ],
)
def test_bad_arguments_are_named(call, words):
    with pytest.raises(ValueError, match=words):
        call()


def test_create_by_name():
    assert set(models.names()) == {
        "small_cnn", "resnet8", "resnet20", "resnet32", "resnet18", "preact_resnet18", "vgg16",
        "mobilenet_v2", "wide_resnet",
    }  # fmt: skip
    options = {"wide_resnet": {"depth": 10, "width": 1}, "resnet8": {"keras": 3}}
    for name, option in options.items():
        model = models.create(name, (32, 32, 3), 7, **option)
        assert model.output_shape == (None, 7)
        assert isinstance(model, keras.Model if option.get("keras") else tf_keras.Model)
    model = models.create("wrn-10-2", (32, 32, 3), 10, dropout=0.1)
    assert model.name == "wrn_10_2"
    with pytest.raises(ValueError, match="no model 'resnet50'"):
        models.create("resnet50", (32, 32, 3), 10)
    with pytest.raises(ValueError, match="no option depth"):
        models.create("resnet20", (32, 32, 3), 10, depth=3)
