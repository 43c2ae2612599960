"""One training step on one device and on two replicas; prints the largest differences.

Run as a script: the logical devices must exist before TensorFlow starts.
"""

import json

import numpy as np
import tensorflow as tf
import tf_keras
from sklearn.datasets import load_digits

import tfdq

L = tf_keras.layers


def network() -> tf_keras.Model:
    inputs = L.Input((8, 8, 1))
    x = L.Conv2D(8, 3, padding="same", use_bias=False)(inputs)
    x = L.BatchNormalization(synchronized=True)(x)
    x = shortcut = L.ReLU()(x)
    # Two kernels of one shape, whose penalties are evaluated together.
    for _ in range(2):
        x = L.Conv2D(8, 3, padding="same", use_bias=False)(x)
        x = L.BatchNormalization(synchronized=True)(x)
    x = L.ReLU()(L.Add()([x, shortcut]))
    return tf_keras.Model(inputs, L.Dense(10)(L.GlobalAveragePooling2D()(x)))


def one_step(strategy: tf.distribute.Strategy, weights: list[np.ndarray] | None) -> tuple:
    tf_keras.utils.set_random_seed(0)
    images = (load_digits().images[:64, ..., None] / 16).astype(np.float32)
    labels = load_digits().target[:64]
    with strategy.scope():
        schedule = tf_keras.optimizers.schedules.PolynomialDecay(2e-3, 10, 0.0)
        model = tfdq.quantize_model(network(), beta_schedule=schedule, activation_bits=4)
        if weights:
            model.set_weights(weights)
        model.compile(
            tf_keras.optimizers.SGD(1.0),
            tf_keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        )
    start = model.get_weights()
    data = tf.data.Dataset.from_tensor_slices((images, labels)).batch(64)
    history = model.fit(data, epochs=1, verbose=0)
    # With SGD at rate 1 the change of the weights is the gradient.
    change = [b - a for a, b in zip(start, model.get_weights(), strict=True)]
    return start, history.history["loss"][0], change


def main() -> None:
    cpu = tf.config.list_physical_devices("CPU")[0]
    tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
    start, loss, change = one_step(tf.distribute.get_strategy(), None)
    mirrored = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
    _, loss_two, change_two = one_step(mirrored, start)
    apart = max(float(np.abs(a - b).max()) for a, b in zip(change, change_two, strict=True))
    largest = max(float(np.abs(a).max()) for a in change)
    print(
        json.dumps(
            {
                "replicas": mirrored.num_replicas_in_sync,
                "loss": abs(loss - loss_two),
                "change": apart,
                "largest_change": largest,
            }
        )
    )


if __name__ == "__main__":
    main()
