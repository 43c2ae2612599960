"""What MINIMUM and MAXIMUM demand: two activations of one shape and grid."""

from __future__ import annotations

from tflite_export.ir.graph import Operator, Tensor
from tflite_export.ops import checks, spec


def check_choice(operator: Operator, operands: spec.Operands, output: Tensor) -> spec.Shape:
    """Check the smaller or larger of two activations."""
    del operator
    present = checks.operands_of(operands, 2, 2)
    checks.same_grid([*present, output])
    checks.require(not any(tensor.is_constant for tensor in present), "an operand is a constant")
    checks.require(
        present[0].shape == present[1].shape,
        f"shapes {present[0].shape}, {present[1].shape} differ",
    )
    return present[0].shape
