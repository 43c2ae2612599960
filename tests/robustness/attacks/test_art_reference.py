"""PGD, Square and a short AutoAttack against the Adversarial Robustness Toolbox: a second opinion.

Its random draws are its own, so what is compared are robust accuracies on the same network and
images, 200 of them: a point is two images.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from tests.needs import require
from tfdq.robustness.attacks import run_attack

evasion = require("art.attacks.evasion", "peers")
classification = require("art.estimators.classification", "peers")

EPS = 0.1
POINT = 0.01


@pytest.fixture(scope="module")
def classifier(target: Any) -> classification.TensorFlowV2Classifier:
    """The small trained network as ART takes it."""
    logits = tf.function(target.logits_tensor, reduce_retracing=True)
    return classification.TensorFlowV2Classifier(
        model=lambda images, training=False: logits(images),
        nb_classes=10,
        input_shape=(8, 8, 1),
        loss_object=tf.keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        clip_values=(0.0, 1.0),
    )


def robust(target: Any, images: np.ndarray, sample: Any) -> float:
    """Robust accuracy of what ART made, which must lie in the ball."""
    assert np.abs(images - sample.x).max() <= EPS + 1e-6
    return float(np.mean(target.predict(images) == sample.y))


def test_pgd_is_arts(classifier: Any, target: Any, sample: Any) -> None:
    """From the clean image, all steps, last iterate: nothing random is left."""
    attack = evasion.ProjectedGradientDescentNumpy(
        classifier, eps=EPS, eps_step=EPS / 8, max_iter=20, batch_size=200, verbose=False
    )
    theirs = robust(target, attack.generate(sample.x, sample.y), sample)
    ours = run_attack(
        "pgd",
        target,
        sample.x,
        sample.y,
        EPS,
        steps=20,
        step_size=EPS / 8,
        random_start=False,
        early_stop=False,
    )
    assert 0.1 < theirs < 0.9
    assert abs(ours.robust_accuracy - theirs) <= POINT


def test_pgd_from_random_points_is_no_weaker_than_arts(
    classifier: Any, target: Any, sample: Any
) -> None:
    np.random.seed(0)  # noqa: NPY002 - ART draws from it
    attack = evasion.ProjectedGradientDescentNumpy(
        classifier,
        eps=EPS,
        eps_step=EPS / 8,
        max_iter=20,
        num_random_init=2,
        batch_size=200,
        verbose=False,
    )
    theirs = robust(target, attack.generate(sample.x, sample.y), sample)
    ours = run_attack("pgd", target, sample.x, sample.y, EPS, steps=20, restarts=2)
    assert ours.robust_accuracy <= theirs + POINT


def test_square_is_no_weaker_than_arts(target: Any, sample: Any) -> None:
    """Both stretch the schedule of sizes to the number of queries, as ART always does."""
    np.random.seed(0)  # noqa: NPY002 - ART draws from it
    black_box = classification.BlackBoxClassifierNeuralNetwork(
        target.logits,
        input_shape=(8, 8, 1),
        nb_classes=10,
        channels_first=False,
        clip_values=(0.0, 1.0),
    )
    attack = evasion.SquareAttack(
        black_box, eps=EPS, max_iter=300, p_init=0.8, batch_size=200, verbose=False
    )
    theirs = robust(target, attack.generate(sample.x, sample.y), sample)
    ours = run_attack("square", target, sample.x, sample.y, EPS, queries=300, rescale_schedule=True)
    assert 0.1 < theirs < 0.9
    assert ours.robust_accuracy <= theirs + POINT


def test_worst_case_is_no_better_than_under_arts_autoattack(
    classifier: Any, target: Any, sample: Any
) -> None:
    """ART's suite (APGD on two losses, DeepFool, Square), with fewer steps and restarts."""
    np.random.seed(0)  # noqa: NPY002 - ART draws from it
    common = {"eps": EPS, "batch_size": 200, "verbose": False}
    auto = {**common, "eps_step": EPS / 4, "max_iter": 25, "nb_random_init": 1}
    attacks = [
        evasion.AutoProjectedGradientDescent(classifier, loss_type=loss, **auto)
        for loss in ("cross_entropy", "difference_logits_ratio")
    ]
    attacks.append(evasion.DeepFool(classifier, max_iter=10, batch_size=200, verbose=False))
    attacks.append(evasion.SquareAttack(classifier, max_iter=200, **common))
    suite = evasion.AutoAttack(
        classifier, eps=EPS, eps_step=EPS / 4, attacks=attacks, batch_size=200
    )
    theirs = robust(target, suite.generate(sample.x, sample.y), sample)
    standing = np.ones(len(sample.y), bool)
    for name, options in (
        ("apgd-ce", {"steps": 25}),
        ("apgd-t", {"steps": 25, "target_classes": 3}),
        ("fab", {"steps": 10, "target_classes": 3}),
        ("square", {"queries": 200}),
    ):
        left = np.flatnonzero(standing)
        result = run_attack(name, target, sample.x[left], sample.y[left], EPS, **options)
        standing[left[result.success]] = False
    assert 0.05 < theirs < 0.9
    assert standing.mean() <= theirs + POINT
