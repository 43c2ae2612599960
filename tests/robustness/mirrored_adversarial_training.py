"""Adversarial training on one device and on two replicas; prints the largest differences.

Run as a script: the logical devices must exist before TensorFlow starts.
"""

import json
from typing import Any

import numpy as np
import tensorflow as tf
import tf_keras
from sklearn.datasets import load_digits

import tfdq
from tfdq.robustness import AdversarialTraining

L = tf_keras.layers


def network() -> tf_keras.Model:
    inputs = L.Input((8, 8, 1))
    x = L.ReLU()(L.Conv2D(8, 3, padding="same")(inputs))
    return tf_keras.Model(inputs, L.Dense(10)(L.Flatten()(x)))


def one_step(
    strategy: tf.distribute.Strategy, weights: list[np.ndarray] | None, attack: str
) -> tuple[Any, Any, Any]:
    tf_keras.utils.set_random_seed(0)
    images = (load_digits().images[:64, ..., None] / 16).astype(np.float32)
    labels = load_digits().target[:64]
    with strategy.scope():
        model = tfdq.quantize_model(network(), 2e-3, activation_bits=4, input_range=(0, 1))
        if weights:
            model.set_weights(weights)
        # All of the batch is attacked: which half is would depend on how it is shared out.
        trainer = AdversarialTraining(model, attack=attack, eps=0.1, ratio=1.0)
        trainer.compile(
            tf_keras.optimizers.SGD(1.0),
            tf_keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        )
    start = model.get_weights()
    data = tf.data.Dataset.from_tensor_slices((images, labels)).batch(64)
    history = trainer.fit(data, epochs=1, verbose=0).history
    # With SGD at rate 1 the change of the weights is the gradient.
    change = [b - a for a, b in zip(start, model.get_weights(), strict=True)]
    return start, history, change


def main() -> None:
    cpu = tf.config.list_physical_devices("CPU")[0]
    tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
    mirrored = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
    start, history, change = one_step(tf.distribute.get_strategy(), None, "fgsm")
    _, history_two, change_two = one_step(mirrored, start, "fgsm")
    # Random starts: the replicas must not draw the same ones; that it runs is enough here.
    _, random_start, _ = one_step(mirrored, start, "r+fgsm")
    print(
        json.dumps(
            {
                "replicas": mirrored.num_replicas_in_sync,
                "loss": abs(history["loss"][0] - history_two["loss"][0]),
                "accuracy": abs(
                    history["adversarial_accuracy"][0] - history_two["adversarial_accuracy"][0]
                ),
                "change": max(
                    float(np.abs(a - b).max()) for a, b in zip(change, change_two, strict=True)
                ),
                "largest_change": max(float(np.abs(a).max()) for a in change),
                "random_start_loss": random_start["loss"][0],
                "monitored": "monitor_pgd_accuracy" in random_start,
            }
        )
    )


if __name__ == "__main__":
    main()
