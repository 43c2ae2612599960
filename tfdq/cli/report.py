"""The command that writes the HTML report."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tfdq.cli.app import app
from tfdq.cli.fitting import (
    AuditOption,
    ChannelsOption,
    InputRangeOption,
    LabelsOption,
    ResizeOption,
    check_declared,
    read_audits,
)
from tfdq.cli.options import (
    CostLimitOption,
    DataDirOption,
    ImageSizeOption,
    JsonOption,
    SeedOption,
    TrustOption,
    check_call,
    check_writable,
    complete_data,
    size,
)
from tfdq.cli.output import note, print_result
from tflite_export.ir.limits import Limits


@app.command(epilog="Example:  tfdq report runs/3f0c2a --out report.html")
def report(
    runs: Annotated[
        list[Path],
        typer.Argument(
            help="Folders that `tfdq demo`, `tfdq train` or `tfdq reproduce` wrote, single runs in "
            "OUT/runs of the last, Keras models (the .tflite of the same name beside one is its "
            "integer file), or .tflite files of whatever maker."
        ),
    ],
    out: Annotated[Path, typer.Option("--out", help="HTML file to write.")] = Path("report.html"),
    data: Annotated[
        str | None,
        typer.Option(
            "--data",
            help="Images, by name or path; by default those that the runs were trained on.",
            metavar="NAME|PATH",
            autocompletion=complete_data,
        ),
    ] = None,
    data_dir: DataDirOption = None,
    image_size: ImageSizeOption = None,
    resize: ResizeOption = "stretch",
    channels: ChannelsOption = "rgb",
    labels: LabelsOption = None,
    input_range: InputRangeOption = None,
    audits: AuditOption = None,
    limit: Annotated[
        int, typer.Option("--limit", min=8, help="Test images for what is measured now.")
    ] = 200,
    seed: SeedOption = 0,
    trust: TrustOption = False,
    cost_limit: CostLimitOption = None,
    as_json: JsonOption = False,
) -> None:
    """Write one HTML file about trained networks: figures, verdicts, images, certificates."""
    check_writable(out, is_folder=False)
    limits = Limits.parse(cost_limit or [])
    check_declared(input_range, labels)
    check_call(data, image_size)
    from tfdq.report.networks import ImageSource
    from tfdq.report.run_report import write_report

    verdicts = read_audits(audits or [])

    path = write_report(
        runs,
        out,
        source=ImageSource(data, data_dir, size(image_size), resize, channels, labels, input_range),
        audits=verdicts,
        images=limit,
        seed=seed,
        trust=trust,
        limits=limits,
        tell=note,
    )
    count = path.stat().st_size
    figures = {"report": str(path), "bytes": count}
    print_result(figures, f"wrote {path} ({count / 1024:.0f} KiB)", as_json)
