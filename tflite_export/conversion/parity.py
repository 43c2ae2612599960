"""Compare what was trained with what is deployed, integer by integer, and say so in a report."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tflite_export.files.cost import samples_at_once
from tflite_export.files.read import load
from tflite_export.files.validate import validate
from tflite_export.ir.affine import dequantize, quantize
from tflite_export.ir.graph import IntegerGraph, Tensor
from tflite_export.ir.limits import DEFAULT, UNLIMITED, Limits
from tflite_export.runtime.all_outputs import expose
from tflite_export.runtime.interpreter import Interpreter
from tflite_export.twin.integer_twin import IntegerTwin, as_array

if TYPE_CHECKING:
    from tfdq.description import TrainedModel
    from tflite_export.lowering.lower import Lowered

_BATCH = 64
_CHUNK = 1 << 20
_TWIN_BYTES = 3
"""Bytes that are held for one byte of an activation, its readers' padding and windows counted.

The twin and the trained layers hold a float32 each; padding and windows come and go.
"""


@dataclass(frozen=True)
class Comparison:
    """Two computations of one tensor.

    Attributes:
        left: who computed it: ``"model"`` (the trained Keras model), ``"twin"``.
        right: ``"twin"``, or the runtime and its kernel set, ``"ai-edge-litert 2.3.0 (xnnpack)"``.
        tensor: name of the tensor.
        identical: share of identical integers, 0..1.
        largest: largest difference, in steps of the tensor's grid.
        top1: share of samples with the same largest entry, for outputs; else None.
    """

    left: str
    right: str
    tensor: str
    identical: float
    largest: int
    top1: float | None = None


@dataclass(frozen=True)
class ParityReport:
    """How far the trained model, its integer twin and the runtime agree.

    Attributes:
        samples: number of inputs compared.
        kernels: the kernel set that the twin computes as.
        runtime: the runtime and its version.
        outputs: comparisons of the outputs.
        layers: comparisons layer by layer. The twin against the runtime: the whole network, every
            tensor. The model against the twin: each layer of the trained model *given the twin's
            inputs*, so that a difference is that layer's own.
        notes: what could not be compared, and why.
    """

    samples: int
    kernels: str
    runtime: str
    outputs: tuple[Comparison, ...]
    layers: tuple[Comparison, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def exact(self) -> bool:
        """Whether the twin equals the runtime's default kernels on every output integer."""
        ours = self.between("twin", self.default)
        return bool(ours) and all(c.identical == 1.0 for c in ours)

    @property
    def default(self) -> str:
        """The runtime with its default kernels, as named in the comparisons."""
        return f"{self.runtime} ({self.kernels})"

    @property
    def agreement(self) -> float | None:
        """Top-1 agreement of trained model and runtime (default kernels); None without a model."""
        found = [c.top1 for c in self.between("model", self.default) if c.top1 is not None]
        return min(found) if found else None

    def between(self, left: str, right: str) -> list[Comparison]:
        """The comparisons of outputs between two computations."""
        return [c for c in self.outputs if (c.left, c.right) == (left, right)]

    def worst_layer(self) -> Comparison | None:
        """The layer of the trained model that its integers follow least; None without a model."""
        ours = [c for c in self.layers if c.left == "model"]
        return min(ours, key=lambda c: (-c.largest, c.identical)) if ours else None

    def as_dict(self) -> dict[str, Any]:
        """The report as JSON-ready data."""
        return asdict(self)

    def headline(self) -> str:
        """How many of the outputs' integers differ from the trained model's, and by how much."""
        found = self.between("model", self.default) or self.between("twin", self.default)
        if not found:
            return "no output was compared"
        worst = min(found, key=lambda c: (c.identical, -c.largest))
        what = "trained model" if worst.left == "model" else "integer twin"
        integers = f"of the integers of {worst.tensor} differ from the {what}'s"
        if worst.identical == 1.0:
            text = f"none {integers}"
        else:
            steps = "step" if worst.largest == 1 else "steps"
            share = max(1.0 - worst.identical, 1e-6)
            text = f"{share:.4%} {integers}, by up to {worst.largest} {steps}"
        agreed = [c.top1 for c in found if c.top1 is not None]
        return f"{text}; decisions agree on {min(agreed):.2%}" if agreed else text

    def __str__(self) -> str:
        """A headline, and a table of the outputs and the worst layers."""
        lines = [
            self.headline(),
            f"{self.samples} samples, {self.runtime}, twin of the {self.kernels} kernels",
        ]
        for comparison in self.outputs:
            top1 = "" if comparison.top1 is None else f", top-1 {comparison.top1:.2%}"
            lines.append(
                f"  {comparison.left} = {comparison.right}: {comparison.identical:.4%} of the "
                "integers of "
                f"{comparison.tensor}, largest difference {comparison.largest} steps{top1}"
            )
        broken = [c for c in self.layers if c.left == "twin" and c.identical < 1.0]
        if broken:
            first = broken[0]
            lines.append(
                f"  first layer where twin and {first.right} differ: {first.tensor} "
                f"({first.identical:.4%} identical, "
                f"{first.largest} steps)"
            )
        worst = self.worst_layer()
        if worst is not None:
            lines.append(
                f"  model = twin, layer by layer: at least {worst.identical:.4%} of the integers, "
                "at most "
                f"{worst.largest} steps ({worst.tensor})"
            )
        return "\n".join([*lines, *(f"  {note}" for note in self.notes)])


