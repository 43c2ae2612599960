"""Carlini-Wagner, SPSA and temperature-scaled PGD against closed forms."""

import numpy as np
import pytest
import tensorflow as tf

from tfdq.robustness.attacks import run_attack
from tfdq.robustness.attacks.adam import Adam
from tfdq.robustness.attacks.base import AttackTask
from tfdq.robustness.attacks.spsa import estimate_margin_gradient
from tfdq.robustness.attacks.temperature import hessian_scale
from tfdq.robustness.targets import as_target


@pytest.fixture(scope="module")
def linear():
    """Logits x @ w of 20 features in 4 classes, with images of every class and their labels."""
    rng = np.random.default_rng(0)
    w = rng.normal(size=(20, 4)).astype(np.float32)
    x = rng.uniform(0.3, 0.7, size=(64, 20)).astype(np.float32)
    target = as_target(lambda images: tf.matmul(images, w), differentiable=True)
    return w, x, np.argmax(x @ w, axis=1), target


def test_cw_finds_the_distance_to_the_boundary_of_a_linear_classifier(linear):
    w, x, y, target = linear
    logits = x @ w
    others = [[k for k in range(4) if k != label] for label in y]
    distance = np.array(
        [
            min((z[t] - z[k]) / np.linalg.norm(w[:, t] - w[:, k]) for k in ks)
            for z, t, ks in zip(logits, y, others, strict=True)
        ]
    )
    settings = {"norm": "l2", "early_stop": False, "steps": 200, "learning_rate": 0.01}
    result = run_attack("cw", target, x, y, 3.0, **settings)
    assert result.success.all()
    found = np.linalg.norm(result.x_adv - x, axis=1)
    far = distance > 0.01
    assert far.sum() > 50
    assert (found >= distance - 1e-5).all()
    assert np.median(found[far] / distance[far]) < 1.02
    assert (found[far] / distance[far]).max() < 1.2


def test_cw_breaks_what_pgd_breaks(float_model, sample):
    settings = {"norm": "l2"}
    cw = run_attack("cw", float_model, sample.x, sample.y, 1.0, **settings)
    pgd = run_attack("pgd", float_model, sample.x, sample.y, 1.0, **settings)
    assert cw.robust_accuracy <= pgd.robust_accuracy + 0.05


def test_spsa_estimates_the_gradient_of_a_linear_margin(linear):
    w, x, y, target = linear
    rows = np.arange(8)
    task = AttackTask(
        target, target, x, y, 0.1, "linf", (0.0, 1.0), np.random.default_rng(0), x @ w
    )
    estimate = estimate_margin_gradient(task, x[rows], rows, 4000, 1e-3)
    z = (x @ w)[rows]
    z[rows, y[rows]] = -np.inf
    expected = (w[:, y[rows]] - w[:, np.argmax(z, axis=1)]).T
    cosine = np.sum(estimate * expected, axis=1) / (
        np.linalg.norm(estimate, axis=1) * np.linalg.norm(expected, axis=1)
    )
    assert cosine.min() > 0.98
    # Unbiased: n draws of d coordinates leave an error of |g| sqrt((d - 1) / n).
    error = np.linalg.norm(estimate - expected, axis=1) / np.linalg.norm(expected, axis=1)
    assert error.max() < 3 * np.sqrt(19 / 2000)
    assert (task.queries[rows] == 4000).all()


def test_spsa_comes_near_pgd_without_gradients(float_model, sample):
    # Its steps are those of a user; half of them leave it up to 0.17 behind on such networks.
    x, y = sample.x[:120], sample.y[:120]

    def predict(images):
        return float_model(images, training=False).numpy()

    spsa = run_attack("spsa", predict, x, y, 0.1)
    pgd = run_attack("pgd", float_model, x, y, 0.1)
    assert spsa.gradients.sum() == 0
    assert spsa.robust_accuracy <= pgd.robust_accuracy + 0.1
    assert spsa.queries.max() <= 2 + 40 * 129


def test_adam_is_keras_adam_on_every_image_alone():
    import tf_keras

    rng = np.random.default_rng(0)
    gradients = rng.normal(size=(5, 3, 4)).astype(np.float32)
    ours = np.zeros((3, 4), np.float32)
    adam = Adam((3, 4), 0.1)
    for gradient in gradients:
        ours -= adam.step(gradient, np.arange(3))
    variable = tf.Variable(np.zeros((3, 4), np.float32))
    keras = tf_keras.optimizers.Adam(0.1, epsilon=1e-8)
    for gradient in gradients:
        keras.apply_gradients([(tf.constant(gradient), variable)])
    np.testing.assert_allclose(ours, variable.numpy(), atol=1e-5)
    # An image that sat out keeps its own count of steps: its first step is a full one.
    late = Adam((2, 4), 0.1)
    for gradient in gradients[:, :1]:
        late.step(gradient, np.array([0]))
    first = late.step(gradients[0, 1:2], np.array([1]))
    np.testing.assert_allclose(np.abs(first), 0.1, rtol=1e-4)


def test_hessian_scale_maximises_the_norm_of_the_hessian():
    rng = np.random.default_rng(1)
    logits = rng.normal(scale=30, size=(3, 5))
    jacobian = rng.normal(size=(3, 5, 7))
    scale = hessian_scale(logits, jacobian @ jacobian.transpose(0, 2, 1))

    def norm(beta, i):
        z = beta * logits[i]
        p = np.exp(z - z.max())
        p /= p.sum()
        return np.linalg.norm(beta**2 * jacobian[i].T @ (np.diag(p) - np.outer(p, p)) @ jacobian[i])

    for i in range(3):
        best = max(norm(beta, i) for beta in np.geomspace(1e-3, 1e3, 3000))
        assert norm(scale[i], i) >= 0.9 * best


def test_temperature_recovers_gradients_that_large_logits_hide(float_model, sample):
    """Logits times 500: PGD sees zero gradients and reports a robustness that is not there."""
    inflated = as_target(
        lambda x: 500.0 * float_model(x, training=False), differentiable=True, name="inflated"
    )
    honest = run_attack("pgd", float_model, sample.x, sample.y, 0.1).robust_accuracy
    masked = run_attack("pgd", inflated, sample.x, sample.y, 0.1).robust_accuracy
    found = run_attack("t-pgd", inflated, sample.x, sample.y, 0.1).robust_accuracy
    assert masked > honest + 0.2
    assert found <= honest + 0.1


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("cw", {"initial_constant": 0.0}, "initial_constant > 0"),
        ("cw", {"steps": 0}, "steps and search_steps"),
        ("spsa", {"samples": 3}, "even samples"),
        ("spsa", {"delta": 0.0}, "delta and learning_rate"),
        ("square", {"queries": 0}, "queries and restarts"),
        ("square", {"p_init": 1.5}, "p_init must lie in"),
        ("fab", {"steps": 0}, "steps and restarts"),
        ("apgd-ce", {"rho": 2.0}, "rho must lie in"),
        ("t-pgd", {"scale": 0.0}, "scale must be > 0"),
    ],
)
def test_bad_options(name, options, message, float_model, sample):
    norm = "l2" if name == "cw" else "linf"
    with pytest.raises(ValueError, match=message):
        run_attack(name, float_model, sample.x[:4], sample.y[:4], 0.1, norm=norm, **options)
