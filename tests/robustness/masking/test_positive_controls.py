"""For every check of the audit a model built to fail it, and a sound model that passes all."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
import tf_keras
from rich.console import Console

from tests.robustness.damage import refusals
from tfdq.robustness import AuditThresholds, MaskingAudit, as_target, audit
from tfdq.robustness.masking.audit import CHECK_NAMES

EPS = 0.1


class Runtime:
    """Stands for a `.tflite` interpreter: floats in, logits out, no gradients."""

    def __init__(self, model: Any) -> None:
        self._model = model

    def predict(self, x: np.ndarray) -> np.ndarray:
        return self._model(x, training=False).numpy()


def wrapped(function: Callable[[tf.Tensor], tf.Tensor], name: str) -> Any:
    return as_target(function, name=name, differentiable=True)


def loud(model: Any) -> Any:
    """Logits x50: the softmax saturates, the cross-entropy's gradient underflows to zero."""
    return wrapped(lambda x: 50.0 * model(x, training=False), "logits x50")


def random_layer(model: Any) -> Any:
    """Noise in the network: two answers to one image differ."""

    def answer(x: tf.Tensor) -> tf.Tensor:
        return model(x + tf.random.normal(tf.shape(x), stddev=0.1), training=False)

    return wrapped(answer, "random layer")


def step(model: Any) -> Any:
    """A rounding without a gradient in front of the network (17 levels: clean images pass)."""
    return wrapped(lambda x: model(tf.round(x * 16) / 16, training=False), "step")


def shattered(model: Any) -> Any:
    """A wiggle of 0.002 with slope +-10: values stay, the gradient's signs become random."""

    def answer(x: tf.Tensor) -> tf.Tensor:
        return model(x + 0.002 * tf.sin(5000.0 * x + phase), training=False)

    phase = tf.random.stateless_uniform([8, 8, 1], seed=[1, 2], maxval=6.28)
    return wrapped(answer, "shattered")


def noisy_gradient(model: Any) -> Any:
    """Right values, a gradient drowned in noise: it takes many steps to average it out."""

    @tf.custom_gradient
    def passing(x: tf.Tensor) -> Any:
        def backward(upstream: tf.Tensor) -> tf.Tensor:
            size = tf.reduce_max(tf.abs(upstream), axis=[1, 2, 3], keepdims=True)
            return upstream + size * tf.random.normal(tf.shape(upstream))

        return tf.identity(x), backward

    return wrapped(lambda x: model(passing(x), training=False), "noisy gradient")


def reversed_away_from(model: Any, anchors: np.ndarray, radius: float, name: str) -> Any:
    """Right values; farther than `radius` from every clean image the gradient points downhill."""
    flat = tf.constant(anchors.reshape(len(anchors), -1))

    @tf.custom_gradient
    def passing(x: tf.Tensor) -> Any:
        gaps = tf.abs(tf.reshape(x, [tf.shape(x)[0], 1, -1]) - flat[tf.newaxis])
        far = tf.reduce_min(tf.reduce_max(gaps, axis=2), axis=1) > radius
        turn = tf.reshape(tf.where(far, -1.0, 1.0), [-1, 1, 1, 1])
        return tf.identity(x), lambda upstream: upstream * turn

    return wrapped(lambda x: model(passing(x), training=False), name)


def half_flat(model: Any, anchors: np.ndarray) -> Any:
    """Right values; on one side of every clean image, in a random direction, no gradient at all."""
    flat = tf.constant(anchors.reshape(len(anchors), -1))
    direction = tf.random.stateless_normal([flat.shape[1]], seed=[3, 4])

    @tf.custom_gradient
    def passing(x: tf.Tensor) -> Any:
        moves = tf.reshape(x, [tf.shape(x)[0], 1, -1]) - flat[tf.newaxis]
        nearest = tf.argmin(tf.reduce_max(tf.abs(moves), axis=2), axis=1)
        side = tf.linalg.matvec(tf.gather(moves, nearest, batch_dims=1), direction) > 0
        slope = tf.reshape(tf.where(side, 1.0, 0.0), [-1, 1, 1, 1])
        return tf.identity(x), lambda upstream: upstream * slope

    return wrapped(lambda x: model(passing(x), training=False), "flat on one side")


def run(model: Any, digits: Any, check: str, **options: Any) -> Any:
    settings = {"eps": EPS, "examples": 96, "queries": 200, "checks": [check], **options}
    return audit(model, digits.x_test, digits.y_test, **settings).check(check)