def verify(
    model: Any,
    tflite: str | Path | bytes | Any,
    x: Any,
    *,
    layers: bool = True,
    kernels: Sequence[str] = ("default", "builtin", "reference"),
    threads: int = 1,
    limits: Limits = DEFAULT,
) -> ParityReport:
    """Compare the trained model, the integer twin and the runtime on real inputs.

    Args:
        model: the model of ``tfdq.quantize_model`` that was exported, or None if there is only the
            file.
        tflite: path or bytes of the file, or an exported model.
        x: inputs, shape ``(n, ...)`` float32; a list of arrays for several inputs.
        layers: compare every layer too.
        kernels: kernel sets of the runtime to run; the first is the one that ``exact`` is about.
        threads: threads of the runtime.
        limits: what a file may cost; an exported model is not limited.

    Returns:
        The report.

    Raises:
        ValueError: if the file is damaged, ``x`` is empty or of a wrong shape, or the file was not
            exported from the model.
    """
    content = getattr(tflite, "content", None)
    source, limits = (content, UNLIMITED) if isinstance(content, bytes) else (tflite, limits)
    graph = validate(source, limits)
    pairing = None if model is None else _paired(model, graph)
    found, _ = compare(
        load(source), graph, pairing, x, layers=layers, kernels=kernels, threads=threads
    )
    return found


def _paired(model: Any, graph: IntegerGraph) -> Pairing:
    """The model next to a file's graph."""
    from tflite_export.lowering.lower import lower
    from tflite_export.lowering.trained import trained

    source = trained(model)
    kinds = [graph.tensors[i].dtype for i in (graph.inputs[0], graph.outputs[0])]
    int4 = any(tensor.dtype == "int4" for tensor in graph.tensors)
    lowered = lower(
        source.description,
        input_type=kinds[0],
        output_type=kinds[1],
        weights="int4" if int4 else "int8",
    )
    return Pairing(source, lowered, graph)


def compare(
    content: bytes,
    graph: IntegerGraph,
    pairing: Pairing | None,
    x: Any,
    *,
    layers: bool = True,
    kernels: Sequence[str] = ("default", "builtin", "reference"),
    threads: int = 1,
    twin: IntegerTwin | None = None,
) -> tuple[ParityReport, list[np.ndarray]]:
    """`verify` for a file that has been checked already.

    Args:
        content: the file.
        graph: its graph.
        pairing: the trained model next to it, or None.
        x: as for `verify`.
        layers: as for `verify`.
        kernels: as for `verify`.
        threads: as for `verify`.
        twin: the twin of the graph for the runtime's first kernel set; None: it is made here.

    Returns:
        The report, and the twin's integers of each output.

    Raises:
        ValueError: ``x`` is empty or of a wrong shape.
    """
    batch_size = samples_at_once(graph, _BATCH, _TWIN_BYTES)
    interpreters = [
        Interpreter(
            content,
            kernels=name,
            threads=threads,
            batch_size=batch_size,
            limits=UNLIMITED,
            graph=graph,
        )
        for name in kernels
    ]
    first = interpreters[0]
    feeds = [np.asarray(part, np.float32) for part in (x if isinstance(x, list | tuple) else [x])]
    if not feeds or len(feeds[0]) == 0:
        raise ValueError("x is empty; give some inputs to compare on")
    for index in graph.outputs:
        tensor = graph.tensors[graph.integer_output(index)]
        if tensor.quantization is None:
            raise ValueError(
                f"output {tensor.name!r} is computed in floats: no integers to compare"
            )
    if twin is None or twin.kernels != first.kernel_set:
        twin = IntegerTwin(graph, kernels=first.kernel_set)
    tally = _Tally()
    computed: list[list[np.ndarray]] = [[] for _ in graph.outputs]
    exposed = expose(first) if layers else None
    names = {interpreter: _named(interpreter) for interpreter in interpreters}
    single = len(feeds) == 1
    for start in range(0, len(feeds[0]), batch_size):
        part = [feed[start : start + batch_size] for feed in feeds]
        batch: Any = part[0] if single else part
        activations = {i: as_array(value) for i, value in twin.activations(batch).items()}
        results = [_as_list(interpreter.integers(batch)) for interpreter in interpreters]
        outputs = None if pairing is None else pairing.outputs(part)
        for position, index in enumerate(graph.outputs):
            tensor = graph.tensors[graph.integer_output(index)]
            ours = activations[graph.integer_output(index)]
            computed[position].append(ours)
            trained = None if outputs is None else quantize(outputs[position], tensor)
            if trained is not None:
                tally.add(("model", "twin", tensor.name), trained, ours, top1=True)
            for interpreter, found in zip(interpreters, results, strict=True):
                theirs = found[position]
                tally.add(("twin", names[interpreter], tensor.name), ours, theirs, top1=True)
                if trained is not None:
                    tally.add(
                        ("model", names[interpreter], tensor.name), trained, theirs, top1=True
                    )
        if exposed is not None:
            for index, theirs in exposed.run(part).items():
                key = ("twin", names[first], graph.tensors[index].name)
                tally.add(key, activations[index], theirs, layer=True)
        if pairing is not None and layers:
            for tensor, trained, ours in pairing.layers(part, activations):
                tally.add(("model", "twin", tensor.name), trained, ours, layer=True)
    notes = () if exposed is not None or not layers else (_NO_LAYERS,)
    runtime = f"{first.runtime} {first.version}"
    report = ParityReport(
        len(feeds[0]),
        first.kernel_set,
        runtime,
        tally.rows(layer=False),
        tally.rows(layer=True),
        notes,
    )
    return report, [np.concatenate(parts) for parts in computed]


