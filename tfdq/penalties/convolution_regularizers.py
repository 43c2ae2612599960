"""The convolution-exact orthogonality penalty (OCNN, Lorth)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import tensorflow as tf
import tf_keras

from tfdq.penalties.kernel_spectrum import tap_transform
from tfdq.penalties.regularizers import (
    KernelRegularizer,
    Placement,
    gram,
    gram_deviation,
    half_squares,
    kernel_matrices,
    sum_of_each,
)
from tfdq.penalties.singular_values import SingularValue

if TYPE_CHECKING:
    from typing import Self


@tf_keras.saving.register_keras_serializable(package="tfdq")
class ConvolutionOrthogonalityRegularizer(KernelRegularizer):
    r"""Pull every singular value of the *convolution* to the target, 1.

    .. math:: \frac{\beta}{2} \lVert K \star_s K - \tau^2 \delta \rVert_F^2

    where ``K star_s K`` is the kernel's correlation with itself at all offsets that are multiples
    of the stride ``s`` (what ``conv2d(K, K, padding=floor((k-1)/s)*s)`` computes) and ``delta``
    is the identity at offset 0. It is 0 if and only if the convolution with circular padding is
    ``tau`` times an isometry (or the transpose of one), which the reshaped kernel's Gram does not
    imply: that is the offset 0 alone.

    Computed by Parseval's identity, at as many frequencies as the correlation has offsets:

    .. math:: \frac{\beta}{2 N^2} \sum_f \lVert \hat K(f)^* \hat K(f) - \tau^2 I \rVert_F^2,
        \qquad N = 2 \lceil k/s \rceil - 1

    with the strides taken into the input channels, one of each pair of opposite frequencies, and
    the smaller Gram (the two differ by a constant, which makes the minimum 0 where it can be
    reached). Cost: three real products at ``(N^2 + 1) / 2`` frequencies, for a 3 x 3 kernel 4.3
    times that of `OrthogonalityRegularizer`; the correlation itself takes 81 / 9 = 9 times.

    A dense kernel, and a 1 x 1 kernel, is penalized as by `OrthogonalityRegularizer`.

    Args:
        beta: weight of the penalty, >= 0.
        on: the kernel that counts (see `KernelRegularizer`).
        depthwise: the channels do not mix; the penalty is summed over them.
        target: singular value to aim at, or ``"1/k"``.
        strides: of the layer, ``(vertical, horizontal)``. The dilation does not matter.

    Raises:
        ValueError: an argument is out of its range.

    Source: Wang et al., *Orthogonal Convolutional Neural Networks*, CVPR 2020, equation 10;
    Achour, Malgouyres, Mamalet, *Existence, Stability and Scalability of Orthogonal Convolutional
    Neural Networks*, JMLR 2022, definition 4 and theorem 6 (which bounds the distance of the
    singular values to 1 by this penalty).
    """

    def __init__(
        self,
        beta: float,
        on: Placement = "kernel",
        depthwise: bool = False,
        target: SingularValue = 1.0,
        strides: tuple[int, int] = (1, 1),
    ) -> None:
        super().__init__(beta, on, depthwise, target)
        steps = tuple(strides) if isinstance(strides, (tuple, list)) else ()
        if len(steps) != 2 or not all(isinstance(step, int) and step >= 1 for step in steps):
            raise ValueError(f"strides must be two ints >= 1, got {strides!r}")
        self.strides = (steps[0], steps[1])

    def deviations(self, kernels: tf.Tensor, target: float, penalties: Sequence[Self]) -> tf.Tensor:
        """Return half the squared distances of the self-correlations to ``target^2 delta``."""
        if kernels.shape.rank != 5 or math.prod(kernels.shape[1:3]) == 1:
            return half_squares(gram_deviation(kernel_matrices(kernels, self.depthwise), target))
        cosine, sine, weights = tap_transform(tuple(kernels.shape[1:3]), self.strides)
        real = self._symbols(kernels, cosine)
        imaginary = self._symbols(kernels, sine)
        if real.shape[-2] < real.shape[-1]:
            real, imaginary = (
                tf.linalg.matrix_transpose(real),
                tf.linalg.matrix_transpose(imaginary),
            )
        # K* K = (R^T R + I^T I) + i (R^T I - I^T R); the sign of the imaginary part is free.
        both = tf.concat([real, imaginary], axis=-2)
        identity = target**2 * tf.eye(real.shape[-1])
        even = gram(both) - identity
        cross = tf.matmul(real, imaginary, transpose_a=True)
        odd = cross - tf.linalg.matrix_transpose(cross)
        squares = tf.reduce_sum(tf.square(even) + tf.square(odd), axis=(-2, -1))
        # One row of kernels for each frequency.
        totals = tf.tensordot(tf.constant(weights, tf.float32), squares, 1)
        return 0.5 * sum_of_each(totals)

    def _symbols(self, kernels: tf.Tensor, transform: np.ndarray) -> tf.Tensor:
        """Return one part of the symbols, ``(frequencies, n, [c_in,] phases [* c_in], c_out)``."""
        frequencies, phases, taps = transform.shape
        count, _, _, channels, filters = kernels.shape
        matrix = tf.constant(transform.reshape(frequencies * phases, taps), tf.float32)
        by_tap = tf.transpose(tf.reshape(kernels, (count, taps, -1)), (1, 0, 2))
        part = tf.matmul(matrix, tf.reshape(by_tap, (taps, -1)))
        part = tf.reshape(part, (frequencies, phases, count, channels, filters))
        if self.depthwise:
            return tf.transpose(part, (0, 2, 3, 1, 4))
        part = tf.transpose(part, (0, 2, 1, 3, 4))
        return tf.reshape(part, (frequencies, count, phases * channels, filters))

    def get_config(self) -> dict[str, Any]:
        """Return the arguments of the constructor."""
        return {**super().get_config(), "strides": list(self.strides)}
