"""One Keras 3 layer or operation to the tf_keras layer that computes the same.

Configurations do not cross by themselves: Keras 3 has arguments that tf_keras lacks, serializes
types, initializers and activations in its own form, and gives one name (`hard_sigmoid`) to another
function. What is here crosses with its meaning; everything else is refused with the reason.
"""

from __future__ import annotations

import inspect
import numbers
from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf
import tf_keras

from tfdq.quantization.activations import hard_sigmoid, hard_silu

# Layers whose tf_keras namesake computes the same from the same weights in the same order.
SAME_NAMED = frozenset(
    """
    Conv1D Conv2D Conv3D Conv2DTranspose DepthwiseConv2D SeparableConv2D Dense
    BatchNormalization LayerNormalization GroupNormalization UnitNormalization
    ReLU LeakyReLU PReLU ELU Softmax Activation
    Add Subtract Multiply Average Maximum Minimum Concatenate
    AveragePooling1D AveragePooling2D AveragePooling3D MaxPooling1D MaxPooling2D MaxPooling3D
    GlobalAveragePooling1D GlobalAveragePooling2D GlobalAveragePooling3D
    GlobalMaxPooling1D GlobalMaxPooling2D GlobalMaxPooling3D
    Flatten Reshape Permute RepeatVector ZeroPadding1D ZeroPadding2D ZeroPadding3D
    Cropping1D Cropping2D Cropping3D UpSampling1D UpSampling2D UpSampling3D
    Dropout SpatialDropout1D SpatialDropout2D SpatialDropout3D AlphaDropout GaussianDropout
    GaussianNoise ActivityRegularization Identity Rescaling Normalization Resizing CenterCrop
    RandomFlip RandomRotation RandomZoom RandomTranslation RandomContrast RandomBrightness
    RandomCrop
    """.split()  # noqa: SIM905
)

# Arguments that only Keras 3 knows, with the value at which leaving them out changes nothing.
_ANY = object()
_KERAS3_ONLY: dict[str, Any] = {
    "quantization_config": None,
    "renorm": False,
    "renorm_clipping": None,
    "renorm_momentum": _ANY,
    "rms_scaling": False,
    "pad_to_aspect_ratio": False,
    "antialias": False,
}
_KERAS3_ONLY_BY_CLASS: dict[str, dict[str, Any]] = {
    "AlphaDropout": {"noise_shape": None},
    # tf_keras clips to it, whatever the images are.
    "RandomContrast": {"value_range": (0, 255)},
    # Both only serve pad_to_aspect_ratio, which is refused.
    "Resizing": {"fill_mode": _ANY, "fill_value": _ANY},
}
_CHANNELS_LAST_ONLY = ("Random", "Resizing", "CenterCrop")


# tf_keras' activations, by the names Keras 3 serializes.
_ACTIVATIONS: dict[str, str | Callable[[tf.Tensor], tf.Tensor]] = {
    "elu": "elu",
    "exponential": "exponential",
    "gelu": "gelu",
    "hard_sigmoid": hard_sigmoid,
    "hard_silu": hard_silu,
    "hard_swish": hard_silu,
    "leaky_relu": "leaky_relu",
    "linear": "linear",
    "log_softmax": "log_softmax",
    "mish": "mish",
    "relu": "relu",
    "relu6": "relu6",
    "selu": "selu",
    "sigmoid": "sigmoid",
    "silu": "silu",
    "softmax": "softmax",
    "softplus": "softplus",
    "softsign": "softsign",
    "swish": "silu",
    "tanh": "tanh",
}


# Functions that are known by more than the name above: one of the user's may have that, too.
_SAME_OPERATION = (
    *("elu", "relu", "relu6", "selu", "sigmoid"),
    *("silu", "softmax", "softplus", "softsign", "tanh"),
)


def _known_functions() -> list[tuple[Any, str]]:
    """Return the functions that an activation may be, each with its name in `_ACTIVATIONS`."""
    own = [(keras.activations.get(name), name) for name in _ACTIVATIONS]
    operations = [(getattr(keras.ops, name), name) for name in _SAME_OPERATION]
    return [*own, *operations, (tf.nn.relu, "relu"), (tf.nn.relu6, "relu6")]


