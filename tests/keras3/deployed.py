"""What the runtime computes of a quantized model, tensor by tensor, next to the model."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np

from tfdq.keras3 import QuantizedModel
from tfdq.keras3.sealing import ordered
from tflite_export.files.write import write
from tflite_export.ir.affine import quantize
from tflite_export.runtime.all_outputs import expose
from tflite_export.runtime.interpreter import Interpreter


def assert_deployed(model: QuantizedModel, x: np.ndarray, compiled: bool = True) -> None:
    """Assert that model and runtime agree on every output integer, and on every inner one.

    Args:
        model: the model; its ranges have seen data.
        x: images.
        compiled: compute as ``predict`` does, not eagerly.
    """
    lowered = model.seal()
    graph = lowered.graph
    order = ordered(model)
    flows = [layer.output if layer.reals else layer.output[0] for layer in order.layers]
    outputs = keras.tree.flatten(model.outputs)
    probe = keras.Model(model.inputs, [*outputs, *flows])
    values = probe.predict([x], verbose=0) if compiled else probe([x], training=False)
    found = [keras.ops.convert_to_numpy(value) for value in values]
    interpreter = Interpreter(write(graph))
    theirs: Any = interpreter.integers(x)
    theirs = theirs if isinstance(theirs, list) else [theirs]
    for index, ours, deployed in zip(graph.outputs, found, theirs, strict=False):
        assert ours.dtype == np.float32
        np.testing.assert_array_equal(quantize(ours, graph.tensors[index]), deployed)
        # A constant would agree with anything.
        assert len(np.unique(deployed)) > 1
    tensors = expose(interpreter).run([x])
    compared = 0
    for layer, q, index in zip(order.layers, found[len(outputs) :], lowered.tensors, strict=True):
        if index in tensors and not layer.reals:
            ours = q + graph.tensors[index].zero_point
            np.testing.assert_array_equal(ours, tensors[index], err_msg=layer.name)
            compared += 1
    inner = [index for index in lowered.tensors if index not in graph.inputs]
    assert compared >= len(inner) - len(outputs)
