"""The command that proves: certify."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from tfdq.cli.app import app
from tfdq.cli.fitting import (
    ChannelsOption,
    InputRangeOption,
    LabelsOption,
    ResizeOption,
    check_declared,
)
from tfdq.cli.options import (
    CostLimitOption,
    DataDirOption,
    DataOption,
    EpsOption,
    ImageSizeOption,
    JsonOption,
    LimitOption,
    SeedOption,
    TrustOption,
    check_call,
    check_writable,
    number,
    open_model,
    size,
    test_images,
)
from tfdq.cli.output import note, output, print_result
from tfdq.experiments.fitting import Images, input_range_of, takes_unit_range
from tflite_export.ir.limits import Limits


@app.command(epilog="Example:  tfdq certify model.tflite --eps 1/255 --complete --limit 100")
def certify(
    model: Annotated[
        Path, typer.Argument(help="A .tflite file of integers, or a quantized Keras model.")
    ],
    data: DataOption = "digits",
    data_dir: DataDirOption = None,
    image_size: ImageSizeOption = None,
    resize: ResizeOption = "stretch",
    channels: ChannelsOption = "rgb",
    labels: LabelsOption = None,
    input_range: InputRangeOption = None,
    eps: EpsOption = "1/255",
    complete: Annotated[
        bool,
        typer.Option(
            "--complete",
            help="After the intervals attack, and search what is left: every image is verified or "
            "broken if time allows.",
        ),
    ] = False,
    seconds: Annotated[
        float | None,
        typer.Option(
            "--image-seconds",
            help="With --complete: the longest time of an image; 60 by default.",
            min=0.001,
        ),
    ] = None,
    limit: LimitOption = 100,
    seed: SeedOption = 0,
    out: Annotated[
        Path | None,
        typer.Option("--out", help="Folder for the certificate; --complete goes on there."),
    ] = None,
    trust: TrustOption = False,
    cost_limit: CostLimitOption = None,
    as_json: JsonOption = False,
) -> None:
    """Prove the decisions of an integer network in L_inf, for every bit of it."""
    output().after_interrupt = (
        "nothing is kept; with --complete --out FOLDER finished images would be"
        if out is None or not complete
        else f"finished images are kept in {out}; the same command goes on with them"
    )
    if seconds is not None and not complete:
        raise ValueError("--image-seconds is the time of the search of --complete: give both")
    radius = number(eps)
    if out is not None:
        check_writable(out, is_folder=True)
    limits = Limits.parse(cost_limit or [])
    check_declared(input_range, labels)
    check_call(data, image_size, model)
    from tfdq.certificates import certify as run_certify
    from tfdq.robustness.statistics import wilson

    opened = open_model(model, trust, limits)
    given = Images(data, data_dir, size(image_size), limit, seed, resize, channels, labels)
    dataset = given.load({model: opened})
    x, y = test_images(dataset)
    low, high = _ends(model, opened, dataset, input_range, seed, limits)
    images, step = low + (high - low) * x, radius * (high - low)
    settings: dict[str, Any] = {"step": step, "max_steps": 1}
    if complete:
        settings = {"eps": step, "progress": _tell}
        if seconds is not None:
            settings["seconds"] = seconds
        if out is not None:
            out.mkdir(parents=True, exist_ok=True)
            settings["resume"] = out / "decisions.jsonl"
    method: Any = "complete" if complete else "interval"
    found = run_certify(
        opened, images, y, "linf", method, bounds=(low, high), limits=limits, **settings
    )
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        found.save(out / "certificate.json")
    held = wilson(round(found.certified_accuracy(step) * len(y)), len(y))
    text = f"{model}: certified at {eps}: {held}\n{found.summary()}"
    print_result(found.to_dict(), text, as_json)


def _ends(
    path: Path, opened: Any, dataset: Any, given: str | None, seed: int, limits: Limits
) -> tuple[float, float]:
    """Return what a model takes for black and white.

    Raises:
        ValueError: they differ from channel to channel, so that no one radius is meant.
    """
    if takes_unit_range(opened, given):
        return 0.0, 1.0
    from tfdq.robustness import as_target

    target = as_target(path, limits=limits) if path.suffix == ".tflite" else as_target(opened)
    found, _ = input_range_of(path, opened, target, dataset, given, seed, note)
    if len(set(found.low)) > 1 or len(set(found.high)) > 1:
        raise ValueError(
            f"{str(path)!r} takes other values for black and white in each channel "
            f"({found.name}); only models with one range for all channels are certified"
        )
    return found.low[0], found.high[0]


def _tell(done: int, images: int) -> None:
    """Say on stderr how far the search is, every tenth of it."""
    if done == images or done % max(1, images // 10) == 0:
        note(f"{done} of {images} images")
