"""What each Keras layer does to a distance: its linear map, or its exact Lipschitz constant."""

from __future__ import annotations

import math
from typing import Any, Literal, get_args

import numpy as np
import tf_keras

from tfdq.certificates.linear_maps import Array, ConvolutionMap, dense_map, padding_amounts
from tfdq.penalties.kernel_layers import has_kernel, unwrap
from tfdq.quantization.layers import batch_norm_affine
from tflite_export.ops.windows import average_pool_axis, max_pool_axis

KernelChoice = Literal["float", "fake_quantized"]
KERNEL_CHOICES: tuple[str, ...] = get_args(KernelChoice)

_layers = tf_keras.layers
_ROUNDING = 1 + 1e-12

_ISOMETRIES = (
    _layers.InputLayer,
    _layers.Flatten,
    _layers.Reshape,
    _layers.Permute,
    _layers.Dropout,
    _layers.SpatialDropout2D,
    _layers.GaussianNoise,
    _layers.GaussianDropout,
    _layers.ActivityRegularization,
    _layers.ZeroPadding2D,
    _layers.Cropping2D,
    _layers.GlobalMaxPooling2D,
)
# sup |f'|; the largest singular value of the softmax' Jacobian diag(p) - p p^T is at most 1/2.
_ACTIVATIONS = {
    "linear": 1.0,
    "relu": 1.0,
    "relu6": 1.0,
    "tanh": 1.0,
    "softplus": 1.0,
    "softsign": 1.0,
    "elu": 1.0,
    "leaky_relu": 1.0,
    "sigmoid": 0.25,
    "hard_sigmoid": 0.2,
    "softmax": 0.5,
    "selu": 1.7580994,
    "swish": 1.0998394,
    "silu": 1.0998394,
    "gelu": 1.13,
}


_OUR_MODULES = ("tf_keras", "keras", "tensorflow", "tfdq")


def check_known_call(layer: Any, call: Any = None) -> None:
    """Say whether a layer computes what its class stands for, at inference.

    Args:
        layer: the layer, or a quantize wrapper around it.
        call: Keras' record of its call (`tfdq.quantization.graph.Node.call`); None: not checked.

    Raises:
        ValueError: the layer's own class defines another computation, or the call has arguments
            that change it, such as ``training=True``.
    """
    kind = type(unwrap(layer))
    for method in ("call", "convolution_op"):
        owner = next((c for c in kind.__mro__ if method in vars(c)), None)
        if owner is not None and owner.__module__.split(".")[0] not in _OUR_MODULES:
            raise ValueError(
                f"layer {layer.name!r}: {owner.__name__}.{method} is not known, so it has no "
                "Lipschitz constant; express it with layers that have one"
            )
    if call is None:
        return
    given = [repr(value) for value in call.call_args[1:] if value is not None]
    for name, value in call.call_kwargs.items():
        if value is not None and not (name == "training" and value is False):
            given.append(f"{name}={value!r}")
    if given:
        raise ValueError(
            f"layer {layer.name!r} is called with {', '.join(given)}, which may change what it "
            "computes at inference; only plain calls are measured"
        )


def layer_activation(layer: Any) -> str:
    """Return the name of a layer's own activation, ``"linear"`` if it has none.

    Raises:
        ValueError: it is a function that neither Keras nor TensorFlow defines, whatever its name.
    """
    inner = unwrap(layer)
    return (
        activation_name(inner.activation, layer.name) if hasattr(inner, "activation") else "linear"
    )


def activation_name(activation: Any, layer: str = "") -> str:
    """Return the name of an activation function of Keras or TensorFlow.

    Args:
        activation: the function, or its name.
        layer: whose activation it is, for the error.

    Raises:
        ValueError: somebody else defines the function, so that its name says nothing.
    """
    if activation is None or isinstance(activation, str):
        return activation or "linear"
    name = getattr(activation, "__name__", type(activation).__name__)
    module = str(getattr(activation, "__module__", None))
    if module.split(".")[0] not in _OUR_MODULES:
        where = f"layer {layer!r}: " if layer else ""
        raise ValueError(
            f"{where}the Lipschitz constant of activation {name!r} ({module}) is not known; known "
            f"are those of Keras: {', '.join(sorted(_ACTIVATIONS))}"
        )
    return name


def check_kernel_choice(kernel: str) -> None:
    """Say which kernels there are.

    Raises:
        ValueError: ``kernel`` is not one of ``KERNEL_CHOICES``.
    """
    if kernel not in KERNEL_CHOICES:
        raise ValueError(f"kernel must be one of {', '.join(KERNEL_CHOICES)}, got {kernel!r}")


