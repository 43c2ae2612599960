"""Keras callbacks that keep a network's layers from expanding while it trains."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import tensorflow as tf
import tf_keras

from tfdq.mistakes import WrongTypeError
from tfdq.penalties.kernel_layers import has_kernel, unwrap
from tfdq.penalties.regularizers import KernelRegularizer, kernel_matrix
from tfdq.penalties.schedules import Schedule
from tfdq.which_keras import is_keras3_model


def _layers(model: tf_keras.Model) -> list[tf_keras.layers.Layer]:
    """Return a model's layers, those inside wrappers and nested models too, in a fixed order.

    Raises:
        TypeError: it is a Keras 3 model.
    """
    if is_keras3_model(model):
        raise WrongTypeError(
            f"{model.name!r} is a Keras 3 model, and the callbacks of tfdq.penalties work on "
            "tf_keras models: for the penalty's weight give tfdq.quantize_model a beta_schedule, "
            "or quantize tfdq.from_keras3(model)"
        )
    return [module for module in model.submodules if isinstance(module, tf_keras.layers.Layer)]


def penalties(model: tf_keras.Model) -> list[KernelRegularizer]:
    """Return the kernel penalties of tfdq that a model's layers carry, each once."""
    found: dict[int, KernelRegularizer] = {}
    for layer in _layers(model):
        for name in ("penalty", "kernel_regularizer", "depthwise_regularizer"):
            regularizer = getattr(layer, name, None)
            if isinstance(regularizer, KernelRegularizer):
                found[id(regularizer)] = regularizer
    return list(found.values())