class UnsupportedError(ValueError):
    """A layer can't cross; the message is the reason, without the layer's name."""


def convert_layer(layer: Any) -> tf_keras.layers.Layer:
    """Return an unbuilt tf_keras layer with the name and the configuration of a Keras 3 layer.

    Raises:
        UnsupportedError: If the layer, or an argument of it, has no counterpart.
    """
    kind = type(layer).__name__
    if type(layer) is keras.layers.Lambda:
        raise UnsupportedError("it is Python code; build it from layers instead")
    if kind not in SAME_NAMED or type(layer) is not getattr(keras.layers, kind, None):
        raise UnsupportedError(
            "no tf_keras layer is known to compute the same; replace it, or in Python give "
            f"custom_layers={{{kind!r}: function}} with a function that makes one"
        )
    _check_variables(layer)
    return getattr(tf_keras.layers, kind)(**_arguments(kind, layer))


def _check_variables(layer: Any) -> None:
    """Check that the layer's flag says of all its weights whether they are trained.

    Raises:
        UnsupportedError: If a weight is frozen alone.
    """
    trainable = {id(v) for v in layer.trainable_variables}
    alone = [v.name for v in layer._trainable_variables if id(v) not in trainable]
    if layer.trainable and alone:
        raise UnsupportedError(
            f"its {' and '.join(alone)} alone is not trainable, which tf_keras has for whole "
            "layers only: set trainable of the layer"
        )


def convert_input(layer: Any) -> Any:
    """Return tf_keras' symbolic input for a Keras 3 InputLayer, with its name and type."""
    if layer.sparse or getattr(layer, "ragged", False) or getattr(layer, "optional", False):
        raise UnsupportedError("sparse, ragged and optional inputs do not cross")
    batch_size, *shape = layer.batch_shape
    return tf_keras.layers.Input(
        tuple(shape), batch_size=batch_size, dtype=layer.dtype, name=layer.name
    )


def convert_operation(
    operation: Any, arguments: tuple[Any, ...]
) -> tuple[tf_keras.layers.Layer, Any]:
    """Return the layer that computes a `keras.ops` operation or an operator such as `x + 3`.

    Args:
        operation: The Keras 3 operation.
        arguments: Its positional arguments, with symbolic Keras 3 tensors.

    Returns:
        An unbuilt tf_keras layer with the operation's name, and what to call it with: one of the
        symbolic tensors, or a list of them.

    Raises:
        UnsupportedError: If no layer is known to compute it.
    """
    kind, name = type(operation).__name__, operation.name
    if not type(operation).__module__.startswith("keras."):
        raise UnsupportedError("it is a custom operation; build it from layers instead")
    if kind in _BINARY and len(arguments) == 2:
        return _binary(kind, name, *arguments)
    if kind in _ACTIVATION_OPERATIONS and len(arguments) == 1:
        return _activation(operation, name), arguments[0]
    if kind in ("Mean", "Max") and len(arguments) == 1:
        return _global_pool(kind, operation, arguments[0]), arguments[0]
    if kind == "Concatenate" and len(arguments) == 1:
        return tf_keras.layers.Concatenate(axis=operation.axis, name=name), list(arguments[0])
    if kind == "Reshape" and len(arguments) == 1 and operation.newshape[0] in (-1, None):
        shape = tuple(-1 if n is None else n for n in operation.newshape[1:])
        return tf_keras.layers.Reshape(shape, name=name), arguments[0]
    raise UnsupportedError("no layer is known to compute it; build it from layers instead")


