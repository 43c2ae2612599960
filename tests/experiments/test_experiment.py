"""An experiment from recipe to table: small networks on digits, all parts, then its figures."""

import hashlib
import json
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tf_keras

import tfdq
from tfdq.cli import main
from tfdq.experiments import measuring, runner
from tfdq.experiments.estimate import estimate
from tfdq.experiments.figures import mask
from tfdq.experiments.measuring import evaluation_images
from tfdq.experiments.networks import load_images, weights_digest
from tfdq.experiments.recipe import OTHER_SEED, load_recipe
from tfdq.experiments.runner import Experiment
from tfdq.experiments.strategy import open_machines
from tfdq.models import small_cnn
from tfdq.report.experiment_files import write_results
from tfdq.report.results_page import page, read_results, write_page
from tfdq.robustness import attack
from tfdq.zoo import making
from tfdq.zoo.cards import ModelInfo, copy_file, read_cards
from tflite_export import Interpreter

RECIPE = """
title = "Everything once"
paper = "It says so."
seeds = 2
[data]
name = "digits"
train_images = 500
[model]
options = { width = 8 }
[training]
epochs = 3
batch_size = 32
learning_rate = 0.01
[evaluation]
epsilons = [16, 32]
attacks = ["fgsm", "pgd"]
pgd_steps = 4
images = 60
suite = "quick"
target_classes = 1
suite_images = 12
square_queries = 40
audit_images = 8
audit_queries = 20
tflite_images = 6
amplification = [8, 32]
[transfer]
surrogates = ["float"]
images = 40
[[variants]]
name = "float"
set = { quantization = { activation_bits = 0 }, penalty = { beta = 0.0 } }
[[variants]]
name = "DQ"
grid = { "quantization.activation_bits" = [4, 5] }
[[variants]]
name = "squeezed"
set = { quantization = { activation_bits = 4 }, evaluation = { squeezing = ["bit_depth_2"] } }
[[variants]]
name = "wild"
set = { training = { optimizer = "sgd", learning_rate = 1e30 } }
[[claims]]
text = "five bits see more than four"
better = "DQ, activation_bits 5"
worse = "DQ, activation_bits 4"
metric = "fgsm"
[[published]]
what = "the same elsewhere"
value = "12.3 %"
source = "somebody"
[figure]
kind = "lines"
x = "quantization.activation_bits"
"""


@dataclass
class Done:
    """A finished experiment."""

    experiment: Experiment
    results: dict[str, Any]
    folder: Path
    notes: list[str]

    def run(self, variant: str, seed: int = 0) -> dict[str, Any]:
        return next(
            r for r in self.results["runs"] if r["variant"] == variant and r["seed"] == seed
        )

    def path(self, variant: str, seed: int = 0) -> Path:
        settings = self.experiment.recipe.variant(variant).settings
        return self.experiment.out / "runs" / settings.training_key(seed)


@pytest.fixture(scope="module")
def recipe_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("recipe") / "everything.toml"
    path.write_text(RECIPE)
    return path


