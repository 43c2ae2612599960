"""Penalties of the largest singular value or of the worst deviation from orthogonality."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import tensorflow as tf
import tf_keras

from tfdq.penalties.regularizers import (
    KernelRegularizer,
    Placement,
    gram,
    gram_deviation,
    half_squares,
    kernel_matrices,
    product,
    sum_of_each,
)
from tfdq.penalties.singular_values import SingularValue

if TYPE_CHECKING:
    from typing import Self


class PowerIterationRegularizer(KernelRegularizer):
    """A penalty that follows one singular or eigenvector from step to step.

    The vector is kept in a variable, so that one or two iterations a step are enough: the kernel
    moves little between steps. It belongs to one kernel; give each layer its own regularizer
    (``tfdq.quantize_model`` does).

    Args:
        beta: weight of the penalty, >= 0.
        on: the kernel that counts (see `KernelRegularizer`).
        depthwise: the channels do not mix; one vector for each of them.
        target: singular value to aim at, or ``"1/k"``.
        iterations: power iterations for each call, >= 1.

    Raises:
        ValueError: an argument is out of its range.
    """

    def __init__(
        self,
        beta: float,
        on: Placement = "kernel",
        depthwise: bool = False,
        target: SingularValue = 1.0,
        iterations: int = 2,
    ) -> None:
        super().__init__(beta, on, depthwise, target)
        if isinstance(iterations, bool) or not isinstance(iterations, int) or iterations < 1:
            raise ValueError(f"iterations must be an int >= 1, got {iterations!r}")
        self.iterations = iterations
        self._vectors: dict[str, tf.Variable] = {}

    def leading_vectors(self, symmetric: tf.Tensor, penalties: Sequence[Self]) -> tf.Tensor:
        """Return the unit eigenvectors of largest absolute eigenvalue, without gradient.

        Args:
            symmetric: ``(n, ..., r, r)``.
            penalties: the ``n`` penalties that keep the vectors, no two the same.

        Returns:
            ``(n, ..., r, 1)``, the stored vectors after ``iterations`` more power iterations.
        """
        symmetric = tf.stop_gradient(symmetric)
        shape = (*symmetric.shape[1:-1], 1)
        variables = [penalty._stored(shape) for penalty in penalties]
        stored = vectors = tf.stack([variable.read_value() for variable in variables])
        for _ in range(self.iterations):
            vectors = tf.math.l2_normalize(product(symmetric, vectors), axis=-2)
        # A vector that the matrix sends to zero would stay there for good.
        lost = tf.reduce_all(tf.equal(vectors, 0.0), axis=-2, keepdims=True)
        vectors = tf.where(lost, stored, vectors)
        for variable, vector in zip(variables, tf.unstack(vectors), strict=True):
            variable.assign(vector)
        return vectors

    def _stored(self, shape: tuple[int, ...]) -> tf.Variable:
        """Return the variable for a shape of vector, made on first use."""
        key = "x".join(map(str, shape))
        if key not in self._vectors:
            with tf.init_scope():
                start = tf.random.stateless_normal(shape, seed=(shape[-2], 0))
                start = tf.math.l2_normalize(start, axis=-2)
                self._vectors[key] = tf.Variable(start, trainable=False, name="power_vector")
        return self._vectors[key]

    def get_config(self) -> dict[str, Any]:
        """Return the arguments of the constructor."""
        return {**super().get_config(), "iterations": self.iterations}


@tf_keras.saving.register_keras_serializable(package="tfdq")
class SpectralRegularizer(PowerIterationRegularizer):
    r"""Push the largest singular value of a kernel down to the target, 1.

    .. math:: \frac{\beta}{2} \max(\sigma_{\max}(W) - \tau, 0)^2

    with ``W`` the kernel reshaped to ``(k_h*k_w*c_in, c_out)``: only expansion is penalized, the
    other singular values are free. The paper's penalty is ``tau = 0``.

    Gradient: ``beta max(sigma - tau, 0) u v^T`` with the singular vectors ``u, v`` held constant.
    Cost: one Gram product of ``min(rows, columns)^2 * max`` and ``iterations`` small products.

    Args:
        beta: weight of the penalty, >= 0.
        on: the kernel that counts (see `KernelRegularizer`).
        depthwise: the channels do not mix; the penalty is summed over them.
        target: singular value from which on it acts, or ``"1/k"``.
        iterations: power iterations for each call, >= 1.

    Raises:
        ValueError: an argument is out of its range.

    Source: Yoshida and Miyato, *Spectral norm regularization*, arXiv 1705.10941.
    """

    def deviations(self, kernels: tf.Tensor, target: float, penalties: Sequence[Self]) -> tf.Tensor:
        """Return half the squared excesses of the largest singular values."""
        matrices = kernel_matrices(kernels, self.depthwise)
        if matrices.shape[-2] < matrices.shape[-1]:
            matrices = tf.linalg.matrix_transpose(matrices)
        grams = gram(matrices)
        images = product(matrices, self.leading_vectors(grams, penalties))
        sigmas = tf.sqrt(tf.reduce_sum(tf.square(images), axis=(-2, -1)) + 1e-24)
        return half_squares(tf.nn.relu(sigmas - target))


@tf_keras.saving.register_keras_serializable(package="tfdq")
class SRIPRegularizer(PowerIterationRegularizer):
    r"""Pull the singular value that is furthest from the target to it.

    .. math:: \beta \, \lVert W^T W - \tau^2 I \rVert_2

    the spectral restricted isometry property: the largest deviation counts, not the sum. The
    smaller of the two Grams is taken: for the larger one the eigenvalue ``-tau^2`` of its
    null space would dominate and nothing would be left to learn.

    Gradient: ``2 beta sign(lambda) W v v^T`` with the eigenvector ``v`` held constant. The paper
    takes two power iterations from a fresh random vector at each step; here the vector persists,
    which is as cheap and sharper. Cost: one Gram product and ``iterations`` small products.

    Args:
        beta: weight of the penalty, >= 0.
        on: the kernel that counts (see `KernelRegularizer`).
        depthwise: the channels do not mix; the penalty is summed over them.
        target: singular value to aim at, or ``"1/k"``.
        iterations: power iterations for each call, >= 1.

    Raises:
        ValueError: an argument is out of its range.

    Source: Bansal, Chen, Wang, *Can We Gain More from Orthogonality Regularizations in Training
    Deep CNNs?*, NeurIPS 2018, equation 7.
    """

    def deviations(self, kernels: tf.Tensor, target: float, penalties: Sequence[Self]) -> tf.Tensor:
        """Return the largest absolute eigenvalues of the Grams' deviations."""
        deviations = gram_deviation(kernel_matrices(kernels, self.depthwise), target)
        vectors = self.leading_vectors(deviations, penalties)
        rayleigh = product(vectors, product(deviations, vectors), transpose_a=True)
        return sum_of_each(tf.abs(rayleigh))
