"""BatchNorms that follow training too slowly for the penalty: what quantize_model does."""

from __future__ import annotations

import re
import warnings

import keras
import numpy as np
import pytest
import tensorflow_model_optimization as tfmot
import tf_keras

import tfdq
from tfdq import models
from tfdq.quantization import LaggingStatisticsWarning

L = tf_keras.layers


def network(momentum: float = 0.99, trainable: bool = True) -> tf_keras.Model:
    """Return two folded BatchNorms and one that stands by itself behind a pooling."""
    image = L.Input((8, 8, 1))
    x = L.Conv2D(4, 3, use_bias=False, name="first")(image)
    x = L.ReLU()(L.BatchNormalization(momentum=momentum, name="first_norm")(x))
    x = L.SeparableConv2D(4, 3, name="second")(x)
    x = L.ReLU()(L.BatchNormalization(momentum=momentum, name="second_norm")(x))
    x = L.MaxPooling2D()(x)
    x = L.BatchNormalization(momentum=momentum, name="alone")(x)
    model = tf_keras.Model(image, L.Dense(10, name="logits")(L.Flatten()(x)))
    for layer in model.layers:
        layer.trainable = trainable or not isinstance(layer, L.BatchNormalization)
    return model


def momenta(model: tf_keras.Model) -> dict[str, float]:
    """Return the momentum of each BatchNorm of a quantized model, by the name of its layer."""
    found = {}
    for wrapper in model.layers:
        layer = getattr(wrapper, "layer", None)
        norm = getattr(layer, "batch_norm", None)
        if isinstance(layer, L.BatchNormalization):
            norm = layer
        if norm is not None:
            found[norm.name] = norm.momentum
    return found


@pytest.mark.parametrize(
    ("own", "settings", "expected"),
    [
        (0.99, {}, 0.9),
        (0.999, {"on": "folded"}, 0.9),
        (0.9, {}, 0.9),
        (0.5, {}, 0.5),
        (0.5, {"batch_norm_momentum": 0.8}, 0.8),
        (0.99, {"batch_norm_momentum": 0.6}, 0.6),
        (0.99, {"on": "kernel"}, 0.99),
        (0.99, {"lipschitz_beta": 0.0}, 0.99),
        (0.99, {"regularizer": tfdq.OrthogonalityRegularizer(1e-3)}, 0.99),
        (0.99, {"regularizer": tfdq.OrthogonalityRegularizer(1e-3, on="folded")}, 0.9),
        (0.99, {"regularizer": tf_keras.regularizers.L2(1e-3)}, 0.99),
    ],
)
def test_statistics_follow_what_a_penalty_moves(
    own: float, settings: dict, expected: float
) -> None:
    """All of them, also those behind a pooling: the layers in front move. None is slowed down."""
    model = network(own)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = momenta(tfdq.quantize_model(model, **settings))
    assert found == dict.fromkeys(("first_norm", "second_norm", "alone"), expected)
    assert model.get_layer("first_norm").momentum == own


@pytest.mark.parametrize("on", ["folded", "deployed"])
@pytest.mark.parametrize("regularizer", ["orthogonal", "spectral", "srip", "conv_orthogonal"])
def test_every_penalty_behind_batch_norm_has_quick_statistics(on: str, regularizer: str) -> None:
    found = momenta(tfdq.quantize_model(network(), on=on, regularizer=regularizer))
    assert set(found.values()) == {0.9}


def test_a_schedule_from_zero_has_quick_statistics() -> None:
    schedule = tf_keras.optimizers.schedules.PolynomialDecay(0.0, 10, 1e-3)
    found = momenta(tfdq.quantize_model(network(), 0.0, beta_schedule=schedule))
    assert set(found.values()) == {0.9}


def test_one_warning_names_layers_value_and_remedy() -> None:
    with pytest.warns(LaggingStatisticsWarning) as caught:
        tfdq.quantize_model(network(), batch_norm_momentum=0.99)
    (warning,) = caught
    text = str(warning.message)
    assert "batch_norm_momentum=0.99 in first_norm, second_norm: " in text
    assert "Leave batch_norm_momentum out" in text
    assert "alone" not in text
    # It points at the user's line, not into the library.
    assert warning.filename == __file__


def test_many_layers_are_counted() -> None:
    image = L.Input((4, 4, 1))
    x = image
    for number in range(8):
        x = L.Conv2D(2, 1, name=f"conv{number}")(x)
        x = L.BatchNormalization(name=f"norm{number}")(x)
    with pytest.warns(LaggingStatisticsWarning) as caught:
        tfdq.quantize_model(tf_keras.Model(image, x), batch_norm_momentum=0.95)
    text = str(caught[0].message)
    assert "batch_norm_momentum=0.95 in norm0, norm1, norm2, norm3, norm4 and 3 more: " in text


