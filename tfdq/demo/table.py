"""The demo's one table, for the terminal and for Markdown."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tfdq.robustness.attacks import attack_spec

if TYPE_CHECKING:
    from rich.table import Table

    from tfdq.demo.run import DemoResult


def rows(result: DemoResult) -> list[list[str]]:
    """Return the table's cells: model, clean, each attack, size, images/s."""
    report, epsilon = result.report, result.settings.epsilon
    table = []
    for record in report.models:
        name = record.name
        attacked = [report.robust(name, epsilon, attack) for attack in report.attacks]
        table.append(
            [
                name,
                *(f"{100 * share.value:.1f}" for share in (report.clean(name), *attacked)),
                f"{result.sizes[name] / 1024:.1f}",
                f"{result.speeds[name]:,.0f}",
            ]
        )
    return table


def header(result: DemoResult) -> list[str]:
    """Return the titles of the columns."""
    options = result.report.settings["options"]
    attacks = [attack_spec(name).label(options[name]) for name in result.report.attacks]
    return ["model", "clean", *attacks, "KiB", "images/s"]


def notes(result: DemoResult) -> list[str]:
    """Return what a reader must know to read the table right."""
    report, settings = result.report, result.settings
    bits = settings.run.quantization
    widest = max(
        share.high - share.low
        for record in report.models
        for share in (report.robust(record.name, settings.epsilon, a) for a in report.attacks)
    )
    return [
        f"{report.examples} test images of {result.dataset.name}; L_inf, eps "
        f"{settings.epsilon * 255:.0f}/255; activations {bits.activation_bits} bits, weights "
        f"{bits.weight_bits} bits; beta {settings.run.penalty.beta:g}; one seed "
        f"({settings.seed}).",
        f"Robust accuracy under these attacks; 95 % intervals are up to {100 * widest:.0f} points "
        "wide (results.json). Not audited for gradient masking: see `tfdq audit`.",
        "A .tflite file is attacked with the gradients of the model it was made from, and judged "
        "by what LiteRT computes. Size of a model: its float32 weights. Speed: batch 64, measured "
        "now, on this machine.",
    ]


def as_rich(result: DemoResult) -> Table:
    """Return the table for a terminal."""
    from rich.table import Table

    title = f"Defensive quantization of {result.dataset.name}: accuracy in %, size, speed"
    table = Table(title=title, caption="\n".join(notes(result)), caption_justify="left")
    for index, column in enumerate(header(result)):
        table.add_column(column, justify="left" if index == 0 else "right", no_wrap=True)
    for cells in rows(result):
        table.add_row(*cells)
    return table


def as_markdown(result: DemoResult) -> str:
    """Return the table as Markdown."""
    titles = header(result)
    lines = ["| " + " | ".join(titles) + " |", "|---" + "|---:" * (len(titles) - 1) + "|"]
    lines += ["| " + " | ".join(cells) + " |" for cells in rows(result)]
    return "\n".join([*lines, "", *notes(result)]) + "\n"
