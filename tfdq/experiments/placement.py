"""Where a run is computed, whichever Keras trains it."""

from __future__ import annotations

from tfdq.experiments.machines import Machines
from tfdq.experiments.process import TF_KERAS


def machines_of(backend: str, name: str) -> Machines:
    """Return the devices to compute on; call it before anything else of the backend is used.

    Args:
        backend: what is trained on, as `choose_backend` returns it.
        name: as for `tfdq.experiments.strategy.open_machines`; on Keras 3 ``"auto"`` or
            ``"one_device"``.

    Raises:
        ValueError: there is no such strategy, or what it needs is not there.
    """
    if backend == TF_KERAS:
        from tfdq.experiments.strategy import open_machines

        return open_machines(name)
    if name not in ("auto", "one_device"):
        raise ValueError(
            f"strategy {name!r} is of tf.distribute, for training.backend tf_keras; on Keras 3 a "
            "run computes on one device: leave --strategy out"
        )
    return Machines(None, "one_device")
