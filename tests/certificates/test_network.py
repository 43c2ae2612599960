"""The network's bounds against the explicit matrix of linear networks, and against search."""

import json

import numpy as np
import pytest
import tf_keras

from tfdq.certificates.layer_report import LipschitzReport
from tfdq.certificates.local_search import local_lipschitz
from tfdq.certificates.network import lipschitz_report

layers = tf_keras.layers
SHAPE = (6, 6, 2)


def residual_network(activation: str) -> tf_keras.Model:
    """Return a small network with every way of joining branches."""
    inputs = tf_keras.Input(SHAPE)
    x = layers.Conv2D(4, 3, padding="same", use_bias=False, name="stem")(inputs)
    x = layers.BatchNormalization(name="stem_norm")(x)
    x = layers.Activation(activation)(x)
    y = layers.Conv2D(4, 3, padding="same", activation=activation)(x)
    x = layers.Add()([x, y])
    z = layers.DepthwiseConv2D(3, padding="same")(x)
    x = layers.Concatenate()([x, z])
    w = layers.Conv2D(8, 1)(x)
    x = layers.Average()([x, w])
    x = layers.AveragePooling2D(2)(x)
    x = layers.Flatten()(x)
    model = tf_keras.Model(inputs, layers.Dense(3)(x))
    rng = np.random.default_rng(0)
    gamma, beta, mean, variance = model.get_layer("stem_norm").get_weights()
    model.get_layer("stem_norm").set_weights(
        [rng.uniform(-2, 2, gamma.shape), beta, mean, rng.uniform(0.5, 2, variance.shape)]
    )
    return model


def true_norm(model: tf_keras.Model) -> float:
    """Return the norm of an affine network from its explicit matrix."""
    size = int(np.prod(SHAPE))
    basis = np.eye(size, dtype=np.float32).reshape(size, *SHAPE)
    matrix = model(basis).numpy() - model(np.zeros((1, *SHAPE), np.float32)).numpy()
    return float(np.linalg.norm(matrix.astype(np.float64), 2))


def test_bounds_enclose_the_norm_of_a_linear_network() -> None:
    model = residual_network("linear")
    exact = true_norm(model)
    x = np.random.default_rng(0).standard_normal((2, *SHAPE)).astype(np.float32)
    found = lipschitz_report(model, x, search_steps=1)
    assert found.upper >= exact
    assert found.lower == pytest.approx(exact, rel=1e-4)
    assert found.estimate <= found.upper <= found.estimate * (1 + 1e-6)


def test_a_chain_without_slack_is_exact() -> None:
    """Where the product of norms is attained, the bound is the norm; a tenth less is caught."""
    inputs = tf_keras.Input(SHAPE)
    x = layers.Conv2D(3, 3, padding="same", use_bias=False)(inputs)
    x = layers.Rescaling(0.5)(layers.Flatten()(x))
    model = tf_keras.Model(inputs, x)
    found = lipschitz_report(model)
    exact = true_norm(model)
    assert exact * (1 - 1e-6) <= found.upper <= exact * (1 + 1e-6)
    assert 0.9 * found.upper < exact


def test_bounds_enclose_what_a_relu_network_does() -> None:
    model = residual_network("relu")
    rng = np.random.default_rng(1)
    x = rng.standard_normal((16, *SHAPE)).astype(np.float32)
    found = lipschitz_report(model, x, search_steps=4)
    near = x + 0.01 * rng.standard_normal(x.shape).astype(np.float32)
    change = np.linalg.norm(model(x).numpy() - model(near).numpy(), axis=1)
    ratio = change / np.linalg.norm((x - near).reshape(16, -1), axis=1)
    assert ratio.max() <= found.lower <= found.upper
    at_images = local_lipschitz(model, x, steps=0)
    assert found.lower >= at_images.max()


def test_batch_norm_is_measured_with_its_convolution() -> None:
    model = residual_network("linear")
    found = {row.name: row for row in lipschitz_report(model).rows}
    norm = model.get_layer("stem_norm")
    factor = np.abs(norm.gamma.numpy() / np.sqrt(norm.moving_variance.numpy() + norm.epsilon))
    assert found["stem_norm"].sigma == pytest.approx(factor.max(), rel=1e-5)
    assert found["stem_norm"].upper == (1.0,)
    basis = np.eye(72, dtype=np.float32).reshape(72, *SHAPE)
    stem = tf_keras.Model(model.input, norm.output)
    matrix = (stem(basis) - stem(np.zeros((1, *SHAPE), np.float32))).numpy().reshape(72, -1)
    assert found["stem"].upper[0] == pytest.approx(np.linalg.norm(matrix, 2), rel=1e-5)


def test_a_batch_norm_with_other_takers_is_not_folded() -> None:
    inputs = tf_keras.Input(SHAPE)
    x = layers.Conv2D(2, 3, padding="same", name="conv")(inputs)
    y = layers.BatchNormalization(name="norm")(x)
    model = tf_keras.Model(inputs, layers.Add()([x, y]))
    model.get_layer("norm").set_weights([np.full(2, v) for v in (3.0, 0, 0, 1)])
    rows = {row.name: row for row in lipschitz_report(model).rows}
    assert rows["norm"].upper[0] == pytest.approx(3 / np.sqrt(1.001), rel=1e-6)
    assert lipschitz_report(model).upper == pytest.approx(
        rows["conv"].upper[0] * (1 + rows["norm"].upper[0]), rel=1e-9
    )


def test_report_as_text_data_and_plot(tmp_path) -> None:
    found = lipschitz_report(residual_network("relu"), spectra=True)
    text = found.table()
    assert "stem" in text
    assert "not searched" in text
    assert len(text.splitlines()) == len(found.rows) + 2
    assert json.loads(json.dumps(found.to_dict()))["upper"] == found.upper
    target = tmp_path / "spectra.png"
    figure = found.plot_spectra(str(target))
    assert target.stat().st_size > 1000
    assert [axis.get_title() for axis in figure.axes if axis.get_visible()] == list(found.spectra)
    assert found.spectra["stem"][0] == pytest.approx(found.rows[1].sigma, rel=1e-6)
    with pytest.raises(ValueError, match="spectra=True"):
        LipschitzReport((), 1.0, 1.0, None, "float").plot_spectra()


def test_report_without_proof_is_marked() -> None:
    found = lipschitz_report(residual_network("relu"), certify=False)
    assert found.upper == np.inf
    assert np.isfinite(found.estimate)


def test_what_cannot_be_measured_is_refused() -> None:
    inputs = tf_keras.Input(SHAPE)
    product = tf_keras.Model(inputs, layers.Multiply()([inputs, layers.Conv2D(2, 1)(inputs)]))
    with pytest.raises(ValueError, match="joins 2 inputs"):
        lipschitz_report(product)
    two = tf_keras.Model(inputs, [layers.Flatten()(inputs), layers.ReLU()(inputs)])
    with pytest.raises(ValueError, match="2 outputs"):
        lipschitz_report(two)
    with pytest.raises(ValueError, match="kernel must be"):
        lipschitz_report(residual_network("relu"), kernel="int8")
    with pytest.raises(ValueError, match="non-empty"):
        local_lipschitz(product, np.zeros((0, *SHAPE)))
    with pytest.raises(ValueError, match="steps"):
        local_lipschitz(product, np.zeros((1, *SHAPE)), steps=-1)
