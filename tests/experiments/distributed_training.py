"""Train one run on one device, on two replicas, or as one of two workers; compare.

Run as a script: devices and TF_CONFIG must be there before TensorFlow starts.
    python distributed_training.py mirrored FOLDER
    python distributed_training.py worker FOLDER STEP [MODEL to attack as well]
Worker 1 kills itself at a step; 0: it does not.
"""

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

import tfdq
from tfdq.experiments import process, resumable, tf_keras_job
from tfdq.experiments.machines import Machines
from tfdq.experiments.measuring import Measurement
from tfdq.experiments.networks import load_images
from tfdq.experiments.recipe import load_recipe
from tfdq.experiments.strategy import open_machines

RECIPE = load_recipe(
    "white-box",
    setup="digits",
    overrides={
        "data.train_images": [256],
        # With Adam a rounding error in a gradient near 0 becomes a whole step.
        "training.optimizer": ["sgd"],
        "training.learning_rate": [0.02],
        "training.batch_size": [32],
        "training.epochs": [2],
        "training.checkpoint_steps": [3],
        "penalty.on": ["deployed"],
        "penalty.beta": [0.01],
        "penalty.ramp": [[0, 1]],
        "evaluation.attacks": [["fgsm", "pgd"]],
        "evaluation.images": [300],
        "evaluation.suite": ["none"],
        "evaluation.audit_images": [0],
    },
    only=["DQ"],
)
SETTINGS = RECIPE.variants[0].settings


def train(folder: Path, machines: Machines) -> dict[str, Any]:
    return resumable.train_run(SETTINGS, 0, load_images(SETTINGS.data), folder, machines)


def largest_difference(first: Path, second: Path) -> dict[str, float]:
    """Return the largest difference of the weights, and how far training moved them."""
    a, b = (
        tfdq.load_model(folder / "model.keras", compile=False).get_weights()
        for folder in (first, second)
    )
    apart = max(float(np.abs(x - y).max()) for x, y in zip(a, b, strict=True))
    return {"apart": apart, "largest": max(float(np.abs(x).max()) for x in a)}


def attacked(model: Path, folder: Path, machines: Machines) -> dict[str, Any]:
    """Return the figures of a copy in a folder of its own: none reads what another has stored."""
    if machines.chief:
        folder.mkdir()
        (folder / "model.keras").write_bytes(model.read_bytes())
    machines.wait_for_all()
    images = load_images(SETTINGS.data)
    found = Measurement(SETTINGS.evaluation, 0, images, folder, machines).run()
    return {key: found[key] for key in ("clean", "attacks")}


def mirrored(folder: Path) -> None:
    cpu = tf.config.list_physical_devices("CPU")[0]
    tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
    process.prepare_process(threads=1)
    two, one = open_machines("mirrored"), open_machines("one_device")
    records = {"one": train(folder / "one", one), "two": train(folder / "two", two)}
    model = folder / "one" / "model.keras"
    figures = [attacked(model, folder / "alone", one), attacked(model, folder / "shared", two)]
    print(
        json.dumps(
            {
                "replicas": two.replicas,
                "devices": len(two.devices()),
                "losses": [records[n]["history"][-1]["loss"] for n in ("one", "two")],
                "same_figures": figures[0] == figures[1],
                "attacked": len(figures[0]["clean"]),
                "figures": figures[0],
                **largest_difference(folder / "one", folder / "two"),
            }
        )
    )


def worker(folder: Path, step: int, also: Path | None) -> None:
    index = json.loads(os.environ["TF_CONFIG"])["task"]["index"]
    process.prepare_process(threads=1)
    machines = open_machines("multiworker")
    counted = tf_keras_job._Recorder.on_train_batch_end

    def counting(self: tf_keras_job._Recorder, batch: int, logs: object = None) -> None:
        if index == 1 and self.at + 1 == step:
            os.kill(os.getpid(), signal.SIGKILL)
        counted(self, batch, logs)

    tf_keras_job._Recorder.on_train_batch_end = counting  # type: ignore[method-assign]
    record = train(folder, machines)
    measurement = Measurement(SETTINGS.evaluation, 0, load_images(SETTINGS.data), folder, machines)
    figures = measurement.run()
    print(
        json.dumps(
            {
                "worker": machines.worker,
                "workers": machines.workers,
                "replicas": machines.replicas,
                "loss": record["history"][-1]["loss"],
                "clean": figures["clean"],
                "attacks": figures["attacks"],
                "also": also and attacked(also, folder.with_name("also"), machines),
            }
        )
    )


def main() -> None:
    mode, folder, *rest = sys.argv[1:]
    if mode == "mirrored":
        mirrored(Path(folder))
    else:
        worker(Path(folder), int(rest[0]), Path(rest[1]) if rest[1:] else None)


if __name__ == "__main__":
    main()
