"""Adversarial training of Keras 3 models, on TensorFlow, JAX and PyTorch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from tfdq.keras3.input_gradients import input_gradient
from tfdq.keras3.stateless_batches import changed_batch
from tfdq.keras3.trainer import Trainer
from tfdq.robustness.free_perturbation import carried
from tfdq.robustness.overfitting_watch import (
    Watch,
    examples_in_a_batch,
    is_one_hot,
    monitor_examples,
)
from tfdq.robustness.training_attacks import TRAINING_ATTACKS, AttackSettings
from tfdq.robustness.training_objectives import ADDED, divergence

# In float16 a small gradient would be flushed to zero and its sign lost.
_GRADIENT_SCALE = 128.0
# Around the ball's centre, of the valid range: where PGD of TRADES and MART starts.
_NEAR = 0.001
# Radii that the noise of N-FGSM reaches over.
_NOISE = 2.0


@keras.saving.register_keras_serializable(package="tfdq")
class Keras3AdversarialTraining(AttackSettings, Trainer):
    """Train a Keras 3 model on batches of which a share is replaced by adversarial examples.

    What `tfdq.AdversarialTraining` makes of a Keras 3 model; the attacks are described there. Each
    step perturbs the first `ratio` of the batch against the network as it trains (that is, with
    BatchNormalization on the statistics of the batch), leaves statistics and ranges as they are,
    and takes one ordinary step on the mixed batch.

    `"free"` takes `steps` such steps on each batch and finds its perturbation in their gradients;
    of `objective="trades"` and `"mart"` the network sees the whole batch twice, clean and
    perturbed, each with statistics of its own, and metrics are of the clean images.

    Args:
        model: The model to train, float or quantized; it is trained in place.
        attack: `"r+fgsm"`, `"fgsm"`, `"pgd"`, `"n-fgsm"` or `"free"`, in the L_inf norm.
        eps: Radius in input units, > 0; or one for each channel.
        ratio: Share of each batch that is perturbed, in (0, 1]; by default half of it, and all of
            it for `"free"`, `"trades"` and `"mart"`. The batches must be shuffled.
        clip: `(lo, hi)` of valid inputs; each a number, or one for each channel.
        steps: Steps of `"pgd"`, or passes of `"free"` over each batch, at least 1.
        step_size: Step in input units; by default `2.5 * eps / steps` of `"pgd"`, `eps` of
            `"n-fgsm"` and `"free"`.
        seed: Seed of the random starts.
        objective: `"adversarial"`, `"trades"` or `"mart"`.
        trade_off: Weight of what the last two add, > 0; by default the papers' 6 and 5.
        warmup_steps: Training steps over which the radius grows from 0 along a line.
        **kwargs: Passed to `keras.Model`.

    Attributes:
        model: The model being trained; `save` writes it, and not the trainer.
        catastrophic_overfitting: Epochs (from 0) at which it was seen; empty if it never was.
        gradient_masking: Whether a random search was stronger than PGD at the end of training;
            None if it was not asked.

    Raises:
        ValueError: If an argument is out of range, or two do not go together.

    Source: as for `tfdq.AdversarialTraining`.
    """

    def __init__(
        self,
        model: keras.Model,
        attack: str = "r+fgsm",
        eps: Any = 8 / 255,
        ratio: float | None = None,
        clip: Sequence[Any] = (0.0, 1.0),
        steps: int = 7,
        step_size: Any = None,
        seed: int = 0,
        objective: str = "adversarial",
        trade_off: float | None = None,
        warmup_steps: int = 0,
        **kwargs: Any,
    ) -> None:
        super().__init__(**{"name": f"adversarial_{model.name}", **kwargs})
        self.model = model
        self.set_attack(
            attack, eps, ratio, clip, steps, step_size, seed, objective, trade_off, warmup_steps
        )
        self.starts = keras.random.SeedGenerator(self.seed)
        self.trained_steps = self.add_weight(
            (), "zeros", "float32", trainable=False, name="trained_steps"
        )
        self.perturbation: Any = None
        self._attack_loss: Any = None
        # Not by `build`, after which Keras takes no more variables: Free training has one to add
        # when it knows the size of a batch.
        self.built = True

    def build(self, input_shape: Any) -> None:
        """Do nothing: the model within is built."""
        self.built = True

    def call(self, inputs: Any, training: bool | None = None) -> Any:
        """Return what the model in training returns; a pair of inputs gives a pair of outputs."""
        if isinstance(inputs, (tuple, list)):
            return tuple(self.model(part, training=training) for part in inputs)
        if training and self.attack == "free":
            if self.perturbation is None:
                raise RuntimeError(
                    "attack='free' has no perturbation yet, whose size is that of a batch: train "
                    "with fit or train_on_batch"
                )
            eps, step_size = self._extents(self._grown())
            inputs = carried(
                ops.cast(inputs, "float32"),
                ops.convert_to_tensor(self.perturbation),
                eps,
                step_size,
                self.clip,
            )
        return self.model(inputs, training=training)

    def compile(self, optimizer: Any = "rmsprop", loss: Any = None, **kwargs: Any) -> None:
        """Compile as any Keras model; the attack ascends the same loss.

        Raises:
            ValueError: If the loss is missing, not a single one, or (for `"trades"` and `"mart"`)
                not a cross-entropy of logits.
        """
        super().compile(optimizer=optimizer, loss=loss, **kwargs)
        if loss is None or isinstance(loss, (list, tuple, dict)):
            raise ValueError(
                f"AdversarialTraining needs one loss to attack and to train with, got {loss!r}; "
                "e.g. keras.losses.SparseCategoricalCrossentropy(from_logits=True)"
            )
        resolved = keras.losses.get(loss)
        if self.objective != "adversarial" and not getattr(resolved, "from_logits", False):
            raise ValueError(
                f"objective={self.objective!r} needs a cross-entropy of logits, got {loss!r}: give "
                "keras.losses.SparseCategoricalCrossentropy(from_logits=True) and a model without "
                "softmax"
            )
        self._attack_loss = getattr(resolved, "call", resolved)

    def perturb(
        self,
        x: Any,
        y: Any,
        attack: str | None = None,
        steps: int = 0,
        *,
        seed: Any = None,
        training: bool = True,
    ) -> Any:
        """Return adversarial examples against the model as it stands; traceable.

        Args:
            x: Inputs, shape (n, ...), floats inside `clip`.
            y: Labels in the form the loss takes.
            attack: One of `TRAINING_ATTACKS` but `"free"`, ascending the compiled loss; None: as
                the trainer finds them, for `"trades"` up the divergence. Another attack than the
                trainer's takes its own default step size.
            steps: Steps of `"pgd"`; 0 means the trainer's own.
            seed: Of the random start; None: the next of the trainer's.
            training: Attack the network as it trains; else as it is deployed, sealed before.

        Returns:
            Examples of the shape of `x` inside `clip`, within `eps` of it but for `"n-fgsm"`.

        Raises:
            RuntimeError: If the trainer is not compiled, so that there is no loss to ascend.
            ValueError: If there is no such attack, or it is `"free"`, also as the trainer's own.
        """
        _check_perturbs(self.attack if attack is None else attack)
        seed = self.starts if seed is None else seed
        if attack is None:
            return self._found(x, y, 1.0, seed, training)
        return self._ascend(
            x, self._loss_of(y, training), attack, steps or self.steps, seed, 1.0, attack == "pgd"
        )

    def _found(self, x: Any, y: Any, grown: Any, seed: Any, training: bool) -> Any:
        """Return the examples that the trainer trains on, in the given share of the radius."""
        wide = self.attack == "pgd" and self.objective == "adversarial"
        loss = self._loss_of(y, training)
        if self.objective == "trades":
            loss = self._divergence_from(x, training)
        return self._ascend(x, loss, self.attack, self.steps, seed, grown, wide)

    def _ascend(
        self, x: Any, loss: Any, attack: str, steps: int, seed: Any, grown: Any, wide: bool
    ) -> Any:
        """Return where the sign-gradient steps of an attack end.

        Args:
            x: Inputs.
            loss: From images to what is ascended, a scalar.
            attack: One of `TRAINING_ATTACKS`.
            steps: Of `"pgd"`.
            seed: Of the random start.
            grown: Share of the radius, in (0, 1].
            wide: Start PGD anywhere in the ball, not near its centre.
        """
        eps, step_size = self._extents(grown)
        own = attack == self.attack
        floor, ceiling = (ops.convert_to_tensor(np.asarray(end, np.float32)) for end in self.clip)
        low, high = ops.maximum(x - eps, floor), ops.minimum(x + eps, ceiling)
        if attack == "pgd":
            if wide:
                start = x + eps * keras.random.uniform(ops.shape(x), -1.0, 1.0, seed=seed)
            else:
                near = _NEAR * (ceiling - floor)
                start = x + near * keras.random.normal(ops.shape(x), seed=seed)
            size = step_size if own and steps == self.steps else 2.5 * eps / steps
        elif attack == "r+fgsm":
            start = x + eps / 2 * ops.sign(keras.random.normal(ops.shape(x), seed=seed))
            size, steps = eps / 2, 1
        elif attack == "n-fgsm":
            noise = keras.random.uniform(ops.shape(x), -_NOISE, _NOISE, seed=seed)
            start, size, steps = x + eps * noise, step_size if own else eps, 1
            low, high = floor, ceiling
        else:
            start, size, steps = x, eps, 1

        def step(_: Any, moved: Any) -> Any:
            slope = input_gradient(loss, moved)
            slope = ops.where(ops.isfinite(slope), slope, ops.zeros_like(slope))
            return ops.clip(moved + size * ops.sign(slope), low, high)

        start = ops.clip(start, low, high)
        end = step(0, start) if steps == 1 else ops.fori_loop(0, steps, step, start)
        return ops.stop_gradient(end)

    def _extents(self, grown: Any) -> tuple[Any, Any]:
        """Return radius and step size, each a tensor, in the given share."""
        eps, step_size = (
            ops.convert_to_tensor(np.asarray(extent, np.float32))
            for extent in (self.eps, self.step_size)
        )
        return grown * eps, grown * step_size

    def _grown(self) -> Any:
        """Return the share of the radius at this training step, in (0, 1]."""
        if self.warmup_steps == 0:
            return 1.0
        return ops.minimum(self.trained_steps / self.warmup_steps, 1.0)

    def _loss_of(self, y: Any, training: bool) -> Any:
        """Return the compiled loss, summed, as a function of the images."""
        if self._attack_loss is None:
            raise RuntimeError("compile the trainer first: the attack ascends its loss")
        return lambda x: _GRADIENT_SCALE * ops.sum(self._attack_loss(y, self._outputs(x, training)))

    def _divergence_from(self, x: Any, training: bool) -> Any:
        """Return the divergence from the outputs at `x`, summed, as a function of the images."""
        clean = ops.stop_gradient(self._outputs(x, training))
        return lambda moved: (
            _GRADIENT_SCALE * ops.sum(divergence(clean, self._outputs(moved, training)))
        )

    def _outputs(self, x: Any, training: bool) -> Any:
        """Return the model's outputs; what it would assign is let go."""
        present = [(variable, variable.value) for variable in self.model.variables]
        with keras.StatelessScope(state_mapping=present):
            return ops.cast(self.model(x, training=training), "float32")

    def _attacked(self, data: Any) -> tuple[Any, Any, Any]:
        """Return a batch to train on: mixed, or a pair of clean and adversarial images."""
        x, y, weights = keras.utils.unpack_x_y_sample_weight(data)
        if not ops.is_tensor(x) or y is None:
            raise ValueError(
                "AdversarialTraining takes batches (x, y) or (x, y, sample_weight), x one tensor; "
                f"got x of type {type(x).__name__} and y of type {type(y).__name__}"
            )
        x = ops.cast(x, "float32")
        self.trained_steps.assign_add(1.0)
        if self.attack == "free":
            return x, y, weights
        if self.objective != "adversarial":
            return (x, self._found(x, y, self._grown(), self.starts, True)), y, weights
        count = ops.shape(x)[0]
        if isinstance(count, int):
            share = min(max(round(self.ratio * count), 1), count)
        else:
            share = ops.cast(ops.round(self.ratio * ops.cast(count, "float32")), "int32")
            share = ops.clip(share, 1, count)
        attacked = self._found(x[:share], y[:share], self._grown(), self.starts, True)
        return ops.concatenate([attacked, x[share:]]), y, weights

    def compute_loss(
        self,
        x: Any = None,
        y: Any = None,
        y_pred: Any = None,
        sample_weight: Any = None,
        training: bool = True,
    ) -> Any:
        """Return the compiled loss and the penalties; of a pair of outputs the objective's.

        Args:
            x: Inputs.
            y: Labels.
            y_pred: Outputs, or those of the clean and of the adversarial images.
            sample_weight: Of each image.
            training: As Keras has it.
        """
        if not isinstance(y_pred, (tuple, list)):
            return super().compute_loss(x, y, y_pred, sample_weight, training)
        clean, attacked = (ops.cast(outputs, "float32") for outputs in y_pred)
        fitted = clean if self.objective == "trades" else attacked
        assert self.trade_off is not None  # of every objective that has pairs of outputs
        added = ADDED[self.objective](y, clean, attacked, self.trade_off)
        if sample_weight is not None:
            added = added * ops.cast(ops.reshape(sample_weight, (-1,)), "float32")
        return super().compute_loss(x, y, fitted, sample_weight, training) + ops.mean(added)

    def compute_metrics(self, x: Any, y: Any, y_pred: Any, sample_weight: Any = None) -> Any:
        """Return the metrics; of a pair of outputs those of the clean images.

        Args:
            x: Inputs.
            y: Labels.
            y_pred: Outputs, or those of the clean and of the adversarial images.
            sample_weight: Of each image.
        """
        y_pred = y_pred[0] if isinstance(y_pred, (tuple, list)) else y_pred
        return super().compute_metrics(x, y, y_pred, sample_weight)

    def train_step(self, *given: Any) -> Any:
        """Attack the batch, then train on it as Keras does.

        Args:
            *given: what Keras calls its own `train_step` with: the batch, on JAX after the state.
        """
        *states, batch = changed_batch(self, given, self._attacked)
        for _ in range(self.steps if self.attack == "free" else 1):
            done = super().train_step(*states, batch)
            # On JAX a step returns the state, too, for the next one.
            states = [done[1] for _ in states]
        return done

    def fit(self, x: Any = None, y: Any = None, **kwargs: Any) -> Any:
        """Fit as any Keras model, with a monitor for catastrophic overfitting.

        Single-step training is watched as `tfdq.AdversarialTraining` says.

        Args:
            x: As `keras.Model.fit` takes it.
            y: As `keras.Model.fit` takes it.
            **kwargs: As `keras.Model.fit` takes them, by name.

        Returns:
            The history; with `monitor_single_step_accuracy` and `monitor_pgd_accuracy` per epoch.
        """
        if self.attack == "free":
            self.make_perturbation(examples_in_a_batch(x, kwargs.get("batch_size")))
        callbacks = kwargs.pop("callbacks", None) or []
        listed = list(getattr(callbacks, "callbacks", callbacks))
        watched = any(isinstance(callback, Watch) for callback in listed)
        if self.attack != "pgd" and not watched:
            examples = monitor_examples(x, y, kwargs.get("validation_data"))
            if examples is not None:
                callbacks = [Keras3OverfittingMonitor(*examples), *listed]
        return super().fit(x, y, callbacks=callbacks, **kwargs)

    def train_on_batch(self, x: Any, *args: Any, **kwargs: Any) -> Any:
        """Train on one batch; of `"free"` no later one may be larger than the first."""
        if hasattr(x, "shape"):
            # Keras on PyTorch hands arrays on as they are.
            x = ops.convert_to_tensor(x)
            if self.attack == "free":
                self.make_perturbation(x.shape[0])
        return super().train_on_batch(x, *args, **kwargs)

    def make_perturbation(self, batch_size: int) -> None:
        """Make the perturbation that `"free"` carries from one batch to the next, at 0.

        `fit` and `train_on_batch` make it; before them only what reads or sets all variables of
        the trainer, such as a checkpoint, has to.

        Args:
            batch_size: Examples in the largest batch to come.

        Raises:
            ValueError: If there is one for smaller batches already.
        """
        if self.perturbation is None:
            self.perturbation = self.add_weight(
                (batch_size, *self.model.input_shape[1:]),
                "zeros",
                "float32",
                name="perturbation",
                overwrite_with_gradient=True,
            )
        elif batch_size > self.perturbation.shape[0]:
            raise ValueError(
                f"attack='free' began with batches of {self.perturbation.shape[0]} images and "
                f"can't go on with {batch_size}: keep the batch size"
            )

    def get_config(self) -> dict[str, Any]:
        """Return the constructor's arguments, the model serialized."""
        return {
            "name": self.name,
            "model": keras.saving.serialize_keras_object(self.model),
            **self.attack_config(),
        }

    @classmethod
    def from_config(
        cls, config: dict[str, Any], custom_objects: Any = None
    ) -> Keras3AdversarialTraining:
        """Build the trainer from `get_config`."""
        inner = keras.saving.deserialize_keras_object(
            config["model"], custom_objects=custom_objects
        )
        return cls(**{**config, "model": inner})