class PenaltySchedule(tf_keras.callbacks.Callback):
    """Set the weight of every kernel penalty at the start of each epoch.

    Args:
        schedule: maps the epoch, from 0, to the weight, >= 0; for example
            ``Ramp(0.0, 2e-3, begin=0, end=10)``.

    Raises:
        ValueError: at the start of training, when the model has no penalty of tfdq or has a
            ``beta_schedule``; at an epoch, when the weight is negative.
    """

    def __init__(self, schedule: Schedule) -> None:
        super().__init__()
        self.schedule = schedule

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        """Check that there is something to schedule."""
        if not penalties(self.model):
            raise ValueError(
                "the model has no kernel penalty to schedule: make it with "
                "tfdq.quantize_model(..., lipschitz_beta=...) or give its layers a "
                "kernel_regularizer of tfdq.penalties"
            )
        if any(getattr(layer, "penalty_schedule", None) for layer in _layers(self.model)):
            raise ValueError(
                "the model was made with beta_schedule, which sets the weight at every step: "
                "leave out one of the two schedules"
            )

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Set the weights."""
        beta = float(self.schedule(epoch))
        if not beta >= 0:
            raise ValueError(f"the schedule gave {beta} at epoch {epoch}; it must be >= 0")
        for penalty in penalties(self.model):
            penalty.weight().assign(beta)


class ParsevalRetraction(tf_keras.callbacks.Callback):
    r"""Pull kernels to orthogonality by a step of their own after each batch.

    .. math:: W \leftarrow (1 + \beta) W - \frac{\beta}{\tau^2} W W^T W

    A gradient step of the orthogonality penalty that the optimizer's momentum and learning rate
    do not touch; it moves every singular value to ``(1 + beta) s - beta s^3 / tau^2``, whose
    stable fixed point is ``tau``. Kernels of one shape are updated together. With ``beta = 1/2``
    it is the Bjorck-Bowie iteration, which needs ``s < sqrt(3) tau``.

    Args:
        beta: length of the step, in (0, 0.5].
        every: batches between steps, >= 1.
        target: the singular value ``tau`` to aim at, > 0.
        layers: names of the layers to hold; None: all with a kernel.

    Raises:
        ValueError: an argument is out of its range; at the start of training, when a name is
            unknown or the model has no kernel.

    Source: Cisse et al., *Parseval Networks*, ICML 2017, equation 6; Bjorck and Bowie 1971.
    """

    def __init__(
        self,
        beta: float = 1e-3,
        every: int = 1,
        target: float = 1.0,
        layers: Iterable[str] | None = None,
    ) -> None:
        super().__init__()
        if not 0 < beta <= 0.5:
            raise ValueError(f"beta must be in (0, 0.5], got {beta}")
        if every < 1 or not target > 0:
            raise ValueError(f"every must be >= 1 and target > 0, got {every} and {target}")
        self.beta, self.every, self.target = float(beta), int(every), float(target)
        self.names = None if layers is None else frozenset(layers)
        self._groups: list[list[tf.Variable]] = []
        self._step: Any = None

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        """Collect the kernels and group those of one shape."""
        groups: dict[tuple[Any, ...], list[tf.Variable]] = {}
        seen = set()
        for layer in _layers(self.model):
            if unwrap(layer) is not layer or not has_kernel(layer):
                continue
            if self.names is not None and layer.name not in self.names:
                continue
            seen.add(layer.name)
            depthwise = hasattr(layer, "depthwise_kernel")
            kernel = layer.depthwise_kernel if depthwise else layer.kernel
            groups.setdefault((depthwise, *kernel.shape), []).append(kernel)
        missing = (self.names or frozenset()) - seen
        if missing or not groups:
            raise ValueError(
                f"no layer with a kernel is called {sorted(missing)}"
                if missing
                else "the model has no layer with a kernel"
            )
        self._groups = list(groups.values())
        depthwise_groups = [bool(key[0]) for key in groups]

        @tf.function
        def step() -> None:
            for kernels, depthwise in zip(self._groups, depthwise_groups, strict=True):
                self._retract(kernels, depthwise)

        self._step = step

    def _retract(self, kernels: list[tf.Variable], depthwise: bool) -> None:
        """Move kernels of one shape by one step."""
        stack = tf.stack([kernel_matrix(kernel, depthwise) for kernel in kernels])
        if stack.shape[-2] < stack.shape[-1]:
            cubes = tf.matmul(tf.matmul(stack, stack, transpose_b=True), stack)
        else:
            cubes = tf.matmul(stack, tf.matmul(stack, stack, transpose_a=True))
        moved = (1 + self.beta) * stack - self.beta / self.target**2 * cubes
        for kernel, matrix in zip(kernels, tf.unstack(moved), strict=True):
            if depthwise:
                matrix = tf.transpose(matrix, (1, 0, 2))
            kernel.assign(tf.cast(tf.reshape(matrix, kernel.shape), kernel.dtype))

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        """Take a step."""
        if (batch + 1) % self.every == 0:
            self._step()


class BatchNormBound(tf_keras.callbacks.Callback):
    r"""Keep every BatchNormalization's factor within a limit, after each batch.

    .. math:: \gamma \leftarrow \gamma \min\left(1,
        \frac{c \sqrt{v + \epsilon}}{|\gamma|}\right)

    with the moving variance ``v``: at inference no channel is multiplied by more than ``c``. For
    the BatchNorms that are *not* folded into a convolution, where ``on="folded"`` controls the
    product of the two instead.

    Args:
        limit: the largest factor ``c``, > 0.
        layers: names of the BatchNorms to hold; None: all that are not fused into a layer with a
            kernel.

    Raises:
        ValueError: ``limit`` is not positive; at the start of training, when a name is unknown or
            a BatchNorm has no gamma to hold.

    Source: Gouk et al., *Regularisation of neural networks by enforcing Lipschitz continuity*,
    Machine Learning 2021, section 3.3.
    """

    def __init__(self, limit: float = 1.0, layers: Iterable[str] | None = None) -> None:
        super().__init__()
        if not limit > 0:
            raise ValueError(f"limit must be > 0, got {limit}")
        self.limit = float(limit)
        self.names = None if layers is None else frozenset(layers)
        self._step: Any = None

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        """Collect the BatchNorms."""
        every = _layers(self.model)
        fused = {id(getattr(layer, "batch_norm", None)) for layer in every}
        norms = [
            layer
            for layer in every
            if isinstance(layer, tf_keras.layers.BatchNormalization)
            and (id(layer) not in fused if self.names is None else layer.name in self.names)
        ]
        missing = (self.names or frozenset()) - {norm.name for norm in norms}
        if missing:
            raise ValueError(f"no BatchNormalization is called {sorted(missing)}")
        for norm in norms:
            if not norm.scale:
                raise ValueError(
                    f"BatchNormalization {norm.name!r} has no gamma to hold: build it with "
                    "scale=True, or leave it out of layers="
                )

        @tf.function
        def step() -> None:
            for norm in norms:
                largest = self.limit * tf.sqrt(norm.moving_variance + norm.epsilon)
                norm.gamma.assign(tf.clip_by_value(norm.gamma, -largest, largest))

        self._step = step

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        """Clip the gammas."""
        self._step()