@pytest.mark.parametrize(
    "settings",
    [
        {"on": "kernel"},
        {"lipschitz_beta": 0.0},
        {"regularizer": tfdq.OrthogonalityRegularizer(1e-3)},
        {"regularizer": tf_keras.regularizers.L2(1e-3)},
    ],
)
def test_no_warning_where_nothing_lags(settings: dict) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = momenta(tfdq.quantize_model(network(), batch_norm_momentum=0.99, **settings))
    assert set(found.values()) == {0.99}


def test_frozen_statistics_do_not_lag() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = momenta(tfdq.quantize_model(network(trainable=False), batch_norm_momentum=0.99))
    assert set(found.values()) == {0.99}


def test_the_networks_of_tfdq_keep_their_momentum() -> None:
    for name in ("small_cnn", "resnet20", "vgg16", "mobilenet_v2", "wrn-10-1"):
        found = momenta(tfdq.quantize_model(models.create(name, (32, 32, 3), 10)))
        assert set(found.values()) == {0.9}


def test_keras_3_too() -> None:
    image = keras.Input((8, 8, 1))
    x = keras.layers.Conv2D(4, 3, name="conv")(image)
    model = keras.Model(image, keras.layers.BatchNormalization(name="norm")(x))
    for settings, expected in (
        ({}, 0.9),
        ({"on": "kernel"}, 0.99),
        ({"lipschitz_beta": 0.0}, 0.99),
    ):
        with warnings.catch_warnings():
            warnings.simplefilter("error", LaggingStatisticsWarning)
            found = tfdq.quantize_model(model, **settings)
        assert found.get_layer("norm").norm["momentum"] == expected
    with pytest.warns(LaggingStatisticsWarning, match=re.escape("0.99 in norm: ")) as caught:
        tfdq.quantize_model(model, batch_norm_momentum=0.99)
    (warning,) = [found for found in caught if found.category is LaggingStatisticsWarning]
    assert warning.filename == __file__


def test_tfmot_too() -> None:
    annotated = tfmot.quantization.keras.quantize_annotate_model(
        tf_keras.Sequential(
            [L.Conv2D(4, 3, input_shape=(8, 8, 1)), L.BatchNormalization(name="norm")]
        )
    )
    scheme = tfdq.DefensiveQuantizeScheme(lipschitz_beta=1e-3)
    quantized = tfmot.quantization.keras.quantize_apply(annotated, scheme)
    assert momenta(quantized) == {"norm": 0.9}
    scheme = tfdq.DefensiveQuantizeScheme(lipschitz_beta=1e-3, batch_norm_momentum=0.99)
    with pytest.warns(LaggingStatisticsWarning, match=re.escape("0.99 in norm: ")):
        tfmot.quantization.keras.quantize_apply(annotated, scheme)


def test_the_momentum_reaches_every_norm_and_moves_it_as_it_says() -> None:
    """One training step moves each variance by 1 - momentum of the way; the model stays."""
    model = network()
    x = np.random.default_rng(0).normal(size=(64, 8, 8, 1)).astype(np.float32)
    moved = {}
    for momentum in (0.9, 0.6):
        qat = tfdq.quantize_model(model, 0.0, batch_norm_momentum=momentum, input_range=(-3, 3))
        qat(x, training=True)
        variables = {v.name: v.numpy() for v in qat.variables if "moving_variance" in v.name}
        assert len(variables) == 3
        moved[momentum] = variables
    for name, quick in moved[0.6].items():
        # All start at 1, and see the same batch.
        np.testing.assert_allclose((1 - quick) / 0.4, (1 - moved[0.9][name]) / 0.1, rtol=1e-3)
    assert model.get_layer("first_norm").momentum == 0.99


def test_the_momentum_is_saved(tmp_path) -> None:
    qat = tfdq.quantize_model(network())
    qat.save(tmp_path / "model.keras")
    loaded = tfdq.load_model(tmp_path / "model.keras")
    assert loaded.get_layer("quant_first").layer.batch_norm.momentum == 0.9


@pytest.mark.parametrize("momentum", [1.0, -0.1, "0.9", True, float("nan")])
def test_a_momentum_out_of_range_is_refused(momentum: object) -> None:
    with pytest.raises(ValueError, match=r"batch_norm_momentum must be a number in \[0, 1\)"):
        tfdq.quantize_model(network(), batch_norm_momentum=momentum)
