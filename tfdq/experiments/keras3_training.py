"""Train a Keras 3 classifier, float or quantization-aware, on TensorFlow, JAX or PyTorch."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import keras
import numpy as np
from keras import ops

import tfdq
from tfdq.data import Dataset
from tfdq.data.numpy_batches import NumpyBatches
from tfdq.either_keras import is_quantized
from tfdq.experiments.label_smoothing import SmoothedCrossentropy
from tfdq.experiments.run_folder import DivergedError
from tfdq.experiments.schedules import Schedules, make_optimizer, updates_per_batch
from tfdq.experiments.settings import RunSettings, TrainingSettings
from tfdq.keras3.learned_steps import STEP_FACTOR
from tfdq.robustness import AdversarialTraining


@keras.saving.register_keras_serializable(package="tfdq", name="Keras3WarmUp")
class WarmUp(keras.optimizers.schedules.LearningRateSchedule):
    """A learning rate that rises from 0 along a line to meet another schedule.

    Args:
        schedule: the other schedule, or a rate.
        steps: steps until they meet, >= 1.

    Source: Goyal et al., *Accurate, Large Minibatch SGD*, 2017, section 2.2.
    """

    def __init__(self, schedule: Any, steps: int) -> None:
        super().__init__()
        self.schedule = schedule
        self.steps = int(steps)

    def __call__(self, step: Any) -> Any:
        """Return the rate of a step, a float32 scalar."""
        rate = self.schedule(step) if callable(self.schedule) else self.schedule
        share = ops.minimum((ops.cast(step, "float32") + 1.0) / self.steps, 1.0)
        return share * ops.cast(rate, "float32")

    def get_config(self) -> dict[str, Any]:
        """Return the arguments of the constructor."""
        return {"schedule": self.schedule, "steps": self.steps}


@keras.saving.register_keras_serializable(package="tfdq", name="Keras3OneCycle")
class OneCycle(keras.optimizers.schedules.LearningRateSchedule):
    """A learning rate that rises along a line in the first half of the steps, then falls to 0.

    Args:
        peak: the rate in the middle, > 0.
        steps: of the whole training, >= 1.

    Source: Smith and Topin, *Super-Convergence*, 2017; as Wong, Rice and Kolter, *Fast is better
    than free*, ICLR 2020, have it.
    """

    def __init__(self, peak: float, steps: int) -> None:
        super().__init__()
        self.peak = float(peak)
        self.steps = int(steps)

    def __call__(self, step: Any) -> Any:
        """Return the rate of a step, a float32 scalar."""
        at = ops.cast(step, "float32")
        # The first and the last step have as small a rate, neither has none.
        line = ops.minimum(at + 1.0, self.steps - at)
        return self.peak * ops.maximum(line, 0.0) / ((self.steps + 1) // 2)

    def get_config(self) -> dict[str, Any]:
        """Return the arguments of the constructor."""
        return {"peak": self.peak, "steps": self.steps}


SCHEDULES = Schedules(WarmUp, OneCycle)


def compile_for(model: keras.Model, settings: TrainingSettings, steps: int) -> None:
    """Compile a model that ends in logits, or the trainer around one.

    Args:
        model: the model.
        settings: how it will be trained.
        steps: batches in an epoch.
    """
    updates = steps * updates_per_batch(model)
    optimizer = make_optimizer(keras, SCHEDULES, settings, updates)
    # Learned steps would shrink to nothing.
    optimizer.exclude_from_weight_decay(var_names=[STEP_FACTOR])
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    if settings.label_smoothing:
        loss = SmoothedCrossentropy(settings.label_smoothing)
    model.compile(
        optimizer,
        loss,
        metrics=["accuracy"],
        # XLA on TensorFlow's CPU is slower than without, and PyTorch's compiler takes minutes.
        jit_compile=keras.backend.backend() == "jax",
    )


def wrapped(model: keras.Model, settings: RunSettings, seed: int, steps: int) -> keras.Model:
    """Return what is fitted: the model, or adversarial training of it.

    Args:
        model: the model.
        settings: of the run.
        seed: of the random starts.
        steps: in an epoch.
    """
    attack = settings.adversarial
    if attack.attack == "none":
        return model
    return AdversarialTraining(
        model,
        attack.attack,
        attack.eps / 255,
        None if attack.whole_batch else attack.ratio,
        steps=attack.steps,
        seed=seed,
        objective=attack.objective,
        trade_off=attack.trade_off,
        warmup_steps=round(attack.warmup_epochs * steps),
    )


@contextmanager
def precision(name: str) -> Iterator[None]:
    """Let models built inside compute in ``"float32"``, or mixed with a shorter type."""
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(name if name == "float32" else f"mixed_{name}")
    try:
        yield
    finally:
        keras.config.set_dtype_policy(before)


class Batches(keras.utils.PyDataset):
    """The batches of one epoch after the other, as `fit` takes them with ``shuffle=False``.

    Args:
        batches: of the whole training.
        first: number of the first batch; the later epochs begin with their own first.
    """

    def __init__(self, batches: NumpyBatches, first: int = 0) -> None:
        super().__init__()
        self._batches = batches
        self._first = first

    def begin(self, epoch: int) -> None:
        """Let the batches be those of an epoch."""
        self._first = max(self._first, epoch * self._batches.steps)

    def __len__(self) -> int:
        """Return the number of batches that are left of the epoch."""
        return self._batches.steps - self._first % self._batches.steps

    def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """Return images and labels."""
        return self._batches[self._first + index]


class Epochs(keras.callbacks.Callback):
    """Gives each epoch its batches, and ends a training whose loss is no number.

    Args:
        batches: that are fitted.
        tell: called with the figures of each epoch, if given.
    """

    def __init__(
        self, batches: Batches, tell: Callable[[dict[str, float]], None] | None = None
    ) -> None:
        super().__init__()
        self.batches = batches
        self.tell = tell
        self.diverged = False

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Give the epoch its batches."""
        self.batches.begin(epoch)

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        """Stop if the loss of the batch is NaN or infinite."""
        loss = (logs or {}).get("loss")
        if loss is not None and not math.isfinite(float(loss)):
            self.diverged = self.model.stop_training = True

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Pass on the figures of the epoch."""
        if self.tell is not None:
            self.tell({name: float(value) for name, value in (logs or {}).items()})


def train(
    model: keras.Model,
    dataset: Dataset,
    settings: TrainingSettings,
    on_epoch: Callable[[dict[str, float]], None] | None = None,
    seed: int = 0,
) -> dict[str, list[float]]:
    """Train a model that ends in logits on cross-entropy plus its penalties.

    Args:
        model: float or quantization-aware; trained in place.
        dataset: the images; divided by 255 for the model.
        settings: how to train.
        on_epoch: called with the figures of each epoch.
        seed: of order and augmentation.

    Returns:
        The figures of each epoch, by name.

    Raises:
        DivergedError: the loss became NaN or infinite; says what to lower.
    """
    keras.utils.set_random_seed(seed)
    batches = NumpyBatches(dataset, settings.batch_size, settings.augment, seed, settings.cutout)
    compile_for(model, settings, batches.steps)
    given = Batches(batches)
    watch = Epochs(given, on_epoch)
    history = model.fit(
        given, epochs=settings.epochs, callbacks=[watch], shuffle=False, verbose=0
    ).history
    if watch.diverged:
        raise DivergedError(
            f"training {model.name!r} diverged (loss {history['loss'][-1]}): lower the learning "
            "rate or beta"
        )
    return dict(history)


def estimate_statistics(model: keras.Model, x: np.ndarray, batch_size: int) -> None:
    """Set BatchNorm's statistics, and the ranges of a quantized model, for the weights as they are.

    The mean of the statistics of all batches, which weights that were averaged need: none of their
    own was seen in training.

    Args:
        model: quantized or float; trained.
        x: training images in [0, 1], ``(n, height, width, channels)``.
        batch_size: images in a batch; what is left after the last full one is left out.
    """
    if is_quantized(model):
        followed = [
            layer
            for layer in model.layers
            if getattr(layer, "moving_mean", None) is not None and not layer.frozen
        ]
        tfdq.calibrate(model, x, batch_size, batch_norm=bool(followed))
        return
    norms = [layer for layer in model.layers if isinstance(layer, keras.layers.BatchNormalization)]
    kept = [layer.momentum for layer in norms]
    for number in range(len(x) // batch_size):
        for layer in norms:
            # The moving mean of the batches so far.
            layer.momentum = number / (number + 1)
        model(
            ops.convert_to_tensor(x[number * batch_size : (number + 1) * batch_size]), training=True
        )
    for layer, momentum in zip(norms, kept, strict=True):
        layer.momentum = momentum
