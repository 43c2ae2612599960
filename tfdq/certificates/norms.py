"""The norm of one layer: measured, bounded with proof, and as the penalty sees it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tfdq.certificates.layer_maps import (
    KernelChoice,
    effective_kernel,
    linear_map,
)
from tfdq.certificates.linear_maps import Array, ConvolutionMap
from tfdq.certificates.singular import (
    MOST_ITERATIONS,
    largest_singular_value,
    norm_upper_bound,
    reshaped_norm,
    singular_values,
)


@dataclass(frozen=True)
class ConvolutionNorm:
    """The L2 operator norm of a convolution or dense layer.

    Attributes:
        sigma: the measured norm, attained by an input; a lower bound.
        upper: a bound that is proven, rounding included; ``inf`` when it was not asked for.
        reshaped: largest singular value of the kernel as a ``(k_h*k_w*c_in, c_out)`` matrix.
        method: how ``upper`` was found, ``"dense"`` (tight), ``"fourier"``, or ``"none"``.
        iterations: convolutions and transposed convolutions that the measurement took.
    """

    sigma: float
    upper: float
    reshaped: float
    method: str
    iterations: int


def conv_norm(
    layer: Any,
    kernel: KernelChoice = "fake_quantized",
    input_shape: tuple[int, ...] | None = None,
    tolerance: float = 1e-5,
    certify: bool = True,
) -> ConvolutionNorm:
    """Return the norm of a layer's linear map for its true padding, stride and input size.

    Bias and activation are left out; a BatchNorm fused into the layer is included.

    Args:
        layer: a built Conv2D, DepthwiseConv2D or Dense layer of tf_keras, or a layer of a
            quantized model (its quantize wrapper).
        kernel: of a quantized layer, ``"fake_quantized"`` (the kernel that ships) or ``"float"``.
        input_shape: ``(height, width, channels)`` of one input; None: the shape it was built on.
        tolerance: relative residual at which the power iteration stops.
        certify: also prove an upper bound.

    Raises:
        ValueError: the layer has no kernel, is not built, or its input size is not known.

    Example:
        >>> norm = conv_norm(model.get_layer("conv"))
        >>> norm.sigma <= norm.upper
        True
    """
    return measure(linear_map(layer, kernel, input_shape), tolerance, certify)


def measure(
    convolution: ConvolutionMap,
    tolerance: float = 1e-5,
    certify: bool = True,
    max_iterations: int = MOST_ITERATIONS,
) -> ConvolutionNorm:
    """Return the norm of a linear map, measured in at most so many steps; see `conv_norm`."""
    found = largest_singular_value(convolution, tolerance, max_iterations)
    upper, method = norm_upper_bound(convolution) if certify else (float("inf"), "none")
    reshaped = max(
        reshaped_norm(convolution.group(index).kernel) for index in range(convolution.groups)
    )
    return ConvolutionNorm(found.sigma, upper, reshaped, method, found.iterations)


def kernel_norm(layer: Any, kernel: KernelChoice = "fake_quantized") -> float:
    """Return the largest singular value of a layer's kernel reshaped to a matrix.

    The quantity of the Defensive Quantization paper. A depthwise kernel is a stack of matrices,
    one for each channel; the largest of them counts.

    Raises:
        ValueError: the layer has no kernel or is not built.
    """
    value = effective_kernel(layer, kernel)
    if value.ndim == 4 and hasattr(getattr(layer, "layer", layer), "depthwise_kernel"):
        return max(reshaped_norm(value[:, :, index]) for index in range(value.shape[2]))
    return reshaped_norm(value)


def layer_spectrum(
    layer: Any,
    kernel: KernelChoice = "fake_quantized",
    input_shape: tuple[int, ...] | None = None,
) -> Array:
    """Return the singular values of a layer's linear map, largest first, float64.

    All of them and exact when the matrix is small; else those of the circular convolution, each
    frequency pair once (see `tfdq.certificates.singular.singular_values`).
    """
    return singular_values(linear_map(layer, kernel, input_shape))[0]
