"""The export reads a description: one made by hand, without layers, becomes its integers."""

import subprocess
import sys

import numpy as np
import pytest

import tflite_export
from tfdq.description import (
    Activation,
    Add,
    Affine,
    Call,
    Conv2D,
    Dense,
    Description,
    Input,
    Kernel,
    MaxPool2D,
    Reshape,
)
from tfdq.grid import Grid
from tflite_export.lowering.lower import LOWERINGS, lower
from tflite_export.runtime.reference import run

IMAGE = Grid(1 / 16, -128, -128, 127)
HIDDEN = Grid(0.13, -128, -128, -113)
SUM = Grid(0.25, -120, -128, 127)
LOGITS = Grid(0.5, 3, -128, 127)


def _kernel(rng, shape, bits, signs):
    largest = 2 ** (bits - 1) - 1
    channels = shape[-1]
    return Kernel(
        rng.integers(-largest, largest + 1, shape).astype(np.int8),
        np.exp2(rng.integers(-5, -3, channels)).astype(np.float32),
        rng.uniform(0.5, 1.5, channels) * signs,
        rng.uniform(-1, 1, channels),
        bits,
    )


def _description():
    rng = np.random.default_rng(1)
    conv = _kernel(rng, (3, 3, 2, 4), 4, np.array([1, -1, 1, -1]))
    dense = _kernel(rng, (16, 3), 3, np.array([1, 1, -1]))
    factor = np.array([2.0, -1.0, 0.5, 1.0])
    calls = (
        Call("conv", Conv2D(conv, "same", (1, 1), (1, 1)), (0,), (None, 4, 4, 4), HIDDEN, "relu"),
        Call("affine", Affine(factor, factor / 4), (1,), (None, 4, 4, 4), SUM),
        Call("sum", Add((1.0, 1.0)), (1, 2), (None, 4, 4, 4), SUM, "relu6"),
        Call("relu", Activation(), (3,), (None, 4, 4, 4), HIDDEN, "relu"),
        Call("pool", MaxPool2D((2, 2), (2, 2), "valid"), (4,), (None, 2, 2, 4)),
        Call("flat", Reshape(), (5,), (None, 16)),
        Call("dense", Dense(dense), (6,), (None, 3), LOGITS),
    )
    return Description("by hand", (Input("x", "x", (None, 4, 4, 2), IMAGE),), calls, (7,))


def _linear(kernel, sums):
    return kernel.multiplier * kernel.scale * sums + kernel.offset


def _rounded(grid, reals, highest=np.inf):
    steps = np.rint(np.minimum(reals, highest) / grid.scale) + grid.zero_point
    return grid.scale * (np.clip(steps, grid.qmin, grid.qmax) - grid.zero_point)


class _ByHand:
    """The layers of `_description` in float64, from the formulas of `tfdq.description`."""

    description = _description()

    def as_trained(self):
        return self

    def outputs_with_statistics_of(self, inputs):
        return None

    def infer(self, value, sources):
        (x, *others) = [np.asarray(s, np.float64) for s in sources]
        if value == 0:
            return _rounded(IMAGE, x)
        call = self.description.calls[value - 1]
        if call.label == "conv":
            padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
            windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), (1, 2))
            kernel = call.computation.kernel
            sums = np.einsum("nhwcij,ijco->nhwo", windows, kernel.integers.astype(float))
            return _rounded(HIDDEN, np.maximum(_linear(kernel, sums), 0.0))
        if call.label == "affine":
            return _rounded(SUM, call.computation.factor * x + call.computation.offset)
        if call.label == "sum":
            return _rounded(SUM, np.maximum(x + others[0], 0.0), 6.0)
        if call.label == "relu":
            return _rounded(HIDDEN, np.maximum(x, 0.0))
        if call.label == "pool":
            return x.reshape(-1, 2, 2, 2, 2, 4).max((2, 4))
        if call.label == "flat":
            return x.reshape(-1, 16)
        kernel = call.computation.kernel
        return _rounded(LOGITS, _linear(kernel, x @ kernel.integers.astype(float)))

    def outputs(self, inputs):
        values = [self.infer(0, inputs)]
        for position, call in enumerate(self.description.calls):
            values.append(self.infer(position + 1, [values[i] for i in call.sources]))
        return [values[-1].astype(np.float32)]

    def shift_offsets(self, stored):
        self.stored = stored
        return 0.0


def test_a_description_without_layers_becomes_its_integers():
    lowered = lower(_description())
    rng = np.random.default_rng(2)
    images = rng.integers(-128, 128, (64, 4, 4, 2)).astype(np.int8)
    values = run(lowered.graph, [images])
    model = _ByHand()
    reals = []
    for value, index in enumerate(lowered.tensors):
        tensor = lowered.graph.tensors[index]
        sources = (
            [IMAGE.scale * (images.astype(float) - IMAGE.zero_point)]
            if value == 0
            else [reals[i] for i in model.description.calls[value - 1].sources]
        )
        wanted = model.infer(value, sources)
        ours = float(tensor.scale) * (values[index].astype(float) - tensor.zero_point)
        # the bias is a whole number of accumulator units: a step where a sum is close to a half
        steps = np.abs(ours - wanted) / float(tensor.scale)
        assert steps.max() < 1.001
        assert (steps < 0.001).mean() > 0.98
        reals.append(ours)


def test_any_model_that_describes_itself_is_exported_and_verified():
    model = _ByHand()
    rng = np.random.default_rng(3)
    images = rng.integers(0, 256, (64, 4, 4, 2)).astype(np.float32) / 16
    exported = tflite_export.convert(model, calibration=images, min_agreement=0.9)
    assert exported.parity.exact
    compared = {c.tensor for c in exported.parity.layers if c.left == "model"}
    assert compared >= {"conv", "affine", "sum"}
    assert set(model.stored) == {"conv", "affine", "relu", "dense"}
    assert exported.facts["bits"] == {}


def test_a_layer_that_computes_something_else_is_found():
    class Wrong(_ByHand):
        def infer(self, value, sources):
            return super().infer(value, sources) + (0.5 if value == 2 else 0.0)

    images = np.random.default_rng(3).uniform(0, 15, (64, 4, 4, 2)).astype(np.float32)
    with pytest.raises(tflite_export.ParityError, match="affine"):
        tflite_export.convert(Wrong(), calibration=images, min_agreement=0.0)


def test_every_computation_has_an_integer_form():

    from tfdq import description

    assert set(LOWERINGS) == set(description.Computation.__subclasses__())


def test_a_call_without_the_grid_it_needs_is_refused():
    description = _description()
    calls = (Call("conv", description.calls[0].computation, (0,), (None, 4, 4, 4)),)
    with pytest.raises(ValueError, match=r"'conv' .Conv2D. has no output quantizer"):
        lower(Description("no grid", description.inputs, calls, (1,)))


def test_lowering_needs_no_framework():
    program = (
        "import sys, tfdq.description, tflite_export.lowering.lower\n"
        "loaded = {'tensorflow', 'tf_keras', 'keras', 'jax', 'torch'} & set(sys.modules)\n"
        "assert not loaded, loaded\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
