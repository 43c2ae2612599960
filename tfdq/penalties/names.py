"""The kernel penalties by name."""

from __future__ import annotations

from typing import Any

import tf_keras

from tfdq.penalties.convolution_regularizers import ConvolutionOrthogonalityRegularizer
from tfdq.penalties.regularizers import KernelRegularizer, OrthogonalityRegularizer, Placement
from tfdq.penalties.singular_values import SingularValue, default_target
from tfdq.penalties.spectral_regularizers import SpectralRegularizer, SRIPRegularizer

REGULARIZERS: dict[str, type[KernelRegularizer]] = {
    "orthogonal": OrthogonalityRegularizer,
    "srip": SRIPRegularizer,
    "spectral": SpectralRegularizer,
    "conv_orthogonal": ConvolutionOrthogonalityRegularizer,
}


def get_regularizer(
    identifier: str | tf_keras.regularizers.Regularizer,
    beta: float = 2e-3,
    on: Placement = "deployed",
    target: SingularValue | None = None,
    **arguments: Any,
) -> tf_keras.regularizers.Regularizer:
    """Return a kernel penalty by its name, or the instance that is given.

    Args:
        identifier: ``"orthogonal"``, ``"srip"``, ``"spectral"``, ``"conv_orthogonal"``, or a Keras
            Regularizer, which is returned as it is.
        beta: weight of the penalty, >= 0.
        on: ``"kernel"``, ``"folded"`` or ``"deployed"``.
        target: singular value that it aims at; by default 1 for ``"conv_orthogonal"`` and
            ``"1/k"`` for the penalties of the reshaped kernel, so that no convolution expands.
        **arguments: further arguments of the penalty.

    Raises:
        ValueError: the name is unknown, or an argument is out of its range.
    """
    if isinstance(identifier, tf_keras.regularizers.Regularizer):
        return identifier
    if identifier not in REGULARIZERS:
        raise ValueError(
            f"regularizer must be one of {', '.join(REGULARIZERS)} or a Keras Regularizer, "
            f"got {identifier!r}"
        )
    target = default_target(identifier) if target is None else target
    return REGULARIZERS[identifier](beta, on, target=target, **arguments)
