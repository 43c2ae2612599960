"""Attacks on Keras 3 models, quantized or not, and on their files, on each backend."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest

from tests.tflite_export.trained import digits
from tfdq.keras3 import quantize_model
from tfdq.robustness import audit, evaluate
from tfdq.robustness.attacks import run_attack
from tfdq.robustness.attacks.losses import margin, single_logit
from tfdq.robustness.gradients.choice import gradients_of
from tfdq.robustness.targets import as_target
from tflite_export import convert

L = keras.layers
pytestmark = pytest.mark.backends


@pytest.fixture(scope="module")
def networks() -> dict[str, Any]:
    """A float network with a softmax, and its quantized form, trained on."""
    x, y = digits()
    keras.utils.set_random_seed(0)
    image = keras.Input((8, 8, 1))
    features = L.ReLU()(L.Conv2D(12, 3, strides=2)(image))
    model = keras.Model(image, L.Dense(10, activation="softmax")(L.Flatten()(features)))
    quantized = quantize_model(model, 0.0, activation_bits=4)
    found = {"float": model, "quantized": quantized}
    for network in found.values():
        network.compile(keras.optimizers.Adam(1e-2), "sparse_categorical_crossentropy")
        network.fit(x[256:], y[256:], epochs=3, batch_size=64, verbose=0)
    return found


@pytest.mark.parametrize("name", ["float", "quantized"])
def test_the_logits_are_those_before_the_softmax(networks: dict[str, Any], name: str) -> None:
    x, _ = digits()
    found = as_target(networks[name]).logits(x[:37])
    shares = np.exp(found - found.max(-1, keepdims=True))
    shares /= shares.sum(-1, keepdims=True)
    wanted = networks[name].predict(x[:37], verbose=0)
    np.testing.assert_allclose(shares, wanted, atol=1 / 128 if name == "quantized" else 1e-5)


def test_the_gradient_is_that_of_differences(networks: dict[str, Any]) -> None:
    from tfdq.robustness.attacks.losses import cross_entropy

    x, y = (part[:5] for part in digits())
    target = as_target(networks["float"])
    _, losses, gradient = target.loss_gradient(cross_entropy, x, y)
    direction = np.random.default_rng(0).normal(size=x.shape).astype(np.float32)
    step = np.float32(1e-2)
    ends = [
        target.loss_gradient(cross_entropy, x + sign * step * direction, y)[1] for sign in (1, -1)
    ]
    slope = (ends[0] - ends[1]) / (2 * step)
    wanted = (gradient * direction).reshape(5, -1).sum(1)
    np.testing.assert_allclose(wanted, slope, rtol=0.05, atol=5e-3)
    assert losses.shape == (5,)


def test_what_is_pulled_back_is_the_gradient_of_the_weighted_sum(
    networks: dict[str, Any],
) -> None:
    x, y = (part[:5] for part in digits())
    target = as_target(networks["quantized"])
    _, _, wanted = target.loss_gradient(single_logit, x, y, y.astype(np.float32))
    gradients = gradients_of(target.logits_tensor, variables=target.variables)
    weights = np.eye(10, dtype=np.float32)[y]
    values, found = gradients.pull_back(x, 3 * weights)
    np.testing.assert_array_equal(values, gradients.values(x))
    np.testing.assert_allclose(found, 3 * wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("attack", ["fgsm", "r+fgsm", "pgd"])
def test_attacks_lower_the_accuracy(networks: dict[str, Any], attack: str) -> None:
    x, y = (part[:100] for part in digits())
    options = {"steps": 5} if attack == "pgd" else {}
    for model in networks.values():
        result = run_attack(attack, model, x, y, 0.2, seed=0, **options)
        clean, broken = (
            float(np.mean(as_target(model).predict(images) == y)) for images in (x, result.x_adv)
        )
        assert clean > 0.7
        assert broken < clean - 0.2
        assert np.abs(result.x_adv - x).max() <= 0.2 + 1e-6


def test_a_file_is_attacked_evaluated_and_audited(networks: dict[str, Any], tmp_path: Path) -> None:
    x, y = (part[:64] for part in digits())
    path = tmp_path / "digits.tflite"
    path.write_bytes(convert(networks["quantized"], calibration=x, golden=0).content)
    target = as_target(path)
    found = run_attack("pgd", path, x, y, 0.15, steps=5, seed=0)
    broken, clean = (float(np.mean(target.predict(images) == y)) for images in (found.x_adv, x))
    assert broken < clean - 0.3
    assert np.abs(found.x_adv - x).max() <= 0.15 + 1e-6
    # Gradients come from the twin, whose logits are those of the runtime.
    logits, _, _ = target.loss_gradient(margin, x, y)
    np.testing.assert_allclose(logits, target.logits(x), rtol=1e-6)
    report = evaluate({"the file": path}, x[:16], y[:16], attacks=["fgsm"], epsilons=[0.1])
    assert report.clean("the file").total == 16
    checks = ["zero gradients", "model vs twin vs runtime"]
    verdict = audit(path, x, y, eps=0.15, examples=16, checks=checks)
    statuses = {check.name: check.status for check in verdict.checks if check.name in checks}
    assert statuses == dict.fromkeys(checks, "passed"), verdict


def test_it_is_evaluated_and_followed_through_training(networks: dict[str, Any]) -> None:
    x, y = digits()
    model = networks["quantized"]
    before = as_target(model).logits(x[:64])
    model.fit(x[:256], y[:256], epochs=1, verbose=0)
    after = as_target(model).logits(x[:64])
    assert np.isfinite(after).all()
    assert not np.array_equal(before, after)
    report = evaluate(networks, x[:32], y[:32], attacks=["fgsm", "apgd-ce"], epsilons=[0.05])
    for name in networks:
        assert report.clean(name).total == 32