@pytest.fixture(scope="module")
def done(recipe_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Done:
    notes: list[str] = []
    experiment = Experiment(
        load_recipe(recipe_file),
        tmp_path_factory.mktemp("out") / "runs",
        (0,),
        open_machines("one_device"),
        tell=notes.append,
    )
    experiment.run()
    results, folder = write_results(experiment, "everything", "tfdq reproduce everything.toml")
    return Done(experiment, results, folder, notes)


def test_everything_is_measured(done: Done) -> None:
    assert done.results["missing"] == []
    assert len(done.results["runs"]) == 5
    dq = done.run("DQ, activation_bits 4")["figures"]
    assert set(dq["attacks"]) == {"16", "32"}
    assert set(dq["attacks"]["16"]) == {"fgsm", "pgd"}
    assert len(dq["clean"]) == len(dq["attacks"]["32"]["pgd"]) == 60
    assert dq["suite"]["attacks"] == ["apgd-ce", "low-bit", "apgd-t", "square"]
    assert len(dq["suite"]["eps"]["32"]["worst"]) == 12
    assert len(dq["tflite"]["suite"]["eps"]["32"]["worst"]) == 6
    assert dq["tflite"]["integer_only"] is dq["tflite"]["exact"] is True
    assert dq["audit"]["examples"] == 8
    assert set(dq["amplification"]) == {"8", "32"}
    squeezed, plain = done.run("squeezed")["figures"], done.run("float")["figures"]
    assert squeezed["suite"]["attacks"] == ["apgd-ce", "apgd-t", "square"]
    assert squeezed["tflite"]["exact"] is True
    assert squeezed["tflite"]["sha256"] != dq["tflite"]["sha256"]
    assert "tflite" not in plain


def test_figures_are_those_of_the_saved_network(done: Done) -> None:
    """The clean and FGSM figures, made again from the model's file by other means."""
    model = tfdq.load_model(done.path("DQ, activation_bits 4") / "model.keras", compile=False)
    run = done.run("DQ, activation_bits 4")
    assert weights_digest(model) == run["training"]["weights"]
    x, y = evaluation_images(load_images(done.experiment.recipe.variants[0].settings.data), 60)
    right = model.predict(x, verbose=0).argmax(-1) == y
    assert np.array_equal(mask(run["figures"]["clean"]), right)
    moved = attack("fgsm", model, x, y, 32 / 255)
    standing = right & (model.predict(moved, verbose=0).argmax(-1) == y)
    assert np.array_equal(mask(run["figures"]["attacks"]["32"]["fgsm"]), standing)
    file = Interpreter(done.path("DQ, activation_bits 4") / "model.tflite")
    assert np.array_equal(mask(run["figures"]["tflite"]["clean"]), file.predict(x).argmax(-1) == y)
    assert len(file.content) == run["figures"]["tflite"]["bytes"]


def test_the_worst_case_is_what_neither_attack_breaks(done: Done) -> None:
    for run in done.results["runs"]:
        for parts in run["figures"].get("suite", {}).get("eps", {}).values():
            worst = mask(parts["white_box"]) & mask(parts["black_box"])
            assert np.array_equal(mask(parts["worst"]), worst)
            assert np.all(mask(run["figures"]["clean"])[:12] | ~worst)


def test_variants_that_train_alike_share_the_network(done: Done) -> None:
    assert done.path("squeezed") == done.path("DQ, activation_bits 4")
    assert len(list(done.path("squeezed").glob("evaluation-*.json"))) == 2
    # Float, 4 bits, 5 bits, wild, and the surrogate.
    assert len(list((done.experiment.out / "runs").iterdir())) == 5


def test_a_training_that_diverges_is_a_result(done: Done) -> None:
    figures = done.run("wild")["figures"]
    assert "lower the learning rate (training.learning_rate)" in figures["diverged"]
    assert done.results["summary"]["wild"] == {}
    assert "Did not train, and count nowhere: wild (seed 0)." in table(done)


def test_images_of_the_black_box_come_from_another_seed(done: Done) -> None:
    surrogate = done.path("float", 0 + OTHER_SEED) / "model.keras"
    assert surrogate.exists()
    x, y = evaluation_images(load_images(done.experiment.recipe.variants[0].settings.data), 40)
    made = attack(
        "pgd",
        tfdq.load_model(surrogate, compile=False),
        x,
        y,
        32 / 255,
        early_stop=False,
        seed=0,
        steps=20,
    )
    victim = tfdq.load_model(done.path("DQ, activation_bits 5") / "model.keras", compile=False)
    right = (victim.predict(x, verbose=0).argmax(-1) == y) & (
        victim.predict(made, verbose=0).argmax(-1) == y
    )
    found = done.results["transfers"][0]["eps"]["32"]["float"]
    assert np.array_equal(mask(found["DQ, activation_bits 5"]), right)
    assert "wild" not in found


def table(done: Done) -> str:
    return (done.folder / "table.md").read_text()


def test_the_table_says_all_that_counts(done: Done) -> None:
    text = table(done)
    for part in (
        "eps 16/255",
        "eps 32/255",
        "| variant | clean | FGSM | PGD | white box | Square | worst case | black box |",
        "tfdq reproduce everything.toml",
        "upper bound on the true robust accuracy",
        "Wilson's 95 % interval, one seed",
        "five bits see more than four",
        "| the same elsewhere | 12.3 % | somebody |",
        "scikit-learn load_digits",
    ):
        assert part in text
    assert (done.folder / "figure.png").read_bytes()[:4] == b"\x89PNG"
    assert json.loads((done.folder / "results.json").read_text()) == json.loads(
        json.dumps(done.results)
    )


@pytest.mark.parametrize("kind", ["bars", "depth", "transfer"])
def test_every_kind_of_figure(done: Done, kind: str, tmp_path: Path) -> None:
    from tfdq.report.experiment_figure import plot_experiment

    results = json.loads(json.dumps(done.results))
    results["recipe"]["content"]["figure"]["kind"] = kind
    plot_experiment(results, tmp_path / "figure.png")
    assert (tmp_path / "figure.png").stat().st_size > 5000


def test_run_again_nothing_is_done_twice(done: Done, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: Any, **options: Any) -> None:
        raise AssertionError("done before")

    for name in ("train_run", "Measurement", "transfer"):
        monkeypatch.setattr(runner, name, refuse)
    done.experiment.run()
    results, _ = write_results(done.experiment, "again", "tfdq reproduce everything.toml")
    assert results["runs"] == done.results["runs"]


def test_an_evaluation_that_was_cut_off_goes_on(
    done: Done, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second time, only what is missing is attacked; the figures stay."""
    source = done.path("DQ, activation_bits 5")
    (tmp_path / "model.keras").write_bytes((source / "model.keras").read_bytes())
    settings = done.experiment.recipe.variant("DQ, activation_bits 5").settings.evaluation
    settings = settings.model_copy(update={"audit_images": 0, "export": False, "amplification": ()})
    calls: list[str] = []
    evaluate = measuring.evaluate

    def interrupted(*arguments: Any, **options: Any) -> Any:
        if options["attacks"] == ["square"] and not calls:
            calls.append("cut off")
            raise KeyboardInterrupt
        return evaluate(*arguments, **options)

    monkeypatch.setattr(measuring, "evaluate", interrupted)
    images = load_images(done.experiment.recipe.variants[0].settings.data)
    one = done.experiment.machines
    with pytest.raises(KeyboardInterrupt):
        measuring.Measurement(settings, 0, images, tmp_path, one).run()
    kept = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "pieces").iterdir()}
    assert kept
    found = measuring.Measurement(settings, 0, images, tmp_path, one).run()
    assert found["suite"] == done.run("DQ, activation_bits 5")["figures"]["suite"]
    for name, time in kept.items():
        assert (tmp_path / "pieces" / name).stat().st_mtime_ns == time


def test_estimate_before_and_after(done: Done, recipe_file: Path, tmp_path: Path) -> None:
    assert estimate(done.experiment).kinds == ()
    new = Experiment(
        load_recipe(recipe_file, only=["DQ"]),
        tmp_path / "new",
        (0,),
        done.experiment.machines,
    )
    cost = estimate(new)
    assert cost.done == 0
    # Two quantized networks that cost the same.
    assert [kind.units for kind in cost.kinds] == [2]
    # 500 images in batches of 32: 15 steps an epoch, 3 epochs, 2 networks.
    steps = sum(kind.units * kind.step_seconds for kind in cost.kinds)
    assert cost.training_seconds == pytest.approx(45 * steps)
    assert cost.memory_bytes > 100e6
    assert "an estimate" in str(cost)
    assert not (tmp_path / "new" / "runs").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data.name": ["nowhere.npz"]}, "nowhere.npz"),
        ({"data.train_images": [10**6]}, "1000000 train images were asked for"),
        ({"model.options": [{"depth": 3}]}, "variant 'float'.*no option depth"),
        ({"model.name": ["vgg16"], "model.options": [{}]}, "multiples of 32"),
        ({"training.batch_size": [4096]}, "batch_size is 4096"),
    ],
)
def test_what_cannot_run_is_said_before_any_work(
    recipe_file: Path, tmp_path: Path, changes: Any, message: str
) -> None:
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        Experiment(
            load_recipe(recipe_file, overrides=changes),
            tmp_path / "runs",
            (0,),
            open_machines("one_device"),
        )
    assert not (tmp_path / "runs").exists()


def test_another_model_in_the_place_of_the_start_is_another_training(
    recipe_file: Path, tmp_path: Path
) -> None:
    start, found = tmp_path / "start.keras", []
    changes = {"model.start": [str(start)], "model.options": [{}]}
    recipe = load_recipe(recipe_file, overrides=changes, only=["float"])
    for width in (2, 3):
        tf_keras.utils.set_random_seed(0)
        small_cnn((8, 8, 1), 10, width=width).save(start)
        one = Experiment(recipe, tmp_path / "out", (0,), open_machines("one_device"))
        settings = one.recipe.variants[0].settings
        assert settings.model.start_digest == hashlib.sha256(start.read_bytes()).hexdigest()
        found.append([unit.folder(one.out) for unit in one.units()])
    assert found[0] != found[1]


@pytest.mark.parametrize("seeds", [(), (0, 0), (-1,), (OTHER_SEED,)])
def test_bad_seeds(recipe_file: Path, tmp_path: Path, seeds: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"seeds must differ and lie in 0..999"):
        Experiment(load_recipe(recipe_file), tmp_path, seeds, open_machines("one_device"))


def test_two_processes_share_an_experiment(recipe_file: Path, tmp_path: Path) -> None:
    command = [
        str(Path(sys.executable).with_name("tfdq")),
        *("reproduce", str(recipe_file), "--out", str(tmp_path / "out"), "--seeds", "1"),
        *("--only", "DQ", "--set", "evaluation.suite=none", "--set", "evaluation.audit_images=0"),
        *("--set", "evaluation.export=false", "--set", "training.epochs=1", "--threads", "1"),
        "--json",
    ]
    both = [
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    outputs = [process.communicate(timeout=300) for process in both]
    for process, (_, errors) in zip(both, outputs, strict=True):
        assert process.returncode == 0, errors
    found = [json.loads(output) for output, _ in outputs]
    assert found[0]["runs"] == found[1]["runs"]
    assert [f["missing"] for f in found] == [[], []]
    # Each of the two networks was trained by one of the processes only.
    trained = [line for _, errors in outputs for line in errors.splitlines() if "epoch 1" in line]
    assert len(trained) == len(set(trained)) == 2


# The page of results.


@pytest.fixture
def record(done: Done, tmp_path: Path) -> Path:
    folder = tmp_path / "results"
    folder.mkdir()
    (folder / "everything.json").write_text((done.folder / "results.json").read_text())
    (folder / "other.json").write_text('{"format": "something else"}')
    return folder


def test_the_page_has_every_experiment_its_claims_and_commands(record: Path) -> None:
    out = record.parent / "docs" / "RESULTS.md"
    found = write_page(record, out)
    assert list(found) == ["everything"]
    text = out.read_text()
    assert "tfdq reproduce everything.toml" in text
    assert "| five bits see more than four | [everything](#everything) | fgsm@32 |" in text
    assert "![Everything once (digits)](figures/everything.png)" in text
    assert (out.parent / "figures" / "everything.png").exists()
    assert text == page(read_results(record), "results")


def test_a_stale_page_is_found(record: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = record.parent / "docs" / "RESULTS.md"
    arguments = ["results", str(record), "--out", str(out)]
    assert status(arguments) == 0
    assert status([*arguments, "--check"]) == 0
    out.write_text(out.read_text() + "improved by hand\n")
    assert status([*arguments, "--check"]) == 1
    assert "stale" in capsys.readouterr().out


def status(arguments: list[str]) -> int:
    with pytest.raises(SystemExit) as exit_:
        main(arguments)
    return int(exit_.value.code or 0)


def test_a_folder_without_results_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="holds no results of an experiment"):
        write_page(tmp_path, tmp_path / "RESULTS.md")
    with pytest.raises(FileNotFoundError, match="no folder"):
        write_page(tmp_path / "none", tmp_path / "RESULTS.md")
    (tmp_path / "a.json").write_text("{")
    with pytest.raises(ValueError, match=r"a\.json' is not JSON"):
        write_page(tmp_path, tmp_path / "RESULTS.md")


# The command line.


def test_recipes_are_listed_and_described(capsys: pytest.CaptureFixture[str]) -> None:
    assert status(["recipes", "--scale", "paper"]) == 0
    assert "white-box" in capsys.readouterr().out
    assert status(["recipes", "beta", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["name"] == "beta"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["reproduce", "byts"], "there is no recipe 'byts'"),
        (["reproduce", "beta", "--set", "penalty.beta=1,2"], "that is `tfdq sweep`"),
        (["reproduce", "beta", "--set", "penalty.bet=1"], "did you mean 'beta'"),
        (["reproduce", "beta", "--strategy", "gpu"], "strategy must be one of"),
        (["sweep", "beta", "--set", "penalty.beta=1", "--set", "penalty.beta=2"], "given twice"),
    ],
)
def test_mistakes_take_one_line(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert status(arguments) == 2
    errors = capsys.readouterr().err
    assert message in errors
    assert errors.count("\n") == 1


# The zoo.


def test_a_card_is_made_and_checked_again(
    done: Done, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = done.path("DQ, activation_bits 5")
    arguments = ["zoo", "add", str(run), "tiny", "--zoo", str(tmp_path), "--command", "tfdq x"]
    assert status(arguments) == 0
    card = read_cards(tmp_path)["tiny"]
    figures = done.run("DQ, activation_bits 5")["figures"]["tflite"]
    assert card.clean.accuracy == mask(figures["clean"]).mean()
    assert (card.sha256, card.bytes) == (figures["sha256"], figures["bytes"])
    worst = next(robust for robust in card.robust if "square" in robust.attacks)
    assert worst.accuracy == mask(figures["suite"]["eps"]["32"]["worst"]).mean()
    assert card.audit is not None
    accuracy = f"{100 * mask(figures['clean']).mean():.2f}"
    info = ModelInfo(
        dataset="digits",
        architecture="small_cnn",
        additional_data=False,
        number_forward_passes=1,
        eps="32/255",
        clean_acc=accuracy,
    )
    assert card.model_info == info
    # Of the evaluation, not the defaults: a run's settings are those of its training.
    assert (card.settings.evaluation.suite_images, card.settings.evaluation.pgd_steps) == (12, 4)
    capsys.readouterr()
    assert status(["zoo", "check", "tiny", "--zoo", str(tmp_path), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert {"SHA-256", "clean accuracy", "activation bits"} <= {f["what"] for f in found}
    assert any("on the twin" in f["what"] for f in found)
    assert any("proven" in f["what"] for f in found)
    copy = tmp_path / "copy.tflite"
    assert status(["zoo", "get", "tiny", str(copy), "--zoo", str(tmp_path)]) == 0
    assert copy.read_bytes() == (run / "model.tflite").read_bytes()
    assert status(["zoo", "list", "--zoo", str(tmp_path)]) == 0
    assert "5-bit activations" in capsys.readouterr().out
    # A figure that the file does not have, and a file that is not the card's.
    path = tmp_path / "tiny.json"
    content = json.loads(path.read_text())
    content["clean"]["accuracy"] = 0.999
    content["model_info"]["clean_acc"] = "99.90"
    path.write_text(json.dumps(content))
    assert status(["zoo", "check", "tiny", "--zoo", str(tmp_path)]) == 1
    assert "BAD  clean accuracy: 0.9990 recorded" in capsys.readouterr().out
    (tmp_path / "tiny.tflite").write_bytes(b"something else")
    with pytest.raises(ValueError, match="SHA-256 differs"):
        copy_file("tiny", tmp_path / "copy.tflite", tmp_path)


def test_the_card_of_a_network_that_went_on_from_a_model_names_its_file(
    done: Done, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(making, "attacked", lambda content, x, y, like: like)
    monkeypatch.setattr(making, "certified", lambda content, x, y: ())
    run, start = tmp_path / "run", tmp_path / "mine.keras"
    shutil.copytree(done.path("DQ, activation_bits 5"), run)
    small_cnn((8, 8, 1), 10, width=8).save(start)
    described = json.loads((run / "settings.json").read_text())
    digest = hashlib.sha256(start.read_bytes()).hexdigest()
    described["settings"]["model"] = {"start": str(start), "start_digest": digest}
    (run / "settings.json").write_text(json.dumps(described))
    card = making.make_card(run, "tiny", tmp_path / "zoo", "tfdq x")
    assert card.settings.model.start == Path("mine.keras")
    assert card.model_info.architecture == "mine.keras"
    assert card.model_info.additional_data is None
    assert str(tmp_path) not in (tmp_path / "zoo" / "tiny.json").read_text()
    assert status(["zoo", "list", "--zoo", str(tmp_path / "zoo")]) == 0
    assert "tiny: digits, mine.keras, 5-bit" in capsys.readouterr().out
    start.unlink()
    with pytest.raises(FileNotFoundError, match="no model at"):
        making.make_card(run, "tiny", tmp_path / "zoo", "tfdq x")
