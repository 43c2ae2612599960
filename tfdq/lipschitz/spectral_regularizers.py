"""Penalties of the largest singular value or of the worst deviation from orthogonality."""

from __future__ import annotations

from typing import Any

import tensorflow as tf
import tf_keras

from tfdq.lipschitz.regularizers import (
    KernelRegularizer,
    Placement,
    gram_deviation,
    kernel_matrix,
)
from tfdq.lipschitz.targets import Target


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
        target: Target = 1.0,
        iterations: int = 2,
    ) -> None:
        super().__init__(beta, on, depthwise, target)
        if isinstance(iterations, bool) or not isinstance(iterations, int) or iterations < 1:
            raise ValueError(f"iterations must be an int >= 1, got {iterations!r}")
        self.iterations = iterations
        self._vectors: dict[str, tf.Variable] = {}

    def leading_vector(self, symmetric: tf.Tensor) -> tf.Tensor:
        """Return the unit eigenvector of largest absolute eigenvalue, without gradient.

        Args:
            symmetric: ``(..., n, n)``.

        Returns:
            ``(..., n, 1)``, the stored vector after ``iterations`` more power iterations.
        """
        symmetric = tf.stop_gradient(symmetric)
        stored = self._stored((*symmetric.shape[:-1], 1))
        vector = stored.read_value()
        for _ in range(self.iterations):
            vector = tf.math.l2_normalize(tf.matmul(symmetric, vector), axis=-2)
        # A vector that the matrix sends to zero would stay there for good.
        lost = tf.reduce_all(tf.equal(vector, 0.0), axis=-2, keepdims=True)
        vector = tf.where(lost, stored, vector)
        stored.assign(vector)
        return vector

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

    def deviation(self, kernel: tf.Tensor, target: float) -> tf.Tensor:
        """Return half the squared excess of the largest singular value."""
        matrix = kernel_matrix(kernel, self.depthwise)
        if matrix.shape[-2] < matrix.shape[-1]:
            matrix = tf.linalg.matrix_transpose(matrix)
        vector = self.leading_vector(tf.matmul(matrix, matrix, transpose_a=True))
        image = tf.matmul(matrix, vector)
        sigma = tf.sqrt(tf.reduce_sum(tf.square(image), axis=(-2, -1)) + 1e-24)
        return tf.nn.l2_loss(tf.nn.relu(sigma - target))


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

    def deviation(self, kernel: tf.Tensor, target: float) -> tf.Tensor:
        """Return the largest absolute eigenvalue of the Gram's deviation."""
        deviation = gram_deviation(kernel_matrix(kernel, self.depthwise), target)
        vector = self.leading_vector(deviation)
        rayleigh = tf.matmul(vector, tf.matmul(deviation, vector), transpose_a=True)
        return tf.reduce_sum(tf.abs(rayleigh))
