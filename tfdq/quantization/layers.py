"""Layers as the integer runtime executes them: BatchNorm and ReLU inside the layer before them."""

from __future__ import annotations

from typing import Any

import numpy as np
import tensorflow as tf
import tf_keras

from tfdq.quantization.packing import pack, unpack

register = tf_keras.saving.register_keras_serializable(package="tfdq")


_ACTIVATIONS = {
    "linear": tf.identity,
    "relu": tf.nn.relu,
    "relu6": tf.nn.relu6,
}
RELUS = ("relu", "relu6")


class _Activated:
    """Mixin for a Keras layer: an activation of the runtime at its end."""

    def __init__(self, *args: Any, fused_activation: str = "linear", **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if fused_activation not in _ACTIVATIONS:
            raise ValueError(
                f"fused_activation must be one of {list(_ACTIVATIONS)}, got {fused_activation!r}"
            )
        self.fused_activation = fused_activation

    def activate(self, x: tf.Tensor) -> tf.Tensor:
        """Apply the fused activation."""
        return x if self.fused_activation == "linear" else _ACTIVATIONS[self.fused_activation](x)

    def get_config(self) -> dict[str, Any]:
        """Return the arguments of the constructor."""
        config = super().get_config()  # type: ignore[misc]
        return {**config, "fused_activation": self.fused_activation}


class FusedKernel(_Activated):
    """Mixin for a Keras layer with a kernel: BatchNorm and an activation follow inside the layer.

    A call multiplies by the trained kernel, or by the fake-quantized one that it is given.
    """

    depthwise = False

    def __init__(
        self,
        *args: Any,
        batch_norm: tf_keras.layers.BatchNormalization | dict[str, Any] | None = None,
        penalty: tf_keras.regularizers.Regularizer | dict[str, Any] | None = None,
        penalty_schedule: (
            tf_keras.optimizers.schedules.LearningRateSchedule | dict[str, Any] | None
        ) = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self.batch_norm: Any = batch_norm
        if isinstance(batch_norm, dict):
            self.batch_norm = tf_keras.layers.BatchNormalization.from_config(batch_norm)
        self.penalty = unpack(penalty)
        self.penalty_schedule = unpack(penalty_schedule)
        self._present_kernel: tf.Tensor | None = None

    def build(self, input_shape: Any) -> None:
        """Create the kernel, the bias and the BatchNorm's variables."""
        super().build(input_shape)  # type: ignore[misc]
        if self.batch_norm is not None and not self.batch_norm.built:
            self.batch_norm.build(self.compute_output_shape(input_shape))  # type: ignore[attr-defined]

    @property
    def trained_kernel(self) -> tf.Variable:
        """The float kernel that training updates."""
        return self.depthwise_kernel if self.depthwise else self.kernel  # type: ignore[attr-defined]

    @property
    def present_kernel(self) -> tf.Tensor:
        """The kernel that a call uses which is given none."""
        return self.trained_kernel if self._present_kernel is None else self._present_kernel

    @property
    def normalizes_batches(self) -> bool:
        """Whether training divides each channel by its standard deviation in the batch.

        A frozen BatchNorm is a constant factor instead, for which the kernel's length counts.
        """
        return self.batch_norm is not None and self.batch_norm.trainable

    def use_kernel(self, kernel: tf.Tensor | None) -> None:
        """Set the kernel for a wrapper of tfmot, which gives a call none; None: the trained one."""
        self._present_kernel = kernel

    @property
    def trainable_weights(self) -> list[tf.Variable]:
        """The variables that training updates; kernel and BatchNorm may be frozen each alone."""
        own = self._trainable_weights if self.trainable else []  # type: ignore[attr-defined]
        norm = [] if self.batch_norm is None else self.batch_norm.trainable_weights
        return self._dedup_weights([*own, *norm])  # type: ignore[attr-defined]

    @property
    def non_trainable_weights(self) -> list[tf.Variable]:
        """The other variables."""
        frozen = [] if self.trainable else self._trainable_weights  # type: ignore[attr-defined]
        norm = [] if self.batch_norm is None else self.batch_norm.non_trainable_weights
        others = self._non_trainable_weights  # type: ignore[attr-defined]
        return self._dedup_weights([*frozen, *others, *norm])  # type: ignore[attr-defined]

    def set_float_weights(self, own: list[np.ndarray], norm: list[np.ndarray]) -> None:
        """Set the variables from those of a float layer and of the BatchNorm behind it.

        Args:
            own: kernel and, if there is one, bias.
            norm: ``get_weights()`` of the BatchNorm; empty without one.
        """
        for variable, value in zip(self._trainable_weights, own, strict=True):  # type: ignore[attr-defined]
            variable.assign(value)
        if self.batch_norm is not None:
            self.batch_norm.set_weights(norm)

    def apply_kernel(self, inputs: tf.Tensor, kernel: tf.Tensor) -> tf.Tensor:
        """Return the layer's linear part: the inputs convolved with or multiplied by a kernel."""
        return self.convolution_op(inputs, kernel)  # type: ignore[attr-defined]

    def call(
        self, inputs: tf.Tensor, training: bool | None = None, kernel: tf.Tensor | None = None
    ) -> tf.Tensor:
        """Apply kernel, bias, BatchNorm and activation.

        Args:
            inputs: the layer's input.
            training: whether BatchNorm normalises by the batch.
            kernel: multiplied by in place of the trained one: that one fake-quantized.
        """
        return self.activate(self.before_activation(inputs, training, kernel))

    def before_activation(
        self, inputs: tf.Tensor, training: bool | None = None, kernel: tf.Tensor | None = None
    ) -> tf.Tensor:
        """Apply kernel, bias and BatchNorm; see `call`."""
        kernel = self.present_kernel if kernel is None else kernel
        x = self.apply_kernel(inputs, tf.cast(kernel, inputs.dtype))
        if self.use_bias:  # type: ignore[attr-defined]
            x = tf.nn.bias_add(x, self.bias)  # type: ignore[attr-defined]
        if self.batch_norm is not None:
            x = self.batch_norm(x, training=training)
        return x

    def folded(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the affine map that bias and BatchNorm are at inference.

        Returns:
            float64 ``multiplier`` and ``offset``, ``(channels,)`` each: the layer computes
            ``act(multiplier * (kernel applied to x) + offset)``.
        """
        channels = int(np.prod(self.trained_kernel.shape[-2 if self.depthwise else -1 :]))
        bias = np.zeros(channels)
        if self.use_bias:  # type: ignore[attr-defined]
            bias = np.asarray(self.bias, np.float64)  # type: ignore[attr-defined]
        if self.batch_norm is None:
            return np.ones(channels), bias
        multiplier, offset = batch_norm_affine(self.batch_norm)
        return multiplier, multiplier * bias + offset

    def folded_kernel(self, kernel: tf.Tensor) -> tf.Tensor:
        """Multiply each output channel of a kernel by BatchNorm's factor at inference.

        Differentiable in the kernel and in gamma; the moving variance is a constant.
        """
        norm = self.batch_norm
        if norm is None:
            return kernel
        factor = tf.math.rsqrt(norm.moving_variance + norm.epsilon)
        if norm.scale:
            factor *= norm.gamma
        return kernel * tf.reshape(factor, kernel.shape[-2 if self.depthwise else -1 :])

    def get_config(self) -> dict[str, Any]:
        """Return the arguments of the constructor."""
        norm = self.batch_norm
        return {
            **super().get_config(),
            "batch_norm": None if norm is None else norm_config(norm),
            "penalty": None if self.penalty is None else pack(self.penalty),
            "penalty_schedule": self.penalty_schedule and pack(self.penalty_schedule),
        }


def norm_config(norm: tf_keras.layers.BatchNormalization) -> dict[str, Any]:
    """Return the whole config of a BatchNormalization.

    Keras' own forgets ``synchronized`` and ``fused``, whose moving variance has another divisor.
    """
    config = {**norm.get_config(), "synchronized": norm.synchronized}
    return {**config, "fused": False} if norm.fused is False else config


def batch_norm_affine(
    norm: tf_keras.layers.BatchNormalization,
) -> tuple[np.ndarray, np.ndarray]:
    """Return the float64 factor and offset, ``(channels,)``, that a BatchNorm is at inference."""
    variance = np.asarray(norm.moving_variance, np.float64)
    factor = 1.0 / np.sqrt(variance + norm.epsilon)
    if norm.scale:
        factor = factor * np.asarray(norm.gamma, np.float64)
    offset = -np.asarray(norm.moving_mean, np.float64) * factor
    if norm.center:
        offset = offset + np.asarray(norm.beta, np.float64)
    return factor, offset


@register
class FusedConv2D(FusedKernel, tf_keras.layers.Conv2D):
    """Conv2D, then BatchNorm (optional), then ReLU or ReLU6 (optional), as one layer.

    Takes the arguments of ``Conv2D`` (its own ``activation`` stays linear) and:

    Args:
        batch_norm: the BatchNormalization to follow, or its config, or None.
        fused_activation: ``"linear"``, ``"relu"`` or ``"relu6"``.
        penalty: regularizer of the kernel, evaluated by the quantize wrapper.
    """


@register
class FusedDepthwiseConv2D(FusedKernel, tf_keras.layers.DepthwiseConv2D):
    """DepthwiseConv2D, then BatchNorm (optional), then ReLU or ReLU6 (optional), as one layer.

    Takes the arguments of ``DepthwiseConv2D`` (its own ``activation`` stays linear) and those of
    ``FusedConv2D``.
    """

    depthwise = True

    def apply_kernel(self, inputs: tf.Tensor, kernel: tf.Tensor) -> tf.Tensor:
        """Return the inputs convolved channel by channel."""
        return tf_keras.backend.depthwise_conv2d(
            inputs,
            kernel,
            strides=self.strides,
            padding=self.padding,
            dilation_rate=self.dilation_rate,
        )


@register
class FusedDense(FusedKernel, tf_keras.layers.Dense):
    """Dense on ``(batch, features)``, then BatchNorm and ReLU or ReLU6 (optional), as one layer.

    Takes the arguments of ``Dense`` (its own ``activation`` stays linear) and those of
    ``FusedConv2D``.
    """

    def apply_kernel(self, inputs: tf.Tensor, kernel: tf.Tensor) -> tf.Tensor:
        """Return the matrix product."""
        return tf.matmul(inputs, kernel)


@register
class FusedBatchNormalization(_Activated, tf_keras.layers.BatchNormalization):
    """A BatchNormalization of its own (pre-activation networks), with a fused activation.

    Takes the arguments of ``BatchNormalization`` and ``fused_activation``.
    """

    def call(self, inputs: tf.Tensor, training: bool | None = None) -> tf.Tensor:
        """Return the normalised and activated tensor."""
        return self.activate(self.before_activation(inputs, training))

    def before_activation(self, inputs: tf.Tensor, training: bool | None = None) -> tf.Tensor:
        """Return the normalised tensor."""
        return super().call(inputs, training=training)

    def folded(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the float64 factor and offset, ``(channels,)``, at inference."""
        return batch_norm_affine(self)

    def get_config(self) -> dict[str, Any]:
        """Return the arguments of the constructor."""
        config = {**super().get_config(), "synchronized": self.synchronized}
        return {**config, "fused": False} if self.fused is False else config


@register
class FusedAdd(_Activated, tf_keras.layers.Add):
    """The sum of two or more tensors, with a fused activation.

    Takes the arguments of ``Add`` and ``fused_activation``.
    """

    def call(self, inputs: list[tf.Tensor]) -> tf.Tensor:
        """Return the activated sum."""
        return self.activate(self.before_activation(inputs))

    def before_activation(self, inputs: list[tf.Tensor], training: bool | None = None) -> tf.Tensor:
        """Return the sum."""
        return super().call(inputs)


@register
class FusedReLU(_Activated, tf_keras.layers.Layer):
    """A ReLU or ReLU6 that no layer before it can take in.

    Args:
        fused_activation: ``"relu"`` or ``"relu6"``.
    """

    def call(self, inputs: tf.Tensor) -> tf.Tensor:
        """Return the activated tensor."""
        return self.activate(inputs)

    def before_activation(self, inputs: tf.Tensor, training: bool | None = None) -> tf.Tensor:
        """Return the input."""
        return inputs

    def compute_output_shape(self, input_shape: Any) -> Any:
        """Return the shape of the input."""
        return input_shape


@register
class ConvexCombination(_Activated, tf_keras.layers.Layer):
    r"""A trainable convex combination of tensors, in place of a residual Add.

    .. math:: y = \sum_i a_i x_i, \qquad a_i \ge 0, \quad \sum_i a_i = 1

    If every branch is c-Lipschitz, so is the combination, whereas a sum adds the constants. The
    weights are the softmax of one trained logit for each branch, so the constraint always holds.

    Args:
        fused_activation: ``"linear"``, ``"relu"`` or ``"relu6"``.

    Source: Cisse et al., *Parseval Networks*, ICML 2017, section 4.3.

    Example:
        >>> y = ConvexCombination()([x, f])  # in place of Add()([x, f])
    """

    def build(self, input_shape: Any) -> None:
        """Create one logit for each branch; equal weights at first.

        Raises:
            ValueError: there are fewer than two inputs, or their shapes differ.
        """
        if not isinstance(input_shape, list) or len(input_shape) < 2:
            raise ValueError("ConvexCombination is called on a list of two or more tensors")
        shapes = {tuple(shape) for shape in input_shape}
        if len(shapes) > 1:
            raise ValueError(f"the tensors to combine must have one shape, got {sorted(shapes)}")
        self.branch_logits = self.add_weight(
            name="branch_logits",
            shape=(len(input_shape),),
            initializer="zeros",
            dtype=tf.float32,
            experimental_autocast=False,
        )
        super().build(input_shape)

    def call(self, inputs: list[tf.Tensor]) -> tf.Tensor:
        """Return the activated combination."""
        return self.activate(self.before_activation(inputs))

    def before_activation(self, inputs: list[tf.Tensor], training: bool | None = None) -> tf.Tensor:
        """Return the combination."""
        shares = tf.unstack(tf.cast(tf.nn.softmax(self.branch_logits), inputs[0].dtype))
        return tf.add_n([share * x for share, x in zip(shares, inputs, strict=True)])

    def coefficients(self) -> np.ndarray:
        """Return the weights of the branches, float32 ``(branches,)``, >= 0 with sum 1."""
        return tf.nn.softmax(self.branch_logits).numpy()

    def compute_output_shape(self, input_shape: Any) -> Any:
        """Return the shape of one branch."""
        return input_shape[0]
