"""Train a classifier on a data set, the same way for float and quantization-aware models."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import tf_keras

from tfdq.data import Dataset, pipeline, steps_per_epoch


@dataclass(frozen=True)
class TrainingSettings:
    """How a classifier is trained.

    Attributes:
        epochs: passes over the training images, >= 1.
        batch_size: images in a step, >= 1.
        learning_rate: Adam's rate at the start; it falls to 0 along a cosine.
        augment: ``"none"``, or ``"pad_crop_flip"`` (the paper's, for natural images).
        seed: of initialisation, order and augmentation.
    """

    epochs: int = 20
    batch_size: int = 64
    learning_rate: float = 3e-3
    augment: str = "none"
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size"):
            value = getattr(self, name)
            if not isinstance(value, int) or value < 1:
                raise ValueError(f"{name} must be an integer >= 1, got {value!r}")
        if not 0 < self.learning_rate < float("inf"):
            raise ValueError(f"learning_rate must be > 0, got {self.learning_rate!r}")
        if self.augment not in ("none", "pad_crop_flip"):
            raise ValueError(f"augment must be none or pad_crop_flip, got {self.augment!r}")


class _EpochCallback(tf_keras.callbacks.Callback):
    """Tell somebody after every epoch."""

    def __init__(self, tell: Callable[[dict[str, float]], None]) -> None:
        super().__init__()
        self.tell = tell

    def on_epoch_end(self, epoch: int, logs: dict[str, float] | None = None) -> None:
        """Pass on the figures of the epoch."""
        self.tell(dict(logs or {}))


def scaled(images: np.ndarray) -> np.ndarray:
    """Return uint8 images as the models take them: float32 in [0, 1]."""
    return images.astype(np.float32) / np.float32(255)


def train(
    model: tf_keras.Model,
    dataset: Dataset,
    settings: TrainingSettings,
    on_epoch: Callable[[dict[str, float]], None] | None = None,
    trained: tf_keras.Model | None = None,
) -> dict[str, list[float]]:
    """Train a model that ends in logits; Adam, cosine decay, cross-entropy plus its penalties.

    Args:
        model: float or quantization-aware; trained in place.
        dataset: the images; divided by 255 for the model.
        settings: how to train.
        on_epoch: called with the figures of each epoch.
        trained: what is fitted in the place of ``model``, where that is wrapped (adversarial
            training); by default the model itself.

    Returns:
        The figures of each epoch, by name.

    Raises:
        RuntimeError: the loss became NaN or infinite; says what to lower.
    """
    fitted = model if trained is None else trained
    tf_keras.utils.set_random_seed(settings.seed)
    steps = steps_per_epoch(dataset, settings.batch_size)
    rate = tf_keras.optimizers.schedules.CosineDecay(
        settings.learning_rate, steps * settings.epochs
    )
    fitted.compile(
        tf_keras.optimizers.Adam(rate),
        tf_keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        # Adversarial training has accuracies of its own.
        **({"metrics": ["accuracy"]} if trained is None else {}),
    )
    augment: Any = settings.augment
    batches = pipeline(dataset, settings.batch_size, augment, settings.seed)
    callbacks = [tf_keras.callbacks.TerminateOnNaN()]
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
        raise RuntimeError(
            f"training {model.name!r} diverged (loss {history['loss'][-1]}): lower the learning "
            "rate or beta"
        )
    return history
