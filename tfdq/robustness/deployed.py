"""A deployed file as a classifier: its logits, its decision, and the gradients of its twin."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tflite_export.files.validate import validate
from tflite_export.ir.affine import dequantize
from tflite_export.ir.decision import without_decision
from tflite_export.ir.graph import INTEGER_RANGES, IntegerGraph
from tflite_export.ir.limits import UNLIMITED, Limits
from tflite_export.runtime.input_check import grid_of
from tflite_export.runtime.interpreter import Interpreter

if TYPE_CHECKING:
    from tflite_export import IntegerTwin

# They give the numbers before them another form, and change no decision.
_FORMS = ("DEQUANTIZE", "QUANTIZE", "RESHAPE")
_PROBABILITIES = ("SOFTMAX", "LOGISTIC")
_EVEN = 0.5


class TwinScores:
    """An integer twin as a function from images to logits.

    Where the network ends in ARG_MAX, the scores are those before it; where they come from a
    softmax or a sigmoid, the logits are those before that. Classes that the 8-bit probabilities
    cannot tell apart are tied as they tie them, so that the largest logit is the decision of the
    file; gradients are those of the logits. The ends of the input's grid stop no gradient: a white
    pixel often lies beyond the last integer (1.0 on a grid of -1 to 127/128), and a zero slope
    there would hide from an attack that the pixel can be made darker.

    Args:
        twin: The twin, of one input and one output.

    Attributes:
        graph: What the twin computes, up to the scores.
        logits_known: The network ends in a softmax or a sigmoid, so that these are logits for
            certain.

    Raises:
        ValueError: Several inputs or outputs, or an output that is not one score for each class.
    """

    def __init__(self, twin: IntegerTwin) -> None:
        self.graph = without_decision(twin.graph)
        self._twin = twin
        self._before = logits_before_probabilities(self.graph)
        self.logits_known = self._before is not None
        check_classifier(self.graph, twin.name)
        self._ends = _inside_the_grid(self.graph)

    @property
    def model(self) -> IntegerTwin:
        """The twin."""
        return self._twin

    def __call__(self, x: Any) -> Any:
        """Logits of float32 images (n, ...), float32 (n, classes), on Keras' backend."""
        from keras import ops

        from tflite_export.ops.twin_rounding import with_gradient

        if self._ends is not None:
            x = with_gradient(ops.clip(x, *self._ends), x)
        tensors = [i for i in (self._before, self.graph.outputs[0]) if i is not None]
        scores = [ops.reshape(v, (-1, v.shape[-1])) for v in self._twin.reals(x, tensors)]
        if self._before is None:
            return scores[0]
        logits, probabilities = scores
        if logits.shape[-1] == 1:
            decided = ops.where(probabilities > _EVEN, logits, ops.minimum(logits, 0.0))
            return with_gradient(decided, logits)
        decision = ops.argmax(probabilities, axis=1, keepdims=True)
        most = ops.take_along_axis(logits, decision, axis=1)
        return with_gradient(ops.minimum(logits, most), logits)


class DeployedFile:
    """A ``.tflite`` file that LiteRT runs and its integer twin differentiates.

    Args:
        path: The file.
        threads: Of LiteRT.
        batch_size: Images that go through LiteRT at once.
        limits: What the file may cost.

    Attributes:
        graph: What the file computes, up to its scores where it ends in ARG_MAX.
        logits_known: The file ends in a softmax or a sigmoid, so that its logits are known to be
            logits.

    Raises:
        ValueError: The file is damaged or costs too much, holds an operator that is not supported,
            or is no classifier of one input and one output; names the file.
    """

    def __init__(self, path: Path, *, threads: int, batch_size: int, limits: Limits) -> None:
        whole = validate(path, limits)
        self.graph = without_decision(whole)
        check_classifier(self.graph, repr(str(path)))
        before = logits_before_probabilities(self.graph)
        self.logits_known = before is not None
        self._twin: TwinScores | None = None
        as_it_is = before is None and self.graph is whole
        # The second file is ours, and was within the limits with its own output.
        self._interpreter = Interpreter(
            path if as_it_is else _of_scores(self.graph, before),
            threads=threads,
            batch_size=batch_size,
            limits=limits if as_it_is else UNLIMITED,
        )

    def logits(self, x: np.ndarray) -> np.ndarray:
        """What LiteRT computes, float32 (n, classes); see `TwinScores`."""
        found = self._interpreter.predict(x)
        if not self.logits_known:
            return found.reshape(len(x), -1)
        logits, probabilities = (part.reshape(len(x), -1) for part in found)
        if logits.shape[1] == 1:
            return np.where(probabilities > _EVEN, logits, np.minimum(logits, 0))
        decision = np.argmax(probabilities, axis=1)
        return np.minimum(logits, logits[np.arange(len(logits)), decision][:, np.newaxis])

    @property
    def twin(self) -> TwinScores:
        """The integer twin, made when it is first asked for: it needs Keras."""
        if self._twin is None:
            from tflite_export.twin.integer_twin import IntegerTwin

            kernels = self._interpreter.kernel_set
            self._twin = TwinScores(IntegerTwin(self.graph, kernels=kernels))
        return self._twin

    @property
    def variables(self) -> Sequence[Any]:
        """The Keras variables of the twin."""
        return self.twin.model.variables

    def __call__(self, x: Any) -> Any:
        """The same logits as the twin computes them, with gradients."""
        return self.twin(x)


def logits_before_probabilities(graph: IntegerGraph) -> int | None:
    """Return the tensor that a final softmax or sigmoid takes; None where there is none."""
    producer = dict(graph.activations())
    last = producer.get(graph.outputs[0])
    while last is not None and last.kind in _FORMS:
        last = producer.get(last.inputs[0])
    return last.inputs[0] if last is not None and last.kind in _PROBABILITIES else None


def check_classifier(graph: IntegerGraph, name: str) -> None:
    """Raise if a network is not one of one input and one score for each class.

    Raises:
        ValueError: Naming what it is.
    """
    if len(graph.inputs) != 1 or len(graph.outputs) != 1:
        raise ValueError(
            f"{name} has {len(graph.inputs)} inputs and {len(graph.outputs)} outputs; attacks need "
            "a classifier with one of each"
        )
    shape = graph.tensors[graph.outputs[0]].shape
    if len(shape) < 2 or math.prod(shape[1:]) != shape[-1]:
        raise ValueError(
            f"{name} has an output of shape {shape}; a classifier with one score for each class "
            "can be attacked"
        )


def _inside_the_grid(graph: IntegerGraph) -> tuple[float, float] | None:
    """Return two numbers that are rounded to the ends of the input's grid, from within it."""
    tensor = grid_of(graph, graph.inputs[0])
    if tensor.quantization is None:
        return None
    low, high = dequantize(np.array(INTEGER_RANGES[tensor.dtype]), tensor)
    quarter = float(tensor.scale) / 4
    return float(low) + quarter, float(high) - quarter


def _of_scores(graph: IntegerGraph, before: int | None) -> bytes:
    """The file again up to its scores, with the logits an output beside them if there are any."""
    from tflite_export.files.write import write

    outputs = graph.outputs if before is None else (before, graph.outputs[0])
    return write(replace(graph, outputs=outputs, signature_outputs=(), metadata={}))
