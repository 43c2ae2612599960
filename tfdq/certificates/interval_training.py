"""Training for interval bounds (IBP, SABR, MTL-IBP), so that certificates are not vacuous."""

from __future__ import annotations

from typing import Any

import tensorflow as tf
import tf_keras

from tfdq.certificates.box_propagation import (
    check_box_propagation,
    ends_in_softmax,
    propagate_box,
    worst_logits,
)
from tfdq.certificates.interval_settings import Clock, IntervalSettings, Nominal, check_loss
from tfdq.penalties.schedules import Schedule
from tfdq.quantization.graph import read_graph
from tfdq.which_keras import is_keras3_model


class IntervalTraining(tf_keras.Model):
    r"""Train a model on the worst case of its interval bounds.

    .. math:: \kappa \, \ell(f(x), y) + (1 - \kappa) \, \ell(\hat z(x, \epsilon), y)

    with ``z^`` the logits that interval bounds over the L_inf ball of ``eps`` allow at worst. The
    usual schedule first trains the model (``kappa = 1``), then lets ``eps`` grow from 0 to a
    little above the value to certify while ``kappa`` falls to 1/2. The wrapped model is what is
    trained, exported and certified; this class is only the training loop.

    BatchNorms count at inference in the bounds; fake-quantized kernels and activations count as
    they are. Penalties of the layers are added.

    Bounds over the whole ball cost accuracy on clean images. Two ways to pay less of it:

    - ``box=0.1`` bounds a box of a tenth of the radius only, around an adversarial example inside
      the ball (SABR). What is certified is the whole ball still, commonly by
      ``certify(method="complete")``.
    - ``nominal="attacked"`` takes the nominal loss on adversarial examples: the mix of an attack's
      loss and of the bounds' (MTL-IBP), with ``1 - kappa`` the weight of the bounds.

    The examples are found by PGD against the model at inference.

    A quantized Keras 3 model is trained by
    `tfdq.certificates.keras3_interval_training.Keras3IntervalTraining`, which this call returns.

    Args:
        model: a tf_keras model, float or made by ``tfdq.quantize_model``, of layers that have an
            interval rule (convolution, dense, BatchNorm, pooling, Add, Concatenate,
            ConvexCombination, monotone activations; a softmax only at the end).
        eps: radius of the ball in input units; a number, or a schedule called with the epochs
            passed, fractions included (`tfdq.penalties.Ramp`).
        kappa: share of the nominal loss in [0, 1]; a number or a schedule.
        bounds: smallest and largest valid input; the ball is cut to them.
        box: radius of the bounded box as a share of ``eps``, in (0, 1]; 1: the ball itself.
        nominal: what the nominal loss is of: ``"clean"`` or ``"attacked"`` images.
        attack_steps: steps of PGD from a random point, of ``2.5 / attack_steps`` radii each, >= 1;
            none are taken where there is no use for them.

    Raises:
        ValueError: a layer has no interval rule, or a number is out of its range.

    Source: Gowal et al., *On the Effectiveness of Interval Bound Propagation for Training
    Verifiably Robust Models*, arXiv 1810.12715, equation 12 and section 3; Mueller et al.,
    *Certified Training: Small Boxes are All You Need*, ICLR 2023; De Palma et al., *Expressive
    Losses for Verified Robustness via Convex Combinations*, ICLR 2024, equation 7.

    Example:
        >>> training = IntervalTraining(model, Ramp(0, 1.1 / 255, 2, 8), Ramp(1, 0.5, 2, 8))
        >>> training.compile("adam", "sparse_categorical_crossentropy", ["accuracy"])
        >>> training.fit(x, y, epochs=12)
    """

    def __new__(cls, model: Any = None, *args: Any, **kwargs: Any) -> Any:
        """Return a trainer of the Keras that the model is of."""
        if is_keras3_model(model):
            from tfdq.certificates.keras3_interval_training import Keras3IntervalTraining

            return Keras3IntervalTraining(model, *args, **kwargs)
        return super().__new__(cls, model, *args, **kwargs)

    def __init__(
        self,
        model: tf_keras.Model,
        eps: float | Schedule,
        kappa: float | Schedule = 0.5,
        bounds: tuple[float, float] = (0.0, 1.0),
        box: float = 1.0,
        nominal: Nominal = "clean",
        attack_steps: int = 8,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        settings = IntervalSettings(eps, kappa, bounds, box, nominal, attack_steps)
        graph = read_graph(model)
        check_box_propagation(graph)
        self.model = model
        self.settings = settings
        # Layers in a plain attribute would be tracked, and saved, a second time.
        self._read = lambda: graph
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
        eps, kappa = self.settings.at(epochs)
        self.present_eps.assign(eps)
        self.present_kappa.assign(kappa)

    def compile(self, optimizer: Any = "adam", loss: Any = None, *args: Any, **kwargs: Any) -> None:
        """Compile as any Keras model; the loss must be a classification loss.

        Raises:
            ValueError: there is no loss.
        """
        check_loss(loss)
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

    def _worst(self, x: tf.Tensor, labels: tf.Tensor, attacked: tf.Tensor) -> tf.Tensor:
        """Return the worst outputs over the bounded box, of the kind that the model gives."""
        reach = self.present_eps * self.settings.box
        outer = self.present_eps - reach
        centre = tf.clip_by_value(attacked, x - outer, x + outer)
        low = tf.minimum(tf.maximum(centre - reach, self.settings.bounds[0]), centre)
        high = tf.maximum(tf.minimum(centre + reach, self.settings.bounds[1]), centre)
        graph = self._read()
        return worst_logits(graph, propagate_box(graph, low, high), labels)

    def _noise(self, x: tf.Tensor) -> tf.Tensor:
        """Return where the attack starts, in radii from the images."""
        return tf.random.uniform(tf.shape(x), -1.0, 1.0)

    def _attacked(self, x: tf.Tensor, y: tf.Tensor) -> tf.Tensor:
        """Return adversarial examples in the ball, by PGD; the images if nothing uses them."""
        if not self.settings.attacks:
            return x
        low = tf.minimum(tf.maximum(x - self.present_eps, self.settings.bounds[0]), x)
        high = tf.maximum(tf.minimum(x + self.present_eps, self.settings.bounds[1]), x)
        step = self.present_eps * (2.5 / self.settings.attack_steps)
        images = tf.clip_by_value(x + self.present_eps * self._noise(x), low, high)
        for _ in range(self.settings.attack_steps):
            with tf.GradientTape(watch_accessed_variables=False) as tape:
                tape.watch(images)
                loss = tf.reduce_sum(self._loss_function(y, self.model(images, training=False)))
            moved = images + step * tf.sign(tape.gradient(loss, images))
            images = tf.clip_by_value(moved, low, high)
        return tf.stop_gradient(images)

    def _evaluate_batch(
        self, x: tf.Tensor, y: tf.Tensor, training: bool
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """Return the total loss and the output that the nominal loss is of; update the metrics."""
        y = tf.convert_to_tensor(y)
        one_hot = y.shape.rank == 2 and y.shape[1] != 1
        labels = tf.argmax(y, axis=1) if one_hot else tf.cast(tf.reshape(y, (-1,)), tf.int64)
        x = tf.cast(x, tf.float32)
        attacked = self._attacked(x, y)
        outputs = self.model(x if self.settings.nominal == "clean" else attacked, training=training)
        logits = self._worst(x, labels, attacked)
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


class _Clock(Clock, tf_keras.callbacks.Callback):
    """Tell an `IntervalTraining` how many epochs have passed."""
