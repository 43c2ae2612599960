"""What a model does and how it trains, in numbers: equal before and after, or not all was kept."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import Any

import numpy as np
import tensorflow as tf

LIBRARIES = ("keras", "tf_keras", "tfdq")


@dataclass(frozen=True)
class Behaviour:
    """What a model computes, is penalized for and trains.

    Attributes:
        outputs: in inference mode.
        zeros: share of the outputs that are 0 in training mode, which Dropout makes.
        moving: sum of the magnitudes of each moving mean and variance, after one call in training
            mode, sorted.
        losses: sum of ``model.losses``.
        trainable: sizes of the trainable weights, sorted.
        frozen: sizes of the others, without those of quantizers, sorted.
        constrained: sum that each trainable weight has after its constraint, when all of it is 2.
    """

    outputs: np.ndarray
    zeros: float
    moving: np.ndarray
    losses: float
    trainable: list[int]
    frozen: list[int]
    constrained: np.ndarray

    def differs(self, other: Behaviour, tolerance: float) -> list[str]:
        """Return the names of what differs by more than a share of its values.

        Args:
            other: with this one.
            tolerance: for outputs of the largest, for the others of each value.
        """
        found = [
            name for name in ("trainable", "frozen") if getattr(self, name) != getattr(other, name)
        ]
        if abs(self.zeros - other.zeros) > 0.15:
            found.append("zeros")
        for name in ("outputs", "moving", "losses", "constrained"):
            one, two = (np.asarray(getattr(b, name), np.float64) for b in (self, other))
            if one.shape != two.shape:
                found.append(name)
                continue
            size = np.maximum(np.abs(one), np.abs(two))
            allowed = tolerance * (size.max(initial=0.0) if name == "outputs" else size)
            if np.any(np.abs(one - two) > allowed + 1e-6):
                found.append(name)
        return found


def behaviour(model: Any, x: np.ndarray) -> Behaviour:
    """Measure a model of either Keras; it is called once in training mode."""
    outputs = np.asarray(model(x, training=False))
    losses = float(sum(np.sum(np.asarray(loss)) for loss in model.losses))
    trainable, frozen, constrained = [], [], []
    for weight in model.trainable_weights:
        trainable.append(int(np.prod(weight.shape)))
        twos = tf.fill(tuple(weight.shape), 2.0)
        constraint = getattr(weight, "constraint", None)
        constrained.append(
            float(np.sum(np.asarray(twos if constraint is None else constraint(twos))))
        )
    quantizers = ("_low", "_high", "_seen", "seed_generator", "deployed_")
    for weight in model.non_trainable_weights:
        path = getattr(weight, "path", weight.name)
        if not any(part in path for part in quantizers):
            frozen.append(int(np.prod(weight.shape)))
    trained = np.asarray(model(x, training=True))
    paths = [(getattr(w, "path", w.name), np.asarray(w)) for w in model.weights]
    moving = [np.abs(values).sum() for path, values in paths if "moving" in path]
    return Behaviour(
        outputs,
        float(np.mean(trained == 0)),
        np.sort(moving),
        losses,
        sorted(trainable),
        sorted(frozen),
        np.sort(constrained),
    )


def randomize(model: Any) -> Any:
    """Give every weight values of its own, statistics positive ones; the same for one structure."""
    rng = np.random.default_rng(0)
    for weight in model.weights:
        path = getattr(weight, "path", weight.name)
        low, high = (0.5, 1.5) if "variance" in path or "gamma" in path else (-0.5, 0.5)
        if "seed" not in path and "count" not in path:
            weight.assign(rng.uniform(low, high, tuple(weight.shape)))
    return model


def constructor_parameters(kind: type) -> set[str]:
    """Return the names of all arguments of a class's constructor, its bases' included."""
    names: set[str] = set()
    for base in kind.__mro__:
        if "__init__" in vars(base) and base.__module__.split(".")[0] in LIBRARIES:
            names |= set(inspect.signature(base.__init__).parameters)
    return names - {"self", "args", "kwargs"}
