"""The layers that a quantization-aware model is made of: quantize wrappers, input quantizers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import numpy as np
import tensorflow as tf
import tf_keras
from tensorflow_model_optimization.python.core.quantization.keras import quantize_wrapper

from tfdq.grid import Grid
from tfdq.penalties.direction_rate import DIRECTION_RATE
from tfdq.penalties.fused_penalties import PenalizedKernel, evaluate_penalties
from tfdq.penalties.scale_blind import scale_blind
from tfdq.quantization.batch_statistics import takes_batch_statistics
from tfdq.quantization.configs import DefensiveQuantizeConfig, OutputQuantizer
from tfdq.quantization.layers import FusedKernel
from tfdq.quantization.packing import pack, unpack
from tfdq.quantization.quantizers import (
    FixedRangeQuantizer,
    ObservedRangeQuantizer,
    round_as_runtime,
)

register = tf_keras.saving.register_keras_serializable(package="tfdq")


@register
class PortableQuantizeWrapper(quantize_wrapper.QuantizeWrapperV2):
    """tfmot's quantize wrapper, for any ``QuantizeConfig``, that saves, loads and freezes.

    tfmot's own lists the layer's variables as its own as well, which ``.keras`` files do not
    survive, and trains a layer whose ``trainable`` is False.
    """

    def __init__(self, layer: tf_keras.layers.Layer, quantize_config: Any, **kwargs: Any) -> None:
        # Taken before tfmot puts its own objects into the layer; in a function, since Keras would
        # track a dictionary as part of the model's state.
        packed = pack(layer)
        self._describe_layer = lambda: packed
        super().__init__(layer, quantize_config, **kwargs)

    def _own_variables(self) -> list[tf.Variable]:
        inside = {
            id(v) for v in (*self.layer._trainable_weights, *self.layer._non_trainable_weights)
        }
        mine = self._dedup_weights(self._trainable_weights + self._non_trainable_weights)
        return [v for v in mine if id(v) not in inside]

    def save_own_variables(self, store: Any) -> None:
        """Save the variables that the wrapped layer does not save itself."""
        for index, variable in enumerate(self._own_variables()):
            store[str(index)] = variable.numpy()

    def load_own_variables(self, store: Any) -> None:
        """Load what ``save_own_variables`` saved.

        Raises:
            ValueError: the file holds another number of variables.
        """
        mine = self._own_variables()
        if len(store.keys()) != len(mine):
            raise ValueError(
                f"layer {self.name!r} has {len(mine)} quantization variables, the file holds "
                f"{len(store.keys())}: it was saved from another model"
            )
        for index, variable in enumerate(mine):
            variable.assign(store[str(index)])

    @property
    def trainable_weights(self) -> list[tf.Variable]:
        """The variables that training updates."""
        own = self._trainable_weights if self.layer.trainable else []
        return self._dedup_weights(own + self.layer.trainable_weights)

    @property
    def non_trainable_weights(self) -> list[tf.Variable]:
        """The variables that training leaves to the layer itself."""
        frozen = [] if self.layer.trainable else self._trainable_weights
        return self._dedup_weights(
            self.layer.non_trainable_weights + frozen + self._non_trainable_weights
        )

    @property
    def losses(self) -> list[tf.Tensor]:
        """The penalties of the layer; tfmot's wrapper leaves out those evaluated on demand."""
        return tf_keras.layers.Layer.losses.fget(self)

    def get_config(self) -> dict[str, Any]:
        """Return the arguments of the constructor, serialized."""
        base = tf_keras.layers.Layer.get_config(self)
        described = self._describe_layer()
        layer_config = {**described["config"], "trainable": self.layer.trainable}
        return {
            **base,
            "layer": {**described, "config": layer_config},
            "quantize_config": pack(self.quantize_config),
        }

    @classmethod
    def from_config(
        cls, config: dict[str, Any], custom_objects: dict[str, Any] | None = None
    ) -> PortableQuantizeWrapper:
        """Return the wrapper that ``get_config`` describes."""
        config = dict(config)
        layer = unpack(config.pop("layer"), custom_objects)
        quantize_config = unpack(config.pop("quantize_config"), custom_objects)
        return cls(layer, quantize_config, **config)


