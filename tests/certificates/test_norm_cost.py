"""What norms cost is known before they are computed, and limited for files."""

import tracemalloc

import numpy as np
import pytest

from tests.certificates.integer_networks import GraphBuilder
from tfdq.certificates import certify, integer_network, lipschitz_report, singular
from tfdq.certificates.linear_maps import ConvolutionMap, padding_amounts
from tfdq.certificates.norm_cost import bound_cost, cost_of_norms, measurement_cost
from tfdq.certificates.norms import measure
from tfdq.certificates.singular import norm_upper_bound
from tflite_export.files.read import read
from tflite_export.files.write import write
from tflite_export.ir.limits import Limits
from tflite_export.ops.windows import average_pool_axis, max_pool_axis, same_padding


def convolution(size, window, inputs, outputs, stride=1, dilation=1, groups=1) -> ConvolutionMap:
    kernel = np.random.default_rng(0).standard_normal((window, window, inputs // groups, outputs))
    amounts = padding_amounts("same", size, window, stride, dilation)
    return ConvolutionMap(
        kernel,
        (size, size, inputs),
        (stride, stride),
        (amounts, amounts),
        (dilation, dilation),
        groups,
    )


MAPS = {
    "dense": convolution(8, 3, 6, 6),
    "dense, one channel": convolution(14, 3, 1, 32),
    "far taps": convolution(8, 3, 6, 6, dilation=300),
    "fourier": convolution(8, 3, 32, 32),
    "fourier, one large symbol": convolution(1, 1, 1200, 1100),
    "fourier, far taps": convolution(32, 3, 8, 8, stride=2, dilation=20),
    "fourier, many frequencies": convolution(300, 3, 1, 1),
}


@pytest.mark.parametrize("name", MAPS)
def test_the_memory_of_a_bound_is_at_most_what_was_told(name: str) -> None:
    tracemalloc.start()
    try:
        norm_upper_bound(MAPS[name])
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak <= bound_cost(MAPS[name]).bytes


@pytest.mark.parametrize("name", MAPS)
def test_the_operations_are_at_least_those_of_its_matrix_products(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Count the products that form the Gram matrices, one for each block."""
    counted = []
    verified = singular._verified

    def counting(blocks, error):
        def watched():
            for block in blocks:
                side, length = sorted(block.shape[1:])
                counted.append(len(block) * (side**2 * length + side**3))
                yield block

        return verified(watched(), error)

    monkeypatch.setattr(singular, "_verified", counting)
    norm_upper_bound(MAPS[name])
    assert sum(counted) <= bound_cost(MAPS[name]).operations


@pytest.mark.parametrize("name", MAPS)
def test_a_measurement_costs_at_most_what_was_told(name: str) -> None:
    told = measurement_cost(MAPS[name], 40)
    tracemalloc.start()
    try:
        found = measure(MAPS[name], tolerance=1e-30, certify=False, max_iterations=40)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak <= told.bytes
    taps, (height, width, outputs) = MAPS[name].kernel.shape[:2], MAPS[name].output_shape
    each = taps[0] * taps[1] * height * width * outputs * MAPS[name].kernel.shape[2]
    assert 1 <= found.iterations <= 40
    assert 2 * found.iterations * each <= told.operations


def test_norms_of_a_file_are_measured_in_as_many_steps_as_its_limits_allow(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    content = write(GraphBuilder((8, 8, 16), 0).conv(16).mean().dense(3).graph)
    graph = read(content)
    taken = []

    def watched(*arguments, max_iterations, **options):
        taken.append(max_iterations)
        return measure(*arguments, max_iterations=max_iterations, **options)

    monkeypatch.setattr(integer_network, "measure", watched)
    whole = lipschitz_report(content)
    most = cost_of_norms(graph, 150).operations
    shorter = lipschitz_report(content, limits=Limits(norm_operations=most))
    least = cost_of_norms(graph, 20)
    shortest = lipschitz_report(content, limits=Limits(norm_operations=least.operations))
    lipschitz_report(graph, limits=Limits(norm_operations=1))
    assert taken == [300, 300, 150, 150, 20, 20, 300, 300]
    for found in (shorter, shortest):
        assert found.upper == whole.upper
        assert found.estimate == pytest.approx(whole.estimate, rel=0.01)
    with pytest.raises(ValueError, match=f"norm_operations={least.operations}"):
        lipschitz_report(content, limits=Limits(norm_operations=least.operations - 1))


def test_taps_outside_the_image_cost_nothing() -> None:
    assert bound_cost(MAPS["far taps"]) == bound_cost(MAPS["dense"])


def test_the_bound_of_a_grouped_convolution_grows_with_its_groups() -> None:
    one, many = (bound_cost(convolution(8, 3, n, n, groups=n)).operations for n in (1, 50))
    assert many == 50 * one


def deep_file() -> bytes:
    """A file of a few KB with twenty convolutions whose matrices are written out."""
    builder = GraphBuilder((8, 8, 16), 0)
    for _ in range(20):
        builder.conv(16)
    return write(builder.mean().dense(3).graph)


def test_a_small_file_of_costly_norms_is_refused_before_any_is_computed(
    tmp_path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "deep.tflite"
    path.write_bytes(deep_file())
    images, labels = np.zeros((1, 8, 8, 16), np.float32), np.zeros(1, np.int64)

    def unexpected(*_):
        raise AssertionError("a norm was computed")

    monkeypatch.setattr(integer_network, "norm_upper_bound", unexpected)
    monkeypatch.setattr(integer_network, "measure", unexpected)
    said = r"deep\.tflite.*limits=Limits\(norm_operations=\d+\), or --cost-limit norm_operations="
    with pytest.raises(ValueError, match=said):
        certify(path, images, labels, method="lipschitz")
    with pytest.raises(ValueError, match=said):
        lipschitz_report(str(path))
    limits = Limits(norm_operations=10**12)
    with pytest.raises(AssertionError, match="was computed"):
        certify(path, images, labels, method="lipschitz", limits=limits)


@pytest.mark.parametrize("name", ["norm_operations", "norm_bytes"])
def test_the_number_in_the_error_is_enough(name: str) -> None:
    graph = GraphBuilder((6, 6, 1), 0).conv(2).mean().dense(3).graph
    content = write(graph)
    images, labels = np.zeros((2, 6, 6, 1), np.float32), np.zeros(2, np.int64)
    cost = cost_of_norms(graph)
    needed = {"norm_operations": cost.operations, "norm_bytes": cost.bytes}[name]
    with pytest.raises(ValueError, match=f"{name}={needed}"):
        certify(content, images, labels, limits=Limits(**{name: needed - 1}))
    found = certify(content, images, labels, limits=Limits(**{name: needed}))
    # A graph that this process made is not limited.
    own = certify(graph, images, labels, limits=Limits(**{name: 1}))
    np.testing.assert_array_equal(found.radius, own.radius)


@pytest.mark.parametrize(("size", "batches"), [(256, 2), (8, 1)])
def test_a_proof_takes_as_many_samples_at_once_as_fit_into_memory(size: int, batches: int) -> None:
    graph = GraphBuilder((size, size, 1), 0).conv(2).mean().dense(3).graph
    images, labels = np.zeros((2, size, size, 1), np.float32), np.zeros(2, np.int64)
    told = []
    certify(graph, images, labels, "linf", max_steps=1, progress=lambda *p: told.append(p))
    assert told[-1] == (batches, batches)


def test_an_average_over_a_long_axis_is_counted() -> None:
    long, short = (
        cost_of_norms(GraphBuilder((size, 2, 1), 0).pool("AVERAGE_POOL_2D").mean().dense(3).graph)
        for size in (4096, 16)
    )
    assert long.operations > 2048**2 * 4096 > short.operations
    assert long.bytes > 2048 * 4096 * 8 > short.bytes


@pytest.mark.parametrize("padding", ["same", "valid"])
@pytest.mark.parametrize(("size", "pool", "stride"), [(7, 3, 1), (9, 3, 2), (8, 2, 3), (5, 5, 1)])
def test_pools_against_their_windows_one_by_one(
    size: int, pool: int, stride: int, padding: str
) -> None:
    before, after = same_padding(size, pool, stride) if padding == "same" else (0, 0)
    rows = []
    for start in range(-before, size + after - pool + 1, stride):
        rows.append([float(start <= place < start + pool) for place in range(size)])
    covered = np.array(rows)
    assert max_pool_axis(size, pool, stride, padding) ** 2 == pytest.approx(covered.sum(0).max())
    mean = covered / covered.sum(1, keepdims=True)
    norm = np.linalg.svd(mean, compute_uv=False)[0]
    assert average_pool_axis(size, pool, stride, padding) == pytest.approx(norm)
