"""The arithmetic of every operator: reference, twin and runtime on random integers."""

from fractions import Fraction

import numpy as np
import pytest

from tests.tflite_export.graphs import GRAPHS, feeds, lacking
from tflite_export.files.validate import check_graph
from tflite_export.files.write import write
from tflite_export.ir.requantization import (
    fixed_point,
    requantization_scale,
    scale_away,
    scale_in_float32,
    scale_upward,
)
from tflite_export.ops import OPERATORS
from tflite_export.ops.spec import KERNEL_SETS, Keeps
from tflite_export.runtime.interpreter import Interpreter
from tflite_export.runtime.reference import run

SEEDS = range(8)
CHOICES = {"default": "xnnpack", "builtin": "builtin", "reference": "reference"}


def _runtime(content, values, kernels):
    return Interpreter(content, kernels=kernels).invoke(values)[0]


WRONG = {("SUM", "reference")}
"""Kernels that the runtime has, but that take int8 for uint8."""


def assert_missing(graph, values, kernels):
    """Assert that neither the runtime nor the reference runs it, and that both say why."""
    if (graph.operators[0].kind, kernels) in WRONG:
        found = Interpreter(write(graph), kernels=kernels, trusted=True).invoke(values)[0]
        assert not np.array_equal(found, _runtime(write(graph), values, "builtin"))
    else:
        with pytest.raises(ValueError, match="find op"):
            Interpreter(write(graph), kernels=kernels, trusted=True)
    for run_it in (
        lambda: run(graph, values, CHOICES[kernels]),
        lambda: Interpreter(write(graph), kernels=kernels),
    ):
        with pytest.raises(ValueError, match=f"the kernel set '{CHOICES[kernels]}' lacks it"):
            run_it()


@pytest.mark.parametrize("kernels", CHOICES)
@pytest.mark.parametrize("name", GRAPHS)
def test_reference_equals_runtime(name, kernels):
    for seed in SEEDS:
        graph = GRAPHS[name](seed)
        check_graph(graph)
        values = feeds(graph, 9, seed)
        if CHOICES[kernels] in lacking(graph)[0]:
            assert_missing(graph, values, kernels)
            continue
        results = Interpreter(write(graph), kernels=kernels).invoke(values)
        ours = run(graph, values, CHOICES[kernels])
        for index, expected in zip(graph.outputs, results, strict=True):
            if name == "dequantize" and kernels == "builtin":
                # floats out; this kernel multiplies q and zero point by the scale one by one
                room = 256 * float(graph.tensors[graph.inputs[0]].scale) * 2.0**-22
                np.testing.assert_allclose(ours[index], expected, rtol=0, atol=room)
            else:
                np.testing.assert_array_equal(ours[index], expected, err_msg=f"seed {seed}")


@pytest.mark.parametrize("name", GRAPHS)
def test_twin_equals_reference(name):
    import tensorflow as tf

    from tflite_export.twin.integer_twin import IntegerTwin

    graph = GRAPHS[name](11)
    values = feeds(graph, 5)
    # What only moves integers does so alike in all of them.
    moves = OPERATORS[graph.operators[0].kind].keeps is not Keeps.NOTHING
    (missing,) = lacking(graph)
    for kernels in ("xnnpack",) if moves else [k for k in KERNEL_SETS if k not in missing]:
        twin = IntegerTwin(graph, kernels=kernels)
        given = values if len(values) > 1 else values[0]
        call = twin if name.startswith("dequantize") else twin.integers
        found = run(graph, values, kernels)
        expected = [found[index] for index in graph.outputs]
        for got in (call(given), tf.function(call)(given)):
            each = got if isinstance(got, list) else [got]
            for ours, theirs in zip(expected, each, strict=True):
                np.testing.assert_array_equal(theirs.numpy(), ours)


def test_wide_sums_are_split_and_stay_exact():
    """Sums beyond 2**24 are not exact in one float32 convolution."""
    import dataclasses

    from tests.tflite_export.graphs import Draw
    from tflite_export.ir.graph import Convolution
    from tflite_export.twin.integer_twin import IntegerTwin

    draw = Draw(3)
    source = draw.value("x", (-1, 6, 6, 96), 0.05, -128)
    options = Convolution("SAME")
    graph = draw.weighted("CONV_2D", source, (5, 5, 5, 96), 0, options, (-1, 6, 6, 5))
    weights = graph.tensors[1]
    assert weights.data is not None
    graph.tensors[1] = dataclasses.replace(weights, data=np.abs(weights.data) | 1)
    graph.tensors[3] = dataclasses.replace(
        graph.tensors[3], quantization=type(weights.quantization).per_tensor(2000.0, -100)
    )
    values = feeds(graph, 3)
    expected = _runtime(write(graph), values, "default")
    assert len(np.unique(expected)) > 20
    np.testing.assert_array_equal(IntegerTwin(graph).integers(values[0]).numpy(), expected)
    np.testing.assert_array_equal(run(graph, values)[graph.outputs[0]], expected)


def _round_half(value: Fraction, up: bool) -> int:
    """Round an exact fraction, ties upward or away from zero."""
    whole = value.numerator // value.denominator
    rest = value - whole
    if rest != Fraction(1, 2):
        return whole + (rest > Fraction(1, 2))
    return whole + 1 if up or value > 0 else whole


@pytest.mark.parametrize("upward", [True, False])
def test_fixed_point_rounding_against_exact_fractions(upward):
    rng = np.random.default_rng(4)
    sums = np.concatenate([rng.integers(-(10**6), 10**6, 300), np.arange(-40, 41)])
    for factor in (0.75, 0.5, 0.25, 0.3, 1e-3, 7.7e-5, 1.5, 3.2):
        multiplier, shift = fixed_point(factor)
        assert 2**30 <= multiplier < 2**31
        scale = scale_upward if upward else scale_away
        ours = scale(sums[:, None], np.array([factor]))[:, 0]
        for value, result in zip(sums.tolist(), ours.tolist(), strict=True):
            shifted = value * 2 ** max(shift, 0)
            # the doubling high product takes ties up in both families
            high = _round_half(Fraction(shifted * multiplier, 2**31), upward or shifted >= 0)
            if not upward and shifted < 0:
                nudged = shifted * multiplier + 1 - 2**30
                high = -((-nudged) // 2**31)
            expected = _round_half(Fraction(high, 2 ** max(-shift, 0)), upward)
            assert result == expected, (value, factor)


def test_float_rounding_takes_ties_to_even():
    sums = np.array([1, 3, 5, -1, -3, -5])
    result = scale_in_float32(sums, np.array([0.5], np.float32))
    assert result.tolist() == [0, 2, 2, 0, -2, -2]


def test_requantization_scale_rounds_each_step():
    scale = requantization_scale(np.float32(0.1), np.array([0.3], np.float32), np.float32(0.7))
    product = np.float32(np.float32(0.1) * np.float32(0.3))
    assert scale[0] == np.float32(product / np.float32(0.7))
