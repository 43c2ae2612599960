"""Export a trained model as an integer ``.tflite`` file, with the proof in the same step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from tflite_export.conversion.parity import Pairing, ParityReport, compare
from tflite_export.conversion.statistics import warn_of_statistics
from tflite_export.files.cost import count_macs
from tflite_export.files.metadata import (
    GOLDEN_NAME,
    MODEL_NAME,
    GoldenVectors,
    facts_of,
    labels_of,
    pack_facts,
    pack_golden,
)
from tflite_export.files.validate import validate
from tflite_export.files.write import write
from tflite_export.ir.affine import dequantize, quantize
from tflite_export.ir.graph import IntegerGraph
from tflite_export.ir.limits import UNLIMITED
from tflite_export.lowering.lower import Lowered, lower
from tflite_export.lowering.trained import trained
from tflite_export.runtime.in_use import integers_in_use
from tflite_export.runtime.inspection import describe
from tflite_export.runtime.interpreter import Interpreter
from tflite_export.twin.integer_twin import IntegerTwin, as_array

LARGEST_LAYER_DIFFERENCE = 1
"""Steps a layer's integers may be off, given the same input: a tie rounded the other way."""

SMALLEST_LAYER_SHARE = 0.7
"""Share of a layer's integers that must be the trained layer's, given the same input.

Nearly all are, but for layers with so few bits and inputs that their sums are often ties, and
for int4 weights, whose kernels round twice.
"""

SMALLEST_AGREEMENT = {"int8": 0.99, "int4": 0.95}
"""Share of class decisions that must be the trained model's, by type of the weights."""

_VERIFY_MACS = 1e10
_VERIFY_SAMPLES = (8, 256)
_SMALLEST_GOLDEN = 4
_GOLDEN_BYTES = 1 << 16


class ParityError(ValueError):
    """The exported file does not compute what was trained, beyond the stated bound.

    Attributes:
        report: the parity report that shows where.
    """

    def __init__(self, message: str, report: ParityReport) -> None:
        super().__init__(f"{message}\n{report}")
        self.report = report


