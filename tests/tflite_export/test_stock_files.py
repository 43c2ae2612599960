"""Files of the stock converter: reference and twin compute what LiteRT does, on every integer."""

import numpy as np
import pytest

from tests.exhaustive import only
from tests.tflite_export.stock import ENDS, NETS, converted, named
from tflite_export.files.validate import validate
from tflite_export.ir.affine import dequantize
from tflite_export.ir.graph import INTEGER_RANGES
from tflite_export.runtime.input_check import grid_of
from tflite_export.runtime.interpreter import Interpreter
from tflite_export.runtime.reference import run
from tflite_export.twin.integer_twin import IntegerTwin

CASES = [(net, kind) for net in ("residual", *NETS) for kind in ENDS]
ALWAYS = (("residual", "uint8"), ("branches", "int16"), ("blocks", "int8"))


def _inputs(graph, count):
    """Random inputs and both ends of the range, in the type of the input."""
    (index,) = graph.inputs
    grid = grid_of(graph, index)
    low, high = INTEGER_RANGES[grid.dtype]
    rng = np.random.default_rng(count)
    drawn = rng.integers(low, high + 1, (count, *grid.shape[1:]))
    drawn[:1] = low if count > 1 else high
    drawn[1:2] = high
    integers = drawn.astype(grid.dtype)
    return integers if graph.tensors[index] is grid else dequantize(integers, grid)


@pytest.mark.parametrize("case", only(CASES, *ALWAYS))
def test_every_kernel_set_is_met_on_every_integer(case):
    net, kind = case
    content = converted(named(net), kind)
    graph = validate(content)
    types = {graph.tensors[index].dtype for index, _ in graph.activations()}
    assert ("int16" in types) == (kind == "int16")
    twin = IntegerTwin(content)
    for choice, kernels in (("default", "xnnpack"), ("builtin", "builtin"), ("reference",) * 2):
        runtime = Interpreter(content, kernels=choice)
        for count in (1, 7):
            values = _inputs(graph, count)
            theirs = runtime.integers(values)
            ours = run(graph, [values], kernels)[graph.integer_output(graph.outputs[0])]
            np.testing.assert_array_equal(ours, theirs)
            if choice == "default":
                np.testing.assert_array_equal(twin.integers(values).numpy(), theirs)
                assert count == 1 or len(np.unique(theirs)) > 3


def test_operators_without_a_form_for_int16_are_all_named():
    import tf_keras

    layers = tf_keras.layers
    image = layers.Input((8, 8, 3))
    x = layers.Permute((2, 1, 3))(layers.Conv2D(4, 3)(image))
    x = layers.UpSampling2D(2)(x)
    content = converted(tf_keras.Model(image, layers.Flatten()(x)), "int16")
    said = (
        r"operator \d \(TRANSPOSE\).*; operator \d \(RESIZE_NEAREST_NEIGHBOR\).*"
        r"on int16 activations, ADD, "
    )
    with pytest.raises(ValueError, match=said):
        validate(content)
