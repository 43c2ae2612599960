"""The gradients of the backend that Keras runs on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from tfdq.robustness.gradients.interface import Gradients


def gradients_of(
    function: Callable[[Any], Any],
    *,
    differentiated: Callable[[Any], Any] | None = None,
    variables: Sequence[Any] = (),
) -> Gradients:
    """Return the values and gradients of a function on the backend that Keras runs on.

    Args:
        function: From a batch of images to a tensor with one row for each.
        differentiated: What gradients are taken of, and the logits given beside them; by default
            `function` itself.
        variables: The Keras variables that are read; on JAX the value of any other is kept as it
            is at the first call.
    """
    from tfdq.keras3.backends import check_backend

    differentiated = differentiated or function
    backend = check_backend()
    if backend == "jax":
        from tfdq.robustness.gradients.on_jax import JaxGradients

        return JaxGradients(function, differentiated, variables)
    if backend == "torch":
        from tfdq.robustness.gradients.on_torch import TorchGradients

        return TorchGradients(function, differentiated)
    from tfdq.robustness.gradients.on_tensorflow import TensorflowGradients

    return TensorflowGradients(function, differentiated)
