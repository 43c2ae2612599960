"""Train a run in this process; with a step given, kill the process (SIGKILL) at that step.

Run as a script: python killed_training.py FOLDER VARIANT STEP [before-save|in-save|-] [NAME=VALUE...]
"""

import os
import signal
import sys
from pathlib import Path

import tensorflow as tf

from tfdq.experiments import resumable
from tfdq.experiments.networks import load_images
from tfdq.experiments.recipe import load_recipe, parse_assignment
from tfdq.experiments.strategy import open_machines


def kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def main() -> None:
    folder, variant, step, place, *changes = sys.argv[1:]
    recipe = load_recipe(
        "white-box",
        setup="digits",
        overrides={
            "data.train_images": [256],
            "training.epochs": [3],
            "training.checkpoint_steps": [3],
            **dict(parse_assignment(change) for change in changes),
        },
        only=[variant],
    )
    resumable.prepare_process(threads=1)
    settings = recipe.variants[0].settings
    counted = resumable._Recorder.on_train_batch_end
    save = tf.train.CheckpointManager.save

    def counting(self: resumable._Recorder, batch: int, logs: object = None) -> None:
        if place == "-" and self.at + 1 == int(step):
            kill()
        counted(self, batch, logs)

    def saving(self: tf.train.CheckpointManager, checkpoint_number: int) -> str:
        if place == "before-save" and checkpoint_number == int(step):
            kill()
        if place == "in-save" and checkpoint_number == int(step):
            # What a process leaves that dies between the data and the index.
            path = save(self, checkpoint_number=checkpoint_number)
            state = Path(self.directory, "checkpoint")
            Path(f"{path}.index").unlink()
            state.write_text(state.read_text().replace(f"ckpt-{step}", "ckpt-3"))
            kill()
        return save(self, checkpoint_number=checkpoint_number)

    resumable._Recorder.on_train_batch_end = counting  # type: ignore[method-assign]
    tf.train.CheckpointManager.save = saving
    record = resumable.train_run(
        settings,
        0,
        load_images(settings.data),
        Path(folder),
        open_machines("one_device"),
    )
    print(record["weights"], len(record["history"]))


if __name__ == "__main__":
    main()
