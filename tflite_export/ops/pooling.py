"""What the two pools share: options on file, and what they demand."""

from __future__ import annotations

from collections.abc import Callable

from tflite_export.ir.graph import Operator, Pooling, Tensor
from tflite_export.ir.schema import OperatorSchema, OptionField, activation_field, window_fields
from tflite_export.ops import checks, spec

SCHEMA = OperatorSchema(
    Pooling,
    5,
    "Pool2DOptions",
    (
        *window_fields(0),
        OptionField("filter_w", 3, "int32"),
        OptionField("filter_h", 4, "int32"),
        activation_field(5),
    ),
)

LARGEST_INT16_WINDOW = 64
"""Pixels of which float32 has the sum, and from their mean the sum again."""


def check_pool(operator: Operator, operands: spec.Operands, output: Tensor) -> spec.Shape:
    """Check a pool: one grid for checks.image and result."""
    options = operator.options
    assert isinstance(options, Pooling)
    (source,) = checks.operands_of(operands, 1, 1)
    shape = checks.image(source)
    checks.same_grid([source, output])
    checks.check_activation(options)
    window = options.filter_h * options.filter_w
    checks.require(
        source.dtype != "int16" or window <= LARGEST_INT16_WINDOW,
        f"a window of {window} int16, expected up to {LARGEST_INT16_WINDOW}",
    )
    height = checks.output_size(shape[1], options.filter_h, options.stride_h, 1, options.padding)
    width = checks.output_size(shape[2], options.filter_w, options.stride_w, 1, options.padding)
    return (shape[0], height, width, shape[3])


def pool_norm(step: spec.Step, rule: Callable[[int, int, int, str], float]) -> float:
    """The product of a rule of `windows` over both axes."""
    options = step.operator.options
    assert isinstance(options, Pooling)
    height, width = step.inputs[0].shape[1:3]
    padding = options.padding.lower()
    return (
        rule(height, options.filter_h, options.stride_h, padding)
        * rule(width, options.filter_w, options.stride_w, padding)
        * spec.ROUND_UP
    )
