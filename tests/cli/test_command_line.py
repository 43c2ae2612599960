"""The commands, one after the other on one small model, as a user chains them."""

import importlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from tfdq.cli import main
from tfdq.cli.app import app
from tfdq.cli.listing import ENTRIES

COMMANDS = ("demo", "train", "attack", "evaluate", "audit", "certify", "export", "run")
"""Those of this file; the experiments' have tests of their own."""


def tfdq(*arguments: object) -> int:
    with pytest.raises(SystemExit) as left:
        main([str(argument) for argument in arguments])
    return int(left.value.code or 0)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a short training, with the exported file in it."""
    out = tmp_path_factory.mktemp("cli") / "run"
    assert tfdq("train", "--out", out, "--epochs", 3, "--beta", 0.01) == 0
    assert tfdq("export", out / "model.keras", out / "model.tflite", "--data", "digits") == 0
    return out


@pytest.mark.parametrize("command", COMMANDS)
def test_help_shows_an_example(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert tfdq(command, "--help") == 0
    assert f"Example:  tfdq {command}" in capsys.readouterr().out


def modules_after(script: str) -> set[str]:
    """Return the names of the modules that a script has imported, in a process of its own."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("COV")}
    script += "\nprint('modules', *sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", f"import sys\n{script}"],
        check=True,
        env=environment,
        text=True,
        stdout=subprocess.PIPE,
    )
    return set(done.stdout.rpartition("modules ")[2].split())


def test_help_and_import_load_no_tensorflow() -> None:
    """The reason why both answer at once."""
    loaded = modules_after(
        "import tfdq, tfdq.cli.certify, tfdq.cli.commands\n"
        "import tfdq.cli.experiments, tfdq.cli.robustness"
    )
    assert not {"tensorflow", "tf_keras", "numpy", "scipy"} & loaded


def test_the_list_of_commands_imports_none_of_them() -> None:
    """Counted, as seconds depend on the machine: 340 modules, most of Python and Rich."""
    loaded = modules_after(
        "from tfdq.cli import main\n"
        "try:\n    main(['--help'])\nexcept SystemExit as left:\n    assert left.code == 0"
    )
    own = {name for name in loaded if name.startswith(("tfdq.", "tflite_export."))}
    assert not {"pydantic", "numpy", "keras"} & loaded
    assert not {entry.module for entry in ENTRIES.values()} & loaded
    assert len(own) < 20, own
    assert len(loaded) < 450, len(loaded)


def test_a_command_imports_no_other_commands() -> None:
    loaded = modules_after(
        "from tfdq.cli import main\n"
        "try:\n    main(['zoo', 'list'])\nexcept SystemExit as left:\n    assert left.code == 0"
    )
    assert {entry.module for entry in ENTRIES.values()} & loaded == {"tfdq.cli.zoo"}


def test_the_list_says_of_a_command_what_its_own_help_says() -> None:
    for entry in ENTRIES.values():
        importlib.import_module(entry.module)
    own = {
        **{str(info.callback.__name__): info.callback.__doc__ for info in app.registered_commands},
        **{str(group.name): group.typer_instance.info.help for group in app.registered_groups},
    }
    said = {name: str(text).partition("\n\n")[0] for name, text in own.items()}
    assert said == {name: entry.summary for name, entry in ENTRIES.items()}


def test_training_writes_model_and_figures(trained: Path) -> None:
    figures = json.loads((trained / "training.json").read_text())
    assert figures["test_images"] == 360
    assert figures["test_accuracy"] > 0.8
    assert figures["settings"]["penalty"]["beta"] == 0.01
    assert figures["versions"]["tensorflow"]


