"""Whether BatchNorm's moving statistics are those of the network that ships."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from tfdq.lagging_statistics import LaggingStatisticsWarning, frames_inside

if TYPE_CHECKING:
    from tfdq.description import TrainedModel

FEWEST_IMAGES = 64
"""Images from which on their statistics, and a share of 2 %, say something."""
SMALLEST_SHARE = 0.98
"""Share of decisions that must stay with statistics taken anew."""


def warn_of_statistics(
    source: TrainedModel, sample: Sequence[np.ndarray], outputs: Sequence[np.ndarray]
) -> None:
    """Warn where the file decides otherwise than the network with the statistics of the sample.

    Says nothing of fewer than `FEWEST_IMAGES` images, of outputs that are no scores of classes,
    and of models without a BatchNormalization that follows training.

    Args:
        source: the trained model.
        sample: images on which the outputs were computed, an array ``(n, ...)`` for each input.
        outputs: the file's outputs on the sample.
    """
    scored = [position for position, found in enumerate(outputs) if _scores(found)]
    if len(sample[0]) < FEWEST_IMAGES or not scored:
        return
    renewed = source.outputs_with_statistics_of(sample)
    if renewed is None:
        return
    share = min(
        float(np.mean(outputs[i].argmax(axis=-1) == renewed[i].argmax(axis=-1))) for i in scored
    )
    if share < SMALLEST_SHARE:
        warnings.warn(
            f"BatchNorm's moving statistics are not those of the network as it is: with the "
            f"statistics of the {len(sample[0])} calibration images it decides as the file does on "
            f"{share:.1%} of them only. If they are training images, take the statistics anew, "
            "tfdq.calibrate(model, training_images, batch_norm=True), or train on at a low "
            "learning rate; if not, calibrate and convert on training images",
            LaggingStatisticsWarning,
            stacklevel=frames_inside() + 1,
        )


def _scores(output: np.ndarray) -> bool:
    return output.ndim == 2 and output.shape[-1] > 1
