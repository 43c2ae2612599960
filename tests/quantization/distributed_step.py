"""One training step on one device and on two replicas; prints the largest differences.

Run as a script with an activation range: the logical devices must exist before TensorFlow starts.
"""

import json
import sys

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


def one_step(
    strategy: tf.distribute.Strategy, activation_range: str, weights: list[np.ndarray] | None
) -> tuple:
    tf_keras.utils.set_random_seed(0)
    images = (load_digits().images[:64, ..., None] / 16).astype(np.float32)
    labels = load_digits().target[:64]
    with strategy.scope():
        schedule = tf_keras.optimizers.schedules.PolynomialDecay(2e-3, 10, 0.0)
        model = tfdq.quantize_model(
            network(),
            beta_schedule=schedule,
            activation_bits=4,
            activation_range=activation_range,
        )
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


def compared(activation_range: str) -> dict[str, float]:
    start, loss, change = one_step(tf.distribute.get_strategy(), activation_range, None)
    mirrored = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
    _, loss_two, change_two = one_step(mirrored, activation_range, start)
    apart = [float(np.abs(a - b).max()) for a, b in zip(change, change_two, strict=True)]
    return {
        "replicas": mirrored.num_replicas_in_sync,
        "loss": abs(loss - loss_two),
        "change": max(apart),
        # Counters and the ends of ranges.
        "scalars": max(d for d, a in zip(apart, change, strict=True) if a.ndim == 0),
        "largest_change": max(float(np.abs(a).max()) for a in change),
    }


def main() -> None:
    cpu = tf.config.list_physical_devices("CPU")[0]
    tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
    print(json.dumps(compared(sys.argv[1])))


if __name__ == "__main__":
    main()
