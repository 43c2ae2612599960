"""Adversarial training as a Keras model: compile it, fit it, take the trained model out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import tensorflow as tf
import tf_keras

from tfdq.mistakes import WrongTypeError
from tfdq.quantization.wrapper import penalties_together
from tfdq.robustness.catastrophic_overfitting import CatastrophicOverfittingMonitor
from tfdq.robustness.overfitting_watch import monitor_examples
from tfdq.robustness.training_attacks import TF_KERAS_ATTACKS, AttackSettings
from tfdq.which_keras import is_keras3_model

_GRADIENT_SCALE = 128.0


@tf_keras.utils.register_keras_serializable(package="tfdq")
class AdversarialTraining(AttackSettings, tf_keras.Model):
    """Train a model on batches of which a share is replaced by adversarial examples.

    Each step perturbs the first `ratio` of the batch against the model as it stands, inside the
    same `tf.function`, and takes one ordinary gradient step on the mixed batch. So the loss, its
    weights, the penalties of the model (`model.losses`), `jit_compile`, `tf.distribute` and, for a
    float model, mixed precision work as in plain training, and a step costs `ratio` extra gradients
    (times the steps of the attack).

    The attack runs the model in inference mode: it leaves the BatchNormalization statistics and
    the quantizer ranges as they are.

    - `"fgsm"`: `x + eps * sign(g(x))`. Trained with it, a network learns to hide its gradient.
    - `"r+fgsm"`: `x' = x + eps/2 * sign(N(0, I))`, then `x' + eps/2 * sign(g(x'))`: the cure.
    - `"pgd"`: a uniform start in the ball, then `steps` steps of `step_size`.

    For Keras 3 models also:

    - `"n-fgsm"`: `x' = x + U(-2 eps, 2 eps)`, then `x' + step_size * sign(g(x'))`, both inside
      `clip` but not brought back into the ball; `step_size` is `eps` by default.
    - `"free"`: `steps` updates of the weights on each batch, whose one gradient moves the
      perturbation, too: `d + step_size * sign(g(x + d))`, in the ball; the next batch starts from
      it. For the price of `steps` plain passes over the data, so divide the epochs.
    - `objective="trades"`: `CE(f(x), y) + trade_off * KL(f(x) || f(x'))`, where the attack ascends
      the divergence; `"pgd"` starts at `x + 0.001 * N(0, I)`.
    - `objective="mart"`: `CE(f(x'), y) - log(1 - max_{k != y} f_k(x')) + trade_off *
      KL(f(x) || f(x')) * (1 - f_y(x))`; `"pgd"` starts at `x + 0.001 * N(0, I)`.

    While it trains with a single-step attack it watches for catastrophic overfitting (the attack
    it trains with seems to do nothing while PGD breaks everything), and at the end it asks a random
    search whether PGD can be believed: see `CatastrophicOverfittingMonitor` and the attributes
    `catastrophic_overfitting` and `gradient_masking`.

    Args:
        model: The model to train, float or quantized; it is trained in place. Of a Keras 3 model
            `tfdq.robustness.keras3_adversarial_training.Keras3AdversarialTraining` is made, a Keras
            3 model, with the same arguments.
        attack: `"r+fgsm"`, `"fgsm"` or `"pgd"`, in the L_inf norm; of a Keras 3 model also
            `"n-fgsm"` or `"free"`.
        eps: Radius in input units, > 0; `8/255` for images in [0, 1]; or one for each channel.
        ratio: Share of each batch that is perturbed, in (0, 1]; by default half of it, and all of
            it for `"free"`, `"trades"` and `"mart"`. The batches must be shuffled.
        clip: `(lo, hi)` of valid inputs; each a number, or one for each channel.
        steps: Steps of `"pgd"`, or passes of `"free"` over each batch, at least 1.
        step_size: Step in input units; by default `2.5 * eps / steps` of `"pgd"`, `eps` of
            `"n-fgsm"` and `"free"`.
        seed: Seed of the random starts. They depend on it and on the step number alone, so a
            resumed run draws what the uninterrupted one would have.
        objective: `"adversarial"`: the compiled loss on the perturbed batch; for Keras 3 models
            also `"trades"` and `"mart"`, which need a cross-entropy of logits.
        trade_off: Weight of what these two add, > 0; by default the papers' 6 and 5.
        warmup_steps: Training steps over which the radius grows from 0 along a line (Keras 3).
        **kwargs: Passed to `tf_keras.Model`.

    Attributes:
        model: The model being trained; `trainer.model.save(...)`, or `trainer.save(...)`, which
            saves that model and not the trainer.
        catastrophic_overfitting: Epochs (from 0) at which it was seen; empty if it never was.
        gradient_masking: Whether a random search of some hundred queries was stronger than PGD at
            the end of training; None if it was not asked.

    Raises:
        ValueError: If an argument is out of range, two do not go together, or a tf_keras model is
            given what is for Keras 3 models only.
        TypeError: If `model` is no model of either Keras.

    Example:
        >>> trainer = AdversarialTraining(qat, attack="r+fgsm", eps=8 / 255)
        >>> trainer.compile("adam", tf_keras.losses.SparseCategoricalCrossentropy(from_logits=True))
        >>> trainer.fit(x, y, validation_data=(x_val, y_val))
        >>> trainer.model.save("robust.h5")

    Source: Goodfellow et al. 2015 (FGSM), Tramer et al. 2018 (R+FGSM, label leaking and masking),
    Madry et al. 2018 (PGD), Kurakin et al. 2017 (mixed batches), de Jorge et al. 2022 (N-FGSM),
    Shafahi et al. 2019 (Free), Zhang et al. 2019 (TRADES), Wang et al. 2020 (MART).
    """

    def __new__(cls, model: Any = None, *args: Any, **kwargs: Any) -> Any:
        """Return a trainer of the Keras that the model is of."""
        if is_keras3_model(model):
            from tfdq.robustness.keras3_adversarial_training import Keras3AdversarialTraining

            return Keras3AdversarialTraining(model, *args, **kwargs)
        return super().__new__(cls, model, *args, **kwargs)

    def __init__(
        self,
        model: tf_keras.Model,
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
        if not isinstance(model, tf_keras.Model):
            raise WrongTypeError(
                f"model must be a tf_keras or Keras 3 model, got {type(model).__module__}."
                f"{type(model).__name__}"
            )
        super().__init__(**{"name": f"adversarial_{model.name}", **kwargs})
        self.model = model
        self.set_attack(
            attack, eps, ratio, clip, steps, step_size, seed, objective, trade_off, warmup_steps
        )
        _refuse_keras3_only(attack, objective, warmup_steps)
        # With no clean examples in the batch there is no clean accuracy to report.
        self._clean_accuracy = (
            tf_keras.metrics.Mean(name="clean_accuracy") if self.ratio < 1 else None
        )
        self._adversarial_accuracy = tf_keras.metrics.Mean(name="adversarial_accuracy")
        self._attack_loss: Callable[[tf.Tensor, tf.Tensor], tf.Tensor] | None = None

    def call(self, inputs: tf.Tensor, training: bool | None = None) -> tf.Tensor:
        """Return what the model in training returns."""
        return self.model(inputs, training=training)

    @property
    def losses(self) -> list[tf.Tensor]:
        """The penalties of the model, one pass over all kernels of a shape."""
        with penalties_together(self):
            return super().losses

    def compile(self, optimizer: Any = "rmsprop", loss: Any = None, **kwargs: Any) -> None:
        """Compile as any Keras model; the attack ascends the same loss, per example.

        Raises:
            ValueError: If the loss is missing or not a single one.
        """
        super().compile(optimizer=optimizer, loss=loss, **kwargs)
        if loss is None or isinstance(loss, (list, tuple, dict)):
            raise ValueError(
                f"AdversarialTraining needs one loss to attack and to train with, got {loss!r}; "
                "e.g. tf_keras.losses.SparseCategoricalCrossentropy(from_logits=True)"
            )
        resolved = tf_keras.losses.get(loss)
        self._attack_loss = getattr(resolved, "call", resolved)

    def perturb(
        self, x: tf.Tensor, y: tf.Tensor, seed: tf.Tensor, attack: str | None = None, steps: int = 0
    ) -> tf.Tensor:
        """Return adversarial examples against the model as it stands; traceable.

        Args:
            x: Inputs, shape (n, ...), floats inside `clip`.
            y: Labels in the form the loss takes.
            seed: Seed of the random start, int32 of shape (2,).
            attack: One of `TF_KERAS_ATTACKS`; the one it trains with by default.
            steps: Steps of `"pgd"`; 0 means the trainer's own.

        Returns:
            Examples of the shape of `x`, within `eps` of it and inside `clip`.

        Raises:
            RuntimeError: If the trainer is not compiled, so that there is no loss to ascend.
            ValueError: If there is no such attack on tf_keras models.
        """
        attack = attack or self.attack
        if attack not in TF_KERAS_ATTACKS:
            raise ValueError(f"attack must be one of {TF_KERAS_ATTACKS}, got {attack!r}")
        steps = steps or self.steps
        x = tf.convert_to_tensor(x)
        eps, step_size, floor, ceiling = (
            extent if isinstance(extent, float) else tf.constant(extent, x.dtype)
            for extent in (self.eps, self.step_size, *self.clip)
        )
        low, high = tf.maximum(x - eps, floor), tf.minimum(x + eps, ceiling)
        if attack == "fgsm":
            return self._ascend(x, y, low, high, eps, 1)
        if attack == "r+fgsm":
            noise = tf.sign(tf.random.stateless_normal(tf.shape(x), seed, dtype=x.dtype))
            start = tf.clip_by_value(x + eps / 2 * noise, low, high)
            return self._ascend(start, y, low, high, eps / 2, 1)
        noise = tf.random.stateless_uniform(tf.shape(x), seed, -eps, eps, x.dtype)
        start = tf.clip_by_value(x + noise, low, high)
        size = step_size if steps == self.steps else 2.5 * eps / steps
        return self._ascend(start, y, low, high, size, steps)

    def _ascend(
        self,
        start: tf.Tensor,
        y: tf.Tensor,
        low: tf.Tensor,
        high: tf.Tensor,
        step_size: float | tf.Tensor,
        steps: int,
    ) -> tf.Tensor:
        """Take sign-gradient steps inside a box; a loop in the graph, not an unrolled one."""
        shape = start.shape

        def step(i: tf.Tensor, x: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
            moved = x + step_size * tf.sign(self._input_gradient(x, y))
            return i + 1, tf.ensure_shape(tf.clip_by_value(moved, low, high), shape)

        if steps == 1:
            return tf.stop_gradient(step(tf.constant(0), start)[1])
        _, end = tf.while_loop(
            lambda i, _: i < steps, step, (tf.constant(0), start), maximum_iterations=steps
        )
        return tf.stop_gradient(end)

    def _input_gradient(self, x: tf.Tensor, y: tf.Tensor) -> tf.Tensor:
        if self._attack_loss is None:
            raise RuntimeError("compile the trainer first: the attack ascends its loss")
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(x)
            outputs = tf.cast(self.model(x, training=False), tf.float32)
            # In a float16 network a small gradient would be flushed to zero and its sign lost; a
            # power of two changes nothing else.
            loss = _GRADIENT_SCALE * tf.reduce_sum(self._attack_loss(y, outputs))
        gradient = tape.gradient(loss, x)
        return tf.where(tf.math.is_finite(gradient), gradient, tf.zeros_like(gradient))

    def train_step(self, data: Any) -> dict[str, tf.Tensor]:
        """Perturb a share of the batch, then train on the batch as Keras does."""
        x, y, weights = tf_keras.utils.unpack_x_y_sample_weight(data)
        if not tf.is_tensor(x) or y is None:
            raise ValueError(
                "AdversarialTraining takes batches (x, y) or (x, y, sample_weight), x one tensor; "
                f"got x of type {type(x).__name__} and y of type {type(y).__name__}"
            )
        x = x if x.dtype.is_floating else tf.cast(x, tf.float32)
        count = tf.shape(x)[0]
        share = tf.cast(tf.round(self.ratio * tf.cast(count, tf.float32)), tf.int32)
        share = tf.minimum(tf.maximum(share, 1), count)
        context = tf.distribute.get_replica_context()
        replica = context.replica_id_in_sync_group if context is not None else 0
        step = tf.cast(self.optimizer.iterations, tf.int32)
        seed = tf.stack([tf.cast(replica, tf.int32) * 7919 + self.seed, step])
        attacked = self.perturb(x[:share], y[:share], seed)
        x = tf.ensure_shape(tf.concat([attacked, x[share:]], 0), x.shape)
        with tf.GradientTape() as tape:
            outputs = self(x, training=True)
            loss = self.compute_loss(x, y, outputs, weights)
        self._validate_target_and_loss(y, loss)
        self.optimizer.minimize(loss, self.trainable_variables, tape=tape)
        right = _right(y, outputs)
        self._adversarial_accuracy.update_state(right[:share])
        if self._clean_accuracy is not None:
            is_clean = tf.cast(tf.range(count) >= share, tf.float32)
            self._clean_accuracy.update_state(right, sample_weight=is_clean)
        return self.compute_metrics(x, y, outputs, weights)

    def test_step(self, data: Any) -> dict[str, tf.Tensor]:
        """Evaluate on the examples as they are; robust accuracy is for `evaluate` of tfdq."""
        own = ("clean_accuracy", "adversarial_accuracy")
        return {name: v for name, v in super().test_step(data).items() if name not in own}

    def fit(self, x: Any = None, y: Any = None, **kwargs: Any) -> tf_keras.callbacks.History:
        """Fit as any Keras model, with a monitor for catastrophic overfitting.

        Single-step training is watched on (at most) 256 examples of `validation_data`, or of the
        training data if there is none, unless `callbacks` holds a monitor already. Data that
        cannot be looked at without using it up (a Python generator) is not watched, and a warning
        says so.

        Args:
            x: As `tf_keras.Model.fit` takes it.
            y: As `tf_keras.Model.fit` takes it.
            **kwargs: As `tf_keras.Model.fit` takes them, by name.

        Returns:
            The history; with `monitor_single_step_accuracy` and `monitor_pgd_accuracy` per epoch.
        """
        callbacks = kwargs.pop("callbacks", None) or []
        listed = list(getattr(callbacks, "callbacks", callbacks))
        watched = any(isinstance(c, CatastrophicOverfittingMonitor) for c in listed)
        if self.attack != "pgd" and not watched:
            examples = monitor_examples(x, y, kwargs.get("validation_data"))
            if examples is not None:
                listed = [CatastrophicOverfittingMonitor(*examples), *listed]
                callbacks = listed
        return super().fit(x, y, callbacks=callbacks, **kwargs)

    def save(self, filepath: Any, *args: Any, **kwargs: Any) -> None:
        """Save the model that was trained (so a ModelCheckpoint keeps that, too)."""
        self.model.save(filepath, *args, **kwargs)

    def get_config(self) -> dict[str, Any]:
        """Return the constructor's arguments, the model serialized."""
        return {
            "name": self.name,
            "model": tf_keras.saving.serialize_keras_object(self.model),
            **self.attack_config(),
        }

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: Any = None) -> AdversarialTraining:
        """Build the trainer from `get_config`."""
        inner = tf_keras.saving.deserialize_keras_object(
            config["model"], custom_objects=custom_objects
        )
        return cls(**{**config, "model": inner})


def _refuse_keras3_only(attack: str, objective: str, warmup_steps: int) -> None:
    """Raise a ValueError that names what only the trainer of Keras 3 models does."""
    asked = {
        f"attack={attack!r}": attack not in TF_KERAS_ATTACKS,
        f"objective={objective!r}": objective != "adversarial",
        f"warmup_steps={warmup_steps}": warmup_steps > 0,
    }
    if any(asked.values()):
        raise ValueError(
            f"{', '.join(name for name, given in asked.items() if given)} is for Keras 3 models: "
            "train tfdq.to_keras3(model) instead, converted before it is quantized"
        )


def _right(y: tf.Tensor, outputs: tf.Tensor) -> tf.Tensor:
    """Return 1.0 where the class is right, for integer labels (n,) or (n, 1) or one-hot ones."""
    if y.shape.rank == outputs.shape.rank and y.shape[-1] == outputs.shape[-1]:
        labels = tf.argmax(y, axis=-1)
    else:
        labels = tf.reshape(tf.cast(y, tf.int64), [-1])
    return tf.cast(tf.equal(labels, tf.argmax(outputs, axis=-1)), tf.float32)
