"""A recipe of two small networks on digits that takes seconds, and its experiment."""

from pathlib import Path
from typing import Any

from tfdq.experiments.recipe import load_recipe
from tfdq.experiments.runner import Experiment
from tfdq.experiments.strategy import open_machines

RECIPE = """
title = "Two widths"
paper = "It has no such table."
[data]
name = "digits"
train_images = 200
[model]
options = { width = 4 }
[training]
epochs = 1
batch_size = 50
[evaluation]
epsilons = [32]
attacks = ["fgsm"]
images = 40
suite = "none"
suite_images = 0
export = false
[[variants]]
name = "float"
set = { quantization = { activation_bits = 0 }, penalty = { beta = 0.0 } }
[[variants]]
name = "DQ"
[[claims]]
text = "the float network is better"
better = "float"
worse = "DQ"
metric = "fgsm"
[figure]
kind = "bars"
"""
BLACK_BOX = """
[transfer]
surrogates = ["float"]
images = 40
"""


def small_experiment(folder: Path, text: str, seeds: int = 1, **settings: Any) -> Experiment:
    """Return the experiment of a recipe's text, in folder/out."""
    recipe = folder / "recipe.toml"
    recipe.write_text(text)
    one = open_machines("one_device")
    return Experiment(load_recipe(recipe), folder / "out", range(seeds), one, **settings)