def test_sound_model_passes_every_check(
    float_model: Any, other_float_model: Any, digits: Any
) -> None:
    verdict = audit(
        float_model,
        digits.x_test,
        digits.y_test,
        eps=EPS,
        examples=128,
        queries=200,
        transfer_from={"other": other_float_model},
        twin=float_model,
        tflite=Runtime(float_model),
    )
    assert verdict.failures == ()
    assert verdict.passed
    assert verdict.complete
    assert {check.name for check in verdict.checks} == set(CHECK_NAMES)
    assert all(check.figures and check.criterion and check.source for check in verdict.checks)


def test_four_bit_model_passes(quantized: Any, digits: Any) -> None:
    verdict = audit(quantized(4), digits.x_test, digits.y_test, eps=EPS, examples=64, queries=100)
    assert verdict.failures == ()


def test_determinism(float_model: Any, digits: Any) -> None:
    check = run(random_layer(float_model), digits, "determinism")
    assert check.status == "failed"
    assert check.figures["difference_when_repeated"] > 0.01


def test_zero_gradients(float_model: Any, digits: Any) -> None:
    check = run(loud(float_model), digits, "zero gradients")
    assert check.status == "failed"
    # Independently: the gradient of the saturated cross-entropy, with TensorFlow's own softmax.
    logits = float_model(digits.x_test, training=False).numpy()
    right = logits.argmax(1) == digits.y_test
    x = tf.constant(digits.x_test[right][:96])
    with tf.GradientTape() as tape:
        tape.watch(x)
        loud_logits = 50.0 * float_model(x, training=False)
        loss = tf.keras.losses.sparse_categorical_crossentropy(
            digits.y_test[right][:96], loud_logits, from_logits=True
        )
    gradient = tape.gradient(loss, x).numpy()
    share = np.mean(np.abs(gradient).reshape(len(gradient), -1).max(1) == 0)
    assert check.figures["share_at_clean_images"] == pytest.approx(share, abs=0.03)


def test_a_quantized_model_with_loud_logits(quantized: Any, digits: Any) -> None:
    """Scaled by a TensorFlow operation on its output: audited like any model, low-bit included."""
    model = quantized(4)
    whole = tf_keras.Model(model.input, model.output * 50.0)
    for audited, failures in ((model, ()), (whole, ("zero gradients", "logit scale"))):
        verdict = audit(
            audited,
            digits.x_test,
            digits.y_test,
            eps=0.1,
            examples=64,
            queries=50,
            checks=["zero gradients", "logit scale", "planted adversarial image"],
        )
        assert verdict.failures == failures
        assert "low-bit" in str(verdict.to_json())


def test_zero_gradients_of_a_step(float_model: Any, digits: Any) -> None:
    check = run(step(float_model), digits, "zero gradients")
    assert check.status == "failed"
    assert check.figures["share_at_clean_images"] == 1.0


def test_local_linearity(float_model: Any, digits: Any) -> None:
    check = run(shattered(float_model), digits, "local linearity")
    assert check.status == "failed"
    assert check.figures["alignment"] < 0.3


def test_logit_scale(float_model: Any, digits: Any) -> None:
    check = run(loud(float_model), digits, "logit scale")
    assert check.status == "failed"
    at_scale = dict(zip(check.figures["scales"], check.figures["accuracies"], strict=True))
    # Dividing by 100 undoes the factor of 50: the accuracy falls by tens of points.
    assert at_scale[0.01] < at_scale[1.0] - 0.2


def test_single_step_vs_iterated(float_model: Any, digits: Any) -> None:
    model = reversed_away_from(float_model, digits.x_test, 1e-4, "misleading off the data")
    check = run(model, digits, "single step vs iterated")
    assert check.status == "failed"
    assert check.figures["fgsm_accuracy"] < check.figures["pgd_accuracy"]


def test_plateau_in_steps(float_model: Any, digits: Any) -> None:
    check = run(noisy_gradient(float_model), digits, "plateau in steps", white_box=(), eps=0.2)
    assert check.status == "failed"


def test_plateau_in_restarts(float_model: Any, digits: Any) -> None:
    check = run(
        half_flat(float_model, digits.x_test), digits, "plateau in restarts", white_box=(), eps=0.15
    )
    assert check.status == "failed"


