"""Train a classifier on a data set, the same way for float and quantization-aware models."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf
import tf_keras

from tfdq.data import Dataset, pipeline, steps_per_epoch
from tfdq.experiments.run_folder import DivergedError
from tfdq.experiments.schedules import Schedules, make_optimizer, updates_per_batch
from tfdq.experiments.settings import TrainingSettings
from tfdq.robustness import AdversarialTraining


@tf_keras.saving.register_keras_serializable(package="tfdq")
class WarmUp(tf_keras.optimizers.schedules.LearningRateSchedule):
    """A learning rate that rises from 0 along a line to meet another schedule.

    Args:
        schedule: the other schedule, or a rate.
        steps: steps until they meet, >= 1.

    Source: Goyal et al., *Accurate, Large Minibatch SGD*, 2017, section 2.2.
    """

    def __init__(self, schedule: Any, steps: int) -> None:
        self.schedule = schedule
        self.steps = int(steps)

    def __call__(self, step: Any) -> tf.Tensor:
        """Return the rate of a step, a float32 scalar."""
        rate = self.schedule(step) if callable(self.schedule) else self.schedule
        share = tf.minimum((tf.cast(step, tf.float32) + 1.0) / self.steps, 1.0)
        return share * tf.cast(rate, tf.float32)

    def get_config(self) -> dict[str, Any]:
        """Return the arguments of the constructor."""
        return {"schedule": self.schedule, "steps": self.steps}


@tf_keras.saving.register_keras_serializable(package="tfdq")
class OneCycle(tf_keras.optimizers.schedules.LearningRateSchedule):
    """A learning rate that rises along a line in the first half of the steps, then falls to 0.

    Args:
        peak: the rate in the middle, > 0.
        steps: of the whole training, >= 1.

    Source: Smith and Topin, *Super-Convergence*, 2017; as Wong, Rice and Kolter, *Fast is better
    than free*, ICLR 2020, have it.
    """

    def __init__(self, peak: float, steps: int) -> None:
        self.peak = float(peak)
        self.steps = int(steps)

    def __call__(self, step: Any) -> tf.Tensor:
        """Return the rate of a step, a float32 scalar."""
        at = tf.cast(step, tf.float32)
        # The first and the last step have as small a rate, neither has none.
        line = tf.minimum(at + 1.0, self.steps - at)
        return self.peak * tf.maximum(line, 0.0) / ((self.steps + 1) // 2)

    def get_config(self) -> dict[str, Any]:
        """Return the arguments of the constructor."""
        return {"peak": self.peak, "steps": self.steps}


SCHEDULES = Schedules(WarmUp, OneCycle)


class _EpochCallback(tf_keras.callbacks.Callback):
    """Tell somebody after every epoch."""

    def __init__(self, tell: Callable[[dict[str, float]], None]) -> None:
        super().__init__()
        self.tell = tell

    def on_epoch_end(self, epoch: int, logs: dict[str, float] | None = None) -> None:
        """Pass on the figures of the epoch."""
        self.tell(dict(logs or {}))


def compile_for(model: tf_keras.Model, settings: TrainingSettings, steps: int) -> None:
    """Compile a model that ends in logits, or the trainer around one.

    Args:
        model: the model.
        settings: how it will be trained.
        steps: batches in an epoch.
    """
    # Adversarial training has accuracies of its own.
    own = isinstance(model, AdversarialTraining)
    model.compile(
        make_optimizer(tf_keras, SCHEDULES, settings, steps * updates_per_batch(model)),
        tf_keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=None if own else ["accuracy"],
    )


class StopAtNaN(tf_keras.callbacks.TerminateOnNaN):
    """Ends a training whose loss is no number; Keras' own also prints so, among the results."""

    def on_batch_end(self, batch: int, logs: Any = None) -> None:
        """Stop if the loss of the batch is NaN or infinite."""
        loss = (logs or {}).get("loss")
        if loss is not None and not np.isfinite(np.asarray(loss)):
            self.model.stop_training = True


def train(
    model: tf_keras.Model,
    dataset: Dataset,
    settings: TrainingSettings,
    on_epoch: Callable[[dict[str, float]], None] | None = None,
    trained: tf_keras.Model | None = None,
    seed: int = 0,
) -> dict[str, list[float]]:
    """Train a model that ends in logits on cross-entropy plus its penalties.

    Args:
        model: float or quantization-aware; trained in place.
        dataset: the images; divided by 255 for the model.
        settings: how to train.
        on_epoch: called with the figures of each epoch.
        trained: what is fitted in place of ``model``, where that is wrapped (adversarial
            training); by default the model itself.
        seed: of order and augmentation.

    Returns:
        The figures of each epoch, by name.

    Raises:
        DivergedError: the loss became NaN or infinite; says what to lower.
    """
    fitted = model if trained is None else trained
    tf_keras.utils.set_random_seed(seed)
    steps = steps_per_epoch(dataset, settings.batch_size)
    compile_for(fitted, settings, steps)
    batches = pipeline(dataset, settings.batch_size, settings.augment, seed, cutout=settings.cutout)
    callbacks: list[Any] = [StopAtNaN()]
    if on_epoch is not None:
        callbacks.append(_EpochCallback(on_epoch))
    history = fitted.fit(
        batches,
        steps_per_epoch=steps,
        epochs=settings.epochs,
        callbacks=callbacks,
        verbose=0,
    ).history
    if not np.isfinite(history["loss"][-1]):
        raise DivergedError(
            f"training {model.name!r} diverged (loss {history['loss'][-1]}): lower the learning "
            "rate or beta"
        )
    return history
