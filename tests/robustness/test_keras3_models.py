"""Attacks on quantized Keras 3 models: what they ask is what the deployed file answers."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import pytest

from tests.tflite_export.trained import digits
from tfdq.keras3 import quantize_model
from tfdq.robustness import audit, error_amplification, evaluate
from tfdq.robustness.attacks import run_attack
from tfdq.robustness.targets import as_target
from tflite_export import IntegerTwin, convert

L = keras.layers
HEADS = {"linear": (10, None), "softmax": (10, "softmax"), "sigmoid": (1, "sigmoid")}


@pytest.fixture(scope="module", params=HEADS)
def trained(request: pytest.FixtureRequest) -> tuple[str, Any, np.ndarray, np.ndarray]:
    units, activation = HEADS[request.param]
    x, y = digits()
    y = y if units == 10 else (y >= 5).astype(np.int64)
    keras.utils.set_random_seed(0)
    image = keras.Input((8, 8, 1))
    features = L.ReLU()(L.BatchNormalization()(L.Conv2D(12, 3, strides=2)(image)))
    model = keras.Model(image, L.Dense(units, activation=activation)(L.Flatten()(features)))
    model = quantize_model(model, activation_bits=4)
    loss = (
        keras.losses.BinaryCrossentropy()
        if units == 1
        else keras.losses.SparseCategoricalCrossentropy(from_logits=activation is None)
    )
    model.compile(keras.optimizers.Adam(1e-2), loss)
    model.fit(x[256:], y[256:], epochs=3, verbose=0)
    return request.param, model, x[:128], y[:128]


def test_its_logits_are_those_of_the_file(trained: Any) -> None:
    head, model, x, _ = trained
    found = as_target(model).logits(x)
    exported = convert(model, calibration=x, min_agreement=0.0)
    ours, theirs = model.predict(x, verbose=0), exported.interpreter().predict(x)
    np.testing.assert_array_equal(ours, theirs)
    if head == "linear":
        np.testing.assert_allclose(found, theirs, rtol=1e-6)
    elif head == "softmax":
        shares = np.exp(found - found.max(-1, keepdims=True))
        shares /= shares.sum(-1, keepdims=True)
        np.testing.assert_allclose(shares, theirs, atol=1 / 128)
    else:
        likely = 1 / (1 + np.exp(found[:, :1] - found[:, 1:]))
        np.testing.assert_allclose(likely, theirs, atol=1 / 128)


def test_attacks_lower_its_accuracy(trained: Any) -> None:
    _, model, x, y = trained
    clean = (as_target(model).logits(x).argmax(-1) == y).mean()
    assert clean > 0.7
    result = run_attack("pgd", model, x, y, 0.15, steps=10, seed=0)
    broken = (as_target(model).logits(result.x_adv).argmax(-1) == y).mean()
    assert broken < clean - 0.2
    assert np.abs(result.x_adv - x).max() <= 0.15 + 1e-6


def test_it_is_evaluated_and_followed_through_training(trained: Any) -> None:
    _, model, x, y = trained
    before = as_target(model).logits(x)
    model.fit(x, y, epochs=1, verbose=0)
    after = as_target(model).logits(x)
    assert np.isfinite(after).all()
    assert not np.array_equal(before, after)
    report = evaluate({"quantized": model}, x[:32], y[:32], attacks=["fgsm"], epsilons=[0.05])
    assert report.clean("quantized").total == 32


def test_its_errors_grow_as_in_its_file(trained: Any) -> None:
    _, model, x, _ = trained
    moved = np.clip(x + np.random.default_rng(0).uniform(-0.1, 0.1, x.shape), 0, 1)
    twin = IntegerTwin(convert(model, golden=0, min_agreement=0.0).content)
    found = error_amplification({"model": model, "file": twin}, x, moved.astype(np.float32))
    ours, theirs = found.curve("model"), found.curve("file")
    assert ours.layers == theirs.layers
    assert len(ours.layers) == 3  # the input, the convolution, the dense layer
    assert ours.distance == theirs.distance
    assert min(ours.distance) > 0


def test_it_is_audited() -> None:
    x, y = digits()
    keras.utils.set_random_seed(0)
    image = keras.Input((8, 8, 1))
    hidden = L.Dense(16, activation="relu")(L.Flatten()(image))
    model = quantize_model(keras.Model(image, L.Dense(10)(hidden)), activation_bits=2)
    model.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    model.fit(x, y, epochs=3, verbose=0)
    found = audit(model, x[:24], y[:24], eps=0.1, queries=50)
    assert found.verdict.status in ("passed", "failed", "incomplete")
    assert len(found.checks) > 5