# Operators on two tensors, and what they are with a number on the right and on the left: the
# scale and the offset of `scale * x + offset`.
_Affine = Callable[[float], tuple[float, float]]
_BINARY: dict[str, tuple[type | None, _Affine | None, _Affine | None]] = {
    "Add": (tf_keras.layers.Add, lambda c: (1.0, c), lambda c: (1.0, c)),
    "Subtract": (tf_keras.layers.Subtract, lambda c: (1.0, -c), lambda c: (-1.0, c)),
    "Multiply": (tf_keras.layers.Multiply, lambda c: (c, 0.0), lambda c: (c, 0.0)),
    "TrueDivide": (None, lambda c: (1.0 / c, 0.0), None),
    "Divide": (None, lambda c: (1.0 / c, 0.0), None),
    "Maximum": (tf_keras.layers.Maximum, None, None),
    "Minimum": (tf_keras.layers.Minimum, None, None),
}
_ACTIVATION_OPERATIONS = {
    "Relu": "relu",
    "Relu6": "relu6",
    "Sigmoid": "sigmoid",
    "Silu": "silu",
    "Tanh": "tanh",
    "Selu": "selu",
    "Softplus": "softplus",
    "Softsign": "softsign",
    "HardSigmoid": "hard_sigmoid",
    "HardSilu": "hard_silu",
    "Softmax": "softmax",
}


def _binary(kind: str, name: str, left: Any, right: Any) -> tuple[tf_keras.layers.Layer, Any]:
    """Return the layer of an operator on two tensors, or on a tensor and a number."""
    merge, on_right, on_left = _BINARY[kind]
    symbolic = [isinstance(x, keras.KerasTensor) for x in (left, right)]
    if all(symbolic):
        if merge is None or len(left.shape) != len(right.shape):
            raise UnsupportedError(
                f"{kind} of tensors of shape {left.shape} and {right.shape} has no layer"
            )
        return merge(name=name), [left, right]
    tensor, number = (left, right) if symbolic[0] else (right, left)
    affine = on_right if symbolic[0] else on_left
    if affine is None or not isinstance(number, numbers.Real) or not _is_float(tensor):
        raise UnsupportedError(f"{kind} with {number!r} has no layer")
    if kind in ("TrueDivide", "Divide") and float(number) == 0.0:
        raise UnsupportedError("it divides by 0")
    scale, offset = affine(float(number))
    return tf_keras.layers.Rescaling(scale, offset, name=name), tensor


def _is_float(tensor: Any) -> bool:
    return keras.backend.is_float_dtype(tensor.dtype)


def _activation(operation: Any, name: str) -> tf_keras.layers.Layer:
    """Return the layer of an activation called as a function."""
    activation = _ACTIVATION_OPERATIONS[type(operation).__name__]
    if activation == "softmax":
        return tf_keras.layers.Softmax(axis=operation.axis, name=name)
    if activation in ("relu", "relu6"):
        return tf_keras.layers.ReLU(6.0 if activation == "relu6" else None, name=name)
    return tf_keras.layers.Activation(_ACTIVATIONS[activation], name=name)


def _global_pool(kind: str, operation: Any, tensor: Any) -> tf_keras.layers.Layer:
    """Return the layer of a mean or maximum over height and width."""
    axes = operation.axis if isinstance(operation.axis, (tuple, list)) else (operation.axis,)
    rank = len(tensor.shape)
    if rank != 4 or any(a is None for a in axes) or {a % rank for a in axes} != {1, 2}:
        raise UnsupportedError(f"{kind} over axes {operation.axis} has no layer")
    pool = "GlobalAveragePooling2D" if kind == "Mean" else "GlobalMaxPooling2D"
    return getattr(tf_keras.layers, pool)(
        data_format="channels_last", keepdims=operation.keepdims, name=operation.name
    )


def _arguments(kind: str, layer: Any) -> dict[str, Any]:
    """Return the arguments of the tf_keras layer for a Keras 3 layer's configuration."""
    neutral = _KERAS3_ONLY | _KERAS3_ONLY_BY_CLASS.get(kind, {})
    arguments: dict[str, Any] = {}
    for key, value in _config(layer).items():
        if key in neutral:
            same = tuple(value) if isinstance(value, list) else value
            if neutral[key] is not _ANY and same != neutral[key]:
                raise UnsupportedError(f"tf_keras has no {key}={value!r}")
        elif key == "data_format" and value == "channels_first":
            raise UnsupportedError(
                "data_format is channels_first, which TensorFlow computes on no CPU; build the "
                "model with channels_last"
            )
        elif key == "data_format" and kind.startswith(_CHANNELS_LAST_ONLY):
            continue
        elif key.endswith("activation"):
            arguments[key] = _activation_function(getattr(layer, key))
        else:
            crossed = _value(key, value)
            if crossed is not _ANY:
                arguments[key] = crossed
    if kind == "LeakyReLU":
        arguments["alpha"] = arguments.pop("negative_slope")
    unknown = sorted(set(arguments) - _accepted(kind))
    if unknown:
        raise UnsupportedError(f"tf_keras has no {', '.join(unknown)}")
    return arguments


