"""The commands of the paper's experiments: recipes, reproduce, sweep."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tfdq.cli.app import app
from tfdq.cli.options import DataDirOption, JsonOption, complete_recipe, one_of
from tfdq.cli.output import output, print_result
from tfdq.cli.settings_options import fields

if TYPE_CHECKING:
    from tfdq.experiments.recipe import Recipe

ScaleOption = Annotated[
    str,
    typer.Option("--scale", help="small or paper.", autocompletion=one_of("small", "paper")),
]
SetupOption = Annotated[
    str | None,
    typer.Option("--setup", help="Data set, network and training; see `tfdq recipes NAME`."),
]
OutOption = Annotated[
    Path,
    typer.Option(
        "--out",
        help="Folder of runs and results; recipes share trained networks there, several processes "
        "share the work.",
    ),
]
SeedsOption = Annotated[
    int | None, typer.Option("--seeds", min=1, help="How many; the recipe's by default.")
]
FirstSeedOption = Annotated[
    int | None,
    typer.Option("--first-seed", min=0, help="The others follow it; the recipe's by default."),
]
OnlyOption = Annotated[
    list[str] | None, typer.Option("--only", help="This variant only; may be repeated.")
]
StrategyOption = Annotated[
    str,
    typer.Option(
        "--strategy",
        help="auto, one_device, mirrored, multiworker or tpu.",
        autocompletion=one_of("auto", "one_device", "mirrored", "multiworker", "tpu"),
    ),
]
ScaleBatchOption = Annotated[
    bool,
    typer.Option("--scale-batch", help="Multiply batch and learning rate by the devices."),
]
ThreadsOption = Annotated[
    int | None, typer.Option("--threads", min=1, help="Of TensorFlow; all cores by default.")
]
DryRunOption = Annotated[
    bool,
    typer.Option("--dry-run", help="Measure one step; say how long it takes, how much memory."),
]
KnownOption = Annotated[
    list[Path] | None,
    typer.Option(
        "--known",
        help="A results.json of an earlier experiment: what it has figures of is not done again; "
        "may be repeated.",
    ),
]
BackendOption = Annotated[
    str | None,
    typer.Option(
        "--backend",
        help=fields("training.backend")["training.backend"].description,
        autocompletion=one_of("tf_keras", "tensorflow", "jax", "torch"),
    ),
]
NameOption = Annotated[
    str | None, typer.Option("--name", help="Folder of the results in --out; the recipe's name.")
]


@app.command(epilog="Example:  tfdq recipes white-box")
def recipes(
    name: Annotated[
        str | None,
        typer.Argument(help="A recipe's name or .toml file.", autocompletion=complete_recipe),
    ] = None,
    scale: ScaleOption = "small",
    setup: SetupOption = None,
    as_json: JsonOption = False,
) -> None:
    """List the paper's experiments, or say what one of them compares."""
    from tfdq.experiments.recipe import load_recipe, recipe_names

    if name is None:
        found = {known: load_recipe(known, scale) for known in recipe_names(scale)}
        titles = {known: recipe.content.title for known, recipe in found.items()}
        width = max(map(len, found))
        lines = [
            f"{known:<{width}}  {recipe.content.title} ({len(recipe.variants)} variants x "
            f"{recipe.content.seeds} seeds)"
            for known, recipe in found.items()
        ]
        print_result(titles, "\n".join(lines), as_json)
        return
    recipe = load_recipe(name, scale, setup)
    lines = [
        recipe.content.title,
        *([f"The paper: {recipe.content.paper}"] if recipe.content.paper else []),
        f"setup {recipe.setup}; variants:" if recipe.setup else "variants:",
        *(f"  {variant.name}" for variant in recipe.variants),
    ]
    print_result(recipe.to_dict(), "\n".join(lines), as_json)


@app.command(epilog="Example:  tfdq reproduce white-box --scale small --seeds 3 --out runs/small")
def reproduce(
    name: Annotated[
        str,
        typer.Argument(
            help="A recipe's name or .toml file; see `tfdq recipes`.",
            autocompletion=complete_recipe,
        ),
    ],
    scale: ScaleOption = "small",
    setup: SetupOption = None,
    seeds: SeedsOption = None,
    first_seed: FirstSeedOption = None,
    out: OutOption = Path("runs/experiments"),
    only: OnlyOption = None,
    changes: Annotated[
        list[str] | None,
        typer.Option("--set", help="section.setting=value; may be repeated."),
    ] = None,
    data_dir: DataDirOption = None,
    results_name: NameOption = None,
    backend: BackendOption = None,
    strategy: StrategyOption = "auto",
    scale_batch: ScaleBatchOption = False,
    threads: ThreadsOption = None,
    known: KnownOption = None,
    dry_run: DryRunOption = False,
    as_json: JsonOption = False,
) -> None:
    """Run one of the paper's experiments: train, attack, audit, export, compare.

    Started again, it goes on where it was. Start it twice to use two processes.
    """
    from tfdq.experiments.recipe import parse_assignment

    given = _with_backend(_overrides([parse_assignment(text) for text in changes or []]), backend)
    several = sorted(key for key, values in given.items() if len(values) > 1)
    if several:
        raise ValueError(f"--set {several[0]} has several values: that is `tfdq sweep`")
    recipe = _recipe(name, scale, setup, given, only, data_dir)
    _run(
        recipe,
        results_name or _folder_name(recipe),
        out,
        seeds,
        first_seed,
        strategy,
        scale_batch,
        threads,
        known,
        dry_run,
        as_json,
    )