_NO_LAYERS = "the runtime was not compared layer by layer: that needs ai-edge-litert"


def _named(interpreter: Interpreter) -> str:
    return f"{interpreter.runtime} {interpreter.version} ({interpreter.kernel_set})"


def _as_list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


@dataclass
class _Tally:
    """Running counts of comparisons."""

    counts: dict[tuple[bool, tuple[str, str, str]], list[int]] = field(default_factory=dict)

    def add(
        self,
        key: tuple[str, str, str],
        left: np.ndarray,
        right: np.ndarray,
        *,
        top1: bool = False,
        layer: bool = False,
    ) -> None:
        same = total = -1
        if top1 and left.ndim == 2 and left.shape[-1] > 1:
            same, total = int((left.argmax(-1) == right.argmax(-1)).sum()), len(left)
        row = self.counts.setdefault((layer, key), [0, 0, 0, 0, 0])
        flat = left.reshape(-1), right.reshape(-1)
        # The difference of two bytes fits into 16 bits.
        wide: Any = np.int16 if left.itemsize == right.itemsize == 1 else np.int64
        for start in range(0, left.size, _CHUNK):
            ours, theirs = (part[start : start + _CHUNK].astype(wide) for part in flat)
            difference = np.abs(ours - theirs)
            row[0] += int((difference == 0).sum())
            row[1] += difference.size
            row[2] = max(row[2], int(difference.max(initial=0)))
        row[3] += max(same, 0)
        row[4] += max(total, 0)

    def rows(self, layer: bool) -> tuple[Comparison, ...]:
        return tuple(
            Comparison(*key, equal / size, largest, same / total if total else None)
            for (kind, key), (equal, size, largest, same, total) in self.counts.items()
            if kind == layer
        )


class Pairing:
    """A trained model next to its integer graph, to give each layer the graph's values.

    Args:
        source: the trained model.
        lowered: its integers, lowered as those of the graph were.
        graph: the graph of the file.

    Raises:
        ValueError: the graph is not that of the model.
    """

    def __init__(self, source: TrainedModel, lowered: Lowered, graph: IntegerGraph) -> None:
        names = [tensor.name for tensor in graph.tensors]
        if sorted(names) != sorted(tensor.name for tensor in lowered.graph.tensors):
            raise ValueError(
                f"the file was not exported from model {lowered.description.name!r}: their layers "
                "differ; export the model again"
            )
        self._source = source
        self._description = lowered.description
        self._graph = graph
        self._tensors = [names.index(lowered.graph.tensors[i].name) for i in lowered.tensors]

    def outputs(self, part: list[np.ndarray]) -> list[np.ndarray]:
        """The trained model's outputs, floats."""
        return self._source.outputs(part)

    def layers(
        self, part: list[np.ndarray], activations: dict[int, np.ndarray]
    ) -> list[tuple[Tensor, np.ndarray, np.ndarray]]:
        """Each layer given the graph's integers: (tensor, model's integers, graph's integers)."""
        reals: list[np.ndarray] = []
        found = []
        for value, index in enumerate(self._tensors):
            position = value - len(part)
            sources = (
                [part[value]]
                if position < 0
                else [reals[i] for i in self._description.calls[position].sources]
            )
            result = self._source.infer(value, sources)
            tensor = self._graph.tensors[index]
            ours = activations.get(index)
            if ours is None:
                reals.append(result)
                continue
            found.append((tensor, quantize(result, tensor), ours))
            reals.append(dequantize(ours, tensor))
        return found
