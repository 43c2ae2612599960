"""The commands that attack: attack, evaluate, audit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from tfdq.cli.app import app
from tfdq.cli.options import (
    DataDirOption,
    DataOption,
    EpsOption,
    JsonOption,
    LimitOption,
    SeedOption,
    load_data,
    number,
    open_model,
    quiet,
    test_images,
)

SurrogateOption = Annotated[
    Path | None,
    typer.Option(
        "--surrogate", help="Keras model that gradients are taken from, for a .tflite file."
    ),
]


@app.command(epilog="Example:  tfdq attack model.tflite --attack square --eps 8/255")
def attack(
    model: Annotated[Path, typer.Argument(help="A Keras model or a .tflite file.")],
    data: DataOption = "digits",
    data_dir: DataDirOption = None,
    name: Annotated[
        str,
        typer.Option(
            "--attack",
            help="fgsm r+fgsm bim pgd mim cw spsa apgd-ce apgd-dlr apgd-t fab square ...",
        ),
    ] = "pgd",
    eps: EpsOption = "8/255",
    norm: Annotated[str, typer.Option("--norm", help="linf or l2.")] = "linf",
    surrogate: SurrogateOption = None,
    limit: LimitOption = None,
    seed: SeedOption = 0,
    out: Annotated[
        Path | None, typer.Option("--out", help="Write the images to this .npz file.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Attack a model on test images with one attack."""
    quiet()
    import numpy as np

    from tfdq.robustness import run_attack
    from tfdq.robustness.statistics import wilson

    strength = number(eps)
    opened = open_model(model)
    helper = None if surrogate is None else open_model(surrogate)
    x, y = test_images(load_data(data, data_dir, limit, seed))
    settings: Any = {"norm": norm, "seed": seed, "surrogate": helper}
    result = run_attack(name, opened, x, y, strength, **settings)
    if out is not None:
        np.savez_compressed(out, x_adv=result.x_adv, y=y, success=result.success)
    clean = wilson(round(result.clean_accuracy * len(y)), len(y))
    robust = wilson(round(result.robust_accuracy * len(y)), len(y))
    if as_json:
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
        typer.echo(json.dumps(figures))
    else:
        typer.echo(
            f"{model}: clean {clean}; under {name}, eps {eps}: {robust}\n"
            f"{len(y)} images of {data}; {result.queries.mean():.0f} queries and "
            f"{result.gradients.mean():.0f} gradients an image; {result.seconds:.1f} s. One attack "
            "is an upper bound: see `tfdq evaluate` and `tfdq audit`."
        )


@app.command(epilog="Example:  tfdq evaluate runs/vq/model.keras runs/dq/model.keras --eps 8/255")
def evaluate(
    models: Annotated[list[Path], typer.Argument(help="Keras models and .tflite files.")],
    data: DataOption = "digits",
    data_dir: DataDirOption = None,
    attacks: Annotated[
        str,
        typer.Option(
            "--attacks", help="standard, record (with low-bit), or names: fgsm,pgd,square."
        ),
    ] = "standard",
    eps: Annotated[list[str] | None, typer.Option("--eps", help="May be repeated.")] = None,
    surrogate: SurrogateOption = None,
    audits: Annotated[
        list[str] | None,
        typer.Option("--audit", help="MODEL=audit.json, its verdict; may be repeated."),
    ] = None,
    limit: LimitOption = 1000,
    seed: SeedOption = 0,
    out: Annotated[
        Path | None,
        typer.Option("--out", help="Folder for the report; started again, the run goes on there."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Compare models under a suite of attacks on the same images."""
    quiet()
    from tfdq.robustness import SUITES
    from tfdq.robustness import evaluate as run_evaluation

    strengths = [number(text) for text in eps or ["8/255"]]
    opened = {_name(path): open_model(path) for path in models}
    if len(opened) < len(models):
        raise ValueError(f"the same model is given twice: {', '.join(map(str, models))}")
    helper = None if surrogate is None else open_model(surrogate)
    verdicts = _audits(audits or [])
    black_boxes = [_name(path) for path in models if path.suffix == ".tflite"]
    x, y = test_images(load_data(data, data_dir, limit, seed))
    report = run_evaluation(
        opened,
        x,
        y,
        attacks=attacks if attacks in SUITES else attacks.split(","),
        epsilons=strengths,
        surrogates=dict.fromkeys(black_boxes, helper) if helper is not None else None,
        audits=verdicts,
        seed=seed,
        results=None if out is None else out / "pieces",
    )
    if out is not None:
        report.to_json(out / "report.json")
        report.plot(out / "report.png")
        (out / "report.md").write_text(report.to_markdown(), encoding="utf-8")
    typer.echo(report.to_json() if as_json else report.to_markdown())


def _audits(given: list[str]) -> dict[str, Any]:
    """Return the audits given as ``MODEL=audit.json``, by the models' names in tables."""
    found = {}
    for text in given:
        model, separator, file = text.rpartition("=")
        if not separator or not model:
            raise ValueError(f"--audit takes MODEL=audit.json, got {text!r}")
        found[_name(Path(model))] = json.loads(Path(file).read_text(encoding="utf-8"))
    return found


def _name(path: Path) -> str:
    """Return what a model is called in tables: its path, without what all models share."""
    return str(path.parent) if path.name == "model.keras" else str(path)


@app.command(epilog="Example:  tfdq audit runs/dq/model.keras --eps 8/255")
def audit(
    model: Annotated[Path, typer.Argument(help="A Keras model or a .tflite file.")],
    data: DataOption = "digits",
    data_dir: DataDirOption = None,
    eps: EpsOption = "8/255",
    surrogate: SurrogateOption = None,
    tflite: Annotated[
        Path | None, typer.Option("--tflite", help="The file exported from the model.")
    ] = None,
    transfer_from: Annotated[
        list[Path] | None,
        typer.Option("--transfer-from", help="An independently trained model; may be repeated."),
    ] = None,
    examples: Annotated[int, typer.Option("--examples", min=8)] = 256,
    queries: Annotated[int, typer.Option("--queries", min=1, help="Of Square.")] = 1000,
    seed: SeedOption = 0,
    out: Annotated[Path | None, typer.Option("--out", help="Folder for the audit.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Check whether a robustness figure can be believed, or gradients are masked.

    Exit status 1 if a check failed.
    """
    quiet()
    from tfdq.robustness import audit as run_audit

    strength = number(eps)
    opened = open_model(model)
    helper = None if surrogate is None else open_model(surrogate)
    x, y = test_images(load_data(data, data_dir, None, seed))
    twin = None
    if tflite is not None:
        from tflite_export import IntegerTwin

        twin = IntegerTwin(tflite)
    found = run_audit(
        opened,
        x,
        y,
        eps=strength,
        examples=examples,
        surrogate=helper,
        transfer_from={_name(path): open_model(path) for path in transfer_from or []} or None,
        twin=twin,
        tflite=None if tflite is None else str(tflite),
        queries=queries,
        seed=seed,
        name=_name(model),
    )
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        found.to_json(out / "audit.json")
        found.plot(out / "audit.png")
    if as_json:
        typer.echo(json.dumps(json.loads(found.to_json())))
    else:
        typer.echo(found.to_markdown())
    if not found.passed:
        raise typer.Exit(1)