@app.command(epilog="Example:  tfdq sweep beta --only DQ --set penalty.beta=0.001,0.01 --seeds 1")
def sweep(
    name: Annotated[
        str,
        typer.Argument(
            help="A recipe's name or .toml file; see `tfdq recipes`.",
            autocompletion=complete_recipe,
        ),
    ],
    changes: Annotated[
        list[str],
        typer.Option("--set", help="section.setting=a,b,c; may be repeated: all combinations."),
    ],
    scale: ScaleOption = "small",
    setup: SetupOption = None,
    seeds: SeedsOption = None,
    first_seed: FirstSeedOption = None,
    out: OutOption = Path("runs/experiments"),
    only: OnlyOption = None,
    data_dir: DataDirOption = None,
    results_name: NameOption = None,
    backend: BackendOption = None,
    strategy: StrategyOption = "auto",
    scale_batch: ScaleBatchOption = False,
    threads: ThreadsOption = None,
    known: KnownOption = None,
    dry_run: DryRunOption = False,
    as_json: JsonOption = False,
) -> None:
    """Run a recipe's variants over values of any of its settings."""
    from tfdq.experiments.recipe import parse_assignment

    given = _with_backend(_overrides([parse_assignment(text) for text in changes]), backend)
    recipe = _recipe(name, scale, setup, given, only, data_dir)
    _run(
        recipe,
        results_name or f"{_folder_name(recipe)}-sweep",
        out,
        seeds,
        first_seed,
        strategy,
        scale_batch,
        threads,
        known,
        dry_run,
        as_json,
    )


def _overrides(assignments: list[tuple[str, list[Any]]]) -> dict[str, list[Any]]:
    given: dict[str, list[Any]] = {}
    for key, values in assignments:
        if key in given:
            raise ValueError(f"--set {key} is given twice; write its values with commas")
        given[key] = values
    return given


def _with_backend(given: dict[str, list[Any]], backend: str | None) -> dict[str, list[Any]]:
    """Return the changes of settings with what ``--backend`` says."""
    if backend is None:
        return given
    if "training.backend" in given:
        raise ValueError("--backend and --set training.backend say the same: give one of them")
    return {**given, "training.backend": [backend]}


def _recipe(
    name: str,
    scale: str,
    setup: str | None,
    given: dict[str, list[Any]],
    only: list[str] | None,
    data_dir: Path | None,
) -> Recipe:
    from tfdq.experiments.recipe import load_recipe

    if data_dir is not None:
        given = {**given, "data.dir": [str(data_dir)]}
    return load_recipe(name, scale, setup, given, only or ())


def _folder_name(recipe: Recipe) -> str:
    return f"{recipe.name}-{recipe.setup}" if recipe.setup else recipe.name


def _run(
    recipe: Recipe,
    results_name: str,
    out: Path,
    seeds: int | None,
    first_seed: int | None,
    strategy: str,
    scale_batch: bool,
    threads: int | None,
    known: list[Path] | None,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Run a recipe and write and print its results."""
    from tfdq.experiments.process import choose_backend, prepare_process

    backend = choose_backend(v.settings.training.backend for v in recipe.variants)
    from tfdq.experiments.known_results import KnownResults
    from tfdq.experiments.placement import machines_of
    from tfdq.experiments.runner import Experiment
    from tfdq.report.experiment_files import check_results, write_results

    prepare_process(threads, backend)
    machines = machines_of(backend, strategy)
    output().after_interrupt = "what was finished is kept; the same command goes on there"
    count = seeds or recipe.content.seeds
    first = recipe.content.first_seed if first_seed is None else first_seed
    chosen = range(first, first + count)
    earlier = KnownResults(known) if known else None
    experiment = Experiment(recipe, out, chosen, machines, scale_batch, _tell, earlier)
    if dry_run:
        from tfdq.experiments.estimate import estimate

        cost = estimate(experiment)
        print_result(cost.to_dict(), str(cost), as_json)
        return
    if machines.chief:
        check_results(experiment, results_name)
    experiment.run()
    if not machines.chief:
        return
    results, folder = write_results(experiment, results_name, _command())
    table = (folder / "table.md").read_text(encoding="utf-8")
    print_result(results, f"{table}\n{folder}/  results.json, table.md, figure.png", as_json)


def _tell(note: str) -> None:
    """Say on stderr what is being done."""
    if not output().quiet:
        print(note, file=sys.stderr, flush=True)


def _command() -> str:
    """Return the command as it was given, to stand beside its results."""
    return shlex.join(["tfdq", *sys.argv[1:]])


@app.command(epilog="Example:  tfdq results results --out docs/RESULTS.md")
def results(
    folder: Annotated[Path, typer.Argument(help="Folder with results.json files.")] = Path(
        "results"
    ),
    out: Annotated[Path, typer.Option("--out", help="The page.")] = Path("docs/RESULTS.md"),
    check: Annotated[
        bool, typer.Option("--check", help="Write nothing; exit status 1 if the page is stale.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Write the page of all results on record, with figures, claims and commands."""
    from tfdq.report.results_page import page, read_results, write_page

    if check:
        expected = page(read_results(folder), folder.name)
        fresh = out.is_file() and out.read_text(encoding="utf-8") == expected
        text = f"{out} is {'up to date' if fresh else 'stale: run `tfdq results`'}"
        print_result({"fresh": fresh}, text, as_json)
        raise typer.Exit(0 if fresh else 1)
    found = write_page(folder, out)
    verdicts = {name: [c["verdict"] for c in content["claims"]] for name, content in found.items()}
    print_result(verdicts, f"{out}: {', '.join(found)}", as_json)