@dataclass(frozen=True)
class ExportedModel:
    """An exported network.

    Attributes:
        content: the bytes of the ``.tflite`` file.
        parity: how it was verified.
        path: where it was written, or None.
    """

    content: bytes
    parity: ParityReport
    path: Path | None = None

    @cached_property
    def graph(self) -> IntegerGraph:
        """The integer graph in the file."""
        return validate(self.content, UNLIMITED)

    @property
    def labels(self) -> list[str]:
        """Names of the classes; empty if none were given."""
        return labels_of(self.graph)

    @property
    def facts(self) -> dict[str, Any]:
        """What the file says about itself: bits, input, how it was verified, measured accuracy."""
        return facts_of(self.graph)

    @property
    def quantization(self) -> list[dict[str, Any]]:
        """Grids, bits in use and multiply-accumulates of each operator (`inspection.describe`)."""
        return describe(self.graph)

    def save(self, path: str | Path) -> Path:
        """Write the file; returns the path."""
        target = Path(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(self.content)
        return target

    def interpreter(self, **options: Any) -> Interpreter:
        """The model in the runtime; arguments as for `Interpreter`."""
        return Interpreter(self.content, **{"limits": UNLIMITED, **options})

    def twin(self, **options: Any) -> IntegerTwin:
        """The model on Keras' backend, with gradients; arguments as for `IntegerTwin`."""
        return IntegerTwin(self.content, **{"limits": UNLIMITED, **options})

    def __len__(self) -> int:
        """Size of the file in bytes."""
        return len(self.content)


def convert(
    qat_model: Any,
    path: str | Path | None = None,
    *,
    input_type: str = "int8",
    output_type: str | None = None,
    weights: str = "int8",
    calibration: Any = None,
    labels: Sequence[str] | None = None,
    facts: Mapping[str, Any] | None = None,
    golden: int = 24,
    min_agreement: float | None = None,
    verify_samples: int | None = None,
    round_biases: bool = True,
    input_shape: Sequence[int] | None = None,
) -> ExportedModel:
    """Export a trained model so that the deployed integers are the trained ones, and prove it.

    The file is checked before it is returned, on ``calibration``: the runtime's default kernels
    must give the integer twin's outputs on every integer; every layer, given the same input, must
    give the trained layer's integers but for ties (1 step, on at most 30 % of the integers); and,
    with real ``calibration`` data, runtime and trained model must agree on the class of at least
    ``min_agreement`` of the samples.

    Args:
        qat_model: a trained model of ``tfdq.quantize_model``.
        path: where to write the file; None to keep it in memory.
        input_type: what the caller of the file gives: ``"int8"``, ``"uint8"`` or ``"float32"``.
        output_type: what the caller gets; None for the same.
        weights: ``"int8"``, or ``"int4"`` to pack weights of at most 4 bits two to a byte: half the
            size, but slower, as XNNPACK does not take int4 convolutions.
        calibration: inputs to verify on and to take the golden vectors from, shape ``(n, ...)``, as
            the model was trained on; a list of arrays for several inputs. None: seeded noise over
            the input's range.
        labels: names of the classes, stored in the file.
        facts: what else to store, JSON-ready: ``{"input_normalization": "divide by 255",
            "clean_accuracy": 0.91}``.
        golden: number of golden vectors to store for the self-test on the device; fewer are stored
            where they would make up more than a fifth of the file. 0 for none.
        min_agreement: the share of the class decisions that must be the trained model's; None:
            0.99, with int4 weights 0.95. One sample in doubt is always let pass.
        verify_samples: how many samples to verify on; None: up to 256, fewer for a large network.
        round_biases: first round the biases of ``qat_model``, **in place**, to the integers that
            the file stores (see `tflite_export.round_biases`): less than one accumulator unit, and
            the model you keep is then the one that ships. False leaves the model alone and accepts
            that the two differ.
        input_shape: shape of an input without the batch, such as ``(192, 192, 3)``, for a file of
            another size than a Keras 3 model of one input was trained at; weights and ranges are
            those of the model, and ``calibration`` has the new size. None: the model's own.

    Returns:
        The exported model with its parity report.

    Raises:
        TypeError: `qat_model` is no tf_keras model.
        ValueError: a layer has no integer form, a range has seen no data, an argument is wrong, or
            layers are made for one size and ``input_shape`` is another.
        ParityError: the file does not compute what was trained, beyond the bounds above.

    Warns:
        LaggingStatisticsWarning: with the statistics of the (64 or more) calibration images in each
            BatchNormalization the network decides otherwise than the file on more than 2 % of them.

    Example:
        >>> exported = convert(qat, "model.tflite", calibration=x_test[:256])     # doctest: +SKIP
        >>> print(exported.parity)                                                # doctest: +SKIP
    """
    if min_agreement is None:
        min_agreement = SMALLEST_AGREEMENT.get(weights, 0.0)
    if golden < 0 or not 0.0 <= min_agreement <= 1.0:
        raise ValueError(f"golden is {golden} (0 or more), min_agreement {min_agreement} (0..1)")
    if verify_samples is not None and verify_samples < 1:
        raise ValueError(f"verify_samples is {verify_samples}, expected at least 1")
    source = trained(qat_model, input_shape)
    lowered = lower(
        source.description, input_type=input_type, output_type=output_type, weights=weights
    )
    if round_biases:
        source.shift_offsets(lowered.biases)
    graph = lowered.graph
    if labels is not None:
        _check_labels(graph, labels)
    real = calibration is not None
    data = _inputs(graph, calibration)
    draft = write(graph)
    checked = validate(draft, UNLIMITED)
    count = verify_samples or int(
        np.clip(_VERIFY_MACS / max(count_macs(graph), 1), *_VERIFY_SAMPLES)
    )
    sample = [part[:count] for part in data]
    twin = IntegerTwin(checked)
    pairing = Pairing(source, lowered, checked)
    report, outputs = compare(draft, checked, pairing, sample, kernels=("default",), twin=twin)
    _require_layers(report, lowered.slack)
    _require_outputs(report, min_agreement if real else 0.0)
    if real:
        warn_of_statistics(source, sample, outputs)
    graph.metadata[MODEL_NAME] = pack_facts(
        {**_facts(lowered, report, labels, real), **(facts or {})}
    )
    vectors = _golden(twin, data, golden, outputs)
    if vectors is not None:
        graph.metadata[GOLDEN_NAME] = pack_golden(vectors)
    content = write(graph)
    validate(content, UNLIMITED)
    exported = ExportedModel(content, report)
    if path is None:
        return exported
    return ExportedModel(content, report, exported.save(path))


def _check_labels(graph: IntegerGraph, labels: Sequence[str]) -> None:
    classes = graph.tensors[graph.outputs[0]].shape[-1]
    if (
        isinstance(labels, str)
        or len(labels) != classes
        or not all(isinstance(n, str) for n in labels)
    ):
        raise ValueError(f"labels must be {classes} names, one for each output of the model")


def _inputs(graph: IntegerGraph, calibration: Any) -> list[np.ndarray]:
    """The calibration inputs, checked; noise where there are none."""
    tensors = [graph.tensors[i] for i in graph.inputs]
    if calibration is None:
        rng = np.random.default_rng(0)
        grids = [_input_grid(graph, i) for i in graph.inputs]
        count = _VERIFY_SAMPLES[1]
        return [
            dequantize(rng.integers(-128, 128, (count, *t.shape[1:])).astype(np.int8), grid)
            for t, grid in zip(tensors, grids, strict=True)
        ]
    try:
        parts = [
            np.asarray(p, np.float32)
            for p in (calibration if isinstance(calibration, list | tuple) else [calibration])
        ]
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"calibration is a {type(calibration).__name__} that NumPy makes no array of numbers "
            f"of ({error}); give an array (n, ...), or a list with one for each input. Of a "
            "tf.data.Dataset of (images, labels): "
            "np.concatenate([images for images, _ in dataset.take(4)])"
        ) from error
    if len(parts) != len(tensors):
        raise ValueError(f"calibration has {len(parts)} inputs, the model {len(tensors)}")
    for part, tensor in zip(parts, tensors, strict=True):
        if part.shape[1:] != tensor.shape[1:] or len(part) == 0 or len(part) != len(parts[0]):
            raise ValueError(
                f"calibration has shape {part.shape}, input {tensor.name!r} takes (n, "
                f"{', '.join(map(str, tensor.shape[1:]))}) with n of at least 1"
            )
    return parts


