"""Mixed precision of float networks; quantized ones compute in float32, and it is refused."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
import tf_keras

import tfdq
from tfdq.experiments.images import scaled
from tfdq.experiments.networks import build, load_images
from tfdq.experiments.recipe import load_recipe
from tfdq.experiments.resumable import train_run
from tfdq.experiments.schedules import make_optimizer
from tfdq.experiments.settings import RunSettings, TrainingSettings
from tfdq.experiments.strategy import open_machines
from tfdq.experiments.tf_keras_job import precision
from tfdq.experiments.training import SCHEDULES

COMPUTE = {"float16": tf.float16, "bfloat16": tf.bfloat16}


def settings(name: str, bits: int = 0, **training: Any) -> RunSettings:
    return RunSettings.model_validate(
        {
            "data": {"name": "digits", "train_images": 800},
            "model": {"options": {"width": 8}},
            "quantization": {"activation_bits": bits},
            "penalty": {"beta": 1e-3, "on": "kernel"},
            "training": {"epochs": 4, "batch_size": 32, "precision": name, **training},
        }
    )


@pytest.mark.parametrize("name", ["float16", "bfloat16"])
def test_quantized_networks_are_refused_before_anything_is_trained(name: str) -> None:
    with pytest.raises(ValueError, match=rf"'{name}' is for float networks .*activation_bits = 0"):
        settings(name, bits=4)
    assert settings("float32", bits=4).quantized


def test_a_recipe_that_sets_it_for_a_quantized_variant_is_refused() -> None:
    with pytest.raises(ValueError, match=r"variant 'VQ.*'float16' is for float networks"):
        load_recipe("bits", "small", None, {"training.precision": ["float16"]})


@pytest.mark.parametrize("name", ["float16", "bfloat16"])
def test_variables_and_penalties_stay_in_float32(name: str) -> None:
    given = settings(name)
    images = load_images(given.data)
    with precision(name):
        mixed = build(given, images)
    assert tf_keras.mixed_precision.global_policy().name == "float32"
    plain = build(given, images)
    assert {tf.as_dtype(weight.dtype) for weight in mixed.weights} == {tf.float32}
    assert COMPUTE[name] in {tf.as_dtype(layer.compute_dtype) for layer in mixed.layers}
    # On the same weights the penalty is that of float32.
    mixed.set_weights(plain.get_weights())
    assert all(loss.dtype == tf.float32 for loss in mixed.losses)
    np.testing.assert_allclose(mixed.losses, plain.losses, rtol=1e-6)


def test_trained_in_mixed_precision_the_saved_network_is_float32(tmp_path: Path) -> None:
    # The type with the smaller range: it needs the loss scaled.
    given = settings("float16", learning_rate=0.01)
    images = load_images(given.data)
    record = train_run(given, 0, images, tmp_path, open_machines("one_device"))
    assert record["history"][-1]["accuracy"] > 0.8
    model = tfdq.load_model(tmp_path / "model.keras", compile=False)
    assert {layer.compute_dtype for layer in model.layers} == {"float32"}
    right = model.predict(scaled(images.x_test), verbose=0).argmax(-1) == images.y_test
    assert right.mean() > 0.8


def test_the_rate_warms_up_and_steps_down() -> None:
    given = TrainingSettings(
        epochs=10, optimizer="sgd", learning_rate=1.0, schedule="steps", warmup_epochs=1
    )
    rate = make_optimizer(tf_keras, SCHEDULES, given, steps=10).learning_rate
    schedule = make_optimizer(tf_keras, SCHEDULES, given, steps=10)._learning_rate
    assert float(rate) == pytest.approx(0.1)
    found = [float(schedule(tf.constant(step))) for step in (0, 4, 9, 29, 31, 59, 61, 79, 81)]
    expected = [0.1, 0.5, 1, 1, 0.2, 0.2, 0.04, 0.04, 0.008]
    assert found == pytest.approx(expected)


def test_weight_decay_takes_off_its_share() -> None:
    """A step without a gradient: w (1 - rate * decay), in closed form."""
    given = TrainingSettings(optimizer="sgd", learning_rate=0.5, weight_decay=0.1, momentum=0.0)
    optimizer = make_optimizer(tf_keras, SCHEDULES, given, steps=10**6)
    weight = tf.Variable([2.0, -4.0])
    optimizer.apply_gradients([(tf.zeros(2), weight)])
    assert np.allclose(weight.numpy(), np.array([2.0, -4.0]) * (1 - 0.5 * 0.1), rtol=1e-5)
