"""A network that ends in its decision, ARG_MAX, looked at before it."""

from __future__ import annotations

from dataclasses import replace

from tflite_export.ir.graph import IntegerGraph


def without_decision(graph: IntegerGraph) -> IntegerGraph:
    """The network up to the scores whose largest a last ``ARG_MAX`` names.

    Its decision is the first of the largest scores, as the operator has it: nothing is lost.

    Args:
        graph: of one output.

    Returns:
        The graph whose output is the operand of that operator, its tensors with the same indices;
        the graph itself where it ends otherwise.
    """
    last = dict(graph.activations()).get(graph.outputs[0])
    if len(graph.outputs) != 1 or last is None or last.kind != "ARG_MAX":
        return graph
    return replace(
        graph,
        operators=[operator for operator in graph.operators if operator is not last],
        outputs=(last.inputs[0],),
        signature_outputs=(),
    )
