"""The integer twin: a Keras 3 model of the deployed integers, with gradients."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import keras
import numpy as np
from keras import ops

from tflite_export.files.read import naming
from tflite_export.files.validate import check_graph, validate
from tflite_export.ir.graph import DTYPES, IntegerGraph, Tensor
from tflite_export.ir.limits import DEFAULT, UNLIMITED, Limits
from tflite_export.ops import OPERATORS
from tflite_export.ops.spec import KERNEL_SETS
from tflite_export.ops.twin_rounding import to_centred
from tflite_export.ops.twin_site import Kernel, Site
from tflite_export.runtime.in_use import integers_in_use
from tflite_export.runtime.input_check import check_inputs, check_shape


class IntegerTwin(keras.Model):
    """Computes what the exported file computes, on every integer, and can be differentiated.

    Called like the trained model: float images in, dequantized outputs out. Rounding passes the
    gradient through (straight-through), so a white-box attack on the twin attacks exactly the
    function that ships. It runs on the backend of Keras (TensorFlow, JAX or PyTorch) and has the
    same integers on each.

    Args:
        model: a quantization-aware model of ``tfdq.quantize_model``, an `IntegerGraph`, an exported
            model, or a ``.tflite`` file as path or bytes.
        kernels: the kernel set to compute as, a key of `ops.spec.KERNEL_SETS`; ``"xnnpack"`` is
            LiteRT's default.
        name: of the model.
        limits: what a file may cost.

    Raises:
        ValueError: for a damaged file, one that costs more than its limits, a layer or operator
            that is not supported, or an unknown
            kernel set.

    Example:
        >>> twin = IntegerTwin("model.tflite")                # doctest: +SKIP
        >>> twin(images), twin.integers(images)               # doctest: +SKIP
    """

    def __init__(
        self,
        model: Any,
        *,
        kernels: str = "xnnpack",
        name: str = "integer_twin",
        limits: Limits = DEFAULT,
    ) -> None:
        # A mixed-precision policy would round the images before they are quantized.
        super().__init__(name=name, dtype="float32", autocast=False)
        if kernels not in KERNEL_SETS:
            raise ValueError(f"kernels is {kernels!r}; known: {', '.join(KERNEL_SETS)}")
        self.kernels = kernels
        self._source = graph_of(model, limits)
        self._held: list[keras.Variable] = []
        with naming(model):
            self._steps = self._build()
        self.built = True

    def _build(self) -> list[tuple[Kernel, tuple[int, ...], int]]:
        """The kernels in order, each with the tensors it reads and the one it computes."""
        spans = _centred_spans(self._source)
        steps = []
        for output, operator in self._source.activations():
            present = [i for i in operator.inputs if i >= 0]
            tensors = [self._source.tensors[i] for i in present]
            spec = OPERATORS[operator.kind]
            place = operator.outputs.index(output)
            step = spec.step(operator, tensors, self._source.tensors[output], self.kernels, place)
            site = Site(
                operator,
                tensors,
                step.output,
                [spans.get(i, (0, 0)) for i in present],
                step.kernels,
                step.xnnpack,
                self._hold,
                place,
            )
            moving = tuple(i for i, t in zip(present, tensors, strict=True) if not t.is_constant)
            twin = import_module(f"tflite_export.ops.{spec.twin}")
            steps.append((twin.build(site), moving, output))
        return steps

    def _hold(self, values: np.ndarray) -> keras.Variable:
        """Keep an array as a variable; a compiler could fold a constant."""
        array = np.array(values)
        variable = keras.Variable(array, dtype=array.dtype.name, trainable=False, autocast=False)
        self._held.append(variable)
        return variable

    @property
    def graph(self) -> IntegerGraph:
        """The integer graph that is computed."""
        return self._source

    @property
    def input_shape(self) -> tuple[int | None, ...]:
        """Shape of the (first) input; None for the batch."""
        return _open(self._source.tensors[self._source.inputs[0]].shape)

    @property
    def output_shape(self) -> tuple[int | None, ...]:
        """Shape of the (first) output; None for the batch."""
        return _open(self._source.tensors[self._source.outputs[0]].shape)

    def call(self, inputs: Any, training: bool | None = None) -> Any:
        """Float images in, dequantized outputs out.

        Args:
            inputs: float32, shape ``(n, ...)``, on the scale of the training data; a list for
                several inputs.
            training: ignored; the twin computes the same always.

        Returns:
            float32, shape ``(n, ...)``; a list for several outputs.
        """
        del training
        results = self.reals(inputs, self._source.outputs)
        return results[0] if len(results) == 1 else results

    def predict(self, x: Any, *args: Any, **kwargs: Any) -> Any:
        """Return outputs, after the checks of a call; see ``keras.Model.predict``."""
        return super().predict(self._checked(x), *args, **kwargs)

    def predict_on_batch(self, x: Any) -> Any:
        """Return outputs, after the checks of a call; see ``keras.Model.predict_on_batch``."""
        return super().predict_on_batch(self._checked(x))

    def evaluate(self, x: Any, *args: Any, **kwargs: Any) -> Any:
        """Return loss and metrics, after the checks of a call; see ``keras.Model.evaluate``."""
        return super().evaluate(self._checked(x), *args, **kwargs)

    def test_on_batch(self, x: Any, *args: Any, **kwargs: Any) -> Any:
        """Return loss and metrics, after the checks; see ``keras.Model.test_on_batch``."""
        return super().test_on_batch(self._checked(x), *args, **kwargs)

    def _checked(self, x: Any) -> Any:
        """Return inputs that were checked; compiled, the twin cannot look at them.

        Args:
            x: arrays or tensors, or batches of them, with or without labels.
        """
        if isinstance(x, np.ndarray | list) or ops.is_tensor(x):
            self._check(x)
            return x
        batches = (x[i] for i in range(len(x))) if isinstance(x, keras.utils.PyDataset) else x
        return self._checked_batches(batches)

    def _checked_batches(self, batches: Iterable[Any]) -> Iterator[tuple[Any, ...]]:
        for batch in batches:
            parts = batch if isinstance(batch, tuple) else (batch,)
            self._check(parts[0])
            yield parts

    def _check(self, inputs: Any) -> None:
        given = inputs if isinstance(inputs, list | tuple) else [inputs]
        arrays = [ops.convert_to_numpy(value) for value in given]
        check_inputs(arrays if len(arrays) > 1 else arrays[0], self._source)

    def reals(self, inputs: Any, indices: Sequence[int]) -> list[Any]:
        """Dequantized values of any tensors that are computed, with gradients.

        Args:
            inputs: as for calling the twin.
            indices: which tensors of the graph.

        Returns:
            One float32 tensor ``(n, ...)`` of the backend for each index.
        """
        values = self._values(inputs)
        tensors = self._source.tensors
        return [
            values[i] if tensors[i].quantization is None else values[i] * float(tensors[i].scale)
            for i in indices
        ]

    def integers(self, inputs: Any) -> Any:
        """The raw output integers.

        Args:
            inputs: floats as for calling the twin, or integers on the input grid (in the type of
                the file's input).

        Returns:
            Integers in the output's type, shape ``(n, ...)``; a list for several outputs. Where the
            file's output is float32, the integers that its last operator dequantizes.
        """
        values = self._values(inputs)
        results = [
            self._as_integers(values, self._source.integer_output(i)) for i in self._source.outputs
        ]
        return results[0] if len(results) == 1 else results

    def activations(self, inputs: Any) -> dict[int, Any]:
        """The integers of the inputs and of every tensor that is computed, by index."""
        values = self._values(inputs)
        return {
            index: self._as_integers(values, index)
            for index in values
            if self._source.tensors[index].quantization is not None
        }

    def _as_integers(self, values: dict[int, Any], index: int) -> Any:
        tensor = self._source.tensors[index]
        zero_point = 0.0 if tensor.quantization is None else float(tensor.zero_point)
        return ops.cast(values[index] + zero_point, DTYPES[tensor.dtype].name)

    def _values(self, inputs: Any) -> dict[int, Any]:
        """Centred integers (or floats) of every tensor."""
        given = list(inputs) if isinstance(inputs, list | tuple) else [inputs]
        indices = self._source.inputs
        if len(given) != len(indices):
            raise ValueError(f"{len(given)} inputs given, the model takes {len(indices)}")
        values: dict[int, Any] = {}
        tensors = [ops.convert_to_tensor(value) for value in given]
        if not any(_is_traced(tensor) for tensor in tensors):
            self._check(tensors)
        for index, value in zip(indices, tensors, strict=True):
            values[index] = _centred_input(value, self._source.tensors[index])
        for kernel, moving, output in self._steps:
            values[output] = kernel([values[i] for i in moving])
        return values


def as_array(values: Any) -> np.ndarray:
    """What a twin computed, a tensor of Keras' backend, as an array."""
    return np.asarray(ops.convert_to_numpy(values))


def graph_of(model: Any, limits: Limits = DEFAULT) -> IntegerGraph:
    """The integer graph of a trained model, an exported model, a file, a twin or a graph.

    Args:
        model: see `IntegerTwin`.
        limits: what a file may cost; an exported model is not limited.

    Raises:
        ValueError: if it can't be made.
    """
    if isinstance(model, IntegerGraph):
        check_graph(model)
        return model
    if isinstance(model, IntegerTwin):
        return model.graph
    if isinstance(model, str | Path | bytes):
        return validate(model, limits)
    content = getattr(model, "content", None)
    if isinstance(content, bytes):
        return validate(content, UNLIMITED)
    from tflite_export.lowering.lower import lower
    from tflite_export.lowering.trained import trained

    return lower(trained(model).description).graph


def _open(shape: tuple[int, ...]) -> tuple[int | None, ...]:
    return tuple(None if size < 0 else size for size in shape)


def _is_traced(tensor: Any) -> bool:
    """Whether a tensor stands for values that are not there yet."""
    if keras.backend.backend() == "jax":
        import jax

        return isinstance(tensor, jax.core.Tracer)
    # TensorFlow's symbolic tensors have no values
    return isinstance(tensor, keras.KerasTensor) or not hasattr(tensor, "numpy")


def _centred_input(value: Any, tensor: Tensor) -> Any:
    if value.shape is not None and getattr(value.shape, "rank", 0) is not None:
        check_shape(list(value.shape), tensor)
    if tensor.quantization is None:
        return ops.cast(value, "float32")
    if ops.dtype(value) == DTYPES[tensor.dtype].name:
        return ops.cast(value, "float32") - float(tensor.zero_point)
    return to_centred(ops.cast(value, "float32"), tensor)


def _centred_spans(graph: IntegerGraph) -> dict[int, tuple[int, int]]:
    """The smallest and largest ``q - zero_point`` that each tensor can hold."""
    return {
        index: (low - graph.tensors[index].zero_point, high - graph.tensors[index].zero_point)
        for index, (low, high) in integers_in_use(graph).items()
    }