def test_monotone_in_epsilon(float_model: Any, digits: Any) -> None:
    model = reversed_away_from(float_model, digits.x_test, 0.06, "misleading when far")
    check = run(model, digits, "monotone in epsilon")
    assert check.status == "failed"
    assert check.figures["accuracies"][0] < check.figures["accuracies"][1]


def test_unbounded_epsilon(float_model: Any, digits: Any) -> None:
    check = run(step(float_model), digits, "unbounded epsilon")
    assert check.status == "failed"
    assert check.figures["accuracy"] > 0.01


def test_random_sampling(float_model: Any, digits: Any) -> None:
    check = run(step(float_model), digits, "random sampling", eps=0.25, white_box=())
    assert check.status == "failed"


def test_white_box_vs_transfer(float_model: Any, digits: Any) -> None:
    check = run(
        step(float_model), digits, "white box vs transfer", transfer_from={"float": float_model}
    )
    assert check.status == "failed"
    assert check.figures["only_transfer_breaks"] > 0.2


def test_white_box_vs_black_box(float_model: Any, digits: Any) -> None:
    check = run(step(float_model), digits, "white box vs black box")
    assert check.status == "failed"
    assert check.figures["only_square_breaks"] > 0.1


@pytest.mark.parametrize("side", ["twin", "tflite"])
def test_model_vs_twin_vs_runtime(
    side: str, float_model: Any, other_float_model: Any, digits: Any
) -> None:
    other = Runtime(other_float_model) if side == "tflite" else other_float_model
    check = run(float_model, digits, "model vs twin vs runtime", **{side: other})
    assert check.status == "failed"


@pytest.mark.parametrize("masked", [step, shattered])
def test_planted_adversarial_image(masked: Any, float_model: Any, digits: Any) -> None:
    check = run(masked(float_model), digits, "planted adversarial image")
    assert check.status == "failed"
    assert check.figures["share_found"] < 0.9


def test_what_was_not_given_is_not_run_and_never_passed(float_model: Any, digits: Any) -> None:
    verdict = audit(
        float_model, digits.x_test, digits.y_test, eps=EPS, examples=16, queries=5,
        checks=["model vs twin vs runtime", "white box vs transfer"],
    )  # fmt: skip
    assert {check.status for check in verdict.checks} == {"not run"}
    assert all(check.remark for check in verdict.checks)
    assert not verdict.passed
    assert not verdict.complete


def test_black_box_without_surrogate_runs_what_it_can(float_model: Any, digits: Any) -> None:
    verdict = audit(
        Runtime(float_model), digits.x_test, digits.y_test, eps=EPS, examples=16, queries=5
    )
    ran = [check.name for check in verdict.checks if check.status != "not run"]
    assert ran == ["determinism"]


def test_black_box_with_surrogate(float_model: Any, digits: Any) -> None:
    verdict = audit(
        Runtime(float_model), digits.x_test, digits.y_test, eps=EPS, examples=48, queries=100,
        surrogate=float_model, checks=["white box vs black box", "logit scale", "zero gradients"],
    )  # fmt: skip
    assert verdict.failures == ()
    assert sum(check.status == "passed" for check in verdict.checks) == 3


def test_verdict_is_kept_and_rendered(float_model: Any, digits: Any, tmp_path: Any) -> None:
    verdict = audit(
        loud(float_model), digits.x_test, digits.y_test, eps=EPS, examples=32, queries=5,
        checks=["zero gradients", "logit scale", "determinism", "plateau in steps"], name="loud",
    )  # fmt: skip
    assert not verdict.passed
    assert "zero gradients" in verdict.failures
    text = verdict.to_json(tmp_path / "audit.json")
    message = "the masking audit is damaged ("
    assert refusals(json.loads(text), 150, MaskingAudit.from_json, message) >= 12
    again = MaskingAudit.from_json(text)
    assert again.to_dict() == verdict.to_dict()
    assert again.passed == verdict.passed
    text = verdict.to_markdown()
    assert "failed: zero gradients" in text
    # What the verdict is about stands beside it, counted here without the audit.
    right = loud(float_model).predict(digits.x_test) == digits.y_test
    seen = np.flatnonzero(right.cumsum() >= 32)[0] // 256 * 256 + 256
    assert verdict.clean_accuracy == right[:seen].mean()
    assert f"Clean accuracy {right[:seen].mean():.1%}; the white-box attacks leave" in text
    terminal = io.StringIO()
    Console(file=terminal, width=72).print(verdict.to_rich(), crop=False)
    headline, *lines = terminal.getvalue().splitlines()
    assert headline == text.splitlines()[0].removeprefix("## ")
    assert max(map(len, lines)) <= 72
    for check in verdict.checks:
        assert check.name.split()[0] in terminal.getvalue()
    assert text.count("Athalye") >= 1
    verdict.plot(tmp_path / "audit.png")
    assert (tmp_path / "audit.png").stat().st_size > 5000
    older = json.loads(verdict.to_json())
    for name in ("clean_accuracy", "white_box_accuracy", "constant_class"):
        del older[name]
    assert "Clean accuracy" not in MaskingAudit.from_json(json.dumps(older)).to_markdown()
    with pytest.raises(ValueError, match="not a masking audit"):
        MaskingAudit.from_json("{}")
    with pytest.raises(KeyError, match="no check 'nope'"):
        verdict.check("nope")


