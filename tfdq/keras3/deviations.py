r"""How far kernels are from orthogonality: the unweighted penalties, on ``keras.ops``.

``W`` stands for a kernel as a matrix ``(rows, columns)``; a stack of matrices is summed over. Of
``W^T W`` and ``W W^T``, which have the same non-zero eigenvalues, the smaller one is taken.
"""

from __future__ import annotations

from typing import Any

from keras import ops

from tfdq.penalties.kernel_spectrum import tap_transform

_ITERATIONS = 2


def smaller_gram(matrices: Any, target: float = 0.0) -> Any:
    r"""Return the smaller Gram minus ``target**2 * I``.

    Args:
        matrices: float32 ``(..., rows, columns)``.
        target: singular value to aim at.
    """
    rows, columns = matrices.shape[-2:]
    turned = ops.swapaxes(matrices, -1, -2)
    gram = ops.matmul(matrices, turned) if rows < columns else ops.matmul(turned, matrices)
    return gram - target**2 * ops.eye(min(rows, columns))


def half_gram_deviation(matrices: Any, target: float) -> Any:
    r"""Return :math:`\frac{1}{2} \lVert W^T W - \tau^2 I \rVert_F^2`, a scalar.

    Args:
        matrices: float32 ``(..., rows, columns)``.
        target: the singular value aimed at.

    Source: Lin, Gan, Han, *Defensive Quantization*, ICLR 2019, section 3.2.
    """
    return 0.5 * ops.sum(ops.square(smaller_gram(matrices, target)))


def leading_vectors(symmetric: Any, vectors: Any) -> Any:
    """Return vectors after two power iterations, of unit length, without gradient.

    Args:
        symmetric: float32 ``(..., n, n)``.
        vectors: float32 ``(..., n, 1)``, to start from.
    """
    symmetric = ops.stop_gradient(symmetric)
    found = start = _unit(vectors)
    for _ in range(_ITERATIONS):
        found = _unit(ops.matmul(symmetric, found))
    # A vector that the matrix sends to zero would stay there for good.
    lost = ops.all(ops.equal(found, 0.0), axis=-2, keepdims=True)
    return ops.stop_gradient(ops.where(lost, start, found))


def _unit(vectors: Any) -> Any:
    squares = ops.sum(ops.square(vectors), axis=-2, keepdims=True)
    return vectors / ops.sqrt(ops.maximum(squares, 1e-24))


def excess_norm(matrices: Any, vectors: Any, target: float) -> Any:
    r"""Return :math:`\frac{1}{2} \max(\sigma_{\max}(W) - \tau, 0)^2`, a scalar.

    Args:
        matrices: float32 ``(..., rows, columns)``.
        vectors: the singular vectors of the largest singular values, on the smaller side,
            ``(..., min(rows, columns), 1)``.
        target: singular value from which on it counts.

    Source: Yoshida and Miyato, *Spectral norm regularization*, arXiv 1705.10941.
    """
    if matrices.shape[-2] < matrices.shape[-1]:
        matrices = ops.swapaxes(matrices, -1, -2)
    squares = ops.sum(ops.square(ops.matmul(matrices, vectors)), axis=(-2, -1))
    return 0.5 * ops.sum(ops.square(ops.relu(ops.sqrt(squares + 1e-24) - target)))


def worst_gram_deviation(deviations: Any, vectors: Any) -> Any:
    r"""Return :math:`\lVert W^T W - \tau^2 I \rVert_2`, a scalar.

    Args:
        deviations: of the Grams, float32 ``(..., n, n)``.
        vectors: their eigenvectors of largest absolute eigenvalue, ``(..., n, 1)``.

    Source: Bansal, Chen, Wang, *Can We Gain More from Orthogonality Regularizations in Training
    Deep CNNs?*, NeurIPS 2018, equation 7.
    """
    rayleigh = ops.matmul(ops.swapaxes(vectors, -1, -2), ops.matmul(deviations, vectors))
    return ops.sum(ops.abs(rayleigh))


def convolution_gram_deviation(
    kernel: Any, target: float, depthwise: bool, strides: tuple[int, int]
) -> Any:
    r"""Return :math:`\frac{1}{2} \lVert K \star_s K - \tau^2 \delta \rVert_F^2`, a scalar.

    Computed at as many frequencies as the correlation has offsets; see
    `tfdq.penalties.convolution_regularizers.ConvolutionOrthogonalityRegularizer`.

    Args:
        kernel: float32 ``(height, width, in, out)``.
        target: singular value of the convolution to aim at.
        depthwise: the channels do not mix.
        strides: of the convolution.

    Source: Wang et al., *Orthogonal Convolutional Neural Networks*, CVPR 2020, equation 10.
    """
    height, width, channels, filters = kernel.shape
    cosine, sine, weights = tap_transform((height, width), strides)
    by_tap = ops.reshape(kernel, (height * width, channels * filters))

    def symbols(transform: Any) -> Any:
        frequencies, phases, taps = transform.shape
        matrix = ops.convert_to_tensor(transform.reshape(-1, taps), "float32")
        part = ops.reshape(ops.matmul(matrix, by_tap), (frequencies, phases, channels, filters))
        if depthwise:
            return ops.transpose(part, (0, 2, 1, 3))
        return ops.reshape(part, (frequencies, phases * channels, filters))

    real, imaginary = symbols(cosine), symbols(sine)
    if real.shape[-2] < real.shape[-1]:
        real, imaginary = ops.swapaxes(real, -1, -2), ops.swapaxes(imaginary, -1, -2)
    # K* K = (R^T R + I^T I) + i (R^T I - I^T R); the sign of the imaginary part is free.
    turned, turned_imaginary = ops.swapaxes(real, -1, -2), ops.swapaxes(imaginary, -1, -2)
    even = ops.matmul(turned, real) + ops.matmul(turned_imaginary, imaginary)
    even = even - target**2 * ops.eye(real.shape[-1])
    cross = ops.matmul(turned, imaginary)
    odd = cross - ops.swapaxes(cross, -1, -2)
    squares = ops.square(even) + ops.square(odd)
    totals = ops.sum(squares, axis=tuple(range(1, len(squares.shape))))
    return 0.5 * ops.sum(ops.convert_to_tensor(weights, "float32") * totals)
