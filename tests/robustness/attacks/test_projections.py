"""The balls are exact in float32, against arithmetic on exact fractions."""

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linprog

from tfdq.robustness.attacks.fab import project_to_hyperplane
from tfdq.robustness.attacks.projections import l2_norm, linf_bounds, project_l2

unit = st.floats(0, 1, width=32)


@given(x=st.lists(unit, min_size=1, max_size=20), eps=st.floats(0, 1))
@settings(max_examples=200, deadline=None)
def test_linf_bounds_are_inside_and_as_wide_as_float32_allows(x, eps):
    x = np.array([x], np.float32)
    lower, upper = linf_bounds(x, eps, (0.0, 1.0))
    for centre, low, high in zip(x[0], lower[0], upper[0], strict=True):
        centre, low, high = (Fraction(float(v)) for v in (centre, low, high))
        assert 0 <= low <= centre <= high <= 1
        assert centre - low <= Fraction(eps)
        assert high - centre <= Fraction(eps)
        # One unit further is outside, or the end of the range.
        beyond = Fraction(float(np.nextafter(np.float32(high), np.float32(2))))
        assert high == 1 or beyond - centre > Fraction(eps) * (1 - Fraction(1, 10**12))


def test_linf_bounds_of_a_range_that_is_not_0_to_1():
    x = np.array([[0.0, 3.0, 250.0, 255.0]], np.float32)
    lower, upper = linf_bounds(x, 8.0, (0.0, 255.0))
    np.testing.assert_array_equal(lower, [[0, 0, 242, 247]])
    np.testing.assert_array_equal(upper, [[8, 11, 255, 255]])


def test_a_clip_limit_between_two_floats_is_not_overstepped():
    limit = 0.1  # float32(0.1) > 0.1
    x = np.array([[0.05]], np.float32)
    _, upper = linf_bounds(x, 1.0, (0.0, limit))
    assert float(upper[0, 0]) <= limit


@given(seed=st.integers(0, 2**31), eps=st.floats(1e-3, 5))
@settings(max_examples=50, deadline=None)
def test_l2_projection_is_inside_and_leaves_inner_points_alone(seed, eps):
    rng = np.random.default_rng(seed)
    x = rng.random((8, 30), dtype=np.float32)
    moved = np.clip(x + rng.normal(size=x.shape), 0, 1).astype(np.float32)
    projected = project_l2(moved, x, eps, (0.0, 1.0))
    delta = projected.astype(np.float64) - x
    assert (l2_norm(delta) <= eps).all()
    assert projected.min() >= 0
    assert projected.max() <= 1
    before = l2_norm(moved.astype(np.float64) - x)
    inner = before < eps * (1 - 1e-6)
    np.testing.assert_allclose(projected[inner], moved[inner], atol=1e-7)
    # Where it did move, it lies on the sphere, on the line to the point it came from.
    outer = before > eps * (1 + 1e-6)
    np.testing.assert_allclose(l2_norm(delta[outer]), eps, rtol=1e-4)
    line = x + (moved - x) * (eps / before)[:, None]
    np.testing.assert_allclose(projected[outer], line[outer], atol=1e-5)


@pytest.mark.parametrize("seed", range(15))
def test_hyperplane_projection_is_the_optimum_of_the_linear_program(seed):
    rng = np.random.default_rng(seed)
    n = 12
    low, high = -1.0, 2.0
    w = rng.normal(size=n) * (rng.random(n) > 0.2)
    t = rng.uniform(low, high, n)
    reach = np.sum(np.abs(w) * np.where(w > 0, high - t, t - low))
    gap = rng.uniform(0, 0.9) * reach
    # min r  subject to  <w, d> = gap,  -r <= d <= r,  low <= t + d <= high.
    cost = np.r_[np.zeros(n), 1.0]
    eye = np.eye(n)
    bounds = [*zip(low - t, high - t, strict=True), (0, None)]
    ones = np.ones((n, 1))
    solved = linprog(
        cost,
        A_ub=np.block([[eye, -ones], [-eye, -ones]]),
        b_ub=np.zeros(2 * n),
        A_eq=np.r_[w, 0.0][None],
        b_eq=[gap],
        bounds=bounds,
    )
    d = project_to_hyperplane(
        t[None].astype(np.float32),
        w[None].astype(np.float32),
        np.array([gap], np.float32),
        low,
        high,
    )[0]
    assert np.abs(d).max() == pytest.approx(solved.fun, abs=1e-5)
    assert d @ w == pytest.approx(gap, abs=1e-4)


def test_hyperplane_out_of_reach_moves_every_coordinate_to_its_end():
    t = np.array([[0.2, 0.7, 0.5]], np.float32)
    w = np.array([[1.0, -2.0, 0.0]], np.float32)
    d = project_to_hyperplane(t, w, np.array([100.0], np.float32), 0.0, 1.0)
    np.testing.assert_allclose(d, [[0.8, -0.7, 0.0]], atol=1e-6)
