"""Black-box attack of an experiment: images made on separately trained networks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tfdq.data import Dataset
from tfdq.experiments.measuring import evaluation_images, load_trained
from tfdq.experiments.process import TF_KERAS
from tfdq.experiments.recipe import Transfer
from tfdq.robustness import as_target, run_attack

_STEPS: dict[str, dict[str, Any]] = {"pgd": {"steps": 20}, "bim": {"steps": 20}}


def transfer(
    settings: Transfer,
    epsilons: Sequence[float],
    surrogates: Mapping[str, Path],
    victims: Mapping[str, Path],
    dataset: Dataset,
    seed: int,
    held_out: bool = False,
    backend: str = TF_KERAS,
) -> dict[str, Any]:
    """Make images on every surrogate and show them to every victim.

    The attack runs to its end on every image (no early stop), as is right for transfer.

    Args:
        settings: attack and number of images.
        epsilons: strengths in 1/255.
        surrogates: variant -> trained model that makes images.
        victims: variant -> trained model that is shown them.
        dataset: the images.
        seed: of the attack.
        held_out: whether on test images that no other evaluation uses.
        backend: what the networks were trained on.

    Returns:
        ``{"images": n, "eps": {strength in 1/255: {surrogate: {victim: figures}}}}``, figures as a
        string with a 1 for every image that the victim gets right clean and as made.
    """
    x, y = evaluation_images(dataset, settings.images, held_out)
    targets = {name: as_target(load_trained(path, backend)) for name, path in victims.items()}
    right = {name: target.predict(x) == y for name, target in targets.items()}
    found: dict[str, Any] = {"images": len(y), "eps": {}}
    for strength in epsilons:
        by_surrogate: dict[str, dict[str, str]] = {}
        for name, path in surrogates.items():
            moved = run_attack(
                settings.attack,
                load_trained(path, backend),
                x,
                y,
                strength / 255,
                early_stop=False,
                seed=seed,
                **_STEPS.get(settings.attack, {}),
            ).x_adv
            by_surrogate[name] = {
                victim: _bits(right[victim] & (target.predict(moved) == y))
                for victim, target in targets.items()
            }
        found["eps"][f"{strength:.10g}"] = by_surrogate
    return found


def _bits(mask: np.ndarray) -> str:
    return "".join("1" if value else "0" for value in mask)
