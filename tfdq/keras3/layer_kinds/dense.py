"""Dense layers on ``(batch, features)``."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
from keras import ops

from tfdq.description import Computation, Dense, Shape
from tfdq.keras3.graph import Node
from tfdq.keras3.layer_kinds.base import register
from tfdq.keras3.layer_kinds.kernel import (
    KernelLayer,
    channel_groups,
    convolution_problem,
    kernel_arguments,
    load_kernel,
)
from tfdq.keras3.layer_kinds.registry import Kind, Request, register_kind
from tfdq.keras3.layer_kinds.sequence import axes_problem, dense_parts
from tflite_export.ir.graph import Operator


@register
class QuantizedDense(KernelLayer):
    """A dense layer on ``(batch, features)``, then BatchNorm and ReLU or ReLU6 if it took them in.

    Args:
        units: number of outputs.
    """

    def __init__(self, units: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.units = int(units)

    def kernel_shape(self, shape: Shape) -> tuple[int, ...]:
        """Return ``(in, out)``."""
        assert shape[-1] is not None
        return (shape[-1], self.units)

    def result_shape(self, shapes: Any) -> Shape:
        """Return ``(batch, units)``."""
        return (shapes[0], self.units)

    def accumulate(self, q: Any, kernel: Any) -> Any:
        """Return the matrix product."""
        return ops.matmul(q, kernel)

    def parts(self, q: Any, kernel: Any) -> list[tuple[Any, Any]]:
        """Return the integers and weights of each group of inputs."""
        return [(q[:, a:b], kernel[a:b]) for a, b in channel_groups(kernel.shape[0], self.splits)]

    def numpy_parts(self, weights: np.ndarray) -> list[np.ndarray]:
        """Return the weights of each group of inputs."""
        return [weights[a:b] for a, b in channel_groups(weights.shape[0], self.splits)]

    def stored_weights(self, operator: Operator, weights: np.ndarray) -> np.ndarray:
        """Return ``(out, in)``, or that of a 1 x 1 convolution, as ``(in, out)``."""
        return weights.reshape(self.units, -1).T

    def computation(self) -> Computation:
        """Return what the layer computes."""
        return Dense(self.quantized_kernel())

    def get_config(self) -> dict[str, Any]:
        """Return the arguments of the constructor."""
        return {**super().get_config(), "units": self.units}


def _dense(request: Request) -> QuantizedDense:
    return QuantizedDense(
        units=request.layer.units, per_channel=request.normed, **kernel_arguments(request)
    )


def _problem(node: Node) -> str | None:
    on_pixels = len(node.shape) > 2
    return convolution_problem(node) or (axes_problem(node.layer) if on_pixels else None)


register_kind(
    Kind(
        (keras.layers.Dense,),
        _dense,
        _problem,
        role="kernel",
        takes_in=("norm", "activation"),
        load=load_kernel,
        group="kernel",
        parts=dense_parts,
    )
)