def test_thresholds_are_the_users(float_model: Any, digits: Any) -> None:
    lax = AuditThresholds(zero_gradients=1.0)
    assert run(loud(float_model), digits, "zero gradients", thresholds=lax).status == "passed"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"eps": 0.0}, "eps must be > 0"),
        ({"eps": -1.0}, "eps must be"),
        ({"examples": 4}, "examples >= 8"),
        ({"queries": 0}, "queries >= 1"),
        ({"checks": ["nope"]}, "unknown checks"),
        ({"clip": (1.0, 0.0)}, "clip"),
        ({"white_box": [("nope", {})]}, "unknown attack"),
        ({"white_box": [("square", {})]}, "uses no gradients"),
        ({"white_box": "nope"}, "white_box must be 'default'"),
    ],
)
def test_bad_settings_are_named(
    change: dict[str, Any], message: str, float_model: Any, digits: Any
) -> None:
    with pytest.raises(ValueError, match=message):
        audit(float_model, digits.x_test, digits.y_test, **change)


def test_labels_that_are_no_classes(float_model: Any, digits: Any) -> None:
    with pytest.raises(ValueError, match=r"labels must lie in 0\.\.9 .* got 5\.\.14"):
        audit(float_model, digits.x_test, digits.y_test + 5, eps=EPS, examples=8)


def test_too_few_right_images(float_model: Any, digits: Any) -> None:
    with pytest.raises(ValueError, match="classifies only"):
        audit(float_model, digits.x_test[:40], (digits.y_test[:40] + 1) % 10)


def test_a_constant_model_is_called_one(digits: Any) -> None:
    """Nothing moves it, so that some checks fail; the reader is told why."""
    image = tf_keras.Input((8, 8, 1))
    bias = tf_keras.initializers.Constant([0.0] * 3 + [2.0] + [0.0] * 6)
    flat = tf_keras.layers.Flatten()(image)
    logits = tf_keras.layers.Dense(10, kernel_initializer="zeros", bias_initializer=bias)(flat)
    verdict = audit(
        tf_keras.Model(image, logits), digits.x_test, digits.y_test, eps=EPS, examples=16,
        queries=5, checks=["zero gradients", "unbounded epsilon"],
    )  # fmt: skip
    assert verdict.failures == ("zero gradients", "unbounded epsilon")
    assert verdict.constant_class == 3
    assert verdict.white_box_accuracy is None
    assert "gives class 3 to every image looked at: it is constant" in verdict.to_markdown()
    # Nor does it pass what it does not fail.
    verdict = audit(
        tf_keras.Model(image, logits), digits.x_test, digits.y_test, eps=EPS, examples=16,
        checks=["determinism"],
    )  # fmt: skip
    assert not verdict.passed
    assert "failed: constant model (1 of 14 checks run)" in verdict.to_markdown()
    # Images of one class alone do not make a model constant.
    threes = digits.y_test == 3
    verdict = audit(
        tf_keras.Model(image, logits), digits.x_test[threes], digits.y_test[threes], eps=EPS,
        examples=16, checks=["determinism"],
    )  # fmt: skip
    assert verdict.passed
    assert verdict.constant_class is None


def test_a_radius_beyond_the_range_of_the_images_is_refused(float_model: Any, digits: Any) -> None:
    with pytest.raises(ValueError, match=r"eps 8 is more than .* did you mean 8/255"):
        audit(float_model, digits.x_test, digits.y_test, eps=8)
