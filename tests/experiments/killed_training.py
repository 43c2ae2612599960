"""Train a run in this process, which dies on the way, or runs out of disk.

Run as a script, as a SIGKILL ends the process:
    python killed_training.py FOLDER none|kill|kill-in-save|full-disk STEP
"""

import os
import resource
import signal
import sys
from pathlib import Path

import tensorflow as tf

from tfdq.experiments import tf_keras_job
from tfdq.experiments.networks import load_images
from tfdq.experiments.process import prepare_process
from tfdq.experiments.recipe import load_recipe
from tfdq.experiments.resumable import train_run
from tfdq.experiments.strategy import open_machines

UNLIMITED = (resource.RLIM_INFINITY, resource.RLIM_INFINITY)


def kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def main() -> None:
    folder, trouble, step = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
    # Dropout and augmentation draw random numbers; ranges and BatchNorm keep statistics.
    recipe = load_recipe(
        "white-box",
        setup="digits",
        overrides={
            "data.train_images": [256],
            "model.name": ["wrn-10-1"],
            "model.options": [{"dropout": 0.3}],
            "training.augment": ["pad_crop"],
            "training.epochs": [3],
            "training.checkpoint_steps": [3],
        },
        only=["DQ"],
    )
    prepare_process(threads=1)
    settings = recipe.variants[0].settings
    images = load_images(settings.data)
    counted = tf_keras_job._Recorder.on_train_batch_end
    save = tf.train.CheckpointManager.save

    def counting(self: tf_keras_job._Recorder, batch: int, logs: object = None) -> None:
        if trouble == "kill" and self.at + 1 == step:
            kill()
        counted(self, batch, logs)

    def saving(self: tf.train.CheckpointManager, checkpoint_number: int) -> str:
        if trouble == "kill-in-save" and checkpoint_number == step:
            # What a process leaves that dies after the data and before all else.
            data = self.directory + f"/ckpt-{step}.data-00000-of-00001"
            Path(data).write_bytes(b"half of a checkpoint")
            kill()
        if trouble == "full-disk" and checkpoint_number == step:
            resource.setrlimit(resource.RLIMIT_FSIZE, (2048, resource.RLIM_INFINITY))
        return save(self, checkpoint_number=checkpoint_number)

    tf_keras_job._Recorder.on_train_batch_end = counting  # type: ignore[method-assign]
    tf.train.CheckpointManager.save = saving
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)

    def train() -> None:
        machines = open_machines("one_device")
        record = train_run(settings, 0, images, folder, machines)
        print(record["weights"], len(record["history"]))

    try:
        train()
    except OSError as error:
        resource.setrlimit(resource.RLIMIT_FSIZE, UNLIMITED)
        print(f"OSError: {error}")
        trouble = "none"
        train()


if __name__ == "__main__":
    main()
