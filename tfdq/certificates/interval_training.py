"""Training for interval bounds (IBP), so that interval certificates are not vacuous."""

from __future__ import annotations

import math
from typing import Any

import tensorflow as tf
import tf_keras

from tfdq.certificates.box_propagation import (
    check_box_propagation,
    ends_in_softmax,
    propagate_box,
    worst_logits,
)
from tfdq.penalties.schedules import Schedule
from tfdq.quantization.graph import read_graph


def _as_schedule(value: float | Schedule) -> Schedule:
    if callable(value):
        return value
    constant = float(value)
    return lambda time: constant


class IntervalTraining(tf_keras.Model):
    r"""Train a model on the worst case of its interval bounds.

    .. math:: \kappa \, \ell(f(x), y) + (1 - \kappa) \, \ell(\hat z(x, \epsilon), y)

    with ``z^`` the logits that interval bounds over the L_inf ball of ``eps`` allow at worst. The
    usual schedule first trains the model (``kappa = 1``), then lets ``eps`` grow from 0 to a
    little above the value to certify while ``kappa`` falls to 1/2. The wrapped model is what is
    trained, exported and certified; this class is only the training loop.

    BatchNorms count at inference in the bounds; fake-quantized kernels and activations count as
    they are. Penalties of the layers are added.

    Args:
        model: a tf_keras model, float or made by ``tfdq.quantize_model``, of layers that have an
            interval rule (convolution, dense, BatchNorm, pooling, Add, Concatenate,
            ConvexCombination, monotone activations; a softmax only at the end).
        eps: radius of the ball in input units; a number, or a schedule called with the epochs
            passed, fractions included (`tfdq.penalties.Ramp`).
        kappa: share of the nominal loss in [0, 1]; a number or a schedule.
        bounds: smallest and largest valid input; the ball is cut to them.

    Raises:
        ValueError: a layer has no interval rule, or a number is out of its range.

    Source: Gowal et al., *On the Effectiveness of Interval Bound Propagation for Training
    Verifiably Robust Models*, arXiv 1810.12715, equation 12 and section 3.

    Example:
        >>> training = IntervalTraining(model, Ramp(0, 1.1 / 255, 2, 8), Ramp(1, 0.5, 2, 8))
        >>> training.compile("adam", "sparse_categorical_crossentropy", ["accuracy"])
        >>> training.fit(x, y, epochs=12)
    """

    def __init__(
        self,
        model: tf_keras.Model,
        eps: float | Schedule,
        kappa: float | Schedule = 0.5,
        bounds: tuple[float, float] = (0.0, 1.0),
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if not (math.isfinite(bounds[0]) and bounds[0] < bounds[1]):
            raise ValueError(f"bounds must be (low, high) with low < high, got {bounds}")
        graph = read_graph(model)
        check_box_propagation(graph)
        self.model = model
        self.bounds = (float(bounds[0]), float(bounds[1]))
        # Layers in a plain attribute would be tracked, and saved, a second time.
        self._read = lambda: graph
        self._schedules = {"eps": _as_schedule(eps), "kappa": _as_schedule(kappa)}
        self.present_eps = tf.Variable(0.0, trainable=False, name="eps")
        self.present_kappa = tf.Variable(1.0, trainable=False, name="kappa")
        self.set_time(0.0)
        self._interval_loss = tf_keras.metrics.Mean(name="interval_loss")
        self._certified = tf_keras.metrics.Mean(name="certified_accuracy")
        self._total = tf_keras.metrics.Mean(name="loss")
        self._loss_function: Any = None

    def set_time(self, epochs: float) -> None:
        """Set eps and kappa to their values after a number of epochs.

        Raises:
            ValueError: a schedule gives a value out of its range.
        """
        eps, kappa = (float(self._schedules[name](epochs)) for name in ("eps", "kappa"))
        if not 0 <= eps < math.inf or not 0 <= kappa <= 1:
            raise ValueError(
                f"eps must be >= 0 and kappa in [0, 1], got {eps} and {kappa} after {epochs} epochs"
            )
        self.present_eps.assign(eps)
        self.present_kappa.assign(kappa)

    def compile(self, optimizer: Any = "adam", loss: Any = None, *args: Any, **kwargs: Any) -> None:
        """Compile as any Keras model; the loss must be a classification loss.

        Raises:
            ValueError: there is no loss.
        """
        if loss is None:
            raise ValueError("IntervalTraining needs a loss, such as a cross-entropy")
        self._loss_function = tf_keras.losses.get(loss)
        super().compile(optimizer, loss, *args, **kwargs)

    def call(self, inputs: tf.Tensor, training: bool | None = None) -> tf.Tensor:
        """Return the model's output."""
        return self.model(inputs, training=training)

    def fit(self, *args: Any, callbacks: Any = None, **kwargs: Any) -> Any:
        """Train as any Keras model, with the schedules of eps and kappa."""
        return super().fit(*args, callbacks=[_Clock(), *(callbacks or [])], **kwargs)

    @property
    def metrics(self) -> list[tf_keras.metrics.Metric]:
        """The metrics that are reset at each epoch."""
        own = [self._total, self._interval_loss, self._certified]
        compiled = getattr(self, "compiled_metrics", None)
        return own + (compiled.metrics if compiled is not None else [])

    def _worst(self, x: tf.Tensor, labels: tf.Tensor) -> tf.Tensor:
        """Return the worst outputs over the ball, of the kind that the model gives."""
        low = tf.minimum(tf.maximum(x - self.present_eps, self.bounds[0]), x)
        high = tf.maximum(tf.minimum(x + self.present_eps, self.bounds[1]), x)
        graph = self._read()
        return worst_logits(graph, propagate_box(graph, low, high), labels)

    def _evaluate_batch(
        self, x: tf.Tensor, y: tf.Tensor, training: bool
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """Return the total loss and the nominal output; update the metrics."""
        y = tf.convert_to_tensor(y)
        one_hot = y.shape.rank == 2 and y.shape[1] != 1
        labels = tf.argmax(y, axis=1) if one_hot else tf.cast(tf.reshape(y, (-1,)), tf.int64)
        outputs = self.model(x, training=training)
        logits = self._worst(tf.cast(x, tf.float32), labels)
        worst = tf.nn.softmax(logits) if ends_in_softmax(self._read()) else logits
        nominal = tf.reduce_mean(self._loss_function(y, outputs))
        interval = tf.reduce_mean(self._loss_function(y, worst))
        share = self.present_kappa
        total = share * nominal + (1.0 - share) * interval
        # Read once: the penalties are evaluated at each reading.
        penalties = self.model.losses
        if penalties:
            total += tf.add_n(penalties)
        self._total.update_state(total)
        self._interval_loss.update_state(interval)
        held = tf.equal(tf.argmax(logits, axis=1), labels)
        self._certified.update_state(tf.cast(held, tf.float32))
        self.compiled_metrics.update_state(y, outputs)
        return total, outputs

    def train_step(self, data: Any) -> dict[str, tf.Tensor]:
        """Take one gradient step."""
        x, y, _ = tf_keras.utils.unpack_x_y_sample_weight(data)
        with tf.GradientTape() as tape:
            total, _ = self._evaluate_batch(x, y, training=True)
        variables = self.model.trainable_variables
        self.optimizer.apply_gradients(zip(tape.gradient(total, variables), variables, strict=True))
        return {metric.name: metric.result() for metric in self.metrics}

    def test_step(self, data: Any) -> dict[str, tf.Tensor]:
        """Evaluate one batch at the present eps and kappa."""
        x, y, _ = tf_keras.utils.unpack_x_y_sample_weight(data)
        self._evaluate_batch(x, y, training=False)
        return {metric.name: metric.result() for metric in self.metrics}


class _Clock(tf_keras.callbacks.Callback):
    """Tell an `IntervalTraining` how many epochs have passed."""

    def __init__(self) -> None:
        super().__init__()
        self._epoch = 0

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Note the epoch."""
        self._epoch = epoch
        self.model.set_time(float(epoch))

    def on_train_batch_begin(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        """Set the schedules to the fraction of the epoch that has passed."""
        steps = self.params.get("steps")
        if steps:
            self.model.set_time(self._epoch + batch / steps)
