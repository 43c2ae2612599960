"""What the command line is told of the images that a model takes."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tfdq.experiments.fitting import Channels, Resize

if TYPE_CHECKING:
    from tfdq.robustness import MaskingAudit

InputRangeOption = Annotated[
    str | None,
    typer.Option(
        "--input-range",
        help="What the models take for black and white: 0,1 or -1,1 or imagenet; grid: the data "
        "are the integers of a .tflite file's input. By default [0, 1]; of a .tflite file of "
        "another maker the best of the usual ones.",
        metavar="LOW,HIGH",
    ),
]
LabelsOption = Annotated[
    Path | None,
    typer.Option(
        "--labels",
        help="Text file with the class of each output, one a line, as the folders of --data are "
        "called; by default what the .tflite file says of itself.",
    ),
]
ResizeOption = Annotated[
    Resize,
    typer.Option(
        "--resize",
        help="How the images of a folder get their size: stretched, or the shorter side resized "
        "and the middle cut out.",
    ),
]
ChannelsOption = Annotated[Channels, typer.Option("--channels", help="Order that the model takes.")]
AuditOption = Annotated[
    list[str] | None,
    typer.Option("--audit", help="MODEL=audit.json, its verdict; may be repeated."),
]


def check_declared(input_range: str | None, labels: Path | None) -> None:
    """Check what was declared of a model, before TensorFlow is loaded.

    Raises:
        FileNotFoundError: there is no file of labels.
        ValueError: it holds no names, or the range is none.
    """
    if input_range is not None:
        from tfdq.robustness.input_ranges import parse_input_range

        parse_input_range(input_range, grid=(0.0, 1.0))
    if labels is not None:
        from tfdq.data.label_files import read_labels

        read_labels(labels)


def read_audits(given: list[str]) -> dict[Path, MaskingAudit]:
    """Return the audits given as ``MODEL=audit.json``, by model.

    Raises:
        ValueError: one is not of that form, or its file is damaged.
    """
    from tfdq.robustness import MaskingAudit
    from tfdq.robustness.json_files import naming

    found = {}
    for text in given:
        model, separator, file = text.rpartition("=")
        if not separator or not model:
            raise ValueError(f"--audit takes MODEL=audit.json, got {text!r}")
        with naming(Path(file), f"write it again with `tfdq audit {model} --out FOLDER`"):
            audit = MaskingAudit.from_json(Path(file).read_text(encoding="utf-8"))
        found[Path(model)] = audit
    return found