@register
class QuantizeWrapper(PortableQuantizeWrapper):
    """A layer with tfdq's fake-quantization of its kernel and output, and the penalty.

    Made by ``tfdq.quantize_model``; its export side is ``output_grid`` and ``quantized_kernel``.

    Args:
        layer: the layer, usually a fused one of ``tfdq.quantization.layers``.
        quantize_config: which quantizers it gets.
        layer_training: the mode that the layer (its BatchNorm, or Dropout) is held in, such as
            False of a part that a fine-tuned model calls with ``training=False``; None: that of
            the call. The output's range is observed in training either way, as that of a frozen
            layer is.
        **kwargs: arguments of ``tf_keras.layers.Wrapper``.
    """

    quantize_config: DefensiveQuantizeConfig
    _training_calls: tf.Variable | None = None

    def __init__(
        self,
        layer: tf_keras.layers.Layer,
        quantize_config: DefensiveQuantizeConfig,
        layer_training: bool | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(layer, quantize_config, **kwargs)
        self.layer_training = layer_training

    def build(self, input_shape: Any = None) -> None:
        """Build the layer, the quantizers' variables and the penalty."""
        tf_keras.layers.Wrapper.build(self, input_shape)
        output = self.quantize_config.output
        self._output_variables = (
            {}
            if output is None
            else output.build(self.layer.compute_output_shape(input_shape), "output", self)
        )
        # A Keras model asks a layer with a callable loss for it at every step.
        if self.is_penalized:
            self.add_loss(self.penalty)
            if self.layer.penalty_schedule is not None:
                self._training_calls = self.add_weight(
                    "training_calls",
                    shape=(),
                    dtype=tf.int64,
                    initializer="zeros",
                    trainable=False,
                    synchronization=tf.VariableSynchronization.ON_READ,
                    aggregation=tf.VariableAggregation.ONLY_FIRST_REPLICA,
                )

    def compute_output_shape(self, input_shape: Any) -> Any:
        """Return the shape of the layer's output."""
        return self.layer.compute_output_shape(input_shape)

    def call(self, inputs: Any, training: bool | None = None, **kwargs: Any) -> tf.Tensor:
        """Call the layer with its kernel fake-quantized; fake-quantize the result."""
        if training is None:
            training = tf_keras.backend.learning_phase()
        kernel = self.quantize_config.kernel
        if self._training_calls is not None:
            self._training_calls.assign_add(tf.cast(training, tf.int64))
        if self._call_takes_training:
            held = self.layer_training
            mode = True if takes_batch_statistics(self.layer) else training
            kwargs["training"] = mode if held is None else held
        if kernel is not None:
            kwargs["kernel"] = kernel(self.layer.trained_kernel, training, {})
        outputs = self.layer.call(inputs, **kwargs)
        return _quantize_output(
            self.quantize_config.output, outputs, training, self._output_variables
        )

    def get_config(self) -> dict[str, Any]:
        """Return the arguments of the constructor, serialized."""
        return {**super().get_config(), "layer_training": self.layer_training}

    def quantize_output(self, outputs: tf.Tensor) -> tf.Tensor:
        """Return what the layer computes fake-quantized, in inference mode."""
        return _quantize_output(self.quantize_config.output, outputs, False, self._output_variables)

    @property
    def is_penalized(self) -> bool:
        """Whether the kernel has a penalty."""
        return isinstance(self.layer, FusedKernel) and self.layer.penalty is not None

    @property
    def _call_takes_training(self) -> bool:
        return bool(self.layer._expects_training_arg)

    @property
    def kernel_quantizer(self) -> Any:
        """The quantizer of the kernel, or None."""
        return self.quantize_config.kernel

    @property
    def output_quantizer(self) -> OutputQuantizer | None:
        """The quantizer of the output, or None."""
        return self.quantize_config.output

    @property
    def bits(self) -> tuple[int | None, int | None]:
        """Bits of the kernel and of the output; None where it is not quantized."""
        kernel, output = self.quantize_config.kernel, self.quantize_config.output
        return (None if kernel is None else kernel.bits, None if output is None else output.bits)

    def penalized_kernel(self, on: str) -> tf.Tensor:
        """Return the kernel that a penalty placed ``on`` acts on, a float32 tensor.

        Where a BatchNorm that normalises by its batches is folded in, the gradient is as blind to
        the length of each channel of the trained kernel as that BatchNorm is, and turns the kernel
        at `DIRECTION_RATE` if there is a gamma to act on.

        Args:
            on: ``"kernel"``, the trained kernel; ``"folded"``, with BatchNorm folded in;
                ``"deployed"``, that one fake-quantized.
        """
        kernel = tf.convert_to_tensor(self.layer.trained_kernel)
        normalized = self.layer_training is not False and self.layer.normalizes_batches
        if on != "kernel" and normalized:
            rate = DIRECTION_RATE if self.layer.batch_norm.scale else 1.0
            kernel = scale_blind(kernel, self.layer.depthwise, rate)
        if on == "deployed" and self.quantize_config.kernel is not None:
            kernel = self.quantize_config.kernel(kernel, False, {})
        return kernel if on == "kernel" else self.layer.folded_kernel(kernel)

    def penalty(self) -> tf.Tensor:
        """Return the penalty of the kernel, a scalar."""
        together = _together.get()
        value = None if together is None else together.of(self)
        return evaluate_penalties([self.penalized()])[0] if value is None else value

    def penalized(self) -> PenalizedKernel:
        """Return the penalty with the kernel that it acts on and, if scheduled, its weight."""
        regularizer = self.layer.penalty
        kernel = self.penalized_kernel(getattr(regularizer, "on", "kernel"))
        if self._training_calls is None:
            return PenalizedKernel(regularizer, kernel)
        # The step that the present penalty is part of, from 0; its call has been counted.
        step = tf.maximum(self._training_calls - 1, 0)
        return PenalizedKernel(regularizer, kernel, self.layer.penalty_schedule(step))

    def output_grid(self) -> Grid | None:
        """Return the int8 grid of the output; None: that of the input.

        Raises:
            ValueError: the output's range has not seen any data.
        """
        output = self.quantize_config.output
        if output is None:
            return None
        try:
            return output.grid(self._output_variables)
        except ValueError as error:
            raise ValueError(f"layer {self.name!r}: {error}") from error

    def quantized_kernel(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the kernel's integers (int8, Keras layout) and float32 scales.

        The scales are one for each output channel, or a scalar (Dense without BatchNorm).

        Raises:
            ValueError: the layer has no quantized kernel.
        """
        if self.quantize_config.kernel is None:
            raise ValueError(f"layer {self.name!r} has no quantized kernel")
        return self.quantize_config.kernel.integers(self.layer.trained_kernel)


class _Penalties:
    """The penalties of a model's layers, evaluated together when the first one is asked for."""

    def __init__(self, model: tf_keras.Model) -> None:
        self._wrappers = {
            id(layer): layer
            for layer in model._flatten_layers()
            if isinstance(layer, QuantizeWrapper) and layer.built and layer.is_penalized
        }
        self._values: dict[int, tf.Tensor] = {}

    def of(self, wrapper: QuantizeWrapper) -> tf.Tensor | None:
        """Return the penalty of a wrapper, a scalar; None if it is not one of the model's."""
        if id(wrapper) not in self._wrappers:
            return None
        if not self._values:
            values = evaluate_penalties([one.penalized() for one in self._wrappers.values()])
            self._values = dict(zip(self._wrappers, values, strict=True))
        return self._values[id(wrapper)]


_together: ContextVar[_Penalties | None] = ContextVar("together", default=None)


@contextmanager
def penalties_together(model: tf_keras.Model) -> Iterator[None]:
    """Let the wrappers of a model, when asked for their penalties, evaluate all in one go.

    For the time of one reading of ``losses``: the values are those of the first request.
    """
    token = _together.set(_Penalties(model))
    try:
        yield
    finally:
        _together.reset(token)


@register
class InputQuantizer(tf_keras.layers.Layer):
    """Fake-quantize a model's input, ties to even as the runtime's ``QUANTIZE`` has them.

    Args:
        quantizer: the quantizer, or its serialized form.
        **kwargs: arguments of ``tf_keras.layers.Layer``.
    """

    def __init__(self, quantizer: OutputQuantizer | dict[str, Any], **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.quantizer: OutputQuantizer = unpack(quantizer)

    def build(self, input_shape: Any) -> None:
        """Create the range's variables."""
        self._variables = self.quantizer.build(input_shape, "input", self)
        super().build(input_shape)

    def call(self, inputs: tf.Tensor, training: bool | None = None) -> tf.Tensor:
        """Return the inputs rounded to the grid."""
        if training is None:
            training = tf_keras.backend.learning_phase()
        outputs = _quantize_output(self.quantizer, inputs, training, self._variables)
        quantizer = self.quantizer
        if isinstance(quantizer, FixedRangeQuantizer):
            low, high = quantizer.low, quantizer.high
        elif isinstance(quantizer, ObservedRangeQuantizer):
            low, high = self._variables["low"], self._variables["high"]
        else:
            return outputs
        rounded = round_as_runtime(inputs, low, high, quantizer.bits)
        return outputs + tf.stop_gradient(rounded - outputs)

    def compute_output_shape(self, input_shape: Any) -> Any:
        """Return the shape of the input."""
        return input_shape

    def output_grid(self) -> Grid:
        """Return the int8 grid of the input.

        Raises:
            ValueError: the range has not seen any data.
        """
        try:
            return self.quantizer.grid(self._variables)
        except ValueError as error:
            raise ValueError(f"layer {self.name!r}: {error}") from error

    def get_config(self) -> dict[str, Any]:
        """Return the arguments of the constructor, serialized."""
        return {**super().get_config(), "quantizer": pack(self.quantizer)}


def _quantize_output(
    quantizer: OutputQuantizer | None,
    outputs: tf.Tensor,
    training: Any,
    variables: dict[str, tf.Variable],
) -> tf.Tensor:
    """Apply a quantizer; ``training`` may be a tensor while Keras builds a graph."""
    if quantizer is None:
        return outputs
    if not tf.is_tensor(training):
        return quantizer(outputs, bool(training), variables)
    return tf.cond(
        tf.cast(training, tf.bool),
        lambda: quantizer(outputs, True, variables),
        lambda: quantizer(outputs, False, variables),
    )
