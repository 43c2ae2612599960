"""What all quantized layers share: integers flow between them, deployed constants are sealed.

Between quantized layers flows a pair ``(q, step)``: whole numbers in float32, counted from the one
that stands for 0, and the scalar they are multiples of. In training a layer computes with the
ranges and statistics of the moment. At inference it computes what the deployed integer kernel does,
from constants that `seal` made of the weights; `QuantizedModel` says when that happens.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, ClassVar

import keras
import numpy as np
from keras import ops

from tfdq.batch_statistics import PooledStatistics
from tfdq.description import Call, Computation, Shape
from tfdq.grid import Grid
from tflite_export.ir.graph import IntegerGraph, Operator

register = keras.saving.register_keras_serializable(package="tfdq")
Flow = tuple[Any, Any]
"""Whole numbers, float32, and their step, a float32 scalar."""

Box = tuple[Any, Any]
"""The lowest and the highest `Flow` of a tensor, of one step; of a model's input, real numbers."""


observing: ContextVar[bool] = ContextVar("observing", default=False)
"""Whether ranges follow what passes, and nothing else does (`calibrate`)."""

Estimates = dict["QuantizedLayer", PooledStatistics]
estimates: ContextVar[Estimates | None] = ContextVar("estimates", default=None)
"""Where the statistics of each batch that passes are taken to, and nothing else follows."""


@dataclass(frozen=True)
class Phase:
    """What a batch may change that passes in training.

    Attributes:
        statistics: BatchNorm takes the batch's statistics, and follows them.
        ranges: the ranges follow.
        noise: Dropout drops.
    """

    statistics: bool
    ranges: bool
    noise: bool


AT_REST = Phase(statistics=False, ranges=False, noise=False)
"""Training computes with the statistics and the ranges as they are, and changes nothing."""


@dataclass(frozen=True)
class Sealing:
    """The integer form of one call, from which a layer takes its deployed constants.

    Attributes:
        graph: the whole network in integers.
        operators: the operators that the call became, in order.
        sources: the tensors that the call reads.
        result: the tensor that it makes.
        source_bounds: for each source the lowest and the highest integer that it can hold, counted
            from its zero point.
        bounds: likewise for the result.
    """

    graph: IntegerGraph
    operators: Sequence[Operator]
    sources: tuple[int, ...]
    result: int
    source_bounds: tuple[tuple[int, int], ...]
    bounds: tuple[int, int]

    def scale(self, tensor: int) -> np.float32:
        """Return the scale of a tensor with one grid."""
        return np.float32(self.graph.tensors[tensor].scale)


@dataclass(frozen=True, eq=False)
class Holder:
    """The layer whose variables another one computes with; Keras does not look into this object.

    Attributes:
        layer: the layer.
    """

    layer: QuantizedLayer


