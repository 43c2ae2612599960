"""What MINIMUM and MAXIMUM share: two operands of one grid, of which one may repeat."""

from __future__ import annotations

from tflite_export.ir.graph import Operator, Tensor
from tflite_export.ops import broadcasting, checks, spec


def check_choice(operator: Operator, operands: spec.Operands, output: Tensor) -> spec.Shape:
    """Check the smaller or larger of two operands, and return the shape of the result."""
    del operator
    present = broadcasting.check_pair(operands, output)
    checks.same_grid([*present, output])
    return broadcasting.broadcast(present)
