"""Training of quantized Keras 3 models for interval bounds (IBP, SABR, MTL-IBP)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
from keras import ops

from tfdq.certificates.interval_settings import Clock, IntervalSettings, Nominal, check_loss
from tfdq.certificates.keras3_boxes import (
    check_boxes,
    ends_in_softmax,
    propagate_box,
    worst_logits,
)
from tfdq.keras3.graph import read_graph
from tfdq.keras3.input_gradients import input_gradient
from tfdq.keras3.stateless_batches import changed_batch
from tfdq.keras3.trainer import Trainer
from tfdq.penalties.schedules import Schedule


class Keras3IntervalTraining(Trainer):
    r"""Train a quantized Keras 3 model on the worst case of its interval bounds.

    What `tfdq.certificates.IntervalTraining` makes of a Keras 3 model, on TensorFlow, JAX or
    PyTorch; the loss, the two ways to pay less for it and their sources are described there.

    The bounds are those of the integers: kernels and results are rounded as in training, BatchNorms
    have their moving statistics. The adversarial examples are found by PGD against the model as it
    trains, with the statistics of the batch, which leaves statistics and ranges as they are.

    Args:
        model: a model of ``tfdq.quantize_model``, of layers with an interval rule (convolution,
            dense, BatchNorm, ReLU, LeakyReLU, sigmoid, tanh, pooling, padding, resizing, reshaping,
            sums, differences, Maximum, Minimum, Concatenate; a softmax only at the end). It is
            trained in place.
        eps: radius of the ball in input units; a number, or a schedule called with the epochs
            passed, fractions included (`tfdq.penalties.Ramp`).
        kappa: share of the nominal loss in [0, 1]; a number or a schedule.
        bounds: smallest and largest valid input; the ball is cut to them.
        box: radius of the bounded box as a share of ``eps``, in (0, 1]; 1: the ball itself.
        nominal: what the nominal loss is of: ``"clean"`` or ``"attacked"`` images.
        attack_steps: steps of PGD from a random point, of ``2.5 / attack_steps`` radii each, >= 1;
            none are taken where there is no use for them.
        seed: of the random points.
        **kwargs: passed to ``keras.Model``.

    Attributes:
        model: the model being trained; `save` writes it, and not the trainer.

    Raises:
        ValueError: a layer has no interval rule, or a number is out of its range.
    """

    def __init__(
        self,
        model: keras.Model,
        eps: float | Schedule,
        kappa: float | Schedule = 0.5,
        bounds: tuple[float, float] = (0.0, 1.0),
        box: float = 1.0,
        nominal: Nominal = "clean",
        attack_steps: int = 8,
        seed: int = 0,
        **kwargs: Any,
    ) -> None:
        super().__init__(**{"name": f"interval_{model.name}", **kwargs})
        graph = read_graph(model)
        check_boxes(graph)
        self.model = model
        self.settings = IntervalSettings(eps, kappa, bounds, box, nominal, attack_steps)
        # Layers in a plain attribute would be tracked, and saved, a second time.
        self._read = lambda: graph
        self.starts = keras.random.SeedGenerator(seed)
        self.present_eps, self.present_kappa = (
            self.add_weight((), "zeros", "float32", trainable=False, name=name)
            for name in ("eps", "kappa")
        )
        self._present: tuple[float, float] | None = None
        self.set_time(0.0)
        self._interval_loss = keras.metrics.Mean(name="interval_loss")
        self._certified = keras.metrics.Mean(name="certified_accuracy")
        self._loss_function: Any = None
        self.built = True

    def build(self, input_shape: Any) -> None:
        """Do nothing: the model within is built."""
        self.built = True

    def set_time(self, epochs: float) -> None:
        """Set eps and kappa to their values after a number of epochs.

        Raises:
            ValueError: a schedule gives a value out of its range.
        """
        present = self.settings.at(epochs)
        if present == self._present:
            return
        # On JAX the variables are out of date while `fit` runs.
        getattr(self, "jax_state_sync", lambda: None)()
        self._present = present
        self.present_eps.assign(present[0])
        self.present_kappa.assign(present[1])

    def compile(self, optimizer: Any = "rmsprop", loss: Any = None, **kwargs: Any) -> None:
        """Compile as any Keras model; the loss must be a classification loss.

        Raises:
            ValueError: there is no single loss, or it has a weight.
        """
        check_loss(loss)
        if kwargs.get("loss_weights") is not None:
            raise ValueError(
                f"loss_weights={kwargs['loss_weights']!r}: the one loss has none; scale the "
                "learning rate, or give each image its weight (sample_weight of fit)"
            )
        found = keras.losses.get(loss)
        self._loss_function = found if isinstance(found, keras.losses.Loss) else _MeanOf(found)
        super().compile(optimizer=optimizer, loss=loss, **kwargs)

    def call(self, inputs: Any, training: bool | None = None) -> Any:
        """Return the model's output, of images or of the images of a prepared batch."""
        images = inputs[0] if isinstance(inputs, (tuple, list)) else inputs
        return self.model(images, training=training)

    def fit(self, *args: Any, callbacks: Any = None, **kwargs: Any) -> Any:
        """Train as any Keras model, with the schedules of eps and kappa."""
        listed = list(getattr(callbacks, "callbacks", callbacks) or [])
        return super().fit(*args, callbacks=[_Clock(), *listed], **kwargs)

    def _outputs(self, x: Any) -> Any:
        """Return the outputs of the model as it trains; what it would assign is let go."""
        present = [(variable, variable.value) for variable in self.model.variables]
        with keras.StatelessScope(state_mapping=present):
            return self.model(x, training=True)

    def _noise(self, x: Any) -> Any:
        """Return where the attack starts, in radii from the images."""
        return keras.random.uniform(ops.shape(x), -1.0, 1.0, seed=self.starts)

    def _attacked(self, x: Any, y: Any) -> Any:
        """Return adversarial examples in the ball, by PGD; the images if nothing uses them."""
        settings = self.settings
        if not settings.attacks:
            return x
        eps = ops.convert_to_tensor(self.present_eps)
        lowest, highest = settings.bounds
        low = ops.minimum(ops.maximum(x - eps, lowest), x)
        high = ops.maximum(ops.minimum(x + eps, highest), x)
        images = ops.clip(x + eps * self._noise(x), low, high)
        for _ in range(settings.attack_steps):
            slope = input_gradient(
                lambda moved: ops.sum(self._loss_function.call(y, self._outputs(moved))), images
            )
            step = eps * (2.5 / settings.attack_steps)
            images = ops.clip(images + step * ops.sign(slope), low, high)
        return ops.stop_gradient(images)

    def _prepared(self, data: Any) -> tuple[Any, Any, Any]:
        """Return a batch with its images as those of the nominal loss and the ends of the box."""
        x, y, weights = keras.utils.unpack_x_y_sample_weight(data)
        x = ops.cast(ops.convert_to_tensor(x), "float32")
        attacked = self._attacked(x, y)
        reach = ops.convert_to_tensor(self.present_eps) * self.settings.box
        outer = ops.convert_to_tensor(self.present_eps) - reach
        centre = ops.clip(attacked, x - outer, x + outer)
        lowest, highest = self.settings.bounds
        low = ops.minimum(ops.maximum(centre - reach, lowest), centre)
        high = ops.maximum(ops.minimum(centre + reach, highest), centre)
        return (x if self.settings.nominal == "clean" else attacked, low, high), y, weights

    def compute_loss(
        self,
        x: Any = None,
        y: Any = None,
        y_pred: Any = None,
        sample_weight: Any = None,
        training: bool = True,
    ) -> Any:
        """Return the mixed loss and the penalties; update the metrics of the bounds.

        Args:
            x: images of the nominal loss, lowest and highest image of the box.
            y: labels.
            y_pred: outputs.
            sample_weight: of each image.
            training: as Keras has it.
        """
        with_penalties = super().compute_loss(x, y, y_pred, sample_weight, training)
        graph = self._read()
        y = ops.convert_to_tensor(y)
        one_hot = len(y.shape) == 2 and y.shape[1] != 1
        labels = ops.argmax(y, axis=1) if one_hot else ops.cast(ops.reshape(y, (-1,)), "int32")
        # Keras builds what is unbuilt by a call with a batch that no step has prepared.
        _, low, high = x if isinstance(x, (tuple, list)) else (x, x, x)
        logits = worst_logits(graph, propagate_box(graph, low, high), labels)
        worst = ops.softmax(logits) if ends_in_softmax(graph) else logits
        interval = self._loss_function(y, worst, sample_weight)
        nominal = self._loss_function(y, y_pred, sample_weight)
        self._interval_loss.update_state(interval)
        picked = ops.one_hot(labels, logits.shape[-1], dtype="float32")
        own = ops.sum(picked * logits, axis=1)
        # A tie is no certificate: who wins it is the order of the classes.
        others = ops.max(ops.where(picked > 0, -float("inf"), logits), axis=1)
        self._certified.update_state(ops.cast(others < own, "float32"), sample_weight)
        share = ops.convert_to_tensor(self.present_kappa)
        return with_penalties + (1.0 - share) * (interval - nominal)

    def train_step(self, *given: Any) -> Any:
        """Find the boxes of the batch, then train on them as Keras does.

        Args:
            *given: what Keras calls its own `train_step` with: the batch, on JAX after the state.
        """
        return super().train_step(*changed_batch(self, given, self._prepared))

    def test_step(self, *given: Any) -> Any:
        """Evaluate one batch at the present eps and kappa.

        Args:
            *given: what Keras calls its own `test_step` with.
        """
        return super().test_step(*changed_batch(self, given, self._prepared))


class _MeanOf(keras.losses.Loss):
    """The mean over the images of a loss that is given as a function or by its name."""

    def __init__(self, function: Callable[[Any, Any], Any]) -> None:
        super().__init__(name="mean_of_function")
        self._function = function

    def call(self, y_true: Any, y_pred: Any) -> Any:
        """Return the loss of each image."""
        return self._function(y_true, y_pred)


class _Clock(Clock, keras.callbacks.Callback):
    """Tell a `Keras3IntervalTraining` how many epochs have passed."""
