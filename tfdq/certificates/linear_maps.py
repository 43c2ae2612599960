"""A convolution as the linear map it is: applied, transposed, and written out as a matrix."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]
Padding = Literal["valid", "same"]


def padding_amounts(
    padding: str, size: int, kernel_size: int, stride: int, dilation: int
) -> tuple[int, int]:
    """Return the zeros that TensorFlow puts before and after one axis.

    Args:
        padding: ``"valid"`` or ``"same"``; ``"same"`` puts the odd zero after.
        size: length of the axis.
        kernel_size: length of the kernel along it.
        stride: step of the output.
        dilation: distance between the taps of the kernel.

    Raises:
        ValueError: ``padding`` is neither of the two.
    """
    if padding == "valid":
        return 0, 0
    if padding != "same":
        raise ValueError(f"padding must be 'valid' or 'same', got {padding!r}")
    reach = (kernel_size - 1) * dilation + 1
    total = max((math.ceil(size / stride) - 1) * stride + reach - size, 0)
    return total // 2, total - total // 2


@dataclass(frozen=True, eq=False)
class ConvolutionMap:
    """A zero-padded, strided, dilated, grouped 2-D convolution (no bias) between finite images.

    A dense layer is the 1x1 convolution of a 1x1 image, a depthwise convolution has one group
    for each input channel.

    Args:
        kernel: float64 ``(k_h, k_w, c_in / groups, c_out)``; output channel ``c`` belongs to
            group ``c // (c_out / groups)``.
        input_shape: ``(height, width, c_in)``.
        strides: ``(vertical, horizontal)``.
        padding: ``((top, bottom), (left, right))`` zeros.
        dilation: ``(vertical, horizontal)``.
        groups: number of groups.

    Raises:
        ValueError: the shapes do not belong together, the kernel is not finite, or the output
            would be empty.
    """

    kernel: Array
    input_shape: tuple[int, int, int]
    strides: tuple[int, int] = (1, 1)
    padding: tuple[tuple[int, int], tuple[int, int]] = ((0, 0), (0, 0))
    dilation: tuple[int, int] = (1, 1)
    groups: int = 1

    def __post_init__(self) -> None:
        """Check the arguments."""
        if self.kernel.ndim != 4 or self.kernel.size == 0:
            raise ValueError(
                f"a kernel is (k_h, k_w, c_in / groups, c_out), got shape {self.kernel.shape}"
            )
        if not np.all(np.isfinite(self.kernel)):
            raise ValueError("the kernel has infinite or NaN entries; it has no norm")
        channels, filters = self.kernel.shape[2:]
        if self.groups < 1 or filters % self.groups or channels * self.groups != self.channels:
            raise ValueError(
                f"a kernel of shape {self.kernel.shape} in {self.groups} group(s) does not fit "
                f"an input of {self.channels} channels"
            )
        if min(self.strides) < 1 or min(self.dilation) < 1:
            raise ValueError(
                f"strides and dilation must be >= 1, got {self.strides} and {self.dilation}"
            )
        if min(self.output_shape) < 1:
            raise ValueError(
                f"an input of {self.input_shape[:2]} is smaller than the kernel "
                f"{self.kernel.shape[:2]} with padding {self.padding}"
            )

    @property
    def channels(self) -> int:
        """Number of input channels."""
        return self.input_shape[2]

    @property
    def filters(self) -> int:
        """Number of output channels."""
        return int(self.kernel.shape[3])

    @property
    def output_shape(self) -> tuple[int, int, int]:
        """``(height, width, c_out)`` of the output."""
        height, width = (
            (self.input_shape[axis] + sum(self.padding[axis]) - self._reach(axis))
            // self.strides[axis]
            + 1
            for axis in (0, 1)
        )
        return height, width, self.filters

    def _reach(self, axis: int) -> int:
        return int(self.kernel.shape[axis] - 1) * self.dilation[axis] + 1

    def _window(self, row: int, column: int) -> tuple[slice, slice]:
        """Return the padded pixels that tap ``(row, column)`` of the kernel reads."""
        starts = (row * self.dilation[0], column * self.dilation[1])
        return (
            slice(starts[0], starts[0] + self.strides[0] * self.output_shape[0], self.strides[0]),
            slice(starts[1], starts[1] + self.strides[1] * self.output_shape[1], self.strides[1]),
        )

    def padded_size(self) -> tuple[int, int]:
        """Return a size that holds every window, also where a stride overshoots the edge."""
        height, width = (
            max(
                self.input_shape[axis] + sum(self.padding[axis]),
                self.strides[axis] * self.output_shape[axis] + self._reach(axis),
            )
            for axis in (0, 1)
        )
        return height, width

    def apply(self, images: Array) -> Array:
        """Convolve ``(n, height, width, c_in)`` to ``(n, height', width', c_out)``, float64."""
        (top, _), (left, _) = self.padding
        height, width, _ = self.input_shape
        padded = np.zeros((len(images), *self.padded_size(), self.channels))
        padded[:, top : top + height, left : left + width] = images
        grouped = padded.reshape(*padded.shape[:3], self.groups, -1)
        kernel = self.kernel.reshape(*self.kernel.shape[:3], self.groups, -1)
        result = np.zeros(
            (len(images), *self.output_shape[:2], self.groups, self.filters // self.groups)
        )
        for row, column in np.ndindex(*self.kernel.shape[:2]):
            rows, columns = self._window(row, column)
            window, tap = grouped[:, rows, columns], kernel[row, column]
            if self.groups == 1:
                result[..., 0, :] += window[..., 0, :] @ tap[:, 0]
            else:
                result += np.einsum("nhwgi,igo->nhwgo", window, tap)
        return result.reshape(len(images), *self.output_shape)

    def transpose(self, images: Array) -> Array:
        """Apply the transposed map: ``(n, height', width', c_out)`` to the input's shape."""
        (top, _), (left, _) = self.padding
        height, width, _ = self.input_shape
        padded = np.zeros(
            (len(images), *self.padded_size(), self.groups, self.channels // self.groups)
        )
        grouped = images.reshape(*images.shape[:3], self.groups, -1)
        kernel = self.kernel.reshape(*self.kernel.shape[:3], self.groups, -1)
        for row, column in np.ndindex(*self.kernel.shape[:2]):
            rows, columns = self._window(row, column)
            tap = kernel[row, column]
            if self.groups == 1:
                padded[:, rows, columns, 0] += grouped[..., 0, :] @ tap[:, 0].T
            else:
                padded[:, rows, columns] += np.einsum("nhwgo,igo->nhwgi", grouped, tap)
        inside = padded[:, top : top + height, left : left + width]
        return inside.reshape(len(images), *self.input_shape)

    def group(self, index: int) -> ConvolutionMap:
        """Return one group as a map of its own; the whole is their direct sum."""
        filters = self.filters // self.groups
        height, width, _ = self.input_shape
        return ConvolutionMap(
            self.kernel[..., index * filters : (index + 1) * filters],
            (height, width, self.channels // self.groups),
            self.strides,
            self.padding,
            self.dilation,
        )

    def matrix(self) -> Array:
        """Write the map out: float64 ``(outputs, inputs)``, both in row-major image order.

        Each entry is one weight or zero, so that this takes as long as the weights are many times
        the pixels, whatever the padding.
        """
        height, width, _ = self.output_shape
        filters, channels = self.filters // self.groups, self.channels // self.groups
        result = np.zeros(
            (height, width, self.groups, filters, *self.input_shape[:2], self.groups, channels)
        )
        kernel = self.kernel.reshape(*self.kernel.shape[:3], self.groups, filters)
        for row, column, group in np.ndindex(*self.kernel.shape[:2], self.groups):
            to_row, from_row = self._meetings(0, row)
            to_column, from_column = self._meetings(1, column)
            result[
                to_row[:, None], to_column, group, :, from_row[:, None], from_column, group, :
            ] = kernel[row, column, :, group].T
        return result.reshape(math.prod(self.output_shape), -1)

    def _meetings(self, axis: int, tap: int) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.intp]]:
        """Return the outputs along an axis at which a tap reads a pixel, and these pixels."""
        outputs = np.arange(self.output_shape[axis])
        pixels = outputs * self.strides[axis] + tap * self.dilation[axis] - self.padding[axis][0]
        inside = (pixels >= 0) & (pixels < self.input_shape[axis])
        return outputs[inside], pixels[inside]


def dense_map(kernel: Array) -> ConvolutionMap:
    """Return the map of a dense kernel ``(c_in, c_out)``."""
    return ConvolutionMap(kernel[None, None], (1, 1, int(kernel.shape[0])))
