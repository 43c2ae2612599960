"""What the tests of the attacks share: 200 digits and a target that is traced once."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
import tf_keras

from tfdq.robustness.targets import DifferentiableTarget, as_target


@dataclass(frozen=True)
class Sample:
    """Images in [0, 1], float32 [200, 8, 8, 1], and labels, int64 [200]."""

    x: np.ndarray
    y: np.ndarray


@pytest.fixture(scope="session")
def sample(digits) -> Sample:
    return Sample(digits.x_test[:200], digits.y_test[:200])


@pytest.fixture(scope="session")
def target(float_model: tf_keras.Model) -> DifferentiableTarget:
    made = as_target(float_model)
    assert isinstance(made, DifferentiableTarget)
    return made
