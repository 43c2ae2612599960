"""Run an exported file on whatever TensorFlow Lite runtime is installed, without TensorFlow.

``ai-edge-litert`` is taken first, then ``tflite-runtime`` (boards of 2023 and before), then
TensorFlow's own.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tflite_export.files.cost import cost_of, samples_at_once
from tflite_export.files.metadata import GoldenVectors, golden_of, labels_of
from tflite_export.files.read import load, naming, read
from tflite_export.files.validate import check_digest, validate
from tflite_export.ir.affine import dequantize, quantize
from tflite_export.ir.graph import DTYPES, IntegerGraph, Tensor
from tflite_export.ir.limits import DEFAULT, Limits
from tflite_export.ops import OPERATORS
from tflite_export.runtime.input_check import check_inputs

_RUNTIMES = (
    ("ai_edge_litert", "ai_edge_litert.interpreter", "ai-edge-litert"),
    ("tflite_runtime", "tflite_runtime.interpreter", "tflite-runtime"),
    ("tensorflow", "tensorflow", "tensorflow"),
)
_RESOLVERS = {
    "default": "AUTO",
    "builtin": "BUILTIN_WITHOUT_DEFAULT_DELEGATES",
    "reference": "BUILTIN_REF",
}
_QUIET_SECONDS = 2.0
_MOST_THREADS = max(256, os.cpu_count() or 1)


class Interpreter:
    """A loaded model: floats in and out with `predict`, raw integers with `integers`.

    The file is validated before the runtime sees it. The batch is resized to what is given.

    Args:
        model: path or bytes of a ``.tflite`` file.
        threads: number of threads, 1 to 256, or to the number of the processor's cores where that
            is larger; more threads than cores gain nothing.
        kernels: ``"default"`` (XNNPACK where the runtime has it), ``"builtin"`` or ``"reference"``.
        runtime: ``"ai-edge-litert"``, ``"tflite-runtime"``, ``"tensorflow"``, or None for the first
            installed.
        batch_size: samples that go through the runtime at once; fewer where their activations
            would take more than 128 MiB.
        trusted: skip the check that every operator is in this package's set, for a file another
            tool made and you trust. The structure of the file is checked all the same.
        limits: what the file may cost; of a trusted file only what it unpacks to is limited.
        graph: what the file holds, where that was read and checked before; it is not read again.

    Raises:
        ValueError: for a damaged file, one that costs more than its limits, an operator outside the
            set, a wrong argument, or no runtime installed.

    Example:
        >>> model = Interpreter("model.tflite")              # doctest: +SKIP
        >>> model.predict(images).argmax(-1)                 # doctest: +SKIP
    """

    def __init__(
        self,
        model: str | Path | bytes,
        *,
        threads: int = 1,
        kernels: str = "default",
        runtime: str | None = None,
        batch_size: int = 64,
        trusted: bool = False,
        limits: Limits = DEFAULT,
        graph: IntegerGraph | None = None,
    ) -> None:
        check_threads(threads)
        if not isinstance(batch_size, int) or batch_size < 1:
            raise ValueError(f"batch_size is {batch_size!r}, expected a whole number of at least 1")
        if kernels not in _RESOLVERS:
            raise ValueError(f"kernels is {kernels!r}; choose from {', '.join(_RESOLVERS)}")
        self.content = load(model)
        self._source = model if isinstance(model, str | Path) else None
        self.limits = limits
        self.graph = _checked(model, self.content, trusted, limits) if graph is None else graph
        self.batch_size = batch_size if trusted else samples_at_once(self.graph, batch_size)
        self.threads = threads
        self._module, self.runtime, self.version = find_runtime(runtime)
        self.kernels = kernels
        with naming(model):
            if not trusted:
                self._check_kernels()
            self._interpreter = self._loaded()
        details = self._interpreter.get_input_details(), self._interpreter.get_output_details()
        self._inputs, self._outputs = ([entry["index"] for entry in part] for part in details)
        self._resizable = all(self.graph.tensors[i].shape[:1] == (-1,) for i in self.graph.inputs)
        self._batch = 1

    @property
    def input_tensors(self) -> list[Tensor]:
        """The graph's inputs: name, shape, type, grid."""
        return [self.graph.tensors[i] for i in self.graph.inputs]

    @property
    def output_tensors(self) -> list[Tensor]:
        """The graph's outputs: name, shape, type, grid."""
        return [self.graph.tensors[i] for i in self.graph.outputs]

    @property
    def labels(self) -> list[str]:
        """Names of the classes, as stored in the file; empty if there are none.

        Raises:
            ValueError: for a trusted file whose names are damaged.
        """
        with naming(self._source):
            return labels_of(self.graph)

    @property
    def kernel_set(self) -> str:
        """The arithmetic expected of this runtime and kernels, a key of `ops.spec.KERNEL_SETS`."""
        old = self.runtime == "tflite-runtime"
        if self.kernels == "default":
            return "builtin-2.14" if old else "xnnpack"
        return f"{self.kernels}-2.14" if old else self.kernels

    def _check_kernels(self) -> None:
        """Raise if the kernels lack an operator of the file."""
        for operator in self.graph.operators:
            known = OPERATORS.get(operator.kind)
            if known is not None:
                output = self.graph.tensors[operator.outputs[0]]
                known.require_kernel(output, self.kernel_set)

    def golden(self) -> GoldenVectors:
        """The golden vectors that the file carries, if running them stays within the limits.

        Raises:
            ValueError: it carries none, or they cost more than they may.
        """
        size = len(self.content)
        with naming(self._source):
            found = golden_of(self.graph, self.limits.allowed("golden", size))
            if found is None:
                raise ValueError("it carries no golden vectors; export it with golden=24")
            work = found.count * cost_of(self.graph).operations
            self.limits.require("golden_operations", work, size)
        return found

    def predict(
        self,
        x: np.ndarray | Sequence[np.ndarray],
        *,
        progress: bool | Callable[[int, int], None] = False,
    ) -> Any:
        """Run on floats: quantize, compute in integers, dequantize.

        Args:
            x: images as trained on, shape ``(n, ...)``; a list of arrays if the model has several
                inputs.
            progress: print a progress line to stderr when it takes longer than two seconds; or a
                function called with (samples done, samples in all).

        Returns:
            float32, shape ``(n, ...)``; a list if the model has several outputs.

        Raises:
            ValueError: for a wrong shape or NaN.
        """
        arrays = check_inputs(x, self.graph)
        feeds = [
            quantize(array, tensor)
            if tensor.quantization is not None
            else array.astype(DTYPES[tensor.dtype])
            for array, tensor in zip(arrays, self.input_tensors, strict=True)
        ]
        raw = self._run(feeds, progress)
        results = [
            dequantize(value, tensor) if tensor.quantization is not None else value
            for value, tensor in zip(raw, self.output_tensors, strict=True)
        ]
        return results[0] if len(results) == 1 else results

    __call__ = predict

    def integers(
        self,
        x: np.ndarray | Sequence[np.ndarray],
        *,
        progress: bool | Callable[[int, int], None] = False,
    ) -> Any:
        """The raw output integers.

        Args:
            x: floats as for `predict`, or integers already on the input grid (in the input's own
                type).
            progress: as for `predict`.

        Returns:
            The integers as the runtime gives them, shape ``(n, ...)``; a list if the model has
            several outputs. Where the file's output is float32, the integers that its last operator
            dequantizes.
        """
        feeds = []
        for array, tensor in zip(check_inputs(x, self.graph), self.input_tensors, strict=True):
            raw = array.dtype == DTYPES[tensor.dtype]
            feeds.append(array if raw else quantize(array, tensor))
        results = [
            self._integers_of(value, index)
            for value, index in zip(self._run(feeds, progress), self.graph.outputs, strict=True)
        ]
        return results[0] if len(results) == 1 else results

    def invoke(self, feeds: Sequence[np.ndarray]) -> list[np.ndarray]:
        """One call of the runtime on one batch, in the inputs' own types: what a benchmark times.

        A file whose batch is fixed at 1 is called once for each sample.

        Args:
            feeds: one array per input, all with the same number of samples.

        Returns:
            One array per output.

        Raises:
            ValueError: if the runtime refuses.
        """
        count = feeds[0].shape[0]
        if count > 1 and not self._resizable:
            parts = [self.invoke([feed[i : i + 1] for feed in feeds]) for i in range(count)]
            return [np.concatenate(column) for column in zip(*parts, strict=True)]
        try:
            if count != self._batch:
                for index, feed in zip(self._inputs, feeds, strict=True):
                    self._interpreter.resize_tensor_input(index, list(feed.shape))
                self._interpreter.allocate_tensors()
                self._batch = count
            for index, feed in zip(self._inputs, feeds, strict=True):
                self._interpreter.set_tensor(index, feed)
            self._interpreter.invoke()
            return [self._interpreter.get_tensor(index) for index in self._outputs]
        except RuntimeError as error:
            raise ValueError(
                f"{self.runtime} {self.version} failed on a batch of {count}: {error}"
            ) from error

    def all_tensors(self, feeds: Sequence[np.ndarray]) -> dict[int, np.ndarray]:
        """Every tensor that the runtime computes and lets be seen, for finding where it departs.

        Kernels of a delegate keep their results to themselves; those tensors are missing.

        Args:
            feeds: one array per input, in the inputs' own types.

        Returns:
            Values by tensor index.
        """
        if len(feeds[0]) > 1 and not self._resizable:
            each = [self.all_tensors([f[i : i + 1] for f in feeds]) for i in range(len(feeds[0]))]
            return {index: np.concatenate([found[index] for found in each]) for index in each[0]}
        interpreter = self._construct(preserve=True)
        for index, feed in zip(self._inputs, feeds, strict=True):
            interpreter.resize_tensor_input(index, list(feed.shape))
        interpreter.allocate_tensors()
        for index, feed in zip(self._inputs, feeds, strict=True):
            interpreter.set_tensor(index, feed)
        interpreter.invoke()
        values = {}
        for index, _ in self.graph.activations():
            try:
                value = np.asarray(interpreter.get_tensor(index))
            except ValueError:
                continue
            if value.shape[:1] == (len(feeds[0]),):
                values[index] = value
        return values

    def _loaded(self) -> Any:
        try:
            interpreter = self._construct(preserve=False)
            interpreter.allocate_tensors()
        except RuntimeError as error:
            raise ValueError(
                f"{self.runtime} {self.version} does not load the model: {error}"
            ) from error
        return interpreter

    def _construct(self, preserve: bool) -> Any:
        resolver = getattr(self._module, "OpResolverType", None)
        resolver = resolver or self._module.experimental.OpResolverType
        return self._module.Interpreter(
            model_content=self.content,
            num_threads=self.threads,
            experimental_op_resolver_type=getattr(resolver, _RESOLVERS[self.kernels]),
            experimental_preserve_all_tensors=preserve,
        )

    def _integers_of(self, value: np.ndarray, index: int) -> np.ndarray:
        behind = self.graph.integer_output(index)
        return value if behind == index else quantize(value, self.graph.tensors[behind])

    def _run(
        self, feeds: Sequence[np.ndarray], progress: bool | Callable[[int, int], None]
    ) -> list[np.ndarray]:
        total = len(feeds[0])
        if total == 0:
            return [np.zeros((0, *t.shape[1:]), DTYPES[t.dtype]) for t in self.output_tensors]
        step = self.batch_size if self._resizable else 1
        report = _reporter(progress)
        parts = []
        for start in range(0, total, step):
            parts.append(self.invoke([feed[start : start + step] for feed in feeds]))
            report(min(start + step, total), total)
        return [np.concatenate(column) for column in zip(*parts, strict=True)]


