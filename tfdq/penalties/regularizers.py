"""What all kernel penalties share, and the orthogonality penalty of Defensive Quantization."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal, get_args

import tensorflow as tf
import tf_keras

from tfdq.mistakes import WrongTypeError
from tfdq.penalties.singular_values import SingularValue, check_target

if TYPE_CHECKING:
    from typing import Self

Placement = Literal["kernel", "folded", "deployed"]
PLACEMENTS: tuple[str, ...] = get_args(Placement)


def check_beta(beta: float) -> float:
    """Return a penalty weight as a float, or say what is wrong with it.

    Raises:
        ValueError: ``beta`` is negative, infinite or not a number.
    """
    if isinstance(beta, bool) or not isinstance(beta, (int, float)) or not math.isfinite(beta):
        raise ValueError(f"beta must be a finite number >= 0, got {beta!r}; 0 switches it off")
    if beta < 0:
        raise ValueError(f"beta must be >= 0, got {beta!r}; 0 switches the penalty off")
    return float(beta)


def check_placement(on: str) -> Placement:
    """Return the place of a penalty, or say which places there are.

    Raises:
        ValueError: ``on`` is not one of ``PLACEMENTS``.
    """
    for place in get_args(Placement):
        if on == place:
            return place
    raise ValueError(f"on must be one of {', '.join(PLACEMENTS)}, got {on!r}")


def kernel_matrix(kernel: tf.Tensor, depthwise: bool = False) -> tf.Tensor:
    """Reshape a kernel into the matrix (or stack of matrices) whose Gram is controlled.

    Args:
        kernel: float tensor; a convolution's ``(k_h, k_w, c_in, c_out)``, a dense layer's
            ``(c_in, c_out)``, or a depthwise ``(k_h, k_w, c_in, multiplier)``.
        depthwise: the channels do not mix: one matrix for each input channel.

    Returns:
        float32 ``(k_h*k_w*c_in, c_out)``, or ``(c_in, k_h*k_w, multiplier)`` when depthwise.

    Raises:
        ValueError: the rank is below 2, or not 4 with ``depthwise``.
    """
    return tf.squeeze(kernel_matrices(tf.expand_dims(kernel, 0), depthwise), 0)


def kernel_matrices(kernels: tf.Tensor, depthwise: bool = False) -> tf.Tensor:
    """Reshape a stack of kernels, ``(n, *kernel_shape)``, as ``kernel_matrix`` does each.

    Raises:
        ValueError: the rank of a kernel is below 2, or not 4 with ``depthwise``.
    """
    shape = kernels.shape[1:]
    if shape.rank is None or shape.rank < 2:
        raise ValueError(f"a kernel has two or more axes, got shape {shape}")
    kernels = tf.cast(kernels, tf.float32)
    count = kernels.shape[0]
    if not depthwise:
        return tf.reshape(kernels, (count, -1, shape[-1]))
    if shape.rank != 4:
        raise ValueError(f"a depthwise kernel is (k_h, k_w, c_in, multiplier), got shape {shape}")
    return tf.transpose(tf.reshape(kernels, (count, -1, shape[2], shape[3])), (0, 2, 1, 3))


def sum_of_each(stack: tf.Tensor) -> tf.Tensor:
    """Return the sum over all axes but the first, ``(n,)``."""
    return tf.reduce_sum(stack, axis=tuple(range(1, stack.shape.rank)))


class KernelRegularizer(tf_keras.regularizers.Regularizer, tf.__internal__.tracking.AutoTrackable):
    """A penalty of one kernel: ``beta`` times what a subclass says of the kernel.

    Every penalty of the family takes these arguments and is called alike, on a kernel. The weight
    is held in a variable once the penalty has been called, so that a schedule can change it
    between the steps of a compiled training loop (`tfdq.penalties.callbacks.PenaltySchedule`).

    Args:
        beta: weight of the penalty, >= 0.
        on: which kernel a layer of tfdq hands over: ``"kernel"``, the trained float kernel;
            ``"folded"``, the kernel with BatchNorm folded in; ``"deployed"``, that kernel
            fake-quantized, i.e. the one that ships, with straight-through gradients. On a plain
            Keras layer all three are the layer's kernel.
        depthwise: the kernel is ``(k_h, k_w, c_in, multiplier)`` and its channels do not mix.
        target: singular value to aim at, or ``"1/k"`` for 1 over the square root of the number of
            taps: a ``k x k`` convolution whose reshaped kernel has norm ``1/k`` is non-expansive
            at stride 1.

    Raises:
        ValueError: ``beta`` is negative or not finite, or ``on`` or ``target`` is unknown.
    """

    def __init__(
        self,
        beta: float,
        on: Placement = "kernel",
        depthwise: bool = False,
        target: SingularValue = 1.0,
    ) -> None:
        self.beta = check_beta(beta)
        self.on = check_placement(on)
        self.depthwise = bool(depthwise)
        self.target = check_target(target)
        self._weight: tf.Variable | None = None

    def __call__(self, kernel: tf.Tensor, weight: tf.Tensor | None = None) -> tf.Tensor:
        """Return the penalty of one kernel, a float32 scalar.

        Args:
            kernel: the kernel, float.
            weight: scalar in place of the weight that the penalty holds.
        """
        kernel = tf.cast(kernel, tf.float32)
        return self.weigh(self.deviation(kernel, self.target_value(kernel.shape)), weight)

    def deviation(self, kernel: tf.Tensor, target: float) -> tf.Tensor:
        """Return the unweighted penalty of a float32 kernel.

        A subclass says what it is, here or in ``deviations``.
        """
        return tf.squeeze(self.deviations(tf.expand_dims(kernel, 0), target, [self]), 0)

    def deviations(self, kernels: tf.Tensor, target: float, penalties: Sequence[Self]) -> tf.Tensor:
        """Return the unweighted penalties of several kernels of one shape, in one pass.

        A subclass that says here what it penalizes, not in ``deviation``, has the layers of a
        quantized model evaluated together (`tfdq.penalties.fused_penalties`).

        Args:
            kernels: float32 ``(n, *kernel_shape)``.
            target: singular value to aim at.
            penalties: the ``n`` penalties that the kernels have, whose configurations are that of
                this one but for ``beta``; what is kept from call to call is theirs.

        Returns:
            float32 ``(n,)``.
        """
        raise WrongTypeError(f"{type(self).__name__} does not say what it penalizes in {kernels}")

    def weigh(self, deviation: tf.Tensor, weight: tf.Tensor | None = None) -> tf.Tensor:
        """Return an unweighted penalty times a weight, by default the one that is held."""
        return (self.weight() if weight is None else tf.cast(weight, tf.float32)) * deviation

    def weight(self) -> tf.Variable:
        """Return the variable that holds the present weight."""
        if self._weight is None:
            with tf.init_scope():
                self._weight = tf.Variable(self.beta, trainable=False, name="penalty_weight")
        return self._weight

    def target_value(self, shape: tf.TensorShape) -> float:
        """Return the target for a kernel of a given shape, ``"1/k"`` resolved."""
        if self.target == "1/k":
            return 1.0 / math.sqrt(math.prod(shape[:2])) if shape.rank == 4 else 1.0
        return float(self.target)

    def get_config(self) -> dict[str, Any]:
        """Return the arguments of the constructor."""
        return {
            "beta": self.beta,
            "on": self.on,
            "depthwise": self.depthwise,
            "target": self.target,
        }


def half_squares(stack: tf.Tensor) -> tf.Tensor:
    """Return half the sum of squares over all axes but the first, ``(n,)``."""
    return 0.5 * sum_of_each(tf.square(stack))


@tf.custom_gradient
def gram(matrices: tf.Tensor) -> tuple[tf.Tensor, Any]:
    """Return ``W^T W`` of each matrix of a stack ``(..., rows, columns)``.

    The gradient is one product, ``W (D + D^T)``; that of ``tf.matmul`` is two.
    """

    def gradient(upstream: tf.Tensor) -> tf.Tensor:
        return product(matrices, upstream + tf.linalg.matrix_transpose(upstream))

    return product(matrices, matrices, transpose_a=True), gradient


def product(a: tf.Tensor, b: tf.Tensor, transpose_a: bool = False) -> tf.Tensor:
    """Return ``tf.matmul`` of two stacks; stacks of one as matrices, which is the faster op."""
    if math.prod(a.shape[:-2]) > 1:
        return tf.matmul(a, b, transpose_a=transpose_a)
    leading = a.shape[:-2]
    single = tf.matmul(
        tf.reshape(a, a.shape[-2:]), tf.reshape(b, b.shape[-2:]), transpose_a=transpose_a
    )
    return tf.reshape(single, (*leading, *single.shape))


def gram_deviation(matrices: tf.Tensor, target: float) -> tf.Tensor:
    """Return ``G - target^2 I`` for the smaller of the two Grams of each matrix of a stack."""
    if matrices.shape[-2] < matrices.shape[-1]:
        matrices = tf.linalg.matrix_transpose(matrices)
    return gram(matrices) - target**2 * tf.eye(matrices.shape[-1])


@tf_keras.saving.register_keras_serializable(package="tfdq")
class OrthogonalityRegularizer(KernelRegularizer):
    r"""Pull every singular value of a kernel to the target, 1.

    .. math:: \frac{\beta}{2} \lVert W^T W - \tau^2 I \rVert_F^2

    with ``W`` the kernel reshaped to ``(k_h*k_w*c_in, c_out)`` and ``tau`` the target. ``W^T W``
    and ``W W^T`` have the same non-zero eigenvalues, so the two penalties differ by a constant
    only: the smaller Gram is taken, and a kernel with orthonormal rows *or* columns costs 0.

    Gradient: ``2 beta W (W^T W - tau^2 I)``. Cost: one product of ``min(rows, columns)^2 * max``.

    Keras' own ``OrthogonalRegularizer`` normalises the columns first and masks the diagonal: it
    bounds no norm.

    Args:
        beta: weight of the penalty, >= 0. The paper's best is 0.002.
        on: which kernel a layer of tfdq hands over: ``"kernel"``, the trained float kernel (the
            paper); ``"folded"``; or ``"deployed"`` (see `KernelRegularizer`).
        depthwise: the channels do not mix; the penalty is summed over them.
        target: singular value to aim at, or ``"1/k"``.

    Raises:
        ValueError: ``beta`` is negative or not finite, or ``on`` or ``target`` is unknown.

    Source: Lin, Gan, Han, *Defensive Quantization*, ICLR 2019, section 3.2; Cisse et al.,
    *Parseval Networks*, ICML 2017.

    Example:
        >>> import tf_keras
        >>> dense = tf_keras.layers.Dense(4, kernel_regularizer=OrthogonalityRegularizer(2e-3))
    """

    def deviations(self, kernels: tf.Tensor, target: float, penalties: Sequence[Self]) -> tf.Tensor:
        """Return half the squared Frobenius distances of the Grams to ``target^2 I``."""
        return half_squares(gram_deviation(kernel_matrices(kernels, self.depthwise), target))
