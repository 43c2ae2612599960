"""Quantize a Keras 3 model defensively: the entry point of the core on Keras 3."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from tfdq.keras3.expand import expanded
from tfdq.keras3.float_model import with_problems
from tfdq.keras3.graph import Graph, at_input_shape, read_graph
from tfdq.keras3.layer_kinds import (
    InputQuantizer,
    QuantizedIdentity,
    QuantizedLayer,
    Request,
    Step,
)
from tfdq.keras3.layer_kinds.in_float import IN_FLOAT, copy_in_float
from tfdq.keras3.layer_kinds.pointwise import own_layer
from tfdq.keras3.layer_kinds.registry import OWN_LAYER
from tfdq.keras3.plan import plan
from tfdq.keras3.quantized_model import QuantizedModel
from tfdq.keras3.ranges import RangeSettings
from tfdq.keras3.settings import BetaSchedule, Settings
from tfdq.lagging_statistics import LaggingNorm, lagging_norm, warn_of_lag
from tfdq.mistakes import WrongTypeError
from tfdq.penalties.singular_values import SingularValue
from tfdq.settings.quantization import ActivationRange, KernelRange, LayerBits, Placement


def quantize_model(
    model: keras.Model,
    lipschitz_beta: float = 2e-3,
    *,
    on: Placement = "deployed",
    target: SingularValue | None = None,
    regularizer: str | keras.regularizers.Regularizer = "orthogonal",
    beta_schedule: BetaSchedule | None = None,
    weight_bits: int = 8,
    activation_bits: int = 8,
    first_last_bits: int | None = None,
    layer_bits: Mapping[str, LayerBits] | None = None,
    activation_range: ActivationRange = "moving_average",
    kernel_range: KernelRange = "max",
    input_range: tuple[float, float] | None = None,
    batch_norm_momentum: float | None = None,
    skip: Collection[str] = (),
    input_shape: Sequence[int] | None = None,
) -> QuantizedModel:
    r"""Return a quantization-aware copy of a Keras 3 model, with the Lipschitz penalty inside.

    Compile and fit it as any Keras model, on TensorFlow, JAX or PyTorch. Every convolution and
    dense layer multiplies integers, has its BatchNormalization and ReLU taken in, and rounds its
    result once, where the integer runtime rounds. At inference the model computes the integers of
    the exported file. The penalty

    .. math:: \frac{\beta}{2} \sum_l \lVert W_l^T W_l - \tau^2 I \rVert_F^2

    is among ``model.losses``. Where a BatchNormalization follows, it is blind to the kernel's
    length, as BatchNormalization is.

    Args:
        model: a built Functional or Sequential model, trained or not. It is not changed; its
            weights are copied. Nested models are flattened.
        lipschitz_beta: weight of the penalty, >= 0; 0 is vanilla quantization with the same
            quantizers.
        on: the kernel the penalty acts on: ``"deployed"`` (BatchNorm folded in, quantized),
            ``"folded"`` (BatchNorm folded in), ``"kernel"`` (the trained one).
        target: the singular value that the penalty aims at, > 0; ``"1/k"``: 1 over the square root
            of the number of taps, so that a ``k x k`` convolution at stride 1, not only its
            reshaped kernel, does not expand. By default 1 for ``"conv_orthogonal"``, which
            controls the convolution itself, and ``"1/k"`` for the others.
        regularizer: which penalty: ``"orthogonal"`` (the paper's), ``"srip"``, ``"spectral"``,
            ``"conv_orthogonal"`` (see ``tfdq.penalties``), or an object of a registered subclass
            of ``keras.regularizers.Regularizer`` with its own weight, place (attribute ``on``,
            the trained kernel without one) and target in the stead of ``lipschitz_beta``, ``on``
            and ``target``.
        beta_schedule: weight of the penalty by the training step, from 0, in the stead of the
            constant: a schedule of Keras, such as ``PolynomialDecay(0.0, 1000, 2e-3)`` for a
            linear warm-up, or a registered function that maps a float32 scalar to one, on
            ``keras.ops``. The step is counted, saved and restored with the model.
        weight_bits: bits of the kernels, 2..8; symmetric, one scale for each output channel (for
            the tensor in a Dense without BatchNormalization).
        activation_bits: bits behind a ReLU, 1..8; what is not behind one has 8.
        first_last_bits: bits, 2..8, of the layers that take the input and of the classifier, or
            None for the same as all others.
        layer_bits: bits of single layers: name -> bits, or (weight bits, activation bits).
        activation_range: ``"moving_average"``: the range of what is behind a ReLU follows the
            training batches; ``"relu6"``: every ReLU becomes ReLU6 and its range is [0, 6];
            ``"learned"``: its step trains (LSQ), from where the first batch sets it.
        kernel_range: ``"max"``: the step of a kernel follows its largest magnitude;
            ``"learned"``: it trains (LSQ), from where the kernel sets it.
        input_range: lowest and highest input value, such as (0, 1) for images divided by 255;
            None: the extremes seen in training.
        batch_norm_momentum: momentum of the moving statistics of every BatchNormalization that is
            quantized, in [0, 1); None: each keeps its own, but with a penalty on the folded or
            deployed kernel none is above 0.9. Such a penalty moves all layers, and the network
            that ships computes with the moving statistics, which must keep up: 0.9 does, Keras'
            default of 0.99 lags.
        skip: names of layers to leave in float, called with all their arguments on real values;
            what quantized layers take of them has 8 bits. Such a model trains but does not export.
        input_shape: shape of an input without the batch, such as ``(96, 96, 3)``, for a model of
            one input with axes of unknown size (``keras.Input((None, None, 3))``): an integer file
            is of one size, and so is the model that computes its integers. None: the model has
            sizes.

    Returns:
        A new, uncompiled Keras 3 model with the same inputs, outputs and layer names.

    Raises:
        TypeError: ``model`` is not a Keras 3 model.
        ValueError: a setting is out of range, a weight is not finite, the model is not built, is
            subclassed, is quantized already, or has layers that cannot be quantized (all of them
            are listed).

    Warns:
        LaggingStatisticsWarning: ``batch_norm_momentum`` is above 0.9 and a penalty on the folded
            or deployed kernel meets BatchNorms that are trained.

    Sources: Lin, Gan, Han, *Defensive Quantization*, ICLR 2019; for learned steps Esser et al.,
    *Learned Step Size Quantization*, ICLR 2020.

    Example:
        >>> qat = tfdq.keras3.quantize_model(model, activation_bits=4)  # doctest: +SKIP
        >>> qat.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    """
    settings = Settings(
        lipschitz_beta=lipschitz_beta,
        on=on,
        target=target,
        regularizer=regularizer,
        beta_schedule=beta_schedule,
        weight_bits=weight_bits,
        activation_bits=activation_bits,
        first_last_bits=first_last_bits,
        layer_bits={} if layer_bits is None else layer_bits,
        activation_range=activation_range,
        kernel_range=kernel_range,
        input_range=input_range,
        batch_norm_momentum=batch_norm_momentum,
        skip=frozenset([skip] if isinstance(skip, str) else skip),
    )
    if type(model).__module__.partition(".")[0] == "tf_keras":
        raise WrongTypeError(
            f"{model.name!r} is a tf_keras model; quantize it with tfdq.quantize_model, or build "
            "it with keras"
        )
    graph = read_graph(model)
    settings.check_names({node.layer.name for node in graph.nodes if node.inputs})
    if input_shape is not None:
        graph = at_input_shape(graph, input_shape)
    graph = expanded(with_problems(graph), settings.skip)
    steps = plan(graph, settings.skip)
    for weight in model.weights:
        if not np.isfinite(ops.convert_to_numpy(ops.cast(weight, "float32"))).all():
            raise ValueError(
                f"weight {weight.path!r} has values that are NaN or infinite; train the float "
                "model to a finite state first"
            )
    quantized = _Builder(graph, steps, settings).build(model.name)
    warn_of_lag(_lagging(steps, settings))
    return quantized


def _lagging(steps: list[Step], settings: Settings) -> list[LaggingNorm]:
    """Return the BatchNorms behind a penalized kernel whose statistics lag."""
    found = [
        lagging_norm(step.norm, settings.norm_momentum(step.norm.momentum), settings.penalized)
        for step in steps
        if step.kind.role == "kernel" and step.norm is not None
        if not (step.norm_inference or step.node.inference)
    ]
    return list(dict.fromkeys(norm for norm in found if norm is not None))


class _Builder:
    """Makes the quantized layers, calls them as the plan says, and copies the weights."""

    def __init__(self, graph: Graph, steps: list[Step], settings: Settings) -> None:
        self.graph = graph
        self.steps = steps
        self.settings = settings
        self.flows: dict[int, Any] = {}
        self.reals: dict[int, Any] = {}
        self.floats: dict[int, Any] = {}
        self.grids: dict[int, RangeSettings | int] = {}
        self.outputs: dict[int, Any] = {}
        self.names: set[str] = set()
        self.known_names = {node.layer.name for node in graph.nodes}
        self.holders: dict[tuple[str, int], str] = {}
        self.pairs: set[tuple[int, int]] = set()
        self.kept = {step.node.index for step in steps if step.kind is IN_FLOAT}
        self.ends = _end_kernels(graph, steps)
        self.normed = {id(step.node.layer) for step in steps if step.norm is not None}

    def build(self, name: str) -> QuantizedModel:
        """Return the new model with the float model's weights."""
        inputs = [self._input(index) for index in self.graph.inputs]
        loads = [
            (step, self._add_float(step) if step.kind is IN_FLOAT else self._add(step))
            for step in self.steps
        ]
        model = QuantizedModel(
            keras.tree.pack_sequence_as(self.graph.input_structure, inputs),
            keras.tree.pack_sequence_as(
                self.graph.output_structure, [self.outputs[i] for i in self.graph.outputs]
            ),
            name=name,
        )
        for step, layer in loads:
            step.kind.load(step, layer)
        return model

    def _unique(self, name: str) -> str:
        """Return a name that no layer has yet (layers are called again, nested models repeat)."""
        candidate, count = name, 1
        while candidate in self.names or (count > 1 and candidate in self.known_names):
            candidate, count = f"{name}_{count}", count + 1
        self.names.add(candidate)
        return candidate

    def _input(self, index: int) -> Any:
        layer = self.graph.nodes[index].layer
        source = keras.Input(
            batch_shape=self.graph.nodes[index].shape,
            dtype=layer.dtype,
            name=self._unique(layer.name),
        )
        settings = self.settings.input()
        quantizer = InputQuantizer(output=settings, name=self._unique(f"{layer.name}_quantizer"))
        self.flows[index] = quantizer(source)
        self.grids[index] = index if settings.fixed is None else settings
        if index in self.graph.outputs:
            self._read_out(index, layer.name)
        return source

    def _add(self, step: Step) -> QuantizedLayer:
        """Append the quantized layer of a step; returns it."""
        node, apart = step.node, step.activation in OWN_LAYER and step.kind.role == "kernel"
        is_output = step.result in self.graph.outputs
        alone = is_output and not self.graph.consumers()[step.result]
        name = self.graph.nodes[step.result].layer.name if is_output else node.layer.name
        name = self._unique(name)
        assert step.kind.quantize is not None
        common: dict[str, Any] = {
            "name": self._unique(f"{name}_logits") if apart else name,
            "frozen": node.inference,
            "reals": alone and not apart,
        }
        shares = self._shares(step, common["name"])
        if shares:
            common["shares"] = shares
        pair = (id(node.layer), 0 if self.settings.penalized == "kernel" else id(step.norm))
        repeated = pair in self.pairs
        self.pairs.add(pair)
        request = Request(
            step,
            self.settings,
            self.settings.bits_of(node.settings_name or node.layer.name, node.index in self.ends),
            tuple(self.graph.nodes[i].shape for i in node.inputs),
            tuple(self.grids[i] for i in node.inputs),
            common,
            repeated,
            id(node.layer) in self.normed,
        )
        layer = step.kind.quantize(request)
        sources = [self.flows[i] for i in node.inputs]
        flow = layer(sources if step.kind.merges else sources[0])
        self.grids[step.result] = self._origin(step, layer)
        if apart:
            flow = own_layer(step.activation, name=name, reals=alone)(flow)
            self.grids[step.result] = step.result
        if alone:
            self.outputs[step.result] = flow
        else:
            self.flows[step.result] = flow
            if is_output:
                self._read_out(step.result, f"{name}_reals")
        return layer

    def _shares(self, step: Step, name: str) -> dict[str, str]:
        """Return the groups of variables that a layer before holds, each with its name."""
        found = {}
        groups = {step.kind.group: step.node.layer} if step.kind.group else {}
        if step.norm is not None:
            groups["norm"] = step.norm
        for group, layer in groups.items():
            holder = self.holders.setdefault((group, id(layer)), name)
            if holder != name:
                found[group] = holder
        return found

    def _add_float(self, step: Step) -> Any:
        """Append the copy of a layer that stays in float, once; returns it."""
        node = step.node
        layer = self.floats.get(id(node.layer))
        if layer is None:
            layer = copy_in_float(
                node.layer,
                self._unique(node.layer.name),
                inference=node.inference and len(node.inputs) == 1,
            )
            self.floats[id(node.layer)] = layer
        args, kwargs = node.called_with({index: self._real(index) for index in node.inputs})
        found = self.reals[node.index] = layer(*args, **kwargs)
        if node.index in self.graph.outputs:
            self.outputs[node.index] = found
        if any(index not in self.kept for index in self.graph.consumers()[node.index]):
            name = self._unique(f"{layer.name}_quantizer")
            quantizer = InputQuantizer(output=self.settings.output("linear", 8), name=name)
            self.flows[node.index] = quantizer(found)
            self.grids[node.index] = node.index
        return layer

    def _real(self, index: int) -> Any:
        """Return the real values of a result, for a layer in float."""
        if index not in self.reals:
            name = self._unique(f"{self.graph.nodes[index].layer.name}_reals")
            self.reals[index] = QuantizedIdentity(name=name, reals=True)(self.flows[index])
        return self.reals[index]

    def _origin(self, step: Step, layer: QuantizedLayer) -> RangeSettings | int:
        """Return what the grid of a result comes from (see `Request.source_grids`)."""
        settings = getattr(layer, "output_settings", None)
        if layer.own_grid:
            return step.result
        if settings is None:
            return self.grids[step.node.inputs[0]]
        return step.result if settings.fixed is None else settings

    def _read_out(self, index: int, name: str) -> None:
        """Give out a result that other layers take as well."""
        self.outputs[index] = QuantizedIdentity(name=self._unique(name), reals=True)(
            self.flows[index]
        )


def _end_kernels(graph: Graph, steps: list[Step]) -> set[int]:
    """Return the first and the last calls with kernels, of each input and each output."""
    kernels = {step.node.index for step in steps if step.kind.role == "kernel"}
    consumers = graph.consumers()

    def nearest(starts: tuple[int, ...], following: Any) -> set[int]:
        found, seen, front = set(), set(), list(starts)
        while front:
            index = front.pop()
            if index in seen:
                continue
            seen.add(index)
            if index in kernels:
                found.add(index)
            else:
                front.extend(following(index))
        return found

    ends = nearest(graph.inputs, lambda index: consumers[index])
    ends |= nearest(graph.outputs, lambda index: graph.nodes[index].inputs)
    # All calls of a layer have the bits of its kernel.
    layers = {id(graph.nodes[index].layer) for index in ends}
    return {index for index in kernels if id(graph.nodes[index].layer) in layers}
