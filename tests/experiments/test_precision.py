"""Mixed precision: short types in the products, float32 in variables, ranges and penalties."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
import tf_keras

import tfdq
from tfdq.experiments.networks import build, load_images
from tfdq.experiments.resumable import precision, train_run
from tfdq.experiments.settings import RunSettings
from tfdq.experiments.strategy import open_machines
from tfdq.experiments.training import TrainingSettings, make_optimizer, scaled

COMPUTE = {"float16": tf.float16, "bfloat16": tf.bfloat16}


def settings(name: str, **training: Any) -> RunSettings:
    return RunSettings.model_validate(
        {
            "data": {"name": "digits", "train_images": 800},
            "model": {"options": {"width": 8}},
            "training": {"epochs": 4, "batch_size": 32, "precision": name, **training},
        }
    )


@pytest.mark.parametrize("name", ["float16", "bfloat16"])
def test_ranges_and_penalties_stay_in_float32(name: str) -> None:
    given = settings(name)
    images = load_images(given.data)
    tf_keras.utils.set_random_seed(0)
    with precision(name):
        mixed = build(given, images)
    assert tf_keras.mixed_precision.global_policy().name == "float32"
    tf_keras.utils.set_random_seed(0)
    plain = build(given, images)
    assert {tf.as_dtype(weight.dtype) for weight in mixed.weights} == {tf.float32}
    seen: list[Any] = []
    for layer in mixed.layers:
        layer_dtype = tf.as_dtype(layer.compute_dtype)
        seen.append(layer_dtype)
    assert COMPUTE[name] in seen
    # On the same weights the penalty is that of float32, to the last bits.
    mixed.set_weights(plain.get_weights())
    batch = scaled(images.x_train[:64])
    for model in (mixed, plain):
        model(batch, training=True)
    assert all(loss.dtype == tf.float32 for loss in mixed.losses)
    first, second = (float(tf.add_n(model.losses)) for model in (mixed, plain))
    assert first == pytest.approx(second, rel=1e-2)
    kernel_only = [
        float(tf.add_n([w.layer.penalty(w.layer.trained_kernel) for w in wrapped(model)]))
        for model in (mixed, plain)
    ]
    assert kernel_only[0] == pytest.approx(kernel_only[1], rel=1e-6)


def wrapped(model: tf_keras.Model) -> list[Any]:
    """Return the wrappers whose layers carry a penalty."""
    return [w for w in model.layers if getattr(getattr(w, "layer", None), "penalty", None)]


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
    rate = make_optimizer(given, steps=10).learning_rate
    schedule = make_optimizer(given, steps=10)._learning_rate
    assert float(rate) == pytest.approx(0.1)
    found = [float(schedule(tf.constant(step))) for step in (0, 4, 9, 29, 31, 59, 61, 79, 81)]
    expected = [0.1, 0.5, 1, 1, 0.2, 0.2, 0.04, 0.04, 0.008]
    assert found == pytest.approx(expected)


def test_weight_decay_takes_off_its_share() -> None:
    """A step without a gradient: w (1 - rate * decay), in closed form."""
    given = TrainingSettings(optimizer="sgd", learning_rate=0.5, weight_decay=0.1, momentum=0.0)
    optimizer = make_optimizer(given, steps=10**6)
    weight = tf.Variable([2.0, -4.0])
    optimizer.apply_gradients([(tf.zeros(2), weight)])
    assert np.allclose(weight.numpy(), np.array([2.0, -4.0]) * (1 - 0.5 * 0.1), rtol=1e-5)
