"""Train a run on Keras 3 in this process, which dies on the way or goes on to the end.

Run as a script, as a SIGKILL ends the process; the second form trains from the start as well:
    python killed_keras3.py BACKEND FOLDER kill STEP
    python killed_keras3.py BACKEND FOLDER go-on WHOLE
"""

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

from tfdq.experiments.process import choose_backend, prepare_process

KEPT: dict[str, dict[str, Any]] = {
    # What is kept at the end is neither the last weights nor of one step.
    "jax": {"training.average": 0.9},
    "tensorflow": {
        "adversarial.attack": "n-fgsm",
        "adversarial.warmup_epochs": 1,
        "adversarial.patience": 5,
    },
}


def main() -> None:
    backend, folder, then, argument = sys.argv[1:]
    choose_backend([backend])
    prepare_process(backend=backend)
    from tfdq.experiments import keras3_job
    from tfdq.experiments.networks import load_images
    from tfdq.experiments.placement import machines_of
    from tfdq.experiments.resumable import train_run
    from tfdq.experiments.settings import RunSettings

    settings = RunSettings().changed(
        {
            "data.train_images": 160,
            "model.options": {"width": 4},
            "quantization.activation_range": "learned",
            "quantization.kernel_range": "learned",
            "training.backend": backend,
            "training.augment": "pad_crop_flip",
            "training.batch_size": 32,
            "training.epochs": 2,
            "training.checkpoint_steps": 3,
            **KEPT[backend],
        }
    )
    images = load_images(settings.data)
    if then == "kill":
        counted = keras3_job._Recorder.on_train_batch_end

        def counting(self: Any, batch: int, logs: Any = None) -> None:
            if self.at + 1 == int(argument):
                os.kill(os.getpid(), signal.SIGKILL)
            counted(self, batch, logs)

        keras3_job._Recorder.on_train_batch_end = counting  # type: ignore[method-assign]
    machines = machines_of(backend, "auto")
    record = train_run(settings, 0, images, Path(folder), machines)
    whole = train_run(settings, 0, images, Path(argument), machines)
    kept = ("weights", "history")
    for row in [*record["history"], *whole["history"]]:
        del row["seconds"]
    print(json.dumps([{name: found[name] for name in kept} for found in (record, whole)]))


if __name__ == "__main__":
    main()