def effective_kernel(layer: Any, kernel: KernelChoice = "fake_quantized") -> Array:
    """Return the kernel that a layer multiplies by at inference, BatchNorm folded in.

    Args:
        layer: a Keras convolution or dense layer, or a quantize wrapper around one.
        kernel: of a quantized layer, ``"fake_quantized"``: the integers times their scales; or
            ``"float"``: the trained kernel. A plain layer has only the one.

    Returns:
        float64, in the layout of Keras.

    Raises:
        ValueError: the layer has no kernel, is not built, or ``kernel`` is unknown.
    """
    check_kernel_choice(kernel)
    inner = unwrap(layer)
    if not has_kernel(layer):
        raise ValueError(
            f"layer {layer.name!r} ({type(inner).__name__}) is not a Conv2D, DepthwiseConv2D or "
            "Dense layer: it has no kernel to measure"
        )
    if not inner.built:
        raise ValueError(f"layer {layer.name!r} is not built: call it, or the model, once first")
    if inner is not layer and not hasattr(layer, "quantized_kernel"):
        raise ValueError(
            f"layer {layer.name!r} was quantized by another tool than tfdq "
            f"({type(layer).__name__}), which does not tell its integers; measure the float model, "
            "or quantize it with tfdq.quantize_model"
        )
    depthwise = isinstance(inner, _layers.DepthwiseConv2D)
    if kernel == "fake_quantized" and getattr(layer, "kernel_quantizer", None) is not None:
        integers, scale = layer.quantized_kernel()
        value = integers.astype(np.float64) * _per_channel(scale, integers.shape, depthwise)
    else:
        value = np.asarray(inner.depthwise_kernel if depthwise else inner.kernel, np.float64)
    if hasattr(inner, "folded"):
        value = value * _per_channel(inner.folded()[0], value.shape, depthwise)
    return value


def _per_channel(factor: Any, shape: tuple[int, ...], depthwise: bool) -> Array:
    """Shape one factor for each output channel so that it multiplies a kernel."""
    factor = np.asarray(factor, np.float64)
    if factor.ndim == 0 or not depthwise:
        return factor
    return factor.reshape(shape[-2:])


def linear_map(
    layer: Any,
    kernel: KernelChoice = "fake_quantized",
    input_shape: tuple[int | None, ...] | None = None,
    scale: Array | None = None,
) -> ConvolutionMap:
    """Return the linear part of a convolution, depthwise convolution or dense layer.

    Args:
        layer: the built layer, or a quantize wrapper around it.
        kernel: which kernel of a quantized layer.
        input_shape: shape of one input, ``(height, width, channels)``, or ``(features,)``; None:
            the shape the layer was called on.
        scale: ``(channels,)`` factors on the output, a BatchNorm that follows.

    Raises:
        ValueError: the layer has no kernel, or its input size is not known.
    """
    value = effective_kernel(layer, kernel)
    inner = unwrap(layer)
    if isinstance(inner, _layers.Dense):
        return dense_map(value if scale is None else value * scale)
    height, width = _image_size(layer, input_shape)
    channels = int(value.shape[2])
    groups = int(getattr(inner, "groups", 1))
    if isinstance(inner, _layers.DepthwiseConv2D):
        groups = channels
        value = value.reshape(*value.shape[:2], 1, -1)
    if scale is not None:
        value = value * scale
    if isinstance(inner, _layers.DepthwiseConv2D):
        image = (height, width, channels)
    else:
        image = (height, width, channels * groups)
    axes = [
        padding_amounts(inner.padding, size, value.shape[axis], stride, dilation)
        for axis, (size, stride, dilation) in enumerate(
            zip((height, width), inner.strides, inner.dilation_rate, strict=True)
        )
    ]
    return ConvolutionMap(
        value, image, tuple(inner.strides), (axes[0], axes[1]), tuple(inner.dilation_rate), groups
    )


def _image_size(layer: Any, input_shape: tuple[int | None, ...] | None) -> tuple[int, int]:
    """Return height and width of a layer's input."""
    if getattr(unwrap(layer), "data_format", "channels_last") != "channels_last":
        raise ValueError(f"layer {layer.name!r} is channels_first; only channels_last is measured")
    if input_shape is None:
        known = getattr(layer, "input_shape", None)
        input_shape = tuple(known)[1:] if isinstance(known, tuple) else ()
    if len(input_shape) != 3 or input_shape[0] is None or input_shape[1] is None:
        raise ValueError(
            f"the input size of layer {layer.name!r} is not fixed (it is {input_shape}), and the "
            "norm of a padded convolution depends on it: build the model for images of one size, "
            "or give input_shape=(height, width, channels) where one layer is measured"
        )
    return input_shape[0], input_shape[1]


