"""Training as Keras users do it: callbacks, weights, pipelines, XLA, several devices."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
import tf_keras

import tfdq
from tests.quantization.networks import every_layer

Images = tuple[np.ndarray, np.ndarray]
ROOT = Path(__file__).parents[2]


def ranges(model: tf_keras.Model) -> list[np.ndarray]:
    return [w.numpy() for w in model.non_trainable_weights]


def test_fit_with_everything_around_it(
    float_model: tf_keras.Model, digits: Images, tmp_path: Path
) -> None:
    qat = tfdq.quantize_model(float_model, 2e-3, activation_bits=4)
    qat.compile(
        tf_keras.optimizers.Adam(1e-3, clipnorm=1.0),
        "sparse_categorical_crossentropy",
        ["accuracy"],
    )
    data = tf.data.Dataset.from_tensor_slices(digits).shuffle(500, seed=0).batch(64)
    path = str(tmp_path / "best.keras")
    callbacks = [
        tf_keras.callbacks.ModelCheckpoint(path, monitor="val_loss", save_best_only=True),
        tf_keras.callbacks.ReduceLROnPlateau(),
        tf_keras.callbacks.EarlyStopping(patience=3),
    ]
    weights = {label: 1.0 + (label == 3) for label in range(10)}
    history = qat.fit(
        data,
        validation_data=data.take(4),
        epochs=3,
        class_weight=weights,
        callbacks=callbacks,
        verbose=0,
    ).history
    assert history["loss"][-1] < history["loss"][0]
    assert history["val_accuracy"][-1] > 0.9
    assert len(tfdq.load_model(path).losses) == len(qat.losses)


def test_the_penalty_is_in_the_loss(float_model: tf_keras.Model, digits: Images) -> None:
    qat = tfdq.calibrate(tfdq.quantize_model(float_model, 0.5), digits[0][:64])
    qat.compile("sgd", "sparse_categorical_crossentropy")
    plain = tfdq.calibrate(tfdq.quantize_model(float_model, 0.0), digits[0][:64])
    plain.compile("sgd", "sparse_categorical_crossentropy")
    images, labels = digits[0][:128], digits[1][:128]
    with_penalty, without = (m.evaluate(images, labels, verbose=0) for m in (qat, plain))
    np.testing.assert_allclose(with_penalty - without, float(sum(qat.losses)), rtol=1e-4)


def test_the_penalty_pulls_the_singular_values_to_one(digits: Images) -> None:
    """What training with a strong penalty does to the deployed kernels, by NumPy's SVD."""

    def spread(model: tf_keras.Model) -> float:
        stem = model.get_layer("quant_branch")
        kernel = stem.penalized_kernel("deployed").numpy()
        values = np.linalg.svd(kernel.reshape(-1, kernel.shape[-1]), compute_uv=False)
        return float(np.abs(values - 1).max())

    results = {}
    for beta in (0.0, 0.1):
        tf_keras.utils.set_random_seed(0)
        qat = tfdq.quantize_model(every_layer(), beta, target=1.0, activation_bits=4)
        qat.compile(tf_keras.optimizers.Adam(3e-3), "sparse_categorical_crossentropy")
        qat.fit(*digits, epochs=4, verbose=0)
        results[beta] = spread(qat)
    assert results[0.1] < 0.15
    assert results[0.1] < results[0.0] / 3


def test_compiled_with_xla(float_model: tf_keras.Model, digits: Images) -> None:
    images, labels = digits[0][:128], digits[1][:128]
    changes = []
    for compiled in (False, True):
        qat = tfdq.quantize_model(float_model, 2e-3, skip=["dropout"], activation_bits=8)
        qat.compile("sgd", "sparse_categorical_crossentropy", jit_compile=compiled)
        changes.append(qat.fit(images, labels, batch_size=64, verbose=0).history["loss"][0])
    np.testing.assert_allclose(changes[0], changes[1], rtol=0.02)


def test_inference_and_attacks_leave_the_state_alone(
    trained_qat: tf_keras.Model, digits: Images
) -> None:
    before = trained_qat.get_weights()
    images = tf.constant(digits[0][:32] * 3 - 1)
    with tf.GradientTape() as tape:
        tape.watch(images)
        loss = tf.reduce_sum(trained_qat(images) ** 2)
    assert float(tf.norm(tape.gradient(loss, images))) > 0
    trained_qat.predict(images, verbose=0)
    trained_qat.evaluate(images, digits[1][:32], verbose=0)
    for a, b in zip(before, trained_qat.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


def test_one_bit_activations_train(digits: Images) -> None:
    tf_keras.utils.set_random_seed(0)
    layers = tf_keras.layers
    model = tf_keras.Sequential(
        [
            layers.Conv2D(32, 3, activation="relu", input_shape=(8, 8, 1)),
            layers.Flatten(),
            layers.Dense(10, activation="softmax"),
        ]
    )
    qat = tfdq.quantize_model(
        model, 0.0, activation_bits=1, weight_bits=2, activation_range="moving_average"
    )
    qat.compile(tf_keras.optimizers.Adam(1e-2), "sparse_categorical_crossentropy", ["accuracy"])
    history = qat.fit(*digits, epochs=6, verbose=0).history
    hidden = tf_keras.Model(qat.input, qat.layers[2].output).predict(digits[0][:100], verbose=0)
    assert set(np.unique(hidden)) == {0.0, np.float32(qat.layers[2].output_grid().scale)}
    assert history["accuracy"][-1] > 0.7


@pytest.mark.parametrize(
    ("activation_range", "tolerance"),
    # The ends of observed ranges agree up to their last digits, which can tip a value over the edge
    # of its 4-bit bin.
    [("relu6", 1e-5), ("moving_average", 1e-3)],
)
def test_two_replicas_compute_what_one_device_does(activation_range: str, tolerance: float) -> None:
    script = Path(__file__).with_name("distributed_step.py")
    done = subprocess.run(
        [sys.executable, str(script), activation_range],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    result = json.loads(done.stdout.splitlines()[-1])
    assert result["replicas"] == 2
    assert result["largest_change"] > 0.1
    assert result["scalars"] < 1e-5
    assert result["loss"] < tolerance
    assert result["change"] < tolerance


def test_same_seed_same_training(digits: Images) -> None:
    finals = []
    for _ in range(2):
        tf_keras.utils.set_random_seed(7)
        qat = tfdq.quantize_model(every_layer(), 2e-3, activation_bits=4)
        qat.compile("adam", "sparse_categorical_crossentropy")
        qat.fit(digits[0][:256], digits[1][:256], epochs=1, verbose=0)
        finals.append(qat.get_weights())
    for a, b in zip(*finals, strict=True):
        np.testing.assert_array_equal(a, b)
