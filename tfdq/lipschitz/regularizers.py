"""What all kernel penalties share, and the orthogonality penalty of Defensive Quantization."""

from __future__ import annotations

import math
from typing import Any, Literal, get_args

import tensorflow as tf
import tf_keras

from tfdq.lipschitz.targets import Target, check_target

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
    shape = kernel.shape
    if shape.rank is None or shape.rank < 2:
        raise ValueError(f"a kernel has two or more axes, got shape {shape}")
    kernel = tf.cast(kernel, tf.float32)
    if not depthwise:
        return tf.reshape(kernel, (-1, shape[-1]))
    if shape.rank != 4:
        raise ValueError(f"a depthwise kernel is (k_h, k_w, c_in, multiplier), got shape {shape}")
    return tf.transpose(tf.reshape(kernel, (-1, shape[2], shape[3])), (1, 0, 2))


class KernelRegularizer(tf_keras.regularizers.Regularizer, tf.__internal__.tracking.AutoTrackable):
    """A penalty of one kernel: ``beta`` times what a subclass says of the kernel.

    Every penalty of the family takes these arguments and is called alike, on a kernel. The weight
    is held in a variable once the penalty has been called, so that a schedule can change it
    between the steps of a compiled training loop (`tfdq.lipschitz.training.PenaltySchedule`).

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
        target: Target = 1.0,
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
            weight: scalar in the place of the weight that the penalty holds.
        """
        kernel = tf.cast(kernel, tf.float32)
        weight = self.weight() if weight is None else tf.cast(weight, tf.float32)
        return weight * self.deviation(kernel, self.target_value(kernel.shape))

    def deviation(self, kernel: tf.Tensor, target: float) -> tf.Tensor:
        """Return the unweighted penalty of a float32 kernel; a subclass says what it is."""
        raise TypeError(f"{type(self).__name__} does not say what it penalizes in {kernel}")

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


def gram_deviation(matrix: tf.Tensor, target: float) -> tf.Tensor:
    """Return ``G - target^2 I`` for the smaller of a matrix' (or a stack's) two Grams."""
    rows, columns = matrix.shape[-2:]
    wide = rows < columns
    gram = tf.matmul(matrix, matrix, transpose_a=not wide, transpose_b=wide)
    return gram - target**2 * tf.eye(min(rows, columns))


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

    def deviation(self, kernel: tf.Tensor, target: float) -> tf.Tensor:
        """Return half the squared Frobenius distance of the Gram to ``target^2 I``."""
        return tf.nn.l2_loss(gram_deviation(kernel_matrix(kernel, self.depthwise), target))
