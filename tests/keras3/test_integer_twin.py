"""The integer twin on each backend: the integers of every operator, and its gradient."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import pytest

from tests.tflite_export.graphs import GRAPHS, Draw, feeds
from tfdq.robustness.attacks.losses import single_logit
from tfdq.robustness.targets import as_target
from tflite_export import IntegerTwin
from tflite_export.ir.graph import FullyConnected, IntegerGraph
from tflite_export.ops import OPERATORS
from tflite_export.ops.spec import Keeps
from tflite_export.runtime.reference import run

pytestmark = pytest.mark.backends

SEED = 11


def _one_of_each() -> dict[str, IntegerGraph]:
    """A drawn graph for each operator, by the operator's name."""
    drawn = [draw(SEED) for draw in GRAPHS.values()]
    return {graph.operators[0].kind: graph for graph in reversed(drawn)}


def _computed(twins: list[IntegerTwin], given: list[list[np.ndarray]]) -> list[list[np.ndarray]]:
    """What twins compute, all in one graph where the backend compiles: integers, floats as such."""

    def compute(given: list[Any]) -> list[list[Any]]:
        found = []
        for twin, values in zip(twins, given, strict=True):
            last = twin.graph.tensors[twin.graph.outputs[0]]
            call = twin if last.dtype == "float32" else twin.integers
            results = call(values if len(values) > 1 else values[0])
            found.append(results if isinstance(results, list) else [results])
        return found

    if keras.backend.backend() == "jax":
        import jax

        variables = [variable for twin in twins for variable in twin.variables]

        @jax.jit
        def compiled(values: list[Any], given: list[Any]) -> list[list[Any]]:
            with keras.StatelessScope(state_mapping=list(zip(variables, values, strict=True))):
                return compute(given)

        found = compiled([variable.value for variable in variables], given)
    else:
        found = compute(given)
    return [[keras.ops.convert_to_numpy(value) for value in results] for results in found]


@pytest.mark.parametrize("kernels", ["xnnpack", "reference"])
def test_every_operator_has_the_integers_of_its_reference(kernels: str) -> None:
    graphs = _one_of_each()
    assert set(graphs) == set(OPERATORS)
    if kernels != "xnnpack":  # what only moves integers does so alike in all kernel sets
        computing = [kind for kind in graphs if OPERATORS[kind].keeps is Keeps.NOTHING]
        graphs = {k: graphs[k] for k in computing if kernels not in OPERATORS[k].missing_in}
    given = [feeds(graph, 3, SEED) for graph in graphs.values()]
    twins = [IntegerTwin(graph, kernels=kernels) for graph in graphs.values()]
    for (kind, graph), values, found in zip(
        graphs.items(), given, _computed(twins, given), strict=True
    ):
        wanted = run(graph, values, kernels)
        for index, ours in zip(graph.outputs, found, strict=True):
            assert ours.dtype == wanted[index].dtype, kind
            np.testing.assert_array_equal(ours, wanted[index], err_msg=kind)


def test_the_gradient_is_straight_through() -> None:
    """Against the straight-through gradient in NumPy: a row of W, masked where the clamps act."""
    draw = Draw(5)
    source = draw.value("x", (-1, 30), 0.05, 3)
    options = FullyConnected("RELU6")
    graph = draw.weighted("FULLY_CONNECTED", source, (7, 30), 0, options, (-1, 7))
    x = np.random.default_rng(0).uniform(-7.5, 7.5, (64, 30)).astype(np.float32)
    inputs, weights, bias, output = graph.tensors
    assert weights.data is not None
    assert bias.data is not None
    steps = x * (np.float32(1) / inputs.scale)
    centred = np.clip(np.rint(steps), -128 - 3, 127 - 3)
    real = (centred @ weights.data.astype(np.float64).T + bias.data) * float(
        inputs.scale * weights.scale
    )
    highest = min(6.0, (127 - output.zero_point) * float(output.scale))
    passing = (real > 0) & (real <= highest + 1e-9)
    chosen = np.arange(64) % 7
    slopes = passing[np.arange(64), chosen, None] * weights.data[chosen] * float(weights.scale)
    target = as_target(IntegerTwin(graph))
    _, _, found = target.loss_gradient(single_logit, x, chosen, chosen.astype(np.float32))
    # the ends of the input's grid stop no gradient of an attack
    np.testing.assert_allclose(found, slopes, rtol=2e-4, atol=1e-4)


def test_a_mixed_precision_policy_changes_no_integer() -> None:
    graph = GRAPHS["convolution"](SEED)
    images = np.random.default_rng(1).uniform(-1, 1, (3, *graph.tensors[0].shape[1:]))
    images = (images * 100 * graph.tensors[0].scale).astype(np.float32)
    plain = keras.ops.convert_to_numpy(IntegerTwin(graph)(images))
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        mixed = keras.ops.convert_to_numpy(IntegerTwin(graph)(images))
    finally:
        keras.config.set_dtype_policy(before)
    np.testing.assert_array_equal(mixed, plain)
