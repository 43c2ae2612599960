"""Penalties of several kernels in one pass are those of each kernel by itself."""

import numpy as np
import pytest
import tensorflow as tf
import tf_keras

from tfdq.penalties.convolution_regularizers import ConvolutionOrthogonalityRegularizer
from tfdq.penalties.fused_penalties import PenalizedKernel, evaluate_penalties
from tfdq.penalties.names import REGULARIZERS
from tfdq.penalties.regularizers import KernelRegularizer, OrthogonalityRegularizer, gram
from tfdq.penalties.spectral_regularizers import SpectralRegularizer

SHAPES = [(3, 3, 4, 6), (7, 4), (3, 3, 4, 6), (3, 3, 1, 12), (7, 4), (1, 1, 5, 3), (3, 3, 4, 6)]


def kernels_of(shapes: list[tuple[int, ...]], seed: int = 0) -> list[tf.Variable]:
    random = np.random.default_rng(seed)
    return [tf.Variable(0.5 * random.standard_normal(s).astype(np.float32)) for s in shapes]


def count_passes(monkeypatch: pytest.MonkeyPatch, kind: type[KernelRegularizer]) -> list[int]:
    """Return a list that grows by the number of kernels at each pass."""
    passes: list[int] = []
    pass_over = kind.deviations

    def counting(self, kernels, target, penalties):
        passes.append(len(penalties))
        return pass_over(self, kernels, target, penalties)

    monkeypatch.setattr(kind, "deviations", counting)
    return passes


@pytest.mark.parametrize("name", REGULARIZERS)
@pytest.mark.parametrize("target", [1.0, "1/k"])
@pytest.mark.parametrize("depthwise", [False, True])
@pytest.mark.parametrize("scheduled", [False, True])
def test_equals_each_by_itself(
    name: str, target, depthwise: bool, scheduled: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    shapes = [s for s in SHAPES if len(s) == 4] if depthwise else SHAPES
    kernels = kernels_of(shapes)

    def make() -> list[KernelRegularizer]:
        betas = 0.1 + 0.2 * np.arange(len(shapes))
        kind = REGULARIZERS[name]
        return [kind(float(b), "kernel", depthwise, target) for b in betas]

    alone, together = make(), make()
    weights = [tf.constant(0.3 * i) if scheduled else None for i in range(len(shapes))]
    passes = count_passes(monkeypatch, REGULARIZERS[name])
    # What a penalty keeps from call to call must come from, and go to, its own kernel.
    for _ in range(3):
        with tf.GradientTape(persistent=True) as tape:
            expected = [p(k, w) for p, k, w in zip(alone, kernels, weights, strict=True)]
            passes.clear()
            found = evaluate_penalties(
                list(map(PenalizedKernel, together, map(tf.convert_to_tensor, kernels), weights))
            )
        assert sorted(passes) == sorted([shapes.count(s) for s in set(shapes)])
        np.testing.assert_allclose(found, expected, rtol=1e-5)
        for one, other, kernel in zip(found, expected, kernels, strict=True):
            np.testing.assert_allclose(
                tape.gradient(one, kernel), tape.gradient(other, kernel), rtol=1e-4, atol=1e-6
            )
            kernel.assign_sub(0.01 * tape.gradient(other, kernel))


@pytest.mark.parametrize("strides", [(2, 2), (1, 2), (4, 4)])
def test_strides(strides: tuple[int, int]) -> None:
    kernels = kernels_of([(3, 3, 2, 5)] * 3)
    penalty = ConvolutionOrthogonalityRegularizer(1.0, strides=strides)
    stack = penalty.deviations(tf.stack(kernels), 1.0, [penalty] * 3)
    np.testing.assert_allclose(stack, [penalty(kernel) for kernel in kernels], rtol=1e-5)


def test_different_settings_are_kept_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    passes = count_passes(monkeypatch, OrthogonalityRegularizer)
    kernels = kernels_of([(3, 3, 4, 4)] * 6)
    penalties = [
        OrthogonalityRegularizer(0.1),
        OrthogonalityRegularizer(0.1, target=2.0),
        OrthogonalityRegularizer(0.3),
        OrthogonalityRegularizer(0.1, depthwise=True),
        ConvolutionOrthogonalityRegularizer(0.1),
        OrthogonalityRegularizer(0.1, target="1/k"),
    ]
    expected = [penalty(kernel) for penalty, kernel in zip(penalties, kernels, strict=True)]
    passes.clear()
    found = evaluate_penalties(list(map(PenalizedKernel, penalties, kernels)))
    assert sorted(passes) == [1, 1, 1, 2]
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_one_penalty_of_two_kernels_follows_one_after_the_other() -> None:
    kernels = kernels_of([(6, 4)] * 2)
    shared, reference = SpectralRegularizer(0.1, target=0.1), SpectralRegularizer(0.1, target=0.1)
    for _ in range(3):
        expected = [reference(kernel) for kernel in kernels]
        found = evaluate_penalties([PenalizedKernel(shared, kernel) for kernel in kernels])
        np.testing.assert_allclose(found, expected, rtol=1e-6)


class OneByOne(OrthogonalityRegularizer):
    """Says in ``deviation`` what it penalizes."""

    def deviation(self, kernel: tf.Tensor, target: float) -> tf.Tensor:
        return tf.reduce_sum(tf.abs(kernel)) - target


class Called(OrthogonalityRegularizer):
    """Says in ``__call__`` what it does."""

    def __call__(self, kernel: tf.Tensor, weight: tf.Tensor | None = None) -> tf.Tensor:
        return tf.reduce_max(kernel)


def test_regularizers_of_other_kinds() -> None:
    kernels = kernels_of([(4, 4)] * 6)
    penalties = [OneByOne(0.5), OneByOne(2.0), Called(1.0), Called(1.0)]
    penalties += [tf_keras.regularizers.L2(0.1)] * 2
    found = evaluate_penalties(list(map(PenalizedKernel, penalties, kernels)))
    values = [kernel.numpy() for kernel in kernels]
    expected = [
        0.5 * (np.abs(values[0]).sum() - 1.0),
        2.0 * (np.abs(values[1]).sum() - 1.0),
        values[2].max(),
        values[3].max(),
        0.1 * np.square(values[4]).sum(),
        0.1 * np.square(values[5]).sum(),
    ]
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_no_penalties() -> None:
    assert evaluate_penalties([]) == []


def test_a_regularizer_that_says_nothing_is_named() -> None:
    with pytest.raises(TypeError, match="KernelRegularizer does not say what it penalizes"):
        KernelRegularizer(0.1)(tf.ones((2, 2)))


@pytest.mark.parametrize("shape", [(5, 4), (1, 5, 4), (3, 5, 4), (2, 3, 4, 5)])
def test_gradient_of_the_gram(shape: tuple[int, ...]) -> None:
    """Also of a function of it that is not symmetric, and of the gradient itself."""
    random = np.random.default_rng(1)
    matrices = tf.Variable(random.standard_normal(shape), dtype=tf.float64)
    columns = shape[-1]
    factor = tf.constant(random.standard_normal((*shape[:-2], columns, columns)))

    def derivatives(product) -> list[tf.Tensor]:
        with tf.GradientTape() as outer:
            with tf.GradientTape() as tape:
                value = tf.reduce_sum(factor * product(matrices) ** 2)
            first = tape.gradient(value, matrices)
            length = tf.reduce_sum(first**3)
        return [value, first, outer.gradient(length, matrices)]

    expected = derivatives(lambda m: tf.matmul(m, m, transpose_a=True))
    for one, other in zip(derivatives(gram), expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-9)
