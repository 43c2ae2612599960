"""Runs on one backend with TensorFlow and what comes with it hidden: from data to commands.

Argument: an empty folder. Keras' backend is that of the environment.
"""

import contextlib
import importlib
import io
import shutil
import sys
from importlib.machinery import PathFinder
from pathlib import Path

TENSORFLOW = {
    "cleverhans",
    "tensorflow",
    "tensorflow_datasets",
    "tensorflow_model_optimization",
    "tf_keras",
}
# The core is imported without these, too; files, runtimes and figures need them.
OTHERS = {"PIL", "ai_edge_litert", "flatbuffers", "matplotlib", "sklearn", "statsmodels", "typer"}


class Hiding:
    """Finds what Python finds, without what is hidden."""

    hidden = TENSORFLOW | OTHERS

    @classmethod
    def find_spec(cls, name, path=None, target=None):
        hidden = name.split(".")[0] in cls.hidden
        return None if hidden else PathFinder.find_spec(name, path, target)

    find_distributions = staticmethod(PathFinder.find_distributions)


sys.meta_path[sys.meta_path.index(PathFinder)] = Hiding

import keras  # noqa: E402
import numpy as np  # noqa: E402

import tfdq  # noqa: E402

for module in (
    "tfdq.keras3.penalty",
    "tfdq.robustness.attacks",
    "tfdq.robustness.masking",
    "tflite_export.twin.integer_twin",
):
    importlib.import_module(module)
Hiding.hidden = TENSORFLOW

from PIL import Image  # noqa: E402

from tfdq import data, robustness  # noqa: E402
from tfdq.cli import main  # noqa: E402
from tflite_export import convert  # noqa: E402

folder = Path(sys.argv[1])
digits = data.load("digits")
arrays = ("x_train", "y_train", "x_test", "y_test")
np.savez(folder / "digits.npz", **{name: getattr(digits, name) for name in arrays})
assert np.array_equal(data.load(folder / "digits.npz").x_train, digits.x_train)
for name in ("one", "other"):
    (folder / "images" / name).mkdir(parents=True)
    for row in range(5):
        Image.fromarray(digits.x_train[row, ..., 0]).save(folder / "images" / name / f"{row}.png")
images = data.load(folder / "images")
assert {x.tobytes() for x in images.x_test} <= {x.tobytes() for x in digits.x_train[:5]}

x = digits.x_train[:512].astype(np.float32) / 255
y = digits.y_train[:512]
layers = keras.layers
model = keras.Sequential(
    [
        layers.Input((8, 8, 1)),
        layers.Conv2D(8, 3, strides=2),
        layers.BatchNormalization(momentum=0.8),
        layers.ReLU(),
        layers.Flatten(),
        layers.Dense(10),
    ]
)
quantized = tfdq.quantize_model(model, 2e-3, activation_bits=4, input_range=(0, 1))
quantized.compile(
    keras.optimizers.Adam(1e-2), keras.losses.SparseCategoricalCrossentropy(from_logits=True)
)
quantized.fit(x, y, epochs=4, verbose=0)
quantized.save(folder / "model.keras")
assert tfdq.load_model(folder / "model.keras").name == quantized.name
exported = convert(tfdq.calibrate(quantized, x), calibration=x)
assert exported.parity.exact
path = folder / "model.tflite"
exported.save(path)

few, wanted = x[:32], y[:32]
for target in (quantized, path):
    for norm, eps in (("linf", 0.3), ("l2", 2.0)):
        found = robustness.run_attack("pgd", target, few, wanted, eps, norm=norm, steps=3)
        assert found.clean_accuracy - found.robust_accuracy > 0.2
report = robustness.evaluate(
    {"model": quantized, "file": path}, few, wanted, attacks=["fgsm"], epsilons=[0.1]
)
assert report.clean("model") == report.clean("file")
checks = ["zero gradients", "planted adversarial image"]
verdict = robustness.audit(path, few, wanted, eps=0.3, examples=8, checks=checks)
assert "passed" in {check.status for check in verdict.checks if check.name == checks[0]}
assert tfdq.certify(path, few[:4], wanted[:4], "linf", max_steps=2).method == "interval"
for name in ("cifar10", "mnist"):
    try:
        data.load(name, folder)
    except ModuleNotFoundError as error:
        refused = str(error)
    assert 'pip install "tfdq[tensorflow]"' in refused
    del refused


def command(*arguments: object) -> str:
    """Run a command of `tfdq`; return what it says, behind its exit status."""
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        try:
            main([*map(str, arguments)])
        except SystemExit as ended:
            status = ended.code
    return f"{status} {said.getvalue()}"


float_path, given = folder / "float.keras", ("--data", "digits", "--limit", 8)
model.save(float_path)
shutil.copy(path, folder / "other.tflite")
commands = [
    ("run", folder / "model.keras"),
    ("attack", float_path, "--attack", "fgsm"),
    ("audit", path, "--checks", "zero gradients"),
    ("certify", path),
]
if keras.backend.backend() == "torch":
    # Each backend computes what is above; JAX compiles for each of these.
    commands += [
        ("evaluate", path, folder / "other.tflite", "--attacks", "fgsm"),
        ("report", float_path, path, "--out", folder / "report.html"),
        ("export", float_path, folder / "exported.tflite"),
    ]
for arguments in commands:
    done = command(*arguments, *given)
    assert done.startswith("0 "), done
refused = command("train", "--data", "digits", "--out", folder / "run")
assert refused.startswith("2 ")
assert "--backend jax or --backend torch" in refused
assert not TENSORFLOW & {module.split(".")[0] for module in sys.modules}
print("whole")