def _config(layer: Any) -> dict[str, Any]:
    """Return a layer's configuration, with the type policy and activity regularizer it has."""
    try:
        config = dict(layer.get_config())
    except NotImplementedError as error:
        raise UnsupportedError("Keras cannot write its configuration") from error
    if "dtype" in config:
        # Some layers write the type of their variables in its place.
        config["dtype"] = keras.dtype_policies.serialize(layer.dtype_policy)
    # ActivityRegularization makes its own of its arguments.
    is_its_own = type(layer) is keras.layers.ActivityRegularization
    if layer.activity_regularizer is not None and not is_its_own:
        written = keras.regularizers.serialize(layer.activity_regularizer)
        config["activity_regularizer"] = written
    return config


def _accepted(kind: str) -> set[str]:
    """Return the arguments a tf_keras layer takes, its base classes' included."""
    accepted = {"name", "dtype", "trainable", "activity_regularizer"}
    for base in getattr(tf_keras.layers, kind).__mro__:
        if "__init__" in vars(base):
            accepted |= set(inspect.signature(base.__init__).parameters)
    return accepted - {"self", "args", "kwargs"}


def _activation_function(function: Any) -> str | Callable[[tf.Tensor], tf.Tensor]:
    """Return tf_keras' activation for one of Keras 3.

    Raises:
        UnsupportedError: If it is a function of the user's, whatever its name.
    """
    for known, name in _known_functions():
        if function is known:
            return _ACTIVATIONS[name]
    module = getattr(function, "__module__", type(function).__module__)
    name = getattr(function, "__qualname__", type(function).__name__)
    raise UnsupportedError(f"the activation {module}.{name} has no counterpart")


def _value(key: str, value: Any) -> Any:
    """Return one argument's value as tf_keras takes it, or `_ANY` to leave it out."""
    if key == "dtype":
        return _policy(value)
    if key.endswith("_initializer"):
        return _initializer(value)
    if key.endswith("_regularizer"):
        return _namesake(value, tf_keras.regularizers, "regularizer")
    if key.endswith("_constraint"):
        return _namesake(value, tf_keras.constraints, "constraint")
    return value


def _policy(value: Any) -> str:
    """Return the name of a type policy."""
    if isinstance(value, str):
        return value
    if isinstance(value, dict) and value["class_name"] in ("DTypePolicy", "FloatDTypePolicy"):
        return value["config"]["name"]
    raise UnsupportedError(f"the type {_label(value)} has no counterpart: use float32")


def _initializer(value: Any) -> Any:
    """Return the namesake of an initializer; the weights are copied, so it may be left out."""
    if not isinstance(value, dict) or not hasattr(tf_keras.initializers, value["class_name"]):
        return _ANY
    config = {k: v for k, v in value["config"].items() if k not in ("input_axes", "output_axes")}
    return getattr(tf_keras.initializers, value["class_name"])(**config)


def _namesake(value: Any, module: Any, what: str) -> Any:
    """Return the object of the same class name in tf_keras."""
    if value is None:
        return None
    home = f"keras.{what}s"
    if not isinstance(value, dict) or value["module"] != home:
        raise UnsupportedError(f"the {what} {_label(value)} has no counterpart")
    kind = value["class_name"]
    if not hasattr(module, kind):
        raise UnsupportedError(f"the {what} {kind} has no counterpart")
    return getattr(module, kind)(**value["config"])


def _label(value: Any) -> str:
    """Return how to call a serialized object in a message."""
    return str(value.get("class_name")) if isinstance(value, dict) else repr(value)
