"""FGSM, BIM, PGD and MIM against CleverHans, image by image; R+FGSM against NumPy."""

import numpy as np
import pytest
import tensorflow as tf
from cleverhans.tf2.attacks.fast_gradient_method import fast_gradient_method
from cleverhans.tf2.attacks.momentum_iterative_method import momentum_iterative_method
from cleverhans.tf2.attacks.projected_gradient_descent import projected_gradient_descent

from tfdq.robustness.attacks import gradient_steps, run_attack

EPS = {"linf": 0.1, "l2": 1.0}
ORDER = {"linf": np.inf, "l2": 2}


def _cleverhans(name, model, x, y, norm):
    def logits(images):
        return model(images, training=False)

    eps, order = EPS[norm], ORDER[norm]
    x = tf.constant(x)
    limits = {"clip_min": 0.0, "clip_max": 1.0, "y": y}
    if name == "fgsm":
        return fast_gradient_method(logits, x, eps, order, **limits)
    if name == "mim":
        return momentum_iterative_method(
            logits, x, eps, eps / 8, 10, order, sanity_checks=False, **limits
        )
    return projected_gradient_descent(logits, x, eps, eps / 8, 10, order, rand_init=False, **limits)


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("fgsm", {}),
        ("bim", {"steps": 10}),
        ("mim", {"steps": 10}),
        ("pgd", {"steps": 10, "random_start": False}),
    ],
)
def test_equals_cleverhans(name, options, norm, float_model, sample):
    if name != "fgsm":
        options = {**options, "step_size": EPS[norm] / 8}
    x, y = sample.x, sample.y
    result = run_attack(name, float_model, x, y, EPS[norm], norm=norm, early_stop=False, **options)
    expected = _cleverhans(name, float_model, x, y, norm).numpy()
    # Rounding differs by an ulp; where a gradient entry is almost 0 its sign may then flip.
    assert np.mean(np.abs(result.x_adv - expected) > 1e-5) < 1e-3
    broken = np.argmax(float_model.predict(expected, verbose=0), axis=1) != y
    assert abs(np.mean(result.success) - np.mean(broken)) <= 0.01


@pytest.mark.parametrize(
    ("norm", "size"), [("linf", 0.3), ("linf", np.array([0.1, 0.2, 0.4])), ("l2", 0.3)]
)
def test_the_step_without_cleverhans_is_the_same(norm, size):
    gradient = np.random.default_rng(0).normal(size=(6, 5, 4, 3)).astype(np.float32)
    gradient[0] = 0
    gradient[1, 0] = 0
    gradient[2] *= 1e-8
    found = gradient_steps.steepest_step_in_numpy(gradient, size, norm)
    wanted = gradient_steps.steepest_step(gradient, size, norm)
    assert found.dtype == wanted.dtype == np.float32
    np.testing.assert_allclose(found, wanted, atol=1e-6 if norm == "l2" else 0, rtol=0)


def test_early_stop_changes_no_verdict_of_fgsm(float_model, sample):
    stopped = run_attack("fgsm", float_model, sample.x, sample.y, 0.1)
    full = run_attack("fgsm", float_model, sample.x, sample.y, 0.1, early_stop=False)
    assert (stopped.success >= full.success).mean() == 1.0
    assert stopped.robust_accuracy == pytest.approx(full.robust_accuracy, abs=0.01)


def test_r_fgsm_moves_half_at_random_and_half_along_the_gradient(target, sample):
    x, y = sample.x[:50], sample.y[:50]
    eps = 0.1
    result = run_attack("r+fgsm", target, x, y, eps, seed=3, early_stop=False)
    # The same draw from the same generator, then FGSM written in NumPy and a plain tape.
    signs = np.sign(np.random.default_rng([3, 0]).standard_normal(x.shape, dtype=np.float32))
    start = np.clip(x + eps / 2 * signs, 0, 1).astype(np.float32)
    images = tf.constant(start)
    with tf.GradientTape() as tape:
        tape.watch(images)
        log_p = tf.nn.log_softmax(target.logits_tensor(images))
        loss = -tf.gather(log_p, y, batch_dims=1)
    expected = np.clip(start + eps / 2 * np.sign(tape.gradient(loss, images)), 0, 1)
    assert np.mean(np.abs(result.x_adv - expected) > 1e-5) < 1e-3


def test_restarts_only_ever_help(float_model, sample):
    once = run_attack("pgd", float_model, sample.x, sample.y, 0.08, steps=5)
    often = run_attack("pgd", float_model, sample.x, sample.y, 0.08, steps=5, restarts=4)
    assert (often.success >= once.success).all()
    assert often.gradients.sum() > once.gradients.sum()


def test_uniform_in_ball_fills_the_ball():
    class Task:
        x = np.zeros((2000, 3), np.float32)
        eps = 2.0
        rng = np.random.default_rng(0)
        norm = "l2"

    rows = np.arange(2000)
    radius = np.linalg.norm(gradient_steps.uniform_in_ball(Task, rows), axis=1)
    assert radius.max() <= 2.0 + 1e-6
    # P(|z| <= r) = (r / eps)^3 in three dimensions.
    assert np.mean(radius <= 1.0) == pytest.approx(1 / 8, abs=0.03)
    Task.norm = "linf"
    cube = gradient_steps.uniform_in_ball(Task, rows)
    assert np.abs(cube).max() <= 2.0
    assert np.abs(cube.mean(axis=0)).max() < 0.1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": 0}, "steps must be at least 1"),
        ({"step_size": -1.0}, "step_size must be positive"),
        ({"loss": "l1"}, "loss must be one of"),
        ({"restarts": 0}, "restarts must be at least 1"),
    ],
)
def test_bad_options(options, message, float_model, sample):
    with pytest.raises(ValueError, match=message):
        run_attack("pgd", float_model, sample.x[:4], sample.y[:4], 0.1, **options)