class QuantizedLayer(keras.layers.Layer, ABC):
    """A layer that takes integers and gives integers.

    Args:
        reals: give ``step * q`` as the result, not the pair: the layer is an output of the model.
        frozen: the float model called the layer in inference mode: statistics and ranges stay.
        shares: for groups of variables the name of the layer that holds them, of the same model:
            the layer stands for a further call of a float layer.
    """

    variable_groups: ClassVar[Mapping[str, tuple[str, ...]]] = {}
    """The variables of a float layer that all its calls share, by group."""

    sealed_sources = 0
    """Number of sources whose steps the deployed constants depend on; 0: there are no constants."""

    own_grid = False
    """Whether the runtime fixes the grid of the result."""

    merges = False
    """Whether the layer takes a list of sources."""

    rising: ClassVar[bool] = False
    """Whether no result falls where a source rises, so that bounds pass as values do."""

    def __init__(
        self,
        reals: bool = False,
        frozen: bool = False,
        shares: Mapping[str, str] | None = None,
        **kwargs: Any,
    ) -> None:
        kwargs["dtype"] = "float32"
        super().__init__(autocast=False, **kwargs)
        self.reals = bool(reals)
        self.frozen = bool(frozen)
        self._shares = tuple(sorted((shares or {}).items()))
        self._holders: Mapping[str, Holder] = MappingProxyType({})

    @property
    def shares(self) -> dict[str, str]:
        """For each group of variables that another layer holds, the name of that layer."""
        return dict(self._shares)

    def holder(self, group: str) -> QuantizedLayer:
        """Return the layer that holds a group of variables: this one, or the one it shares with."""
        found = self._holders.get(group)
        return self if found is None else found.layer

    def share(self, find: Callable[[str], QuantizedLayer]) -> None:
        """Compute with the variables of the layers named in `shares`.

        Args:
            find: from a name to the layer.
        """
        self._holders = MappingProxyType({g: Holder(find(name)) for g, name in self._shares})
        for group, holder in self._holders.items():
            for name in self.variable_groups[group]:
                # Past Keras' tracker: the holder saves them, and counts them as its own.
                object.__setattr__(self, name, getattr(holder.layer, name))

    def call(self, flow: Any, training: bool | None = None) -> Any:
        """Return the layer's integers and their step, or their product."""
        if len(self._holders) < len(self._shares):
            raise ValueError(
                f"layer {self.name!r} computes with the variables of "
                f"{', '.join(map(repr, self.shares.values()))}; call it in the QuantizedModel that "
                "has both"
            )
        observe_only, estimate_only = observing.get(), estimates.get() is not None
        if training or observe_only or estimate_only:
            if not estimate_only:
                self.mark_stale()
            follow = bool(self.trainable) and not self.frozen
            phase = Phase(
                statistics=follow and not observe_only,
                ranges=(follow and not estimate_only) or observe_only,
                noise=not (self.frozen or observe_only or estimate_only),
            )
            q, step = self.train(flow, phase)
        else:
            q, step = self.infer(flow)
        return q * step if self.reals else (q, step)

    @abstractmethod
    def train(self, flow: Any, phase: Phase) -> Flow:
        """Return the result in training.

        Args:
            flow: a pair, or a list of pairs.
            phase: what the batch may change.
        """

    @abstractmethod
    def infer(self, flow: Any) -> Flow:
        """Return the result that the deployed kernels give."""

    @property
    def has_interval_rule(self) -> bool:
        """Whether `interval` bounds the layer."""
        return self.rising or type(self).interval is not QuantizedLayer.interval

    def interval(self, box: Any) -> Box:
        """Return the lowest and the highest result over a box, differentiable.

        They are those of training with statistics and ranges at rest, and of the same integers for
        a box of one point.

        Args:
            box: a `Box`, or a list of boxes.

        Raises:
            ValueError: the layer has no interval rule.
        """
        if not self.rising:
            raise ValueError(
                f"layer {self.name!r} ({type(self).__name__}) has no interval rule: replace it by "
                "one that has, such as a convolution, ReLU or pooling, or train without intervals"
            )
        low, high = zip(*box, strict=True) if self.merges else box
        return self.train(low, AT_REST), self.train(high, AT_REST)

    @abstractmethod
    def result_shape(self, shapes: Any) -> Shape:
        """Return the shape of the result's integers.

        Args:
            shapes: shape of the source's integers, or a list of them.
        """

    def fits(self, built_for: Shape, other: Shape) -> bool:
        """Return whether the layer does with sources of another size what it does with its own.

        Args:
            built_for: shape of its source.
            other: shape of the other source.
        """
        return True

    def compute_output_spec(self, flow: Any, training: bool | None = None) -> Any:
        """Return symbolic results, without running the layer."""
        sources = _integer_shapes(flow)
        shape = self.result_shape(sources)
        if any(size is not None and size < 1 for size in shape[1:]):
            raise ValueError(
                f"layer {self.name!r} would make a result of shape {shape[1:]} of {sources}; give "
                "the model larger inputs"
            )
        integers = keras.KerasTensor(shape, "float32")
        return integers if self.reals else (integers, keras.KerasTensor((), "float32"))

    @abstractmethod
    def computation(self) -> Computation:
        """Return what the layer computes, as the export reads it."""

    def grid(self) -> Grid | None:
        """Return the layer's own output grid; None: it stays on that of its source."""
        return None

    def describe(self, sources: tuple[int, ...], shape: Shape) -> Call:
        """Return the layer's entry in the description of a model."""
        return Call(self.name, self.computation(), sources, shape, self.grid())

    def seal(self, sealing: Sealing) -> None:
        """Take the deployed constants from the integer form of the call."""

    def add_constant(self, name: str, shape: tuple[int, ...]) -> Any:
        """Return a new variable that holds a deployed constant."""
        return self.add_weight(
            name=f"deployed_{name}",
            shape=shape,
            initializer="zeros",
            dtype="float32",
            trainable=False,
            autocast=False,
        )

    def build_seal(self) -> None:
        """Create the variables that say which network the constants belong to."""
        self.sealed = self.add_constant("sealed", ())
        self.sealed_result = self.add_constant("step", ())
        self.sealed_bounds = self.add_constant("bounds", (2,))
        self.sealed_steps = self.add_constant("source_steps", (self.sealed_sources,))

    def mark_stale(self) -> None:
        """Say that the weights have gone on, and the constants have not."""
        if self.sealed_sources:
            self.sealed.assign(ops.zeros(()))

    def set_seal(self, sealing: Sealing) -> None:
        """Record the grids that the constants were made for."""
        self.sealed.assign(np.float32(1.0))
        self.sealed_result.assign(sealing.scale(sealing.result))
        self.sealed_bounds.assign(np.asarray(sealing.bounds, np.float32))
        self.sealed_steps.assign(
            np.asarray([sealing.scale(source) for source in sealing.sources], np.float32)
        )

    def deployed_step(self, *steps: Any) -> Any:
        """Return the step of the deployed result; NaN where the constants are not for this network.

        Args:
            steps: those of the sources, as they come.
        """
        fits = self.sealed > 0.5
        for position, step in enumerate(steps):
            fits = ops.logical_and(fits, ops.equal(self.sealed_steps[position], step))
        return ops.where(fits, ops.convert_to_tensor(self.sealed_result), float("nan"))

    def get_config(self) -> dict[str, Any]:
        """Return the arguments of the constructor."""
        config = {**super().get_config(), "reals": self.reals, "frozen": self.frozen}
        return {**config, "shares": self.shares} if self._shares else config


def _integer_shapes(flow: Any) -> Any:
    """Return the shape of each pair's integers."""
    if isinstance(flow, keras.KerasTensor) or not isinstance(flow, (list, tuple)):
        return tuple(flow.shape)
    if len(flow) == 2 and not isinstance(flow[0], (list, tuple)):
        return tuple(flow[0].shape)
    return [tuple(pair[0].shape) for pair in flow]


def integer_shape(shapes: Any) -> Shape:
    """Return the shape of the integers of a pair, from what ``build`` is given."""
    return tuple(shapes[0])
