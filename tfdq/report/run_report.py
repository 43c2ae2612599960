"""The HTML report of one run or several: what they are, what they withstand, what ships."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tfdq.report import drawings, measured
from tfdq.report.networks import ImageSource, ReportedNetwork, open_networks
from tfdq.report.page import Cell, Gallery, Section, Table, Text, render
from tfdq.report.run_folders import networks_in
from tfdq.robustness.result_store import write_atomically
from tfdq.robustness.statistics import Proportion
from tfdq.robustness.verdict import verdict_of
from tflite_export.ir.limits import DEFAULT, Limits

if TYPE_CHECKING:
    from tfdq.robustness import MaskingAudit

_CERTIFIED_IMAGES = 64
_CERTIFIED_STEPS = 8
_GALLERY_ROWS = 4
_NOT_MEASURED = Cell("not measured")


def write_report(
    runs: Sequence[str | Path],
    out: str | Path,
    *,
    source: ImageSource | None = None,
    audits: Mapping[Path, MaskingAudit] | None = None,
    images: int = 200,
    seed: int = 0,
    trust: bool = False,
    limits: Limits = DEFAULT,
    tell: Callable[[str], None] = lambda note: None,
) -> Path:
    """Write the report of trained networks as one HTML file that needs no network.

    What a run has measured is shown as it stands. What is missing is measured now, on a few test
    images: two quick attacks, error amplification, singular values, transfer between the networks,
    parity of the integer file with the trained network, its latency, and certificates.

    Args:
        runs: folders that ``tfdq demo``, ``tfdq train`` or ``tfdq reproduce`` wrote, folders of
            single runs in the ``runs/`` of the last, Keras model files (with an integer
            ``.tflite`` file of the same name beside it, if there is one), or integer ``.tflite``
            files of whatever maker.
        out: the HTML file to write; folders on the way to it are made.
        source: of the images; None: those that the runs were trained on.
        audits: verdicts by the path of the run that they are of, in place of those that the
            runs hold; of a network in a folder of several by its own path.
        images: test images for what is measured now, >= 8.
        seed: of the attacks.
        trust: run code that the models hold.
        limits: what each integer file may cost.
        tell: called with a note as it goes on.

    Returns:
        The path of the report.

    Raises:
        FileNotFoundError: a run or the images are not there.
        ValueError: there are no runs, ``images`` is too small, the runs are of different data, or
            an audit is of something else.
        ModuleNotFoundError: jinja2 is not installed.
        OSError: the report can't be written.
    """
    if not runs:
        raise ValueError("there are no runs to report on: name at least one")
    if images < 8:
        raise ValueError(f"images must be at least 8, got {images}")
    paths, out = [Path(run) for run in runs], Path(out)
    if out.is_dir():
        raise ValueError(f"{str(out)!r} is a folder; name the HTML file to write")
    named = networks_in(paths)
    strange = [str(path) for path in audits or {} if path not in named]
    if strange:
        raise ValueError(f"there is an audit of {', '.join(strange)}, which is not reported on")
    source = ImageSource() if source is None else source
    networks, x, y = open_networks(paths, source, images, seed, trust, limits, tell)
    out.parent.mkdir(parents=True, exist_ok=True)
    tell("attacks ...")
    networks = [measured.with_figures(network, x, y, seed) for network in networks]
    for path, found in (audits or {}).items():
        place = named.index(path)
        figures = {**networks[place].figures, "audit": found.to_dict()}
        networks[place] = replace(networks[place], figures=figures)
    sections = [_summary(networks), _curves(networks)]
    tell("error amplification ...")
    grown = {s.name: measured.amplification(s, x, y, seed) for s in networks}
    sections.append(
        Section("amplification", "Error amplification", (drawings.amplification(grown),))
    )
    tell("singular values ...")
    values = {s.name: measured.deployed_spectra(s) for s in networks}
    left_out = {s.name: measured.layers_without_spectra(s) for s in networks}
    sections.append(_spectra({name: found for name, found in values.items() if found}, left_out))
    tell("transfer ...")
    matrix = measured.transfer(networks, x, y, seed)
    sections.append(Section("transfer", "Transfer", (drawings.transfer(matrix),)))
    sections.append(_gallery(networks, x, y, seed))
    deployed = [network for network in networks if network.file is not None]
    if deployed:
        tell("parity, bits and latency of the integer files ...")
        sections += [_parity(deployed, x), _bits(deployed), _cost(deployed)]
        tell("certificates ...")
        sections.append(_certificates(deployed, x, y))
    sections += [_audits(networks), _cards(networks)]
    sections.append(_how_to_repeat(paths, out, source, images, seed, trust, limits, bool(audits)))
    count = "one network" if len(networks) == 1 else f"{len(networks)} networks"
    lead = (
        f"{count.capitalize()}. Robust accuracies hold under the attacks that are named, and under "
        "these attacks only: they are upper bounds. Certified accuracies are proofs."
    )
    text = render("Robustness of " + ", ".join(s.name for s in networks), lead, sections)
    write_atomically(out, text)
    return out


def _percent(found: Proportion | None) -> Cell:
    return _NOT_MEASURED if found is None else Cell(str(found), found.value)


_LOOKS: dict[str, tuple[float | None, str]] = {
    "passed": (1.0, "good"),
    "failed": (0.0, "bad"),
    "incomplete": (None, "unknown"),
}


def _audit_cell(network: ReportedNetwork) -> Cell:
    audit = network.figures.get("audit")
    if not audit:
        left_out = network.figures.get("audit_left_out")
        return Cell(f"not audited: {left_out}" if left_out else "not audited", None, "unknown")
    verdict = verdict_of(audit)
    value, look = _LOOKS[verdict.status]
    return Cell(str(verdict), value, look)


def _summary(networks: Sequence[ReportedNetwork]) -> Section:
    rows = []
    for network in networks:
        strongest = network.strengths[-1]
        attack = network.attacks[-1]
        for source, title in network.forms:
            clean = network.clean(source)
            if clean is None:
                continue
            worst = network.worst(source)
            rows.append(
                (
                    Cell(network.name),
                    Cell(title),
                    _percent(clean),
                    _percent(network.robust(attack, strongest, source)),
                    _percent(None if worst is None else worst[1]),
                    _audit_cell(network),
                )
            )
    first = networks[0]
    found = next((s.worst() for s in networks if s.worst() is not None), None)
    suite = (
        "no suite was run"
        if found is None
        else f"worst case over {', '.join(found[2])} at {found[0]:g}/255"
    )
    return Section(
        "summary",
        "Summary",
        (
            Table(
                f"Accuracies with 95 % Wilson intervals; {suite}. A robust accuracy without a "
                "passed audit is not to be believed.",
                (
                    "network",
                    "form",
                    "clean",
                    f"{first.attacks[-1]} at {first.strengths[-1]:g}/255",
                    "worst case",
                    "masking audit",
                ),
                tuple(rows),
                frozenset({2, 3, 4}),
            ),
        ),
    )


def _curves(networks: Sequence[ReportedNetwork]) -> Section:
    attacks = list(dict.fromkeys(attack for network in networks for attack in network.attacks))
    figures = tuple(
        drawings.robust_accuracy([s for s in networks if attack in s.attacks], attack)
        for attack in attacks
    )
    return Section("curves", "Robust accuracy by strength", figures)


def _spectra(
    found: dict[str, dict[str, np.ndarray]], left_out: Mapping[str, Sequence[str]]
) -> Section:
    items: tuple[Any, ...] = (Text("No network has a kernel to look at."),)
    if found:
        rows = tuple(
            (
                Cell(name),
                Cell(layer),
                Cell(f"{values[0]:.3f}", float(values[0])),
                Cell(f"{np.median(values):.3f}", float(np.median(values))),
                Cell(f"{values[-1]:.3f}", float(values[-1])),
            )
            for name, layers in found.items()
            for layer, values in layers.items()
        )
        columns = ("network", "layer", "largest", "median", "smallest")
        table = Table("The same in figures.", columns, rows, frozenset({2, 3, 4}))
        items = (drawings.spectra(found), table)
    items += tuple(
        Text(f"{name}: left out, as their weights are no kernels: {', '.join(layers)}.")
        for name, layers in left_out.items()
        if layers
    )
    return Section("spectra", "Singular values of the deployed layers", items)


def _gallery(
    networks: Sequence[ReportedNetwork], x: np.ndarray, y: np.ndarray, seed: int
) -> Section:
    items: list[Any] = []
    for network in networks:
        strength = 8.0
        rows = measured.pictures(network, x, y, strength, _GALLERY_ROWS, seed)
        caption = f"{network.name}: images that PGD at {strength:g}/255 broke, first of {len(x)}."
        items.append(
            Gallery(caption, rows)
            if rows
            else Text(f"{network.name}: PGD at {strength:g}/255 broke none of {len(x)} images.")
        )
    return Section("images", "Clean and adversarial images", tuple(items))


def _parity(networks: Sequence[ReportedNetwork], x: np.ndarray) -> Section:
    from tflite_export import verify

    layers, rows = {}, []
    for network in networks:
        found = verify(network.model, network.file, network.as_taken(x), limits=network.limits)
        left = "twin" if network.model is None else "model"
        layers[network.name] = [
            (row.tensor, row.identical) for row in found.layers if row.left == left
        ]
        for row in found.outputs:
            top1 = Cell("", None) if row.top1 is None else Cell(f"{row.top1:.2%}", row.top1)
            rows.append(
                (
                    Cell(network.name),
                    Cell(f"{row.left} = {row.right}"),
                    Cell(f"{row.identical:.4%}", row.identical),
                    Cell(str(row.largest), float(row.largest)),
                    top1,
                )
            )
    table = Table(
        f"Output integers on {len(x)} test images: the trained network, its integer twin, and the "
        "runtime with its kernels.",
        ("network", "compared", "identical", "largest difference, steps", "same answer"),
        tuple(rows),
        frozenset({2, 3, 4}),
    )
    drawn = {name: found for name, found in layers.items() if found}
    items = (table, drawings.parity(drawn)) if drawn else (table,)
    return Section("parity", "Parity of the integer file", items)


def _bits(networks: Sequence[ReportedNetwork]) -> Section:
    from tflite_export.files.read import read
    from tflite_export.runtime.inspection import describe

    rows = []
    for network in networks:
        assert network.file is not None
        for row in describe(read(network.file, limits=network.limits)):
            bits, weights = row["activation_bits"], row["weight_bits"]
            rows.append(
                (
                    Cell(network.name),
                    Cell(row["layer"]),
                    Cell(row["operator"]),
                    Cell(" x ".join(str(side) for side in row["shape"] if side != -1)),
                    Cell("" if weights is None else str(weights), weights),
                    Cell("" if bits is None else str(bits), bits),
                    Cell(f"{row['macs']:,}", row["macs"]),
                )
            )
    table = Table(
        "Every operator of the integer files, with the bits that its integers use.",
        (
            "network",
            "layer",
            "operator",
            "output of an image",
            "weight bits",
            "activation bits",
            "MACs",
        ),
        tuple(rows),
        frozenset({4, 5, 6}),
    )
    return Section("bits", "Layers and bits", (table,))


def _cost(networks: Sequence[ReportedNetwork]) -> Section:
    from tflite_export.runtime.timing import benchmark

    rows = []
    for network in networks:
        assert network.file is not None
        for timing in benchmark(
            network.file,
            batches=(1, 32),
            threads=(1,),
            calls=50,
            seconds=3.0,
            memory=False,
            limits=network.limits,
        ):
            rows.append(
                (
                    Cell(network.name),
                    Cell(str(timing.batch), timing.batch),
                    Cell(f"{timing.median_ms:.3f}", timing.median_ms),
                    Cell(f"{timing.p90_ms:.3f}", timing.p90_ms),
                    Cell(f"{timing.per_second:,.0f}", timing.per_second),
                    Cell(f"{timing.size / 1024:.1f}", timing.size),
                )
            )
    table = Table(
        "Latency on the machine that made this report, one thread; other work on it counts.",
        ("network", "batch", "median, ms", "p90, ms", "images/s", "size, KiB"),
        tuple(rows),
        frozenset({1, 2, 3, 4, 5}),
    )
    return Section("cost", "Latency and size", (table,))


def _certificates(networks: Sequence[ReportedNetwork], x: np.ndarray, y: np.ndarray) -> Section:
    from tfdq.certificates import certify

    radii = np.arange(_CERTIFIED_STEPS + 1)
    curves, items = {}, list[Any]()
    count = min(len(x), _CERTIFIED_IMAGES)
    for network in networks:
        taken = network.input_range
        if taken is not None and len(set(taken.span.tolist())) > 1:
            items.append(Text(f"{network.name}: not certified, its channels differ in range."))
            continue
        span = 1.0 if taken is None else float(taken.span[0])
        low, high = (0.0, 1.0) if taken is None else (taken.low[0], taken.high[0])
        try:
            found = certify(
                str(network.file),
                network.as_taken(x[:count]),
                y[:count],
                norm="linf",
                step=span / 255,
                bounds=(low, high),
                max_steps=_CERTIFIED_STEPS,
                limits=network.limits,
            )
        except ValueError as error:
            if network.model is not None:
                raise
            # A file of another maker may have operators that no interval rule is known of.
            items.append(Text(f"{network.name}: not certified: {error}."))
            continue
        radius = (radii / 255 * span).tolist()
        curves[network.name] = (radii.tolist(), found.curve(radius).tolist())
    note = (
        f"Interval bounds through the integer operators, on {count} test images. They are loose on "
        "a network that was not trained for them (tfdq.certificates.IntervalTraining)."
    )
    if curves:
        items += [Text(note), drawings.certified(curves)]
    return Section("certificates", "Certificates", tuple(items))


def _audits(networks: Sequence[ReportedNetwork]) -> Section:
    items: list[Any] = []
    for network in networks:
        audit = network.figures.get("audit")
        if not audit:
            left_out = network.figures.get("audit_left_out")
            remedy = f"{left_out}, which is too few" if left_out else "run tfdq audit"
            items.append(Text(f"{network.name}: not audited; {remedy}."))
            continue
        looks = {"passed": "good", "failed": "bad"}
        rows = tuple(
            (
                Cell(check["name"]),
                Cell(check["status"], None, looks.get(check["status"], "unknown")),
                Cell(check["criterion"]),
                Cell(check["remark"]),
            )
            for check in audit["checks"]
        )
        items.append(
            Table(
                f"{network.name}: {verdict_of(audit)}; {audit['examples']} images at "
                f"{255 * audit['epsilon']:.3g}/255.",
                ("check", "verdict", "criterion", "remark"),
                rows,
            )
        )
    return Section("audits", "Gradient-masking audits", tuple(items))


def _cards(networks: Sequence[ReportedNetwork]) -> Section:
    items: list[Any] = []
    for network in networks:
        card = {
            "network": network.name,
            "settings": network.settings or "unknown: not a run of tfdq",
            "environment": network.environment or "unknown",
            "integer file, SHA-256": network.digest or "none",
        }
        if network.input_range is not None:
            card["what it takes for images in [0, 1]"] = network.input_range.to_dict()
        items.append(Text(json.dumps(card, indent=1), preformatted=True))
    return Section("cards", "Model cards", tuple(items))


def _how_to_repeat(
    paths: Sequence[Path],
    out: Path,
    source: ImageSource,
    images: int,
    seed: int,
    trust: bool,
    limits: Limits,
    audited: bool,
) -> Section:
    from tfdq.robustness.versions import package_versions

    words = ["tfdq", "report", *map(str, paths), "--out", str(out)]
    words += source.options()
    words += ["--limit", str(images), "--seed", str(seed)]
    words += ["--trust"] if trust else []
    words += limits.options()
    versions = "\n".join(f"{name} {version}" for name, version in package_versions().items())
    return Section(
        "repeat",
        "How to repeat this",
        (
            Text(shlex.join(words), preformatted=True),
            Text(
                "What a run measured itself is repeated by the command that made the run"
                + (", an audit that was given (--audit) by tfdq audit." if audited else ".")
            ),
            Text(versions, preformatted=True),
        ),
    )
