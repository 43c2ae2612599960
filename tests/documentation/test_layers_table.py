"""The table of layers in the documentation: every layer that is taken, and operators that exist."""

from __future__ import annotations

import re
from pathlib import Path

import keras

from tfdq.keras3.layer_kinds import KINDS
from tfdq.keras3.layer_kinds.registry import OWN_LAYER
from tflite_export.ops import OPERATORS

PAGE = (Path(__file__).parents[2] / "docs" / "layers.md").read_text()


def rows(text: str) -> list[list[str]]:
    lines = [line for line in text.splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def test_the_table_has_every_layer_that_is_taken() -> None:
    table = PAGE.partition("<!-- layers -->")[2].partition("<!-- /layers -->")[0]
    told = [
        name
        for cells in rows(table)[1:]
        for name in re.findall(r"[A-Z]\w+", re.sub(r"\(.*?\)", "", cells[0]))
    ]
    assert len(told) == len(set(told))
    layers = {kind.__name__ for kind in KINDS if vars(keras.layers).get(kind.__name__) is kind}
    assert set(told) == layers


def test_the_table_has_every_activation_and_operators_that_exist() -> None:
    activations = PAGE.partition("| activation |")[2]
    told = {name for cells in rows(activations) for name in re.findall(r"\w+", cells[0])}
    assert told - {"swish", "hard_swish"} == {*OWN_LAYER, "relu", "relu6"}
    operators = {name for cells in rows(PAGE) for name in re.findall(r"\b[A-Z_\d]{3,}\b", cells[1])}
    assert operators <= set(OPERATORS)
    assert len(operators) > 15
