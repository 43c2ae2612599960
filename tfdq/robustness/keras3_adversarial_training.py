"""Adversarial training of Keras 3 models, on TensorFlow, JAX and PyTorch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from tfdq.keras3.input_gradients import input_gradient
from tfdq.robustness.overfitting_watch import Watch, is_one_hot, monitor_examples
from tfdq.robustness.training_attacks import AttackSettings

# In float16 a small gradient would be flushed to zero and its sign lost.
_GRADIENT_SCALE = 128.0


@keras.saving.register_keras_serializable(package="tfdq")
class Keras3AdversarialTraining(AttackSettings, keras.Model):
    """Train a Keras 3 model on batches of which a share is replaced by adversarial examples.

    What `tfdq.AdversarialTraining` makes of a Keras 3 model; the attacks are described there. Each
    step perturbs the first `ratio` of the batch against the network as it trains (that is, with
    BatchNormalization on the statistics of the batch), leaves statistics and ranges as they are,
    and takes one ordinary step on the mixed batch.

    Args:
        model: The model to train, float or quantized; it is trained in place.
        attack: `"r+fgsm"`, `"fgsm"` or `"pgd"`, in the L_inf norm.
        eps: Radius in input units, > 0; or one for each channel.
        ratio: Share of each batch that is perturbed, in (0, 1]. The batches must be shuffled.
        clip: `(lo, hi)` of valid inputs; each a number, or one for each channel.
        steps: Steps of `"pgd"`, at least 1.
        step_size: Step of `"pgd"` in input units; `2.5 * eps / steps` by default.
        seed: Seed of the random starts.
        **kwargs: Passed to `keras.Model`.

    Attributes:
        model: The model being trained; `save` writes it, and not the trainer.
        catastrophic_overfitting: Epochs (from 0) at which it was seen; empty if it never was.
        gradient_masking: Whether a random search was stronger than PGD at the end of training;
            None if it was not asked.

    Raises:
        ValueError: If an argument is out of range.

    Source: as for `tfdq.AdversarialTraining`.
    """

    def __init__(
        self,
        model: keras.Model,
        attack: str = "r+fgsm",
        eps: Any = 8 / 255,
        ratio: float = 0.5,
        clip: Sequence[Any] = (0.0, 1.0),
        steps: int = 7,
        step_size: Any = None,
        seed: int = 0,
        **kwargs: Any,
    ) -> None:
        super().__init__(**{"name": f"adversarial_{model.name}", **kwargs})
        self.model = model
        self.set_attack(attack, eps, ratio, clip, steps, step_size, seed)
        self.starts = keras.random.SeedGenerator(self.seed)
        self._attack_loss: Any = None
        self.build(model.input_shape)

    def build(self, input_shape: Any) -> None:
        """Do nothing: the model within is built."""
        self.built = True

    def call(self, inputs: Any, training: bool | None = None) -> Any:
        """Return what the model in training returns."""
        return self.model(inputs, training=training)

    def compile(self, optimizer: Any = "rmsprop", loss: Any = None, **kwargs: Any) -> None:
        """Compile as any Keras model; the attack ascends the same loss.

        Raises:
            ValueError: If the loss is missing or not a single one.
        """
        super().compile(optimizer=optimizer, loss=loss, **kwargs)
        if loss is None or isinstance(loss, (list, tuple, dict)):
            raise ValueError(
                f"AdversarialTraining needs one loss to attack and to train with, got {loss!r}; "
                "e.g. keras.losses.SparseCategoricalCrossentropy(from_logits=True)"
            )
        resolved = keras.losses.get(loss)
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
            attack: One of `TRAINING_ATTACKS`; the one it trains with by default.
            steps: Steps of `"pgd"`; 0 means the trainer's own.
            seed: Of the random start; None: the next of the trainer's.
            training: Attack the network as it trains; else as it is deployed, sealed before.

        Returns:
            Examples of the shape of `x`, within `eps` of it and inside `clip`.

        Raises:
            RuntimeError: If the trainer is not compiled, so that there is no loss to ascend.
        """
        if self._attack_loss is None:
            raise RuntimeError("compile the trainer first: the attack ascends its loss")
        attack, steps = attack or self.attack, steps or self.steps
        seed = self.starts if seed is None else seed
        eps, step_size, floor, ceiling = (
            ops.convert_to_tensor(np.asarray(extent, np.float32))
            for extent in (self.eps, self.step_size, *self.clip)
        )
        low, high = ops.maximum(x - eps, floor), ops.minimum(x + eps, ceiling)
        if attack == "pgd":
            start = x + eps * keras.random.uniform(ops.shape(x), -1.0, 1.0, seed=seed)
            size = step_size if steps == self.steps else 2.5 * eps / steps
        elif attack == "r+fgsm":
            start = x + eps / 2 * ops.sign(keras.random.normal(ops.shape(x), seed=seed))
            size, steps = eps / 2, 1
        else:
            start, size, steps = x, eps, 1

        def step(_: Any, moved: Any) -> Any:
            slope = input_gradient(lambda images: self._loss_at(images, y, training), moved)
            slope = ops.where(ops.isfinite(slope), slope, ops.zeros_like(slope))
            return ops.clip(moved + size * ops.sign(slope), low, high)

        start = ops.clip(start, low, high)
        end = step(0, start) if steps == 1 else ops.fori_loop(0, steps, step, start)
        return ops.stop_gradient(end)

    def _loss_at(self, x: Any, y: Any, training: bool) -> Any:
        """Return the loss; what the model would assign is let go."""
        present = [(variable, variable.value) for variable in self.model.variables]
        with keras.StatelessScope(state_mapping=present):
            outputs = ops.cast(self.model(x, training=training), "float32")
            return _GRADIENT_SCALE * ops.sum(self._attack_loss(y, outputs))

    def _mixed(self, data: Any) -> tuple[Any, Any, Any]:
        """Return a batch of which the first are adversarial examples."""
        x, y, weights = keras.utils.unpack_x_y_sample_weight(data)
        if not ops.is_tensor(x) or y is None:
            raise ValueError(
                "AdversarialTraining takes batches (x, y) or (x, y, sample_weight), x one tensor; "
                f"got x of type {type(x).__name__} and y of type {type(y).__name__}"
            )
        x = ops.cast(x, "float32")
        count = ops.shape(x)[0]
        if isinstance(count, int):
            share = min(max(round(self.ratio * count), 1), count)
        else:
            share = ops.cast(ops.round(self.ratio * ops.cast(count, "float32")), "int32")
            share = ops.clip(share, 1, count)
        attacked = self.perturb(x[:share], y[:share])
        return ops.concatenate([attacked, x[share:]]), y, weights

    def train_step(self, *given: Any) -> Any:
        """Perturb a share of the batch, then train on the batch as Keras does.

        Args:
            *given: what Keras calls its own `train_step` with: the batch, on JAX after the state.
        """
        *states, data = given
        if not states:
            return super().train_step(self._mixed(data))
        trainable, others, *rest = states[0]
        variables = (*self.trainable_variables, *self.non_trainable_variables)
        mapping = list(zip(variables, (*trainable, *others), strict=True))
        with keras.StatelessScope(state_mapping=mapping) as scope:
            batch = self._mixed(data)
            # The random starts have moved on.
            others = [scope.get_current_value(v) for v in self.non_trainable_variables]
        return super().train_step((trainable, others, *rest), batch)

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
        callbacks = kwargs.pop("callbacks", None) or []
        listed = list(getattr(callbacks, "callbacks", callbacks))
        watched = any(isinstance(callback, Watch) for callback in listed)
        if self.attack != "pgd" and not watched:
            examples = monitor_examples(x, y, kwargs.get("validation_data"))
            if examples is not None:
                callbacks = [Keras3OverfittingMonitor(*examples), *listed]
        return super().fit(x, y, callbacks=callbacks, **kwargs)

    def seal(self) -> None:
        """Bring the model to where it can infer: see `tfdq.keras3.QuantizedModel`."""
        getattr(self, "jax_state_sync", lambda: None)()
        getattr(self.model, "seal", lambda: None)()

    def predict(self, *args: Any, **kwargs: Any) -> Any:
        """Return outputs; see ``keras.Model.predict``."""
        self.seal()
        return super().predict(*args, **kwargs)

    def evaluate(self, *args: Any, **kwargs: Any) -> Any:
        """Evaluate on the examples as they are; robust accuracy is for `evaluate` of tfdq."""
        self.seal()
        return super().evaluate(*args, **kwargs)

    def save(self, *args: Any, **kwargs: Any) -> None:
        """Save the model that was trained (so a ModelCheckpoint keeps that, too)."""
        self.model.save(*args, **kwargs)

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


class Keras3OverfittingMonitor(Watch, keras.callbacks.Callback):
    """Watch adversarial training of a Keras 3 model: what for and when is said by `Watch`."""

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Measure both accuracies, log them, and declare a collapse if there is one."""
        self.model.seal()
        super().on_epoch_end(epoch, logs)

    def on_train_end(self, logs: dict[str, Any] | None = None) -> None:
        """Put back the best weights if a collapse stopped the training; ask the random search."""
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