def _input_grid(graph: IntegerGraph, index: int) -> Any:
    """The int8 tensor behind an input."""
    if graph.tensors[index].dtype == "int8":
        return graph.tensors[index]
    return next(graph.tensors[op.outputs[0]] for op in graph.operators if op.inputs == (index,))


def _golden(
    twin: IntegerTwin, data: list[np.ndarray], count: int, known: list[np.ndarray]
) -> GoldenVectors | None:
    """Golden vectors from the first inputs, as the twin computes them.

    Args:
        twin: the twin of the graph.
        data: the inputs.
        count: how many vectors at most.
        known: the twin's outputs on the first inputs.
    """
    graph = twin.graph
    tensors = [graph.tensors[i] for i in graph.inputs]
    feeds = [
        part if tensor.quantization is None else quantize(part, tensor)
        for part, tensor in zip(data, tensors, strict=True)
    ]
    sample_bytes = sum(feed[0].nbytes for feed in feeds)
    room = max(_GOLDEN_BYTES, graph.constant_bytes() // 4)
    count = min(count, max(_SMALLEST_GOLDEN, room // sample_bytes), len(feeds[0]))
    if not count:
        return None
    feeds = [feed[:count] for feed in feeds]
    if count <= len(known[0]):
        return GoldenVectors(feeds, [values[:count] for values in known])
    results = twin.integers(feeds if len(feeds) > 1 else feeds[0])
    outputs = results if isinstance(results, list) else [results]
    return GoldenVectors(feeds, [as_array(value) for value in outputs])


def _require_layers(report: ParityReport, slack: Mapping[str, int]) -> None:
    """Every layer, given the same input, gives the trained layer's integers but for ties.

    Raises:
        ParityError: one does not.
    """
    if not report.exact:
        raise ParityError("the runtime does not compute the twin's integers", report)
    for layer in report.layers:
        if layer.left != "model":
            continue
        allowed = LARGEST_LAYER_DIFFERENCE + slack.get(layer.tensor, 0)
        if layer.largest > allowed or (
            layer.tensor not in slack and layer.identical < SMALLEST_LAYER_SHARE
        ):
            raise ParityError(
                f"layer {layer.tensor!r} computes other integers than were trained: "
                f"{layer.identical:.2%} identical, largest difference {layer.largest} steps, "
                f"allowed {allowed}",
                report,
            )


def _require_outputs(report: ParityReport, min_agreement: float) -> None:
    """Runtime and trained model decide alike.

    Raises:
        ParityError: on too many samples they do not.
    """
    agreement = report.agreement
    if agreement is None:
        return
    allowed = max(1, int((1.0 - min_agreement) * report.samples))
    if round((1.0 - agreement) * report.samples) > allowed:
        raise ParityError(
            f"the runtime decides as the trained model on {agreement:.2%} of the samples, "
            f"less than {min_agreement:.2%}",
            report,
        )


def _facts(
    lowered: Lowered, report: ParityReport, labels: Sequence[str] | None, real: bool
) -> dict[str, Any]:
    """What the file says about itself."""
    graph = lowered.graph
    grid = _input_grid(graph, graph.inputs[0])
    low, high = integers_in_use(graph).get(graph.inputs[0], (-128, 127))
    ends = [float(grid.scale) * (q - grid.zero_point) for q in (-128, 127)]
    calls = [call for call in lowered.description.calls if call.bits is not None]
    betas = sorted({call.penalty for call in calls if call.penalty is not None})
    agreement = report.agreement
    return {
        "name": graph.name,
        "labels": list(labels) if labels is not None else None,
        "input": {"range": ends, "integers": [low, high]},
        "bits": {call.label: list(call.bits) for call in calls if call.bits is not None},
        "beta": betas[0] if len(betas) == 1 else betas,
        "verified": {
            "runtime": report.runtime,
            "kernels": report.kernels,
            "samples": report.samples,
            "data": "calibration" if real else "noise",
            "identical_to_twin": min(c.identical for c in report.between("twin", report.default)),
            "top1_agreement_with_trained": agreement,
        },
    }
