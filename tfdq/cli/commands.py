"""The commands from data to device: demo, train, export, run."""

from __future__ import annotations

import shlex
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

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
    ImageSizeOption,
    JsonOption,
    LimitOption,
    SeedOption,
    TrustOption,
    check_call,
    check_writable,
    complete_data,
    load_data,
    open_model,
    size,
    test_images,
)
from tfdq.cli.output import note, output, print_result, progress, warn
from tfdq.cli.settings_options import settings_of, with_settings
from tfdq.demo.settings import DEFAULTS, DemoSettings
from tfdq.experiments.fitting import Images, check_models, input_range_of, takes_unit_range
from tflite_export.ir.limits import Limits

if TYPE_CHECKING:
    from tfdq.data import Dataset


@app.command(epilog="Example:  tfdq demo --out runs/demo")
@with_settings(
    "training.epochs",
    "training.backend",
    "penalty.beta",
    "quantization.activation_bits",
    "quantization.weight_bits",
    defaults=DEFAULTS,
    helps={"quantization.activation_bits": "Bits behind a ReLU, 1..8, of the quantized forms."},
)
def demo(
    given: dict[str, Any],
    out: Annotated[Path, typer.Option("--out", help="Folder for the results.")] = Path("runs/demo"),
    sweep: Annotated[
        str, typer.Option("--sweep", help="Activation bits of the accuracy-against-bits plot.")
    ] = "1,2,3,4,5",
    seed: SeedOption = 0,
    as_json: JsonOption = False,
) -> None:
    """Train, quantize, attack, export and run on real images, in a few minutes.

    Four models on scikit-learn's handwritten digits: float, quantized in the usual way (VQ),
    defensively quantized as in the paper, and on the deployed kernel (DQ).
    """
    bits, settings = _bit_list(sweep), settings_of(given)
    if not settings.quantized:
        raise ValueError("--activation-bits must be from 1 to 8 for the quantized forms, got 0")
    from tfdq.experiments.process import choose_backend

    choose_backend([settings.training.backend])
    from rich.console import Console

    from tfdq.demo.run import run_demo
    from tfdq.demo.table import as_rich

    output().after_interrupt = (
        f"finished attacks are kept in {out}; the same command trains again and goes on with them"
    )
    result = run_demo(DemoSettings(out=out, run=settings, sweep=bits, seed=seed), progress())
    if as_json:
        typer.echo((out / "results.json").read_text(encoding="utf-8"))
        return
    Console().print(as_rich(result))
    typer.echo(f"\n{out}/  results.json, *.tflite, models/, plots/   ({result.seconds:.0f} s)")
    typer.echo(f"tfdq report {shlex.quote(str(out))}  writes a page about these networks")


def _bit_list(text: str) -> tuple[int, ...]:
    try:
        bits = tuple(int(part) for part in text.split(",") if part.strip())
    except ValueError as error:
        raise ValueError(f"--sweep takes bits such as 1,2,3,4,5, got {text!r}") from error
    if any(not 1 <= b <= 8 for b in bits):
        raise ValueError(f"--sweep takes bits in 1..8, got {text!r}")
    return bits


@app.command(epilog="Example:  tfdq train --data fashion_mnist --model resnet20 --out runs/dq")
@with_settings("data", "model", "quantization", "penalty", "adversarial", "training")
def train(
    given: dict[str, Any],
    out: Annotated[Path, typer.Option("--out", help="Folder for the model and its figures.")],
    keep_float: Annotated[
        bool,
        typer.Option("--float", help="Do not quantize; without a penalty unless --beta is given."),
    ] = False,
    seed: SeedOption = 0,
    trust: TrustOption = False,
    as_json: JsonOption = False,
) -> None:
    """Train a model, quantization-aware and defensive by default.

    Started again after an interruption, it goes on where it was. The folder's recipe.toml repeats
    the run: tfdq reproduce FOLDER/recipe.toml.
    """
    if keep_float:
        given = {"penalty.beta": 0.0, **given, "quantization.activation_bits": 0}
    if "quantization.skip" in given:
        given = {**given, "evaluation.export": False}
    settings = settings_of(given)
    check_writable(out, is_folder=True)
    check_call(settings.data.name, None, settings.model.start)
    from tfdq.experiments.process import choose_backend, prepare_process

    backend = choose_backend([settings.training.backend])
    from tfdq.experiments.classifier import KIND, no_better_than_chance, train_classifier
    from tfdq.experiments.folder import check_folder
    from tfdq.experiments.networks import load_images
    from tfdq.experiments.run_folder import RECORD

    prepare_process(backend=backend)
    check_folder(out, KIND)
    dataset = load_images(settings.data)
    output().after_interrupt = lambda: _left_of_training(out)
    before = (out / RECORD).exists()
    figures = train_classifier(settings, seed, dataset, out, trust, progress())
    text = (
        f"{out / 'model.keras'}: test accuracy {figures['test_accuracy']:.4f} on "
        f"{figures['test_images']} images; {figures['seconds']:.0f} s of training"
        f"{', done before: nothing was left to do' if before else ''}"
    )
    print_result(figures, text, as_json)
    chance = no_better_than_chance(figures, dataset)
    if chance:
        warn(f"{chance}; lower --learning-rate or --beta, or train for more --epochs")


def _left_of_training(out: Path) -> str:
    """Say what an interrupted training left in its folder."""
    from tfdq.experiments.run_folder import CHECKPOINTS, RECORD

    checkpoints = out / CHECKPOINTS
    kept = [*checkpoints.glob("ckpt-*.index"), *checkpoints.glob("ckpt-*.npz")]
    if kept or (out / RECORD).exists():
        return f"what was finished is kept in {out}; the same command goes on there"
    return "it was before the first checkpoint; the same command starts again"


