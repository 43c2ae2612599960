"""The commands by name, with what `tfdq --help` says of each before anything is imported."""

from __future__ import annotations

from typing import NamedTuple


class Entry(NamedTuple):
    """Where a command is, and what it does.

    Attributes:
        module: registers the command when it is imported.
        summary: first line of its help.
    """

    module: str
    summary: str


_LINES = {
    "tfdq.cli.commands": {
        "demo": "Train, quantize, attack, export and run on real images, in a few minutes.",
        "train": "Train a model, quantization-aware and defensive by default.",
        "export": "Write the integer-only .tflite file of a model, and prove that its integers "
        "are right.",
        "run": "Run a model on test images: accuracy and speed.",
    },
    "tfdq.cli.robustness": {
        "attack": "Attack a model on test images with one attack.",
        "evaluate": "Compare models under a suite of attacks on the same images; --eps may be "
        "repeated.",
        "audit": "Check whether a robustness figure can be believed, or gradients are masked.",
    },
    "tfdq.cli.certify": {
        "certify": "Prove the decisions of an integer network in L_inf, for every bit of it.",
    },
    "tfdq.cli.report": {
        "report": "Write one HTML file about trained networks: figures, verdicts, images, "
        "certificates.",
    },
    "tfdq.cli.experiments": {
        "recipes": "List the paper's experiments, or say what one of them compares.",
        "reproduce": "Run one of the paper's experiments: train, attack, audit, export, compare.",
        "sweep": "Run a recipe's variants over values of any of its settings.",
        "results": "Write the page of all results on record, with figures, claims and commands.",
    },
    "tfdq.cli.zoo": {"zoo": "Trained integer files with cards to check them by."},
}

ENTRIES = {
    name: Entry(module, summary)
    for module, lines in _LINES.items()
    for name, summary in lines.items()
}
"""In the order of the help."""