def test_run_gives_the_trained_accuracy_on_the_file(
    trained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
    found = []
    for name in ("model.keras", "model.tflite"):
        assert tfdq("run", trained / name, "--json") == 0
        found.append(json.loads(capsys.readouterr().out)["accuracy"])
    figures = json.loads((trained / "training.json").read_text())
    assert found[0] == figures["test_accuracy"]
    assert found[1] == found[0]


def test_attack_in_json_and_images(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "adversarial.npz"
    options = ("--attack", "fgsm", "--eps", "16/255", "--limit", 64, "--json", "--save-images", out)
    assert tfdq("attack", trained / "model.keras", *options) == 0
    figures = json.loads(capsys.readouterr().out)
    assert figures["robust"] < figures["clean"]
    with np.load(out) as images:
        assert images["x_adv"].shape == (64, 8, 8, 1)
        assert np.mean(~images["success"]) == pytest.approx(figures["robust"])


def test_a_file_is_attacked_without_and_with_a_surrogate(
    trained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = trained / "model.tflite"
    found = []
    for source in ((), ("--surrogate", trained / "model.keras"), ("--surrogate", file)):
        assert tfdq("attack", file, "--attack", "pgd", "--limit", 64, "--json", *source) == 0
        found.append(json.loads(capsys.readouterr().out))
    surrogates = [figures["settings"]["surrogate"] for figures in found]
    assert surrogates[0] is None
    assert surrogates[2] == str(file)
    # The file's own gradients are its twin's, and those of the model that it was made of.
    assert found[0]["robust"] == found[2]["robust"] < found[0]["clean"]
    assert abs(found[0]["robust"] - found[1]["robust"]) <= 0.05


def test_a_file_is_certified_by_intervals_and_completely(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, out = trained / "model.tflite", tmp_path / "proof"
    options = ("--eps", "1/255", "--limit", 6, "--json")
    found = []
    for more in ((), ("--complete", "--image-seconds", 0.5, "--out", out)):
        capsys.readouterr()
        assert tfdq("certify", file, *options, *more) == 0
        found.append(json.loads(capsys.readouterr().out))
    plain, complete = found
    assert sum(r > 0 for r in plain["radius"]) <= sum(r > 0 for r in complete["radius"])
    assert len(complete["decisions"]) == 6
    assert (out / "certificate.json").exists()
    assert len((out / "decisions.jsonl").read_text(encoding="utf-8").splitlines()) == 7
    assert tfdq("certify", trained / "model.keras", *options) == 0
    assert json.loads(capsys.readouterr().out)["radius"] == plain["radius"]


@pytest.mark.parametrize(
    ("command", "options"),
    [
        ("run", ()),
        ("certify", ()),
        ("attack", ("--attack", "square")),
        ("attack", ("--surrogate", "model.tflite")),
        ("evaluate", ("--attacks", "square")),
        ("audit", ("--surrogate", "model.tflite")),
        ("audit", ("--tflite", "model.tflite")),
    ],
)
def test_what_a_file_may_cost_is_limited_by_a_flag(
    command: str,
    options: tuple[str, ...],
    trained: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(trained)
    model = "model.tflite" if "model.tflite" not in options else "model.keras"
    assert tfdq(command, model, *options, "--cost-limit", "operations=1") == 2
    assert re.search(r"model\.tflite.* --cost-limit operations=\d+", capsys.readouterr().err)


def test_a_limit_that_there_is_not_is_named(
    trained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert tfdq("run", trained / "model.tflite", "--cost-limit", "speed=1") == 2
    assert "NAME=NUMBER" in capsys.readouterr().err
    assert tfdq("run", trained / "model.tflite", "--cost-limit", "operations=1e9") == 0


def test_evaluate_writes_a_report_and_goes_on_from_it(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    models = (trained / "model.keras", trained / "model.tflite")
    options = ("--attacks", "fgsm", "--eps", "8/255", "--eps", "24/255", "--limit", 40)
    out = tmp_path / "evaluation"
    for _ in range(2):
        assert tfdq("evaluate", *models, *options, "--out", out) == 0
        assert "under these attacks" in capsys.readouterr().out
    assert {p.name for p in out.iterdir()} == {"pieces", "report.json", "report.md", "report.png"}


def test_audit_reports_its_checks(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ("--eps", "16/255", "--limit", 16, "--queries", 20, "--json")
    status = tfdq("audit", trained / "model.keras", *options)
    found = json.loads(capsys.readouterr().out)
    assert status == (0 if found["passed"] else 1)
    assert len(found["checks"]) >= 10
    # The verdict goes beside the figures of an evaluation.
    verdict = tmp_path / "audit.json"
    verdict.write_text(json.dumps(found))
    model = trained / "model.keras"
    options = ("--attacks", "fgsm", "--limit", 16, "--audit", f"{model}={verdict}")
    assert tfdq("evaluate", model, *options) == 0
    assert f"audit {'passed' if found['passed'] else 'failed'}" in capsys.readouterr().out


def test_a_file_alone_is_audited(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Its gradients are its twin's; the twin is compared with it unasked."""
    file, checks = trained / "model.tflite", "zero gradients,model vs twin vs runtime"
    assert tfdq("audit", file, "--limit", 8, "--checks", checks, "--json") in (0, 1)
    found = {check["name"]: check for check in json.loads(capsys.readouterr().out)["checks"]}
    assert found["zero gradients"]["status"] != "not run"
    assert found["model vs twin vs runtime"]["figures"]["twin_label_agreement"] == 1.0
    # One check, asked for by its name, says that it was one.
    assert tfdq("audit", file, "--limit", 8, "--checks", "determinism") == 0
    assert "passed (1 of 14 checks run)" in capsys.readouterr().out.splitlines()[0]


def test_training_goes_on_from_a_float_model_against_an_attack(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert tfdq("train", "--float", "--out", tmp_path / "float", "--epochs", 2) == 0
    again = ("--start", tmp_path / "float" / "model.keras", "--adversarial", "r+fgsm")
    options = ("--epochs", 1, "--eps", "16/255", "--json", "--train-limit", 300)
    capsys.readouterr()
    assert tfdq("train", *again, "--out", tmp_path / "dq", *options) == 0
    assert json.loads(capsys.readouterr().out)["settings"]["adversarial"]["attack"] == "r+fgsm"


def test_a_trained_keras_3_model_is_exported(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A float file is quantized after training; the integers keep its classes."""
    import keras

    from tfdq.data import load
    from tflite_export import Interpreter

    digits, layers = load("digits"), keras.layers
    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [
            keras.Input((8, 8, 1)),
            layers.Conv2D(16, 3, padding="same", use_bias=False),
            layers.BatchNormalization(),
            layers.ReLU(),
            layers.MaxPooling2D(),
            layers.Flatten(),
            layers.Dense(10, activation="softmax"),
        ]
    )
    model.compile(keras.optimizers.Adam(0.01), "sparse_categorical_crossentropy")
    model.fit(digits.x_train / 255, digits.y_train, epochs=4, verbose=0)
    model.save(tmp_path / "model.keras")
    x = (digits.x_test / 255).astype(np.float32)
    expected = model.predict(x, verbose=0).argmax(-1)
    command = ("export", tmp_path / "model.keras", tmp_path / "model.tflite")
    assert tfdq(*command) == 2
    assert "is a float model: give images with --data" in capsys.readouterr().err
    assert tfdq(*command, "--data", "digits", "--limit", 360, "--json") == 0
    figures = json.loads(capsys.readouterr().out)
    assert figures["integer_only"]
    found = Interpreter(tmp_path / "model.tflite").predict(x).argmax(-1)
    assert np.mean(found == expected) >= 0.98
    assert figures["same_class_as_float"] == pytest.approx(np.mean(found == expected), abs=0.01)


@pytest.mark.parametrize("command", ["run", "attack", "evaluate", "audit", "export", "train"])
@pytest.mark.parametrize("file", ["model.keras", "model.tflite"])
def test_images_that_a_model_does_not_take(
    command: str, file: str, trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images, labels = np.zeros((20, 8, 8, 3), np.uint8), np.arange(20) % 10
    data = tmp_path / "colour.npz"
    np.savez(data, x_train=images, y_train=labels, x_test=images, y_test=labels)
    before: dict[str, list[object]] = {"train": ["--out", tmp_path / "run", "--start"]}
    behind: dict[str, list[object]] = {"export": [tmp_path / "out.tflite"]}
    line = [*before.get(command, []), trained / file, *behind.get(command, [])]
    assert tfdq(command, *line, "--data", data) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    if (command, file) != ("train", "model.tflite"):  # that is no model to train
        assert "takes images (8, 8, 1), but those of colour are (8, 8, 3)" in said
    assert not (tmp_path / "run").exists()


def test_the_audit_draws_its_images(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Images sorted by class, as in a folder: the first ones would be of one class."""
    images = np.arange(100, dtype=np.uint8).repeat(64).reshape(100, 8, 8, 1)
    labels = np.arange(100) // 10
    parts = {"x_train": images, "y_train": labels, "x_test": images, "y_test": labels}
    np.savez(tmp_path / "sorted.npz", **parts)
    seen = []

    def audit(model: object, x: np.ndarray, y: np.ndarray, **settings: object) -> None:
        seen.append((x, y))
        raise ValueError("enough")

    monkeypatch.setattr("tfdq.robustness.masking.audit", audit)
    for seed in (0, 0, 1):
        data = ("--data", tmp_path / "sorted.npz", "--seed", seed)
        assert tfdq("audit", trained / "model.keras", *data) == 2
    for x, y in seen:
        assert len(set(y[:16])) >= 5
        # Each image keeps its label.
        np.testing.assert_array_equal(np.rint(x[:, 0, 0, 0] * 255) // 10, y)
    np.testing.assert_array_equal(seen[0][1], seen[1][1])
    assert (seen[0][1] != seen[2][1]).any()


def test_a_deployed_file_that_does_not_fit_is_refused(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Before anything is attacked, and by the name of the file."""
    damaged = tmp_path / "damaged.tflite"
    damaged.write_bytes((trained / "model.tflite").read_bytes()[:-40])
    model = trained / "model.keras"
    for file, message in (
        (damaged, f"{str(damaged)!r}: damaged file"),
        (model, "--tflite takes a .tflite file"),
    ):
        assert tfdq("audit", model, "--tflite", file) == 2
        said = capsys.readouterr().err
        assert message in said
        assert said.count("\n") == 1
    images = np.random.default_rng(0).integers(0, 256, (20, 10, 10, 1), dtype=np.uint8)
    labels = np.arange(20) % 10
    parts = {"x_train": images, "y_train": labels, "x_test": images, "y_test": labels}
    np.savez(tmp_path / "ten.npz", **parts)
    assert tfdq("train", "--out", tmp_path / "ten", "--epochs", 1, "--batch-size", 8,
                "--data", tmp_path / "ten.npz", "--quiet") == 0  # fmt: skip
    ten = tmp_path / "ten.tflite"
    assert tfdq("export", tmp_path / "ten" / "model.keras", ten) == 0
    capsys.readouterr()
    assert tfdq("audit", model, "--tflite", ten) == 2
    assert f"{str(ten)!r} takes images (10, 10, 1)" in capsys.readouterr().err


def test_weights_that_are_no_numbers_are_named(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import tfdq as library

    model = library.load_model(trained / "model.keras", compile=False)
    kernel = next(weight for weight in model.trainable_weights if "kernel" in weight.name)
    kernel.assign(kernel * float("nan"))
    model.save(tmp_path / "nan.keras")
    for command in ("run", "attack", "audit", "evaluate", "report"):
        assert tfdq(command, tmp_path / "nan.keras", "--data", "digits") == 2
        assert f"NaN or infinite weights ({kernel.name})" in capsys.readouterr().err


def test_a_name_that_matplotlib_would_take_for_a_formula(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = tmp_path / (r"_$\frac{b$" + 80 * "x" + ".keras")
    model.write_bytes((trained / "model.keras").read_bytes())
    options = ("--limit", 8, "--out")
    assert tfdq("evaluate", model, "--attacks", "fgsm", *options, tmp_path / "evaluation") == 0
    checks = ("--checks", "determinism")
    assert tfdq("audit", model, *checks, *options, tmp_path / "audit") == 0
    assert "warning" not in capsys.readouterr().err
    assert {path.suffix for path in (tmp_path / "audit").glob("audit.*")} == {
        ".json",
        ".md",
        ".png",
    }


def test_a_model_of_other_classes_is_refused(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images, labels = np.zeros((20, 8, 8, 1), np.uint8), np.arange(20) % 2
    parts = {"x_train": images, "y_train": labels, "x_test": images, "y_test": labels}
    np.savez(tmp_path / "two.npz", **parts)
    assert tfdq("run", trained / "model.tflite", "--data", tmp_path / "two.npz") == 2
    assert "has 10 outputs, but two has 2 classes" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("run", "nothing.tflite"), "no model at 'nothing.tflite'"),
        (("run", "nothing.keras"), "no model at 'nothing.keras'"),
        (("train", "--out", "x", "--data", "nowhere"), "no data set 'nowhere'"),
        (("train", "--out", "x", "--model", "vgg99"), "there is no model 'vgg99'"),
        (
            ("train", "--out", "x", "--activation-bits", "9"),
            "--activation-bits must be a whole number from 0 to 8, got 9",
        ),
        (
            ("train", "--out", "x", "--on", "bias"),
            "'bias' is not one of 'kernel', 'folded', 'deployed'",
        ),
        (
            ("train", "--out", "x", "--target", "0"),
            "--target takes 1/k or a number above 0, got '0'",
        ),
        (("certify", "x.tflite", "--image-seconds", "3"), "the search of --complete: give both"),
        (("train", "--out", "x", "--target", "1/j"), "1/k or a number above 0, got '1/j'"),
        (("train", "--out", "x", "--adversarial", "cw"), "'cw' is not one of 'none', 'fgsm'"),
        (("train", "--out", "x", "--eps", "8/0"), "'8/0' is no number"),
        (
            ("train", "--out", "x", "--learning-rate", "-1"),
            "--learning-rate: Input should be greater than 0",
        ),
        (("train", "--out", "x", "--image-size", "32x"), "--image-size takes 32 or 32x48"),
        (("train", "--out", "x", "--image-size", "32"), "image_size is for folders"),
        (("attack", "nothing.keras", "--eps", "-0.1"), "eps must be > 0"),
        (("audit", "nothing.keras", "--eps", "8"), "did you mean 8/255?"),
        (("train", "--out", "x", "--image-size", "32x32x3x1"), "or 32x48x3 (x channels)"),
        (("export", "nothing.keras", "model.tfl"), "'model.tfl' must end in .tflite"),
        (("attack", "nothing.keras", "--save-images", "x.png"), "writes a .npz file, got 'x.png'"),
        (("train", "--out", "x", "--start", "mine.keras"), "no model at 'mine.keras'"),
        (("report", "nothing", "--data", "nowhere"), "no data set 'nowhere'"),
        (("report", "nothing"), "there is no nothing; name folders of runs"),
        (("report", "nothing", "--out", "."), "'.' is a folder; give a file"),
        (("nonsense",), "No such command"),
        (("train",), "--out"),
        (
            ("train", "--out", "x", "--warmup-epochs", "9", "--epochs", "9"),
            "error: warmup_epochs must be below epochs (9)",
        ),
        (("train", "--out", "x", "--layer-bits", "logits"), "--layer-bits takes NAME=VALUE"),
        (("train", "--out", "x", "--layer-bits", "a=9"), "--layer-bits a must be bits, 2 to 8"),
        (("train", "--out", "x", "--ramp", "5,1"), "ramp must be [begin, end]"),
        (("train", "--out", "x", "--precision", "float16"), "is for float networks"),
    ],
)
def test_mistakes_are_one_line_and_status_2(
    arguments: tuple[str, ...],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert tfdq(*arguments) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("command", "option"),
    [("train", "--out"), ("audit", "--out"), ("evaluate", "--out"), ("attack", "--save-images")],
)
def test_a_place_that_cannot_be_written_is_found_before_any_work(
    command: str,
    option: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def work(*_: object) -> None:
        raise AssertionError("work was begun")

    for place in ("experiments.networks.load_images", "cli.robustness.open_model"):
        monkeypatch.setattr(f"tfdq.{place}", work)
    (tmp_path / "file").write_bytes(b"")
    (tmp_path / "folder.npz").mkdir()
    model = [] if command == "train" else ["x.keras"]
    for place in ("file/below.npz", "file" if option == "--out" else "folder.npz"):
        assert tfdq(command, *model, option, tmp_path / place) == 2
        said = capsys.readouterr().err
        assert "file" in said
        assert said.count("\n") == 1


def test_a_network_that_learnt_nothing_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ("--epochs", 1, "--train-limit", 64, "--learning-rate", 1e-9)
    assert tfdq("train", "--out", tmp_path / "run", *options) == 0
    shown = capsys.readouterr()
    assert "can't be told from always answering the commonest class, 0.10" in shown.err
    assert "done before" not in shown.out
    assert tfdq("train", "--out", tmp_path / "run", *options, "--quiet") == 0
    shown = capsys.readouterr()
    assert "done before: nothing was left to do" in shown.out
    assert shown.err == ""


def test_two_runs_in_one_folder_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from tfdq.experiments.folder import open_folder

    with open_folder(tmp_path / "run", "train"):
        assert tfdq("train", "--out", tmp_path / "run", "--epochs", 1) == 2
        assert "another process is writing" in capsys.readouterr().err
    with open_folder(tmp_path / "other", "demo"):
        pass
    assert tfdq("train", "--out", tmp_path / "other", "--epochs", 1) == 2
    assert "holds a run of `tfdq demo`" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("number", "word", "status"),
    [
        (signal.SIGINT, "interrupted", 130),
        (signal.SIGTERM, "terminated", 143),
        (signal.SIGHUP, "the terminal was closed", 129),
    ],
)
def test_a_signal_leaves_a_message_that_says_how_to_go_on(
    number: signal.Signals, word: str, status: int, tmp_path: Path
) -> None:
    command = [Path(sys.executable).with_name("tfdq"), "demo", "--out", str(tmp_path / "run")]
    process = subprocess.Popen(
        command,
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        # A job in the background of a script has SIGINT switched off, and so have its children.
        preexec_fn=lambda: signal.signal(number, signal.SIG_DFL),
    )
    deadline = time.monotonic() + 120
    while not (tmp_path / "run" / ".lock").exists() and time.monotonic() < deadline:
        time.sleep(0.2)
    process.send_signal(number)
    _, error = process.communicate(timeout=120)
    assert process.returncode == status
    assert error.splitlines()[-1].startswith(f"{word}; finished attacks are kept in ")
    assert "the same command" in error
    assert "Traceback" not in error


@pytest.mark.parametrize("arguments", [[], ["zoo"], ["--quiet"]])
def test_a_call_without_a_command_gets_the_help(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as end:
        main(arguments)
    assert end.value.code == 0
    shown = capsys.readouterr()
    assert shown.out.count("Usage: tfdq") == 1
    assert shown.err == ""