@app.command(epilog="Example:  tfdq export runs/dq/model.keras model.tflite --data digits")
def export(
    model: Annotated[
        Path,
        typer.Argument(
            help="A quantization-aware model; or a float one, Keras 3 too, which --data sets the "
            "ranges of, 8 bits, without training."
        ),
    ],
    file: Annotated[Path, typer.Argument(help="The .tflite file to write.")],
    data: Annotated[
        str | None,
        typer.Option(
            "--data",
            help="Images to verify on, as for the other commands.",
            metavar="NAME|PATH",
            autocompletion=complete_data,
        ),
    ] = None,
    data_dir: DataDirOption = None,
    image_size: ImageSizeOption = None,
    input_type: Annotated[
        Literal["int8", "uint8", "float32"], typer.Option("--input-type", help="Of the file.")
    ] = "int8",
    weights: Annotated[
        Literal["int8", "int4"], typer.Option("--weights", help="How they are stored.")
    ] = "int8",
    limit: LimitOption = 256,
    seed: SeedOption = 0,
    trust: TrustOption = False,
    as_json: JsonOption = False,
) -> None:
    """Write the integer-only .tflite file of a model, and prove that its integers are right."""
    if file.suffix != ".tflite":
        raise ValueError(f"{str(file)!r} must end in .tflite: by that the other commands know it")
    check_writable(file, is_folder=False)
    check_call(data, image_size, model)
    from tflite_export import convert, integer_only

    opened = open_model(model, trust)
    dataset = None if data is None else load_data(data, data_dir, limit, seed, image_size)
    images = None
    if dataset is not None:
        check_models(dataset, (model, opened))
        images, _ = test_images(dataset)
    trained = _aware(opened, model, dataset)
    names = dataset.class_names if dataset is not None else ()
    exported = convert(
        trained,
        file,
        input_type=input_type,
        weights=weights,
        calibration=images,
        labels=names or None,
    )
    proof = integer_only(exported.content)
    figures: dict[str, Any] = {
        "file": str(file),
        "bytes": len(exported),
        "parity": asdict(exported.parity),
        "integer_only": bool(proof),
    }
    text = f"{file}: {len(exported)} bytes\n{proof}\n{exported.parity}"
    if trained is not opened and images is not None:
        answers = [m.predict(images, verbose=0).argmax(-1) for m in (opened, trained)]
        figures["same_class_as_float"] = same = float((answers[0] == answers[1]).mean())
        text += (
            f"\n  quantized after training, 8 bits: the float model's class on {same:.2%} of "
            f"{len(images)} test images; for fewer bits and robustness: tfdq train --start {model}"
        )
    print_result(figures, text, as_json)


def _aware(opened: Any, path: Path, dataset: Dataset | None) -> Any:
    """Return a model as it is if it is quantization-aware; else an 8-bit copy.

    Raises:
        ValueError: it is no Keras model, or a float one without images to set its ranges on.
    """
    from tfdq.either_keras import is_quantized
    from tfdq.experiments.classifier import quantized_after_training
    from tfdq.which_keras import is_keras3_model, is_tf_keras_model

    if not (is_tf_keras_model(opened) or is_keras3_model(opened)):
        raise ValueError(f"{str(path)!r} is an integer file already; give the Keras model")
    if is_quantized(opened):
        return opened
    if dataset is None:
        raise ValueError(
            f"{str(path)!r} is a float model: give images with --data to set its ranges on (8 "
            f"bits, no training), or make it quantization-aware first: tfdq train --start {path}"
        )
    return quantized_after_training(opened, dataset)


@app.command(epilog="Example:  tfdq run model.tflite --data digits")
def run(
    model: Annotated[Path, typer.Argument(help="A .tflite file or a Keras model.")],
    data: DataOption = "digits",
    data_dir: DataDirOption = None,
    image_size: ImageSizeOption = None,
    resize: ResizeOption = "stretch",
    channels: ChannelsOption = "rgb",
    labels: LabelsOption = None,
    input_range: InputRangeOption = None,
    limit: LimitOption = None,
    seed: SeedOption = 0,
    trust: TrustOption = False,
    cost_limit: CostLimitOption = None,
    as_json: JsonOption = False,
) -> None:
    """Run a model on test images: accuracy and speed."""
    limits = Limits.parse(cost_limit or [])
    check_declared(input_range, labels)
    check_call(data, image_size, model)
    from tfdq.experiments.classifier import measure
    from tfdq.robustness import as_target

    opened = open_model(model, trust, limits)
    given = Images(data, data_dir, size(image_size), limit, seed, resize, channels, labels)
    dataset = given.load({model: opened})
    images, truth = test_images(dataset)
    if takes_unit_range(opened, input_range):
        figures = measure(opened, images, truth)
    else:
        target = as_target(model if model.suffix == ".tflite" else opened, limits=limits)
        taken, trials = input_range_of(model, opened, target, dataset, input_range, seed, note)
        figures = measure(opened, taken.scaled(images), truth)
        figures["input_range"] = {**taken.to_dict(), "tried": trials.to_dict()}
    text = (
        f"{model}: accuracy {figures['accuracy']:.4f} on {figures['images']} images of {data}, "
        f"{figures['images_per_second']:,.0f} images/s"
    )
    print_result(figures, text, as_json)
