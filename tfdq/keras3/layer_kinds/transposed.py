r"""Conv2DTranspose: as a convolution that gives every pixel of a block, and DEPTH_TO_SPACE.

With stride :math:`s` the result's pixels :math:`o = s j + r` of one :math:`r` are a convolution of
the source with every :math:`s`-th tap:

.. math:: y_{sj+r} = \sum_m x_{j+m} \, w_{r + p - s m}

with :math:`p` the padding that is cut off at the front. So the sums are those of the transposed
convolution, integer for integer; the file has no shape with the batch in it, as TRANSPOSE_CONV has.

Source: Shi et al., *Is the deconvolution layer the same as a convolutional layer?*, 2016
(arXiv 1609.07009).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
from keras import ops

from tfdq.description import Computation, Kernel, Pair, Shape
from tfdq.keras3.graph import Node
from tfdq.keras3.layer_kinds.base import register
from tfdq.keras3.layer_kinds.kernel import (
    KernelLayer,
    channel_groups,
    convolution_problem,
    kernel_arguments,
)
from tfdq.keras3.layer_kinds.pointwise import load_norm
from tfdq.keras3.layer_kinds.registry import Kind, Request, Step, register_kind
from tflite_export.ir.graph import Convolution, NoOptions, Operator
from tflite_export.lowering import lower
from tflite_export.lowering.assemble import Affine
from tflite_export.ops.blocks import Blocks


@dataclass(frozen=True)
class TransposedConv2D(Computation):
    """A transposed 2-D convolution.

    Attributes:
        kernel: the kernel, ``(height, width, in, out)``.
        padding: ``"valid"`` or ``"same"``.
        stride: of the height and of the width.
    """

    kernel: Kernel
    padding: str
    stride: int


def taps(window: int, stride: int, padding: str) -> tuple[np.ndarray, int]:
    """Return which tap each pixel of a block takes of each pixel of the source, along one axis.

    Args:
        window: number of taps.
        stride: pixels of a block.
        padding: ``"valid"`` or ``"same"``.

    Returns:
        int64 ``(stride, pixels)``, the tap or -1, and how many pixels before the block's the first
        one is.
    """
    cut = max(window - stride, 0) // 2 if padding == "same" else 0
    first = -((window - 1 - cut) // stride)
    last = (stride - 1 + cut) // stride
    found = np.arange(stride)[:, None] + cut - stride * np.arange(first, last + 1)[None]
    return np.where((found >= 0) & (found < window), found, -1), -first


@lower.lowering(TransposedConv2D)
def lower_transposed(call: lower.Call) -> int:
    """Return the tensor of the result."""
    computation, assembler, label = call.computation, call.assembler, call.label
    stride, window = computation.stride, computation.kernel.integers.shape[:2]
    affine = lower.affine_of(call, lambda kernel: np.transpose(kernel, (3, 0, 1, 2)), 0)
    filters, _, _, inputs = affine.weights.shape
    (rows, before_rows), (columns, before_columns) = (
        taps(size, stride, computation.padding) for size in window
    )
    # One row and one column of zeros behind the kernel: the tap -1.
    kernel = np.pad(affine.weights, ((0, 0), (0, 1), (0, 1), (0, 0)))
    blocks = kernel[:, rows][:, :, :, columns].transpose(1, 3, 0, 2, 4, 5)
    count = stride * stride
    phases = Affine(
        blocks.reshape(count * filters, rows.shape[1], columns.shape[1], inputs),
        np.tile(np.broadcast_to(affine.scale, filters), count),
        np.tile(affine.offset, count),
        affine.largest,
    )
    _, height, width, _ = assembler.shape(call.source)
    _, full_height, full_width, _ = call.shape
    coarse = (-(-full_height // stride), -(-full_width // stride))
    amounts = tuple(
        (before, wanted + taken - 1 - before - size)
        for before, wanted, taken, size in (
            (before_rows, coarse[0], rows.shape[1], height),
            (before_columns, coarse[1], columns.shape[1], width),
        )
    )
    source = call.source
    if any(sum(pair) for pair in amounts):
        source = assembler.pad(source, amounts, label)  # type: ignore[arg-type]
    deep = assembler.weighted(
        "CONV_2D",
        source,
        phases,
        call.target,
        Convolution("VALID"),
        (call.shape[0], *coarse, count * filters),
        label,
    )
    if stride == 1:
        return deep
    shape = (call.shape[0], coarse[0] * stride, coarse[1] * stride, filters)
    image = assembler.value(label, shape, assembler.grid(deep))
    assembler.emit("DEPTH_TO_SPACE", (deep,), image, Blocks(stride), label)
    if shape == call.shape:
        return image
    bounds = (("begin", np.zeros(4, np.int32)), ("size", np.array(call.shape, np.int32)))
    constants = [assembler.constant(f"{label}/{name}", a, None, "int32") for name, a in bounds]
    output = assembler.value(label, call.shape, assembler.grid(image))
    return assembler.emit("SLICE", (image, *constants), output, NoOptions(), label)


@register
class QuantizedConv2DTranspose(KernelLayer):
    """A transposed convolution, then BatchNorm and ReLU or ReLU6 if it took them in.

    Args:
        filters: number of output channels.
        kernel_size: height and width of the window.
        stride: of the height and of the width.
        padding: ``"valid"`` or ``"same"``.
    """

    def __init__(
        self, filters: int, kernel_size: Any, stride: int, padding: str, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        self.filters = int(filters)
        self.kernel_size: Pair = (int(kernel_size[0]), int(kernel_size[1]))
        self.stride = int(stride)
        self.padding = padding

    def kernel_shape(self, shape: Shape) -> tuple[int, ...]:
        """Return ``(height, width, in, out)``."""
        assert shape[-1] is not None
        return (*self.kernel_size, shape[-1], self.filters)

    def result_shape(self, shapes: Any) -> Shape:
        """Return the shape of the enlarged image."""
        batch, *sizes, _ = shapes
        more = [
            0 if self.padding == "same" else max(window - self.stride, 0)
            for window in self.kernel_size
        ]
        rows, columns = (a * self.stride + b for a, b in zip(sizes, more, strict=True))
        return (batch, rows, columns, self.filters)

    def accumulate(self, q: Any, kernel: Any) -> Any:
        """Return the image convolved with a kernel, transposed."""
        return ops.conv_transpose(
            q,
            ops.transpose(kernel, (0, 1, 3, 2)),
            strides=self.stride,
            padding=self.padding,
            data_format="channels_last",
        )

    def parts(self, q: Any, kernel: Any) -> list[tuple[Any, Any]]:
        """Return the integers and weights of each group of input channels."""
        ends = channel_groups(kernel.shape[2], self.splits)
        return [(q[..., a:b], kernel[:, :, a:b]) for a, b in ends]

    def numpy_parts(self, weights: np.ndarray) -> list[np.ndarray]:
        """Return the weights of each group of input channels."""
        return [weights[:, :, a:b] for a, b in channel_groups(weights.shape[2], self.splits)]

    def stored_weights(self, operator: Operator, weights: np.ndarray) -> np.ndarray:
        """Return the taps of all pixels of a block as ``(height, width, in, out)``."""
        rows, columns = (taps(size, self.stride, self.padding)[0] for size in self.kernel_size)
        blocks = weights.reshape(
            self.stride, self.stride, self.filters, rows.shape[1], columns.shape[1], -1
        )
        kernel = np.zeros(self.kernel.shape, weights.dtype)
        for r, i in np.argwhere(rows >= 0):
            for c, j in np.argwhere(columns >= 0):
                kernel[rows[r, i], columns[c, j]] = blocks[r, c, :, i, j].T
        return kernel

    def of_channels(self, values: np.ndarray) -> np.ndarray:
        """Return the values of the first pixel of the blocks; those of the others are the same."""
        return values[: self.filters]

    def computation(self) -> Computation:
        """Return what the layer computes."""
        return TransposedConv2D(self.quantized_kernel(), self.padding, self.stride)

    def get_config(self) -> dict[str, Any]:
        """Return the arguments of the constructor."""
        return {
            **super().get_config(),
            "filters": self.filters,
            "kernel_size": self.kernel_size,
            "stride": self.stride,
            "padding": self.padding,
        }


def _quantize(request: Request) -> QuantizedConv2DTranspose:
    layer = request.layer
    return QuantizedConv2DTranspose(
        filters=layer.filters,
        kernel_size=layer.kernel_size,
        stride=layer.strides[0],
        padding=layer.padding,
        **kernel_arguments(request),
    )


def _problem(node: Node) -> str | None:
    layer = node.layer
    if layer.strides[0] != layer.strides[1]:
        return f"strides {layer.strides}; those of a transposed convolution must be equal"
    if layer.output_padding is not None:
        return f"output_padding={layer.output_padding}; use None and ZeroPadding2D or Cropping2D"
    if tuple(layer.dilation_rate) != (1, 1):
        return f"dilation_rate={layer.dilation_rate}; only 1 is taken"
    return convolution_problem(node)


def _load(step: Step, layer: Any) -> None:
    kernel = ops.convert_to_numpy(step.node.layer.kernel)
    layer.kernel.assign(np.transpose(kernel, (0, 1, 3, 2)))
    if layer.bias is not None:
        layer.bias.assign(ops.convert_to_numpy(step.node.layer.bias))
    if step.norm is not None:
        load_norm(step.norm, layer)


register_kind(
    Kind(
        (keras.layers.Conv2DTranspose,),
        _quantize,
        _problem,
        role="kernel",
        takes_in=("norm", "activation"),
        load=_load,
        group="kernel",
    )
)
