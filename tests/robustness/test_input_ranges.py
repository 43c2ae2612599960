"""Models that take other values than images in [0, 1]: one ball, one attack, whatever the units."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from tfdq.robustness import as_target, audit, evaluate, run_attack
from tfdq.robustness.attacks.losses import cross_entropy
from tfdq.robustness.input_ranges import (
    USUAL,
    InputRange,
    RescaledTarget,
    find_input_range,
    parse_input_range,
)

RNG = np.random.default_rng(0)
X = RNG.random((60, 4, 4, 3), np.float32)
WEIGHTS = RNG.normal(0, 0.1, (48, 5)).astype(np.float32)
IMAGENET = parse_input_range("imagenet")


def linear(offset: float = 0.0) -> Any:
    def function(x: tf.Tensor) -> tf.Tensor:
        return tf.tanh(tf.reshape(x - offset, (-1, 48)) @ WEIGHTS)

    return as_target(function, name="linear", differentiable=True)


def test_a_ball_in_the_units_of_images_is_one_for_each_channel_in_those_of_the_model() -> None:
    """Against clip and eps for each channel, given to the model itself."""
    mean, std = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    normalized = ((X - mean) / std).astype(np.float32)
    inner = linear()
    target = RescaledTarget(linear(), IMAGENET)
    np.testing.assert_allclose(target.logits(X), inner.logits(normalized), atol=1e-4)
    y = inner.predict(normalized)
    found = run_attack("fgsm", target, X, y, 0.02)
    expected = run_attack(
        "fgsm", inner, normalized, y, 0.02 / std, clip=(-mean / std, (1 - mean) / std)
    )
    np.testing.assert_allclose((found.x_adv - mean) / std, expected.x_adv, atol=1e-4)
    np.testing.assert_array_equal(found.success, expected.success)
    assert 0 < found.success.mean() < 1
    assert found.settings["input_range"] == IMAGENET.to_dict()


def test_gradients_are_those_of_the_images() -> None:
    """Differentiated through the scaling by TensorFlow."""
    target, y = RescaledTarget(linear(), IMAGENET), np.zeros(len(X), int)
    _, losses, slope = target.loss_gradient(cross_entropy, X, y)
    images = tf.constant(X)
    with tf.GradientTape() as tape:
        tape.watch(images)
        expected = cross_entropy(target.logits_tensor(images), tf.constant(y), images)
    np.testing.assert_allclose(losses, expected.numpy(), rtol=1e-5)
    np.testing.assert_allclose(slope, tape.gradient(expected, images).numpy(), atol=1e-5)
    assert target.gradients == len(X)


def test_results_say_what_the_model_takes() -> None:
    target = RescaledTarget(linear(), IMAGENET)
    y = target.predict(X)
    report = evaluate({"net": target, "plain": linear()}, X, y, attacks=["fgsm"])
    assert report.settings["input_ranges"] == {"net": IMAGENET.to_dict()}
    verdict = audit(target, X, y, checks=["determinism"])
    assert verdict.settings["input_range"] == IMAGENET.to_dict()


@pytest.mark.parametrize("true", USUAL, ids=lambda r: r.name)
def test_the_range_is_found(true: InputRange) -> None:
    """A model of each range: what it answers there are the labels."""
    middle = float(np.mean([true.low, true.high]))
    width = float(np.mean(true.span))

    def function(x: np.ndarray) -> np.ndarray:
        return np.tanh(3 * ((x - middle) / width).reshape(-1, 48) @ WEIGHTS)

    target = as_target(function, differentiable=False)
    labels = target.predict(true.scaled(X))
    trials = find_input_range(target, X, labels, grid=(min(true.low), max(true.high)))
    assert trials.chosen == true
    assert not trials.at_chance
    assert trials.images == len(X)
    assert f"{true.name} 100.0 %" in str(trials)
    assert trials.to_dict()["accuracy"][true.name] == 1.0


def test_chance_and_refusals_are_told() -> None:
    def constant(x: np.ndarray) -> np.ndarray:
        if x.min() < 0:
            raise ValueError("input 'x' takes values from 0 to 1")
        return np.tile(np.eye(5, dtype=np.float32)[1], (len(x), 1)) * 3

    target, labels = as_target(constant, differentiable=False), np.arange(60) % 5
    trials = find_input_range(target, X, labels)
    assert trials.at_chance
    assert trials.chance == 0.2
    assert "-1..1 refused" in str(trials)
    negative = [r for r in USUAL if min(r.low) < 0]
    with pytest.raises(ValueError, match=r"none of -1\.\.1, .* fits the input: input 'x' takes"):
        find_input_range(target, X, labels, ranges=negative)
    # Grey images are not tried on what is for three channels.
    grey = find_input_range(target, X[..., :1], labels)
    assert "imagenet" not in str(grey)
    coloured = [r for r in USUAL if len(r.low) == 3]
    with pytest.raises(ValueError, match=r"channels of the images, 1: imagenet has 3; give one"):
        find_input_range(target, X[..., :1], labels, ranges=coloured)


def test_what_is_declared_is_read_or_refused() -> None:
    assert parse_input_range("-1,1").to_dict() == {"name": "-1,1", "low": [-1], "high": [1]}
    assert parse_input_range("0,0,0,1,2,3").high == (1.0, 2.0, 3.0)
    assert parse_input_range("pixel-128").low == (-128.0,)
    for text in ("0", "0,1,2", "a,b", "photo"):
        with pytest.raises(ValueError, match="LOW,HIGH"):
            parse_input_range(text)
    for text in ("1,0", "0,0", "0,inf", "0,0,0,1,1,0"):
        with pytest.raises(ValueError, match="from low to a higher"):
            parse_input_range(text)
