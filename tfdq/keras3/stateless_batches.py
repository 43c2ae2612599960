"""Change a batch inside a step of a Keras 3 trainer, which on JAX holds no state of its own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras


def changed_batch(
    trainer: keras.Model, given: tuple[Any, ...], change: Callable[[Any], Any]
) -> tuple[Any, ...]:
    """Return what a step was called with, its batch changed and what that assigned in the state.

    Args:
        trainer: the model whose step it is.
        given: what Keras calls ``train_step`` or ``test_step`` with: the batch; on JAX the state
            (the values of the trainable and of the other variables, and more), then the batch.
        change: from the batch to another one; may read and assign the trainer's variables.
    """
    *states, data = given
    if not states:
        return (change(data),)
    trainable, others, *rest = states[0]
    variables = (*trainer.trainable_variables, *trainer.non_trainable_variables)
    mapping = list(zip(variables, (*trainable, *others), strict=True))
    with keras.StatelessScope(state_mapping=mapping) as scope:
        batch = change(data)
        others = [scope.get_current_value(v) for v in trainer.non_trainable_variables]
    return (trainable, others, *rest), batch
