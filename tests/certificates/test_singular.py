"""The norm of a convolution against the dense SVD of its explicit matrix."""

import math

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from tfdq.certificates.linear_maps import ConvolutionMap, dense_map, padding_amounts
from tfdq.certificates.singular import (
    largest_singular_value,
    norm_upper_bound,
    reshaped_norm,
    singular_values,
)


def explicit_matrix(convolution: ConvolutionMap) -> np.ndarray:
    """Write a convolution out entry by entry, from its definition alone."""
    height, width, channels = convolution.input_shape
    out_h, out_w, filters = convolution.output_shape
    matrix = np.zeros((out_h, out_w, filters, height, width, channels))
    per_group_in, per_group_out = channels // convolution.groups, filters // convolution.groups
    taps_h, taps_w = convolution.kernel.shape[:2]
    for i, j, o, a, b, c in np.ndindex(out_h, out_w, filters, taps_h, taps_w, per_group_in):
        row = i * convolution.strides[0] + a * convolution.dilation[0] - convolution.padding[0][0]
        column = (
            j * convolution.strides[1] + b * convolution.dilation[1] - convolution.padding[1][0]
        )
        if 0 <= row < height and 0 <= column < width:
            channel = (o // per_group_out) * per_group_in + c
            matrix[i, j, o, row, column, channel] += convolution.kernel[a, b, c, o]
    return matrix.reshape(out_h * out_w * filters, -1)


@st.composite
def convolutions(draw: st.DrawFn) -> ConvolutionMap:
    """Draw a small convolution of any kind that Keras has."""
    taps = draw(st.tuples(st.integers(1, 4), st.integers(1, 4)))
    dilation = draw(st.tuples(st.integers(1, 2), st.integers(1, 2)))
    strides = draw(st.tuples(st.integers(1, 3), st.integers(1, 3)))
    reach = [(k - 1) * d + 1 for k, d in zip(taps, dilation, strict=True)]
    size = [draw(st.integers(r, 7)) for r in reach]
    groups = draw(st.integers(1, 2))
    channels, filters = groups * draw(st.integers(1, 3)), groups * draw(st.integers(1, 3))
    padding = draw(st.sampled_from(["valid", "same"]))
    amounts = [
        padding_amounts(padding, s, k, t, d)
        for s, k, t, d in zip(size, taps, strides, dilation, strict=True)
    ]
    seed = draw(st.integers(0, 2**31))
    scale = draw(st.sampled_from([1e-6, 1.0, 1e5]))
    kernel = np.random.default_rng(seed).standard_normal((*taps, channels // groups, filters))
    return ConvolutionMap(
        kernel * scale,
        (size[0], size[1], channels),
        strides,
        (amounts[0], amounts[1]),
        dilation,
        groups,
    )


@settings(max_examples=150, deadline=None, derandomize=True)
@given(convolutions())
def test_norm_agrees_with_the_dense_svd(convolution: ConvolutionMap) -> None:
    values = np.linalg.svd(explicit_matrix(convolution), compute_uv=False)
    exact = values[0]
    measured = largest_singular_value(convolution)
    assert measured.sigma == pytest.approx(exact, rel=1e-4)
    image = convolution.apply(measured.vector[None])
    assert np.linalg.norm(image) == pytest.approx(measured.sigma, rel=1e-9)
    dense, how = norm_upper_bound(convolution)
    assert how == "dense"
    assert exact * (1 - 1e-13) <= dense <= exact * (1 + 1e-7)
    fourier, how = norm_upper_bound(convolution, dense_limit=0)
    assert how == "fourier"
    assert fourier >= exact * (1 - 1e-13)
    # A norm's crude bound: the torus cannot be looser than the taps' norms added up.
    taps = convolution.kernel.reshape(-1, *convolution.kernel.shape[2:])
    assert fourier <= sum(np.linalg.norm(tap) for tap in taps) * (1 + 1e-8)
    spectrum, _ = singular_values(convolution)
    smaller = np.sort(values)[::-1]
    np.testing.assert_allclose(spectrum[: len(smaller)], smaller, atol=1e-9 * exact)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(convolutions())
def test_map_and_transpose_agree_with_the_explicit_matrix(convolution: ConvolutionMap) -> None:
    matrix = explicit_matrix(convolution)
    np.testing.assert_allclose(convolution.matrix(), matrix, atol=1e-12)
    rng = np.random.default_rng(1)
    images = rng.standard_normal((2, *convolution.output_shape))
    expected = images.reshape(2, -1) @ matrix
    result = convolution.transpose(images).reshape(2, -1)
    np.testing.assert_allclose(result, expected, atol=1e-10 * np.abs(expected).max())


@pytest.mark.parametrize("padding", ["same", "valid"])
@pytest.mark.parametrize("stride", [1, 2, 3])
def test_map_is_tensorflows_convolution(padding: str, stride: int) -> None:
    rng = np.random.default_rng(3)
    kernel, images = rng.standard_normal((3, 4, 5, 6)), rng.standard_normal((2, 9, 8, 5))
    amounts = [padding_amounts(padding, s, k, stride, 1) for s, k in ((9, 3), (8, 4))]
    convolution = ConvolutionMap(kernel, (9, 8, 5), (stride, stride), (amounts[0], amounts[1]))
    expected = tf.nn.conv2d(images, kernel, stride, padding.upper()).numpy()
    np.testing.assert_allclose(convolution.apply(images), expected, atol=1e-12)


def test_torus_bound_is_tight_for_a_large_image() -> None:
    kernel = np.random.default_rng(0).standard_normal((3, 3, 4, 5))
    convolution = ConvolutionMap(kernel, (14, 14, 4), padding=((1, 1), (1, 1)))
    exact = np.linalg.svd(convolution.matrix(), compute_uv=False)[0]
    measured = largest_singular_value(convolution).sigma
    bound, _ = norm_upper_bound(convolution, dense_limit=0)
    assert measured == pytest.approx(exact, rel=1e-6)
    assert exact <= bound <= 1.04 * exact


def test_torus_of_a_circular_convolution_is_exact() -> None:
    """A valid convolution seen from a whole torus: the symbols are the singular values."""
    size, taps = 6, 3
    kernel = np.random.default_rng(5).standard_normal((taps, taps, 2, 3))
    transform = np.fft.fft2(kernel, (size, size), axes=(0, 1))
    expected = np.sort(np.linalg.svd(transform, compute_uv=False).ravel())
    bound, _ = norm_upper_bound(ConvolutionMap(kernel, (size, size, 2)), dense_limit=0)
    assert bound == pytest.approx(expected[-1], rel=1e-6)


def test_a_bound_that_is_wrong_by_a_tenth_is_noticed() -> None:
    """The comparison of these tests would catch a bound scaled by 0.9, or by 0.999."""
    convolution = ConvolutionMap(np.random.default_rng(2).standard_normal((3, 3, 2, 2)), (6, 6, 2))
    exact = np.linalg.svd(explicit_matrix(convolution), compute_uv=False)[0]
    for way in (1024, 0):
        bound, _ = norm_upper_bound(convolution, dense_limit=way)
        assert bound >= exact
    tight, _ = norm_upper_bound(convolution)
    assert 0.9 * tight < exact
    assert 0.999 * tight < exact


def test_orthogonal_dense_kernel_has_norm_one() -> None:
    orthogonal, _ = np.linalg.qr(np.random.default_rng(0).standard_normal((40, 10)))
    assert largest_singular_value(dense_map(orthogonal)).sigma == pytest.approx(1.0, abs=1e-12)
    bound, _ = norm_upper_bound(dense_map(orthogonal))
    assert 1 - 1e-15 <= bound <= 1 + 1e-8
    assert reshaped_norm(orthogonal) == pytest.approx(1.0, abs=1e-12)


def test_depthwise_norm_is_the_largest_channel() -> None:
    rng = np.random.default_rng(7)
    kernel = rng.standard_normal((3, 3, 1, 6))
    whole = ConvolutionMap(kernel, (8, 8, 6), padding=((1, 1), (1, 1)), groups=6)
    singles = [
        np.linalg.svd(
            explicit_matrix(
                ConvolutionMap(kernel[..., c : c + 1], (8, 8, 1), (1, 1), whole.padding)
            ),
            compute_uv=False,
        )[0]
        for c in range(6)
    ]
    assert largest_singular_value(whole).sigma == pytest.approx(max(singles), rel=1e-8)
    assert norm_upper_bound(whole)[0] == pytest.approx(max(singles), rel=1e-7)


def test_zero_kernel_has_norm_zero() -> None:
    empty = ConvolutionMap(np.zeros((3, 3, 2, 2)), (5, 5, 2))
    assert largest_singular_value(empty).sigma == 0.0
    assert norm_upper_bound(empty) == (0.0, "dense")


def test_the_stop_is_honest() -> None:
    kernel = np.random.default_rng(4).standard_normal((3, 3, 3, 3))
    convolution = ConvolutionMap(kernel, (10, 10, 3), padding=((1, 1), (1, 1)))
    loose = largest_singular_value(convolution, tolerance=1e-1)
    tight = largest_singular_value(convolution, tolerance=1e-9)
    assert loose.iterations < tight.iterations
    assert loose.sigma <= tight.sigma * (1 + 1e-12)
    assert tight.residual <= 1e-9 * tight.sigma


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"kernel": np.ones((3, 3, 2))}, "k_h, k_w"),
        ({"kernel": np.full((3, 3, 2, 2), np.nan)}, "NaN"),
        ({"kernel": np.ones((3, 3, 3, 2))}, "2 channels"),
        ({"kernel": np.ones((3, 3, 2, 2)), "strides": (0, 1)}, "strides"),
        ({"kernel": np.ones((7, 7, 2, 2))}, "smaller than the kernel"),
    ],
)
def test_wrong_convolutions_are_refused(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ConvolutionMap(input_shape=(5, 5, 2), **arguments)


def test_wrong_settings_are_refused() -> None:
    convolution = dense_map(np.ones((2, 2)))
    with pytest.raises(ValueError, match="tolerance"):
        largest_singular_value(convolution, tolerance=0.0)
    with pytest.raises(ValueError, match="padding"):
        padding_amounts("full", 5, 3, 1, 1)
    assert math.isclose(norm_upper_bound(convolution)[0], 2.0, rel_tol=1e-8)
