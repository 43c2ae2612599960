"""Images as the networks of the experiments take them."""

from __future__ import annotations

import numpy as np


def scaled(images: np.ndarray) -> np.ndarray:
    """Return uint8 images as the models take them: float32 in [0, 1]."""
    return images.astype(np.float32) / np.float32(255)