def activation_constant(activation: Any) -> float:
    """Return the Lipschitz constant of an activation function (or its name) in L2.

    Raises:
        ValueError: the activation is unknown or has no finite constant.
    """
    name = activation_name(activation)
    if name not in _ACTIVATIONS:
        raise ValueError(
            f"the Lipschitz constant of activation {name!r} is not known; known are "
            f"{', '.join(sorted(_ACTIVATIONS))}"
        )
    return _ACTIVATIONS[name]


def lipschitz_constant(layer: Any, input_shape: tuple[int | None, ...]) -> float:
    """Return the L2 Lipschitz constant of a layer without a kernel and with one input.

    It is attained, except where the constant of an activation is a supremum.

    Args:
        layer: the layer, or a quantize wrapper around it (rounding is not counted: it is no
            Lipschitz map; see `tfdq.certificates.margin` for how certificates account for it).
        input_shape: shape of its input without the batch axis.

    Raises:
        ValueError: the layer's constant is not known, not finite, or depends on a size that is
            not fixed.
    """
    check_known_call(layer)
    inner = unwrap(layer)
    if isinstance(inner, _ISOMETRIES) or type(inner).__name__ in ("InputQuantizer", "FusedReLU"):
        return 1.0
    if isinstance(inner, _layers.BatchNormalization):
        return float(np.max(np.abs(batch_norm_affine(inner)[0]))) * _ROUNDING
    if isinstance(inner, (_layers.Activation, _layers.Softmax)):
        return activation_constant(
            layer_activation(layer) if isinstance(inner, _layers.Activation) else "softmax"
        )
    if isinstance(inner, (_layers.ReLU, _layers.LeakyReLU, _layers.PReLU, _layers.ELU)):
        return _rectifier_constant(inner)
    if isinstance(inner, (_layers.Rescaling, _layers.Normalization, _layers.UpSampling2D)):
        return _scaling_constant(inner)
    if isinstance(inner, _layers.GlobalAveragePooling2D):
        height, width = _pool_size(layer, input_shape)
        return _ROUNDING / math.sqrt(height * width)
    if isinstance(inner, (_layers.MaxPooling2D, _layers.AveragePooling2D)):
        rule = max_pool_axis if isinstance(inner, _layers.MaxPooling2D) else average_pool_axis
        sizes = _pool_size(layer, input_shape)
        factors = [
            rule(size, pool, stride, inner.padding)
            for size, pool, stride in zip(sizes, inner.pool_size, inner.strides, strict=True)
        ]
        return factors[0] * factors[1]
    raise ValueError(
        f"layer {layer.name!r} ({type(inner).__name__}) has no known Lipschitz constant; replace "
        "it by layers that have one (convolution, dense, BatchNorm, pooling, Add, Concatenate, "
        "ConvexCombination, the usual activations)"
    )


def _pool_size(layer: Any, input_shape: tuple[int | None, ...]) -> tuple[int, int]:
    if unwrap(layer).data_format != "channels_last":
        raise ValueError(f"layer {layer.name!r} is channels_first; only channels_last is measured")
    if len(input_shape) != 3 or input_shape[0] is None or input_shape[1] is None:
        raise ValueError(
            f"the input size of {layer.name!r} is not fixed ({input_shape}), and the constant of "
            "a pooling layer depends on it: build the model with a fixed image size"
        )
    return input_shape[0], input_shape[1]


def _rectifier_constant(layer: Any) -> float:
    """Return the largest slope of a member of the ReLU family."""
    if isinstance(layer, _layers.PReLU):
        return max(1.0, float(np.max(np.abs(np.asarray(layer.alpha)))))
    if float(getattr(layer, "threshold", 0.0) or 0.0) != 0.0:
        raise ValueError(f"layer {layer.name!r}: a ReLU with a threshold has a jump, no constant")
    slope = getattr(layer, "negative_slope", getattr(layer, "alpha", 0.0))
    return max(1.0, abs(float(slope)))


def _scaling_constant(layer: Any) -> float:
    """Return the largest factor of a layer that multiplies or repeats its entries."""
    if isinstance(layer, _layers.Rescaling):
        return float(np.max(np.abs(np.asarray(layer.scale, np.float64))))
    if isinstance(layer, _layers.Normalization):
        deviation = np.sqrt(np.asarray(layer.variance, np.float64))
        deviation = np.maximum(deviation, tf_keras.backend.epsilon())
        return float(np.max(deviation if layer.invert else 1.0 / deviation)) * _ROUNDING
    if layer.interpolation != "nearest":
        raise ValueError(f"layer {layer.name!r}: only nearest up-sampling has a known constant")
    return math.sqrt(math.prod(layer.size)) * _ROUNDING
