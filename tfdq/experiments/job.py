"""One training of a run: its history and its record, whichever Keras trains it."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from tfdq.data import Dataset
from tfdq.data.steps import steps_per_epoch
from tfdq.experiments.folder import write_json
from tfdq.experiments.machines import Machines
from tfdq.experiments.networks import weights_digest
from tfdq.experiments.run_folder import HISTORY, MODEL, RECORD, DivergedError
from tfdq.experiments.settings import RunSettings

MONITORED = 256
"""Training images that adversarial training is watched on."""


@dataclass(frozen=True)
class Assignment:
    """What is to be trained, and where.

    Attributes:
        settings: of the run.
        seed: of everything.
        dataset: the images.
        folder: of the run.
        machines: the devices.
        tell: called with a note after every epoch.
        trust: run code that the file of ``model.start`` holds.
    """

    settings: RunSettings
    seed: int
    dataset: Dataset
    folder: Path
    machines: Machines
    tell: Callable[[str], None]
    trust: bool


class Job(ABC):
    """One training.

    Args:
        given: what is to be trained, and where.
    """

    def __init__(self, given: Assignment) -> None:
        self.settings, self.seed, self.dataset = given.settings, given.seed, given.dataset
        self.folder, self.machines = given.folder, given.machines
        self.tell, self.trust = given.tell, given.trust
        self.steps = steps_per_epoch(self.dataset, self.settings.training.batch_size)
        self.history: list[dict[str, Any]] = []

    @abstractmethod
    def run(self) -> None:
        """Train from where the checkpoint stands to the end."""

    @abstractmethod
    def trained(self) -> Any:
        """Return the trained model as it ships: in float32 and for one device."""

    @abstractmethod
    def clean_up(self) -> None:
        """Remove the checkpoints of a training that is finished."""

    def keep(self, row: dict[str, Any]) -> None:
        """Write the figures of an epoch that has ended."""
        self.history.append(row)
        if self.machines.chief:
            write_json(self.folder / HISTORY, self.history)

    def announce(self, epoch: int, row: Mapping[str, Any]) -> None:
        """Say that an epoch has ended, and with which accuracies."""
        self.tell(
            f"epoch {epoch + 1}, "
            + ", ".join(f"{name} {row[name]:.3f}" for name in row if name.endswith("accuracy"))
        )

    def diverged(self) -> NoReturn:
        """Put on record that the loss became NaN or infinite, and raise it."""
        message = (
            f"the training diverged in epoch {len(self.history) + 1}: lower the learning rate "
            "(training.learning_rate) or beta (penalty.beta)"
        )
        if self.machines.chief:
            write_json(self.folder / RECORD, {"diverged": message, "history": self.history})
        raise DivergedError(message)

    def finish(self, add_figures: Callable[[Any], dict[str, Any]]) -> dict[str, Any]:
        """Write the trained model and the record, which is returned.

        Args:
            add_figures: returns more for the record, of the trained model.
        """
        model = self.trained()
        record = {
            "weights": weights_digest(model),
            "parameters": int(model.count_params()),
            "trainable_parameters": int(sum(np.prod(w.shape) for w in model.trainable_weights)),
            "seconds": sum(row["seconds"] for row in self.history),
            "history": self.history,
            "data": {"name": self.dataset.name, "source": self.dataset.source},
        }
        if self.machines.chief:
            unfinished = self.folder / f"unfinished-{MODEL}"
            model.save(unfinished)
            os.replace(unfinished, self.folder / MODEL)
            record.update(add_figures(model))
            write_json(self.folder / RECORD, record)
        self.machines.wait_for_all()
        self.clean_up()
        return record
