"""The commands that attack: attack, evaluate, audit."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from tfdq.cli.app import ANSWER_IS_NO, app
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
    EPS_HELP,
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
    complete_attack,
    number,
    open_model,
    size,
    test_images,
)
from tfdq.cli.output import note, output, print_result, progress
from tfdq.experiments.fitting import Images, fitted
from tflite_export.ir.limits import Limits

SurrogateOption = Annotated[
    Path | None,
    typer.Option(
        "--surrogate",
        help="What gradients are taken from, in place of the model or of a file's integer "
        "twin: another model or file.",
    ),
]


@app.command(epilog="Example:  tfdq attack model.tflite --attack square --eps 8/255")
def attack(
    model: Annotated[Path, typer.Argument(help="A Keras model or a .tflite file.")],
    data: DataOption = "digits",
    data_dir: DataDirOption = None,
    image_size: ImageSizeOption = None,
    resize: ResizeOption = "stretch",
    channels: ChannelsOption = "rgb",
    labels: LabelsOption = None,
    input_range: InputRangeOption = None,
    name: Annotated[
        str,
        typer.Option(
            "--attack",
            help="fgsm r+fgsm bim pgd mim t-pgd cw apgd-ce apgd-dlr apgd-t fab square spsa "
            "low-bit.",
            autocompletion=complete_attack,
        ),
    ] = "pgd",
    eps: EpsOption = "8/255",
    norm: Annotated[
        Literal["linf", "l2"], typer.Option("--norm", help="That bounds the perturbation.")
    ] = "linf",
    surrogate: SurrogateOption = None,
    limit: LimitOption = None,
    seed: SeedOption = 0,
    images: Annotated[
        Path | None, typer.Option("--save-images", help="Write the images to this .npz file.")
    ] = None,
    trust: TrustOption = False,
    cost_limit: CostLimitOption = None,
    as_json: JsonOption = False,
) -> None:
    """Attack a model on test images with one attack."""
    strength = number(eps)
    if images is not None:
        if images.suffix != ".npz":
            raise ValueError(f"--save-images writes a .npz file, got {str(images)!r}")
        check_writable(images, is_folder=False)
    limits = Limits.parse(cost_limit or [])
    check_declared(input_range, labels)
    check_call(data, image_size, model, surrogate)
    import numpy as np

    from tfdq.robustness import as_target, run_attack
    from tfdq.robustness.statistics import wilson

    opened = open_model(model, trust, limits)
    helper = None if surrogate is None else open_model(surrogate, trust, limits)
    given = Images(data, data_dir, size(image_size), limit, seed, resize, channels, labels)
    dataset = given.load({model: opened}, (surrogate, helper))
    fit = partial(fitted, dataset=dataset, given=input_range, seed=seed, limits=limits, tell=note)
    victim = as_target(fit(model, opened), name=str(model))
    x, y = test_images(dataset)
    settings: Any = {"norm": norm, "seed": seed, "surrogate": fit(surrogate, helper)}
    result = run_attack(name, victim, x, y, strength, **settings)
    if images is not None:
        images.parent.mkdir(parents=True, exist_ok=True)
        np.savez_compressed(images, x_adv=result.x_adv, y=y, success=result.success)
    clean = wilson(round(result.clean_accuracy * len(y)), len(y))
    robust = wilson(round(result.robust_accuracy * len(y)), len(y))
    figures = {
        "clean": clean.value,
        "robust": robust.value,
        "interval": [robust.low, robust.high],
        "images": len(y),
        "queries_per_image": float(result.queries.mean()),
        "gradients_per_image": float(result.gradients.mean()),
        "seconds": result.seconds,
        "settings": result.settings,
    }
    text = (
        f"{model}: clean {clean}; under {name}, eps {eps}: {robust}\n"
        f"{len(y)} images of {data}; {result.queries.mean():.0f} queries and "
        f"{result.gradients.mean():.0f} gradients an image; {result.seconds:.1f} s. One attack "
        "is an upper bound: see `tfdq evaluate` and `tfdq audit`."
    )
    print_result(figures, text, as_json)


@app.command(epilog="Example:  tfdq evaluate runs/vq/model.keras runs/dq/model.keras --eps 8/255")
def evaluate(
    models: Annotated[list[Path], typer.Argument(help="Keras models and .tflite files.")],
    data: DataOption = "digits",
    data_dir: DataDirOption = None,
    image_size: ImageSizeOption = None,
    resize: ResizeOption = "stretch",
    channels: ChannelsOption = "rgb",
    labels: LabelsOption = None,
    input_range: InputRangeOption = None,
    attacks: Annotated[
        str,
        typer.Option(
            "--attacks", help="standard, record (with low-bit), or names: fgsm,pgd,square."
        ),
    ] = "standard",
    eps: Annotated[
        list[str] | None,
        typer.Option("--eps", help=EPS_HELP, metavar="EPS"),
    ] = None,
    surrogate: SurrogateOption = None,
    audits: AuditOption = None,
    limit: LimitOption = 1000,
    seed: SeedOption = 0,
    out: Annotated[
        Path | None,
        typer.Option("--out", help="Folder for the report; started again, the run goes on there."),
    ] = None,
    trust: TrustOption = False,
    cost_limit: CostLimitOption = None,
    as_json: JsonOption = False,
) -> None:
    """Compare models under a suite of attacks on the same images; --eps may be repeated."""
    output().after_interrupt = _left_behind(out, "pieces")
    strengths = [number(text) for text in eps or ["8/255"]]
    if out is not None:
        check_writable(out, is_folder=True)
    limits = Limits.parse(cost_limit or [])
    check_declared(input_range, labels)
    check_call(data, image_size, *models, surrogate)
    from tfdq.robustness import attack_suites
    from tfdq.robustness import evaluate as run_evaluation

    opened = {_name(path): open_model(path, trust, limits) for path in models}
    if len(opened) < len(models):
        raise ValueError(f"the same model is given twice: {', '.join(map(str, models))}")
    helper = None if surrogate is None else open_model(surrogate, trust, limits)
    verdicts = {_name(path): found for path, found in read_audits(audits or []).items()}
    files = [_name(path) for path in models if path.suffix == ".tflite"]
    given = Images(data, data_dir, size(image_size), limit, seed, resize, channels, labels)
    dataset = given.load(dict(zip(models, opened.values(), strict=True)), (surrogate, helper))
    fit = partial(fitted, dataset=dataset, given=input_range, seed=seed, limits=limits, tell=note)
    helper = fit(surrogate, helper)
    x, y = test_images(dataset)
    report = run_evaluation(
        {_name(path): fit(path, opened[_name(path)]) for path in models},
        x,
        y,
        attacks=attacks if attacks in attack_suites() else attacks.split(","),
        epsilons=strengths,
        surrogates=dict.fromkeys(files, helper) if helper is not None else None,
        audits=verdicts,
        seed=seed,
        results=None if out is None else out / "pieces",
        progress=progress(),
    )
    if out is not None:
        report.to_json(out / "report.json")
        report.plot(out / "report.png")
        (out / "report.md").write_text(report.to_markdown(), encoding="utf-8")
    print_result(report.to_json(), report.to_markdown(), as_json)


def _left_behind(out: Path | None, parts: str) -> str:
    """Say what Ctrl-C leaves of a run, and how to go on."""
    if out is None:
        return f"nothing is kept; with --out FOLDER finished {parts} would be"
    return f"finished {parts} are kept in {out}; the same command goes on with them"


def _name(path: Path) -> str:
    """Return what a model is called in tables: its path, without what all models share."""
    return str(path.parent) if path.name == "model.keras" else str(path)


@app.command(epilog="Example:  tfdq audit runs/dq/model.keras --eps 8/255")
def audit(
    model: Annotated[Path, typer.Argument(help="A Keras model or a .tflite file.")],
    data: DataOption = "digits",
    data_dir: DataDirOption = None,
    image_size: ImageSizeOption = None,
    resize: ResizeOption = "stretch",
    channels: ChannelsOption = "rgb",
    labels: LabelsOption = None,
    input_range: InputRangeOption = None,
    eps: EpsOption = "8/255",
    surrogate: SurrogateOption = None,
    tflite: Annotated[
        Path | None, typer.Option("--tflite", help="The file exported from the model.")
    ] = None,
    transfer_from: Annotated[
        list[Path] | None,
        typer.Option("--transfer-from", help="An independently trained model; may be repeated."),
    ] = None,
    limit: Annotated[int, typer.Option("--limit", min=8, help="Test images to use.")] = 256,
    queries: Annotated[int, typer.Option("--queries", min=1, help="Of Square.")] = 1000,
    checks: Annotated[
        str | None,
        typer.Option("--checks", help="Names, with commas between: zero gradients,logit scale."),
    ] = None,
    seed: SeedOption = 0,
    out: Annotated[Path | None, typer.Option("--out", help="Folder for the audit.")] = None,
    html: Annotated[
        Path | None,
        typer.Option("--html", help="Write the report on the model, with the verdict, to this."),
    ] = None,
    trust: TrustOption = False,
    cost_limit: CostLimitOption = None,
    as_json: JsonOption = False,
) -> None:
    """Check whether a robustness figure can be believed, or gradients are masked.

    Exit status 1 if a check failed.
    """
    output().after_interrupt = _left_behind(out, "checks")
    strength = number(eps)
    if out is not None:
        check_writable(out, is_folder=True)
    if html is not None:
        check_writable(html, is_folder=False)
    limits = Limits.parse(cost_limit or [])
    check_declared(input_range, labels)
    check_call(data, image_size, model, surrogate, tflite, *(transfer_from or []))
    if tflite is not None and tflite.suffix != ".tflite":
        raise ValueError(f"--tflite takes a .tflite file, got {str(tflite)!r}")
    import numpy as np
    from rich.console import Console

    from tfdq.experiments.opening import open_integer_file
    from tfdq.robustness import as_target
    from tfdq.robustness import audit as run_audit

    opened = open_model(model, trust, limits)
    helper = None if surrogate is None else open_model(surrogate, trust, limits)
    others = {path: open_model(path, trust, limits) for path in transfer_from or []}
    given = Images(data, data_dir, size(image_size), None, seed, resize, channels, labels)
    twin = None if tflite is None else open_integer_file(tflite, True, limits)
    dataset = given.load({model: opened}, (surrogate, helper), (tflite, twin), *others.items())
    fit = partial(fitted, dataset=dataset, given=input_range, seed=seed, limits=limits, tell=note)
    x, y = test_images(dataset)
    # The audit takes the first that are classified rightly, and a folder is sorted by class.
    order = np.random.default_rng(seed).permutation(len(y))
    x, y = x[order], y[order]
    found = run_audit(
        fit(model, opened),
        x,
        y,
        eps=strength,
        examples=limit,
        surrogate=fit(surrogate, helper),
        transfer_from={_name(path): fit(path, other) for path, other in others.items()} or None,
        twin=twin,
        tflite=None if tflite is None else as_target(str(tflite), limits=limits),
        queries=queries,
        checks=None if checks is None else [name.strip() for name in checks.split(",")],
        seed=seed,
        name=_name(model),
        results=None if out is None else out / "pieces",
        progress=progress(),
    )
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        found.to_json(out / "audit.json")
        found.plot(out / "audit.png")
        (out / "audit.md").write_text(found.to_markdown(), encoding="utf-8")
    if html is not None:
        from tfdq.report.networks import ImageSource
        from tfdq.report.run_report import write_report

        write_report(
            [model],
            html,
            source=ImageSource(
                data, data_dir, size(image_size), resize, channels, labels, input_range
            ),
            audits={model: found},
            seed=seed,
            trust=trust,
            limits=limits,
            tell=note,
        )
    if as_json:
        print_result(found.to_json(), "", as_json)
    else:
        Console().print(found.to_rich(), crop=False)
    if not found.passed:
        raise typer.Exit(ANSWER_IS_NO)
