"""The paper's penalty against NumPy, finite differences and its closed form."""

import numpy as np
import pytest
import tensorflow as tf
import tf_keras
from scipy.stats import ortho_group

from tfdq import OrthogonalityRegularizer


def frobenius(matrix: np.ndarray, beta: float) -> float:
    rows, columns = matrix.shape
    tall = matrix if rows >= columns else matrix.T
    return beta / 2 * np.linalg.norm(tall.T @ tall - np.eye(min(rows, columns))) ** 2


@pytest.mark.parametrize("shape", [(3, 3, 4, 8), (1, 1, 4, 16), (3, 3, 16, 4), (20, 7), (7, 20)])
def test_against_numpy(shape: tuple[int, ...]) -> None:
    kernel = np.random.default_rng(0).normal(size=shape) / 3
    expected = frobenius(kernel.reshape(-1, shape[-1]), 0.02)
    got = OrthogonalityRegularizer(0.02)(tf.constant(kernel, tf.float32))
    np.testing.assert_allclose(got, expected, rtol=1e-5)


def test_depthwise_is_the_sum_over_channels() -> None:
    kernel = np.random.default_rng(0).normal(size=(3, 3, 5, 2)) / 3
    expected = sum(frobenius(kernel[:, :, c].reshape(9, 2), 0.1) for c in range(5))
    got = OrthogonalityRegularizer(0.1, depthwise=True)(tf.constant(kernel, tf.float32))
    np.testing.assert_allclose(got, expected, rtol=1e-5)


@pytest.mark.parametrize("shape", [(36, 8), (8, 36)])
def test_orthonormal_rows_or_columns_cost_nothing(shape: tuple[int, int]) -> None:
    kernel = ortho_group.rvs(36, random_state=0)[: shape[0], : shape[1]].astype(np.float32)
    assert float(OrthogonalityRegularizer(1.0)(tf.constant(kernel))) < 1e-9


@pytest.mark.parametrize("depthwise", [False, True])
def test_gradient_against_finite_differences(depthwise: bool) -> None:
    rng = np.random.default_rng(3)
    kernel = rng.normal(size=(3, 3, 2, 3)) / 2
    direction = rng.normal(size=kernel.shape)
    penalty = OrthogonalityRegularizer(0.5, depthwise=depthwise)
    variable = tf.Variable(kernel, dtype=tf.float32)
    with tf.GradientTape() as tape:
        value = penalty(variable)
    slope = float(tf.reduce_sum(tape.gradient(value, variable) * direction))
    h = 1e-2
    ahead, behind = (float(penalty(tf.constant(kernel + s * direction))) for s in (h, -h))
    np.testing.assert_allclose(slope, (ahead - behind) / (2 * h), rtol=5e-3)


def test_a_keras_layer_takes_it_and_saves_it(tmp_path: object) -> None:
    layer = tf_keras.layers.Dense(
        4, kernel_regularizer=OrthogonalityRegularizer(2e-3), input_shape=(6,)
    )
    model = tf_keras.Sequential([layer])
    expected = frobenius(layer.kernel.numpy(), 2e-3)
    np.testing.assert_allclose(model.losses, [expected], rtol=1e-5)
    path = f"{tmp_path}/model.keras"
    model.save(path)
    loaded = tf_keras.models.load_model(path)
    assert loaded.layers[0].kernel_regularizer.get_config()["beta"] == 2e-3
    np.testing.assert_array_equal(loaded.losses, model.losses)


@pytest.mark.parametrize("beta", [-1e-3, float("nan"), float("inf"), "0.1", None, True])
def test_bad_beta(beta: object) -> None:
    with pytest.raises(ValueError, match="beta must be"):
        OrthogonalityRegularizer(beta)  # type: ignore[arg-type]


def test_bad_place() -> None:
    with pytest.raises(ValueError, match="kernel, folded, deployed"):
        OrthogonalityRegularizer(1e-3, on="bias")  # type: ignore[arg-type]
