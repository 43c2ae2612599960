"""A TensorFlow target as a PyTorch module, to run pyautoattack (or any PyTorch attack) on it.

PyTorch is imported on use; it comes with the ``[autoattack]`` extra.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from tfdq.robustness.targets import DifferentiableTarget

if TYPE_CHECKING:
    import torch


def as_torch_module(target: DifferentiableTarget, *, channels_last: bool = True) -> torch.nn.Module:
    """A module from PyTorch images to logits whose gradients TensorFlow computes.

    The forward pass is recorded on a `tf.GradientTape` when PyTorch wants gradients, and the
    backward pass asks that tape for the vector-Jacobian product: nothing is computed twice.

    Args:
        target: What to wrap.
        channels_last: Whether the target takes [n, height, width, channels]; PyTorch images are
            [n, channels, height, width] either way.

    Returns:
        The module; float32 on the CPU.

    Raises:
        ImportError: PyTorch is not installed.
    """
    import tensorflow as tf
    import torch

    forward = tf.function(target.logits_tensor, autograph=False, reduce_retracing=True)

    def to_tensorflow(x: torch.Tensor) -> tf.Tensor:
        images = x.detach().numpy()
        return tf.constant(np.moveaxis(images, 1, -1) if channels_last else images)

    class Logits(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
            images = to_tensorflow(x)
            if not ctx.needs_input_grad[0]:
                return torch.from_numpy(forward(images).numpy().copy())
            with tf.GradientTape(watch_accessed_variables=False) as tape:
                tape.watch(images)
                logits = forward(images)
            ctx.recorded = (tape, images, logits)
            return torch.from_numpy(logits.numpy().copy())

        @staticmethod
        def backward(ctx: Any, upstream: torch.Tensor) -> torch.Tensor:
            tape, images, logits = ctx.recorded
            seed = tf.constant(upstream.contiguous().numpy())
            gradient = tape.gradient(
                logits, images, output_gradients=seed, unconnected_gradients="zero"
            ).numpy()
            if channels_last:
                gradient = np.moveaxis(gradient, -1, 1)
            return torch.from_numpy(np.ascontiguousarray(gradient))

    class Bridge(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return Logits.apply(x)

    return Bridge()
