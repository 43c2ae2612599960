"""Notice when adversarial training stops training robustness: what both Keras share."""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

MONITOR_EXAMPLES = 256
# By how much a short random search must be stronger than PGD for its gradients to count as hidden.
_MASKING = 0.02


class CatastrophicOverfittingWarning(UserWarning):
    """Single-step adversarial training has collapsed: its attack no longer attacks."""


class GradientMaskingWarning(UserWarning):
    """Adversarial training has hidden the gradients instead of moving the decisions."""


class Watch(ABC):
    """Compare the attack that is trained with to PGD after every epoch, and say when they part.

    Catastrophic overfitting: the network learns a loss surface on which the single step does
    nothing, so the accuracy under the training attack is high while PGD breaks nearly everything.
    It is declared when the single-step accuracy is `gap` above the PGD accuracy and the latter is
    below half of its best so far, or below a fifth of the single-step accuracy. (A gap alone is
    not enough: under a large eps the two are apart from the start, and PGD's rises all the same.)
    Then a `CatastrophicOverfittingWarning` is raised as a warning, the epoch is added to
    `trainer.catastrophic_overfitting`, and, on request, training stops.

    Adds `monitor_single_step_accuracy` and `monitor_pgd_accuracy` to the epoch's logs.

    PGD can be fooled, too: a quantized network can learn to stand it on plateaus of its loss. So at
    the end of training Square, which asks no gradients, tries the same examples with a few queries.
    Where it breaks more of them than PGD does, by 2 points, a `GradientMaskingWarning` says so and
    `trainer.gradient_masking` is True (else False; None if a diverged network, or one with a single
    output, could not be asked). Of seven networks trained with R+FGSM on Fashion-MNIST, PGD-20 was
    stronger than 300 queries on the three that kept 63 % and more in the worst case of the suite,
    by 2 to 7 points, and weaker on the four that kept 0.4 to 34 %, by 5 to 52.

    Args:
        x: Held-out inputs, shape (n, ...), inside the trainer's `clip`; some hundreds do.
        y: Their labels, in the form the loss takes.
        steps: Steps of PGD, at least 2.
        gap: Difference of the two accuracies that counts as a collapse, in (0, 1).
        stop: Stop training at the first collapse and put back the weights of the epoch that had
            the best PGD accuracy.
        patience: Stop training, too, when the PGD accuracy has not risen for so many epochs, and
            put back the weights of the best whenever training ends (Rice et al. 2020: robust
            accuracy on held-out images falls while that on training images still rises). Not with
            `use_ema=True`, whose average they would replace. None: never.
        batch_size: Examples per forward pass.
        queries: Of Square at the end, for each example; 0 leaves it out.

    Raises:
        ValueError: If an argument is out of range; in `fit`, if `patience` meets `use_ema=True`.

    Source: Wong, Rice, Kolter, Fast is better than free, ICLR 2020, section 5.4; Andriushchenko
    and Flammarion, Understanding and improving fast adversarial training, NeurIPS 2020; Rice, Wong,
    Kolter, Overfitting in adversarially robust deep learning, ICML 2020.
    """

    model: Any
    """The trainer; Keras sets it."""

    def __init__(
        self,
        x: np.ndarray,
        y: np.ndarray,
        *,
        steps: int = 20,
        gap: float = 0.3,
        stop: bool = False,
        patience: int | None = None,
        batch_size: int = 128,
        queries: int = 300,
    ) -> None:
        super().__init__()
        if len(x) == 0 or len(x) != len(y):
            raise ValueError(
                f"the monitor needs as many labels as examples, got {len(x)} and {len(y)}"
            )
        if steps < 2:
            raise ValueError(f"steps of PGD must be at least 2, got {steps}")
        if not 0 < gap < 1:
            raise ValueError(f"gap is a difference of accuracies, in (0, 1); got {gap}")
        if patience is not None and patience < 1:
            raise ValueError(f"patience must be at least 1 epoch, got {patience}")
        if queries < 0:
            raise ValueError(f"queries of the random search must be 0 or more, got {queries}")
        self.x = np.asarray(x)
        self.y = np.asarray(y)
        self.steps = int(steps)
        self.gap = float(gap)
        self.stop = stop
        self.patience = patience
        self.batch_size = int(batch_size)
        self.queries = int(queries)
        self._best = -1.0
        self._since_best = 0
        self._best_weights: list[np.ndarray] | None = None

    @property
    def best_weights(self) -> list[np.ndarray] | None:
        """The trainer's weights at its best PGD accuracy; None unless asked to keep them."""
        return self._best_weights

    @property
    def is_out_of_patience(self) -> bool:
        """Whether the PGD accuracy has not risen for `patience` epochs."""
        return self.patience is not None and self._since_best >= self.patience

    def progress(self) -> dict[str, np.ndarray]:
        """Return what the watch has seen so far, for a checkpoint of the training."""
        weights = self._best_weights or []
        return {
            "best": np.asarray(self._best),
            "since_best": np.asarray(self._since_best),
            **{f"weight_{number}": weight for number, weight in enumerate(weights)},
        }

    def go_on(self, progress: Mapping[str, np.ndarray]) -> None:
        """Take up what `progress` returned."""
        self._best = float(progress["best"])
        self._since_best = int(progress["since_best"])
        count = sum(name.startswith("weight_") for name in progress)
        self._best_weights = [progress[f"weight_{n}"] for n in range(count)] or None

    @abstractmethod
    def accuracy(self, attack: str, steps: int) -> float:
        """Return the accuracy on the examples under an attack against the trained model.

        Args:
            attack: one of `TRAINING_ATTACKS` of the trainer.
            steps: of ``"pgd"``; 0: the trainer's own.
        """

    @abstractmethod
    def answers(self, x: np.ndarray) -> np.ndarray:
        """Return what the trained model says at inference."""

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        """Refuse `patience` with an optimizer that averages the weights."""
        optimizer = self.model.optimizer
        # Of mixed precision: the one whose loss is scaled.
        optimizer = getattr(optimizer, "inner_optimizer", optimizer)
        if self.patience is not None and getattr(optimizer, "use_ema", False):
            raise ValueError(
                f"patience={self.patience} puts back the weights of one epoch, which would replace "
                "the average that use_ema=True makes: leave out patience of the monitor or use_ema "
                "of the optimizer"
            )

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Measure both accuracies, log them, and declare a collapse if there is one."""
        measured = {
            "monitor_single_step_accuracy": self.accuracy(single_step(self.model), 0),
            "monitor_pgd_accuracy": self.accuracy("pgd", self.steps),
        }
        if logs is not None:
            logs.update(measured)
        single, iterated = measured.values()
        collapsed = iterated < 0.5 * self._best or iterated < 0.2 * single
        self._since_best += 1
        if iterated > self._best:
            self._best, self._since_best = iterated, 0
            if self.stop or self.patience is not None:
                self._best_weights = self.model.get_weights()
        if self.is_out_of_patience:
            self.model.stop_training = True
        if single - iterated < self.gap or not collapsed:
            return
        self.model.catastrophic_overfitting = (*self.model.catastrophic_overfitting, epoch)
        measured_with = single_step(self.model)
        trained_with = (
            "which it trains with, "
            if measured_with == self.model.attack
            else f"while it trains with {self.model.attack}, "
        )
        warnings.warn(
            f"catastrophic overfitting at epoch {epoch}: accuracy {single:.1%} under "
            f"{measured_with}, {trained_with}but {iterated:.1%} under "
            f"PGD-{self.steps}. The single-step figures mean nothing from here on; train with "
            "attack='r+fgsm' or 'pgd', a smaller eps, or a Lipschitz penalty, and stop earlier",
            CatastrophicOverfittingWarning,
            stacklevel=2,
        )
        if self.stop:
            self.model.stop_training = True

    def on_train_end(self, logs: dict[str, Any] | None = None) -> None:
        """Put back the best weights, with `patience` or after a collapse; ask the random search."""
        collapsed = self.stop and bool(self.model.catastrophic_overfitting)
        if (collapsed or self.patience is not None) and self._best_weights is not None:
            self.model.set_weights(self._best_weights)
        if self.queries == 0:
            return
        searched = self._under_random_search()
        if searched is None:
            return
        iterated = self.accuracy("pgd", self.steps)
        self.model.gradient_masking = searched < iterated - _MASKING
        if self.model.gradient_masking:
            warnings.warn(
                f"gradient masking: accuracy {iterated:.1%} under PGD-{self.steps}, but "
                f"{searched:.1%} under {self.queries} queries of Square, which needs no gradients. "
                "The gradient attacks' figures mean nothing; give a quantized network a Lipschitz "
                "penalty and an observed range of activations, and audit it (tfdq audit)",
                GradientMaskingWarning,
                stacklevel=2,
            )

    def _under_random_search(self) -> float | None:
        """Return the accuracy under Square; None for outputs that it cannot attack."""
        from tfdq.robustness.attacks import run_attack
        from tfdq.robustness.targets import as_target, looks_like_probabilities

        trainer = self.model
        x = np.clip(self.x.astype(np.float32), *trainer.clip)
        few = self.answers(x[: self.batch_size])
        if few.shape[-1] < 2 or not np.isfinite(few).all():
            return None
        found = run_attack(
            "square",
            as_target(
                trainer.model,
                outputs="probabilities" if looks_like_probabilities(few) else "logits",
            ),
            x,
            self.y.argmax(-1) if is_one_hot(self.y) else self.y.reshape(-1),
            trainer.eps,
            clip=trainer.clip,
            batch_size=self.batch_size,
            seed=trainer.seed,
            queries=self.queries,
        )
        return float(found.robust_accuracy)


def single_step(trainer: Any) -> str:
    """Return the single-step attack that a trainer is watched with."""
    return "r+fgsm" if trainer.attack in ("pgd", "free") else trainer.attack


def is_one_hot(y: Any) -> bool:
    """Tell whether labels are rows of classes rather than numbers."""
    return len(y.shape) > 1 and y.shape[-1] > 1


def monitor_examples(x: Any, y: Any, validation_data: Any) -> tuple[np.ndarray, np.ndarray] | None:
    """Return up to 256 examples to monitor on, without using up the data.

    Args:
        x: Training data as given to `fit`.
        y: Training labels as given to `fit`.
        validation_data: Validation data as given to `fit`, or None.

    Returns:
        Inputs and labels as arrays, or None (with a warning) where the data can be read only once.
    """
    source = x if validation_data is None else validation_data
    if validation_data is None and y is not None:
        source = (x, y)
    if isinstance(source, (tuple, list)) and len(source) >= 2:
        first, labels = source[0], source[1]
        return np.asarray(first[:MONITOR_EXAMPLES]), np.asarray(labels[:MONITOR_EXAMPLES])
    batches = _batches(source)
    if batches is None:
        warnings.warn(
            f"not watched for catastrophic overfitting: {type(source).__name__} cannot be read "
            "without using it up; pass validation_data=(x, y) or a CatastrophicOverfittingMonitor",
            CatastrophicOverfittingWarning,
            stacklevel=3,
        )
        return None
    inputs: list[np.ndarray] = []
    labels = []
    for batch in batches:
        inputs.append(np.asarray(batch[0]))
        labels.append(np.asarray(batch[1]))
        if sum(len(part) for part in inputs) >= MONITOR_EXAMPLES:
            break
    if not inputs:
        return None
    return (
        np.concatenate(inputs)[:MONITOR_EXAMPLES],
        np.concatenate(labels)[:MONITOR_EXAMPLES],
    )


def examples_in_a_batch(x: Any, batch_size: int | None) -> int:
    """Return how many examples a batch of training data has, without using up the data.

    Args:
        x: Training data as given to `fit`.
        batch_size: As given to `fit`.

    Raises:
        ValueError: If the data can be read only once.
    """
    batches = None if hasattr(x, "shape") else _batches(x)
    if batches is not None:
        return len(next(batches)[0])
    if not hasattr(x, "shape"):
        raise ValueError(
            f"attack='free' has to know the size of a batch, but {type(x).__name__} cannot be read "
            "without using it up: pass arrays, a tf.data.Dataset or a keras.utils.PyDataset"
        )
    return min(batch_size or 32, len(x))


def _batches(source: Any) -> Iterator[Any] | None:
    """Return the batches of a data set that can be read again; None if it can't."""
    if hasattr(source, "as_numpy_iterator"):
        return iter(source.as_numpy_iterator())
    if hasattr(source, "__getitem__") and not isinstance(source, (np.ndarray, Mapping)):
        # keras.utils.PyDataset, or Sequence of tf_keras.
        return (source[i] for i in range(len(source)))
    return None
