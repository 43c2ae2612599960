"""Run `tfdq ...` in this process, which dies at a training step.

Run as a script, as a SIGKILL ends the process:
    python killed_classifier.py STEP train --out FOLDER ...
"""

import os
import signal
import sys

from tfdq.cli import main
from tfdq.experiments import tf_keras_job


def die_at(step: int) -> None:
    """Let the training's step of this number end with a SIGKILL; 0: none does."""
    counted = tf_keras_job._Recorder.on_train_batch_end

    def counting(self: tf_keras_job._Recorder, batch: int, logs: object = None) -> None:
        if self.at + 1 == step:
            os.kill(os.getpid(), signal.SIGKILL)
        counted(self, batch, logs)

    tf_keras_job._Recorder.on_train_batch_end = counting  # type: ignore[method-assign]


if __name__ == "__main__":
    die_at(int(sys.argv[1]))
    main(sys.argv[2:])