def _check_perturbs(attack: str) -> None:
    """Raise a ValueError unless an attack finds examples outside training."""
    taken = tuple(name for name in TRAINING_ATTACKS if name != "free")
    if attack == "free":
        raise ValueError(
            "attack='free' finds its perturbation in the training steps, and there are no examples "
            f"of it outside: name one of {taken}, e.g. perturb(x, y, 'pgd')"
        )
    if attack not in taken:
        raise ValueError(f"attack must be one of {taken}, got {attack!r}")


class Keras3OverfittingMonitor(Watch, keras.callbacks.Callback):
    """Watch adversarial training of a Keras 3 model: what for and when is said by `Watch`."""

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Measure both accuracies, log them, and declare a collapse if there is one."""
        self.model.seal()
        super().on_epoch_end(epoch, logs)

    def on_train_end(self, logs: dict[str, Any] | None = None) -> None:
        """Put back the best weights, with `patience` or after a collapse; ask the random search."""
        self.model.seal()
        super().on_train_end(logs)

    def accuracy(self, attack: str, steps: int) -> float:
        """Return the accuracy on the examples under an attack against the trained model."""
        trainer, hits = self.model, 0
        for at in range(0, len(self.x), self.batch_size):
            x = ops.convert_to_tensor(self.x[at : at + self.batch_size], "float32")
            y = self.y[at : at + self.batch_size]
            labels = y.argmax(-1) if is_one_hot(y) else y.reshape(-1)
            moved = trainer.perturb(
                x, ops.convert_to_tensor(y), attack, steps, seed=trainer.seed, training=False
            )
            hits += int((self._classes(moved) == labels).sum())
        return hits / len(self.x)

    def _classes(self, x: Any) -> np.ndarray:
        return self.answers(x).argmax(-1)

    def answers(self, x: Any) -> np.ndarray:
        """Return what the trained model says at inference."""
        return np.asarray(ops.convert_to_numpy(self.model.model(x, training=False)), np.float32)
