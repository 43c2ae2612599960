"""The self-test: does this runtime, on this processor, compute the file's golden integers?"""

from __future__ import annotations

import platform
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from tflite_export.files.metadata import GOLDEN_SOURCE, GoldenVectors, facts_of
from tflite_export.files.read import naming
from tflite_export.ir.graph import IntegerGraph, Operator
from tflite_export.ir.limits import DEFAULT, Limits
from tflite_export.ops import OPERATORS
from tflite_export.ops.spec import KERNEL_SETS
from tflite_export.runtime.all_outputs import expose
from tflite_export.runtime.interpreter import Interpreter
from tflite_export.runtime.reference import run, run_operator

_AGREEMENT_ONLY = "  This shows agreement between runtimes, not with the network that was trained."


@dataclass(frozen=True)
class Deviation:
    """A tensor where the runtime departs from the trained integers.

    Attributes:
        tensor: its name.
        operator: the operator that computes it.
        identical: share of identical integers, 0..1.
        largest: largest difference in steps.
    """

    tensor: str
    operator: str
    identical: float
    largest: int


@dataclass(frozen=True)
class SelfTest:
    """What the self-test found; true in a condition if every golden integer was met.

    Attributes:
        runtime: package and version.
        kernels: the choice of kernels tested.
        processor: as the operating system names it.
        samples: golden vectors run.
        identical: share of identical output integers, 0..1.
        largest: largest difference of an output, in steps.
        top1: share of samples with the same class, 0..1; 1.0 where the output is no list of
            classes.
        arithmetic: the known kernel sets whose arithmetic gives this runtime's outputs on every
            integer.
        deviations: where it departs, in execution order, if that could be found out.
        source: the runtime that computed the golden integers, for a copy that `with_golden` made;
            empty where they are those of the trained network.
    """

    runtime: str
    kernels: str
    processor: str
    samples: int
    identical: float
    largest: int
    top1: float
    arithmetic: tuple[str, ...] = ()
    deviations: tuple[Deviation, ...] = ()
    source: str = ""

    def __bool__(self) -> bool:
        """Whether every output integer is the golden one."""
        return self.identical == 1.0

    def __str__(self) -> str:
        """The finding in words."""
        where = f"{self.runtime}, {self.kernels} kernels, {self.processor}"
        whose = f"the integers of {self.source}" if self.source else "the trained integers"
        if self:
            found = f"PASS: {where}: all {self.samples} golden vectors give {whose}"
            return f"{found}\n{_AGREEMENT_ONLY}" if self.source else found
        lines = [
            f"DIFFERENT: {where}: {self.identical:.4%} of the output integers of {self.samples} "
            f"golden vectors are {whose}; largest difference {self.largest} steps; same class on "
            f"{self.top1:.2%}",
            "  its arithmetic is that of: "
            f"{', '.join(self.arithmetic) or 'none of the known kernel sets'}",
        ]
        lines += [
            f"  {d.operator} {d.tensor}: {d.identical:.4%} identical, up to {d.largest} steps"
            for d in self.deviations
        ]
        if self.source:
            lines.append(_AGREEMENT_ONLY)
        return "\n".join(lines)


def selftest(
    model: str | Path | bytes,
    *,
    kernels: str = "default",
    runtime: str | None = None,
    threads: int = 1,
    limits: Limits = DEFAULT,
) -> SelfTest:
    """Run the golden vectors that a file carries, and compare with the integers stored beside them.

    Args:
        model: path or bytes of an exported file.
        kernels: as for `Interpreter`.
        runtime: as for `Interpreter`.
        threads: as for `Interpreter`.
        limits: as for `Interpreter`.

    Returns:
        The finding; where the runtime departs, also in which operators.

    Raises:
        ValueError: if the file is damaged, costs more than its limits, or carries no golden
            vectors.
    """
    interpreter = Interpreter(
        model, kernels=kernels, runtime=runtime, threads=threads, limits=limits
    )
    graph = interpreter.graph
    golden = interpreter.golden()
    feeds = golden.inputs if len(golden.inputs) > 1 else golden.inputs[0]
    with naming(model):
        raw = interpreter.integers(feeds)
    outputs = raw if isinstance(raw, list) else [raw]
    differences = [
        np.abs(ours.astype(np.int64) - theirs.astype(np.int64))
        for ours, theirs in zip(outputs, golden.outputs, strict=True)
    ]
    total = sum(d.size for d in differences)
    result = SelfTest(
        runtime=f"{interpreter.runtime} {interpreter.version}",
        kernels=kernels,
        processor=platform.machine(),
        samples=golden.count,
        identical=sum(int((d == 0).sum()) for d in differences) / total,
        largest=max(int(d.max()) for d in differences),
        top1=_same_class(outputs, golden.outputs),
        source=str(facts_of(graph).get(GOLDEN_SOURCE, "")),
    )
    if result:
        return result
    return replace(
        result,
        arithmetic=_arithmetic(graph, golden, outputs),
        deviations=_deviations(graph, golden, interpreter),
    )


def _same_class(left: list[np.ndarray], right: list[np.ndarray]) -> float:
    shares = [
        float((a.argmax(-1) == b.argmax(-1)).mean())
        for a, b in zip(left, right, strict=True)
        if a.ndim == 2
    ]
    return min(shares, default=1.0)


def _arithmetic(
    graph: IntegerGraph, golden: GoldenVectors, outputs: list[np.ndarray]
) -> tuple[str, ...]:
    """The kernel sets whose reference gives the outputs; those that lack an operator can't."""
    found = []
    lacking = {
        name
        for operator in graph.operators
        for output in operator.outputs
        for name in OPERATORS[operator.kind].lacking(graph.tensors[output])
    }
    for name in KERNEL_SETS:
        if name in lacking:
            continue
        values = run(graph, golden.inputs, name)
        expected = [values[graph.integer_output(i)] for i in graph.outputs]
        if all(np.array_equal(a, b) for a, b in zip(expected, outputs, strict=True)):
            found.append(name)
    return tuple(found)


def _deviations(
    graph: IntegerGraph, golden: GoldenVectors, interpreter: Interpreter
) -> tuple[Deviation, ...]:
    """Every operator that departs from XNNPACK's arithmetic, given the runtime's own operands."""
    exposed = expose(interpreter)
    theirs = (
        interpreter.all_tensors(golden.inputs) if exposed is None else exposed.run(golden.inputs)
    )
    values = {**dict(zip(graph.inputs, golden.inputs, strict=True)), **theirs}
    for operator in graph.operators:
        _drop_overwritten(graph, operator, values)
    found = []
    for index, operator in graph.activations():
        operands = [i for i in operator.inputs if i >= 0 and not graph.tensors[i].is_constant]
        if any(i not in values for i in (index, *operands)):
            continue
        difference = np.abs(
            run_operator(graph, operator, values).astype(np.int64) - values[index].astype(np.int64)
        )
        if difference.any():
            share = float((difference == 0).mean())
            name = graph.tensors[index].name
            found.append(Deviation(name, operator.kind, share, int(difference.max())))
    return tuple(found)


def _drop_overwritten(
    graph: IntegerGraph, operator: Operator, values: dict[int, np.ndarray]
) -> None:
    """Forget operands that the runtime overwrote with the result; some compute in place."""
    result = values.get(operator.outputs[0])
    if result is None or operator.kind not in ("ADD", "MUL", "SUB"):
        return
    for index in operator.inputs:
        held = values.get(index)
        if held is not None and np.array_equal(held, result):
            del values[index]
