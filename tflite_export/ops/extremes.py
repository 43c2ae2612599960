"""What REDUCE_MAX and REDUCE_MIN share: one entry of each group, chosen by its size."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from tflite_export.ir.graph import Operator, Reduction, Tensor
from tflite_export.ir.schema import OperatorSchema, OptionField
from tflite_export.ops import moving, spec
from tflite_export.ops.checks import operands_of


def extreme_spec(kind: str, choose: Callable[..., Any]) -> spec.OperatorSpec:
    """Return the specification of an operator that chooses entries along axes but the batch.

    Args:
        kind: the operator.
        choose: ``np.max`` or ``np.min``.
    """

    def check(operator: Operator, operands: spec.Operands, output: Tensor) -> spec.Shape:
        assert isinstance(operator.options, Reduction)
        source, axes = operands_of(operands, 2, 2)
        moving.check_moved(source, output)
        named = moving.axes_of(axes, len(source.shape))
        return moving.reduced(source.shape, named, operator.options.keep_dims)

    def reference(step: spec.Step, operands: list[np.ndarray]) -> np.ndarray:
        assert isinstance(step.operator.options, Reduction)
        axes = moving.axes_of(step.inputs[1], len(step.inputs[0].shape))
        chosen = choose(operands[0], axis=axes, keepdims=step.operator.options.keep_dims)
        return np.asarray(chosen)

    return moving.moving_spec(
        kind,
        OperatorSchema(Reduction, 27, "ReducerOptions", (OptionField("keep_dims", 0, "bool"),)),
        check,
        reference,
        norm=spec.non_expansive,
        stacked=False,
        several=False,
    )