def check_threads(threads: int) -> None:
    """Check a number of threads; the runtime itself starts as many as it is asked for.

    Raises:
        ValueError: it is no whole number, below 1, or too large.
    """
    if not isinstance(threads, int) or not 1 <= threads <= _MOST_THREADS:
        raise ValueError(
            f"threads is {threads!r}, expected a whole number in 1 to {_MOST_THREADS}; as many as "
            "the processor has cores are best"
        )


def find_runtime(name: str | None = None) -> tuple[Any, str, str]:
    """The runtime to use.

    Args:
        name: ``"ai-edge-litert"``, ``"tflite-runtime"`` or ``"tensorflow"``; None for the first
            that is installed.

    Returns:
        (module with ``Interpreter``, name of the package, its version).

    Raises:
        ValueError: if it is not installed, or the name is unknown.
    """
    known = [package for _, _, package in _RUNTIMES]
    if name is not None and name not in known:
        raise ValueError(f"runtime is {name!r}; choose from {', '.join(known)}")
    reasons = []
    for _, path, package in _RUNTIMES:
        if name not in (None, package):
            continue
        try:
            module = importlib.import_module(path)
        except ImportError as error:
            reasons.append(f"{package}: {error}")
            continue
        module = module.lite if package == "tensorflow" else module
        return module, package, importlib.metadata.version(package)
    raise ValueError(f"no runtime: pip install ai-edge-litert ({'; '.join(reasons)})")


def _checked(
    source: str | Path | bytes, content: bytes, trusted: bool, limits: Limits
) -> IntegerGraph:
    with naming(source):
        if not trusted:
            return validate(content, limits)
        check_digest(content, limits)
        return read(content, strict=False, limits=limits)


def _reporter(progress: bool | Callable[[int, int], None]) -> Callable[[int, int], None]:
    if callable(progress):
        return progress
    began = time.monotonic()

    def line(done: int, total: int) -> None:
        if progress and time.monotonic() - began > _QUIET_SECONDS:
            end = "\n" if done == total else ""
            print(f"\r{done}/{total}", end=end, file=sys.stderr, flush=True)

    return line
