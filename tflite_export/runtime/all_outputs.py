"""A network with every activation as an output, to see inside a runtime."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from tflite_export.ir.graph import IntegerGraph, Operator
from tflite_export.ir.limits import UNLIMITED
from tflite_export.runtime.interpreter import Interpreter


@dataclass(frozen=True)
class Exposed:
    """A loaded network whose outputs are the activations.

    Attributes:
        interpreter: the runtime.
        indices: for each output the tensor of the original graph.
    """

    interpreter: Interpreter
    indices: tuple[int, ...]

    def run(self, inputs: Sequence[np.ndarray]) -> dict[int, np.ndarray]:
        """The integers of every quantized activation.

        Args:
            inputs: one array per input, floats or integers on the input grids.

        Returns:
            Integers by tensor index of the original graph.
        """
        results = self.interpreter.integers(inputs if len(inputs) > 1 else inputs[0])
        return dict(
            zip(self.indices, results if isinstance(results, list) else [results], strict=True)
        )


def expose(interpreter: Interpreter) -> Exposed | None:
    """The same network in the same runtime with every quantized activation as an output.

    Args:
        interpreter: the network.

    Returns:
        None where there is no quantized activation, or LiteRT's schema, which writing a file needs,
        is not installed.
    """
    from tflite_export.files.write import write

    graph = interpreter.graph
    indices = tuple(
        index for index, _ in graph.activations() if graph.tensors[index].quantization is not None
    )
    if not indices:
        return None
    shown = replace(
        graph,
        operators=_leading_to(indices, graph),
        outputs=indices,
        signature_outputs=(),
        metadata={},
    )
    try:
        content = write(shown)
    except ImportError:
        return None
    loaded = Interpreter(
        content,
        kernels=interpreter.kernels,
        threads=interpreter.threads,
        batch_size=interpreter.batch_size,
        runtime=interpreter.runtime,
        limits=UNLIMITED,
        graph=shown,
    )
    return Exposed(loaded, indices)


def _leading_to(indices: Sequence[int], graph: IntegerGraph) -> list[Operator]:
    """The operators that the given tensors depend on, in order."""
    needed = set(indices)
    kept = []
    for operator in reversed(graph.operators):
        if needed.intersection(operator.outputs):
            kept.append(operator)
            needed.update(operator.inputs)
    return kept[::-1]
