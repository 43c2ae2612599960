"""Penalties of many kernels at once: those alike, on kernels of one shape, in one pass."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Hashable, Sequence
from typing import NamedTuple

import tensorflow as tf
import tf_keras

from tfdq.penalties.regularizers import KernelRegularizer


class PenalizedKernel(NamedTuple):
    """A kernel and the penalty on it.

    Attributes:
        penalty: the regularizer.
        kernel: float tensor.
        weight: scalar in place of the weight that the penalty holds, or None.
    """

    penalty: tf_keras.regularizers.Regularizer
    kernel: tf.Tensor
    weight: tf.Tensor | None = None


def evaluate_penalties(penalized: Sequence[PenalizedKernel]) -> list[tf.Tensor]:
    """Return what each penalty is on its kernel, a scalar each.

    Penalties of one class whose configurations differ in no more than ``beta``, on kernels of one
    shape, are evaluated in one pass over the stacked kernels. Those that do not say how
    (`KernelRegularizer.deviations`), that have no equal, or that are there for several kernels
    are called one by one.
    """
    uses = Counter(id(one.penalty) for one in penalized)
    groups: dict[Hashable, list[int]] = {}
    for index, one in enumerate(penalized):
        alone = uses[id(one.penalty)] > 1 or not _takes_stacks(one.penalty)
        groups.setdefault(index if alone else _kind(one), []).append(index)
    values: dict[int, tf.Tensor] = {}
    for indices in groups.values():
        members = [penalized[index] for index in indices]
        results = [_evaluate(members[0])] if len(members) == 1 else _evaluate_stack(members)
        values.update(zip(indices, results, strict=True))
    return [values[index] for index in range(len(penalized))]


def _takes_stacks(penalty: tf_keras.regularizers.Regularizer) -> bool:
    """Tell whether ``deviations`` is all that a penalty does."""
    kind, base = type(penalty), KernelRegularizer
    return (
        isinstance(penalty, base)
        and kind.__call__ is base.__call__
        and kind.deviation is base.deviation
        and kind.deviations is not base.deviations
    )


def _kind(one: PenalizedKernel) -> Hashable:
    """Return what penalties that are evaluated together have in common."""
    settings = {key: value for key, value in one.penalty.get_config().items() if key != "beta"}
    shape = one.kernel.shape
    # A setting that JSON does not know is equal to itself alone.
    described = json.dumps(settings, sort_keys=True, default=id)
    return type(one.penalty), described, one.penalty.target_value(shape), tuple(shape)


def _evaluate(one: PenalizedKernel) -> tf.Tensor:
    if one.weight is None:
        return one.penalty(one.kernel)
    return one.penalty(one.kernel, one.weight)


def _evaluate_stack(members: Sequence[PenalizedKernel]) -> list[tf.Tensor]:
    kernels = tf.stack([tf.cast(one.kernel, tf.float32) for one in members])
    penalties = [one.penalty for one in members]
    target = penalties[0].target_value(members[0].kernel.shape)
    deviations = tf.unstack(penalties[0].deviations(kernels, target, penalties))
    return [
        one.penalty.weigh(deviation, one.weight)
        for one, deviation in zip(members, deviations, strict=True)
    ]
