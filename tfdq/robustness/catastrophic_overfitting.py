"""Notice when adversarial training of tf_keras models stops training robustness."""

from __future__ import annotations

from typing import Any

import numpy as np
import tensorflow as tf
import tf_keras

from tfdq.robustness.overfitting_watch import Watch, is_one_hot, single_step


class CatastrophicOverfittingMonitor(Watch, tf_keras.callbacks.Callback):
    """Watch adversarial training of a tf_keras model: what for and when is said by `Watch`."""

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        """Trace one accuracy function per attack, so that epochs after the first are quick."""
        super().on_train_begin(logs)
        trainer = self.model

        def compiled(attack: str, steps: int) -> Any:
            @tf.function(reduce_retracing=True)
            def right(x: tf.Tensor, y: tf.Tensor) -> tf.Tensor:
                seed = tf.constant([trainer.seed, 0], tf.int32)
                x_adv = trainer.perturb(x, y, seed, attack, steps)
                classes = tf.argmax(trainer.model(x_adv, training=False), axis=-1)
                labels = tf.argmax(y, -1) if is_one_hot(y) else y
                return tf.equal(tf.reshape(tf.cast(labels, tf.int64), [-1]), classes)

            return right

        self._right = {
            attack: compiled(attack, steps)
            for attack, steps in ((single_step(trainer), 0), ("pgd", self.steps))
        }

    def accuracy(self, attack: str, steps: int) -> float:
        """Return the accuracy on the examples under an attack against the trained model."""
        hits = 0
        for at in range(0, len(self.x), self.batch_size):
            x = tf.convert_to_tensor(self.x[at : at + self.batch_size])
            x = x if x.dtype.is_floating else tf.cast(x, tf.float32)
            y = tf.convert_to_tensor(self.y[at : at + self.batch_size])
            hits += int(tf.reduce_sum(tf.cast(self._right[attack](x, y), tf.int32)))
        return hits / len(self.x)

    def answers(self, x: np.ndarray) -> np.ndarray:
        """Return what the trained model says at inference."""
        return self.model.model(x, training=False).numpy()
