"""Proof that a file computes in integers only: every operand of every operator."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from tflite_export.files.read import load, naming, read, subgraph_count
from tflite_export.ir.limits import DEFAULT, Limits

INTEGER_TYPES = ("int4", "int8", "uint8", "int16", "int32", "int64")
"""The types that an operand may have."""


@dataclass(frozen=True)
class IntegerProof:
    """What `integer_only` found; true in a condition if the file is integer only.

    Attributes:
        operators: number of operators looked at.
        operands: number of operands looked at.
        offenders: one line for each operand or operator that is not in integers.
    """

    operators: int
    operands: int
    offenders: tuple[str, ...]

    def __bool__(self) -> bool:
        """Whether there are no offenders."""
        return not self.offenders

    def __str__(self) -> str:
        """The finding in words."""
        if not self.offenders:
            return f"integer only: {self.operators} operators, {self.operands} operands"
        return "not integer only:\n" + "\n".join(f"  {line}" for line in self.offenders)


def integer_only(tflite: str | Path | bytes, limits: Limits = DEFAULT) -> IntegerProof:
    """Prove that a file computes in integers only, or name every operand that is not an integer.

    Works on any ``.tflite`` file. Only for exports with ``input_type="float32"`` it names the
    operators at the border.

    Args:
        tflite: path or bytes of the file.
        limits: how many operators it may have, and how many bytes it may unpack to.

    Returns:
        The proof; ``if integer_only(path): ...``.

    Raises:
        ValueError: if the file is damaged; names it.
    """
    data = load(tflite)
    with naming(tflite):
        graph = read(data, strict=False, limits=limits)
        subgraphs = subgraph_count(data, limits)
    offenders: list[str] = []
    operands = 0
    if subgraphs != 1:
        offenders.append(f"{subgraphs} subgraphs: only one can be looked through")
    for position, operator in enumerate(graph.operators):
        where = f"operator {position} ({operator.kind})"
        if operator.kind == "DEQUANTIZE":
            offenders.append(f"{where} turns integers into floats")
        for role, indices in (("input", operator.inputs), ("output", operator.outputs)):
            for index in indices:
                operands += 1
                if index < 0:
                    offenders.append(f"{where}: an {role} is missing")
                elif graph.tensors[index].dtype not in INTEGER_TYPES:
                    tensor = graph.tensors[index]
                    offenders.append(f"{where}: {role} {tensor.name!r} is {tensor.dtype}")
    return IntegerProof(len(graph.operators), operands, tuple(offenders))
