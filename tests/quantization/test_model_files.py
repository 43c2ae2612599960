"""Model files that are out for more than being a model: real attempts, each refused."""

import json
import os
import shutil
import stat
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import keras
import numpy as np
import pytest
import tf_keras

import tfdq
from tfdq.model_files.containers import UnsafeModelError, check_model_file
from tfdq.quantization.keras3 import load_keras3

pytestmark = pytest.mark.filterwarnings("ignore:You are saving your model as an HDF5 file")
Config = dict[str, Any]


def touch(path: Path) -> Callable[[Any], Any]:
    """Return what a hostile Lambda layer calls: it leaves a file behind."""
    return eval(f"lambda v: (__import__('os').system({f'touch {path}'!r}), v)[1]")


def build(library: Any, *layers: Any) -> Any:
    image = library.Input((4,), name="image")
    x = image
    for layer in (*layers, library.layers.Dense(2, name="logits")):
        x = layer(x)
    return library.Model(image, x)


def load(path: Path) -> Any:
    """Load and use, as the command line does."""
    model = load_keras3(path) if path.name.startswith("keras3") else tfdq.load_model(path)
    return model.predict(np.zeros((1, 4), np.float32), verbose=0)


def changed(path: Path, change: Callable[[Config], None]) -> Path:
    """Return a copy of a model file with another configuration."""
    copy = path.with_stem(f"{path.stem}-changed")
    shutil.copy(path, copy)
    if path.suffix == ".h5":
        with h5py.File(copy, "a") as file:
            config = json.loads(file.attrs["model_config"])
            change(config)
            file.attrs["model_config"] = json.dumps(config)
        return copy
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(copy, "w") as new:
        for name in old.namelist():
            content = old.read(name)
            if name == "config.json":
                config = json.loads(content)
                change(config)
                content = json.dumps(config).encode()
            new.writestr(name, content)
    return copy


@pytest.mark.parametrize("name", ["tf_keras.keras", "tf_keras.h5", "tf_keras", "keras3.keras"])
def test_a_lambda_layer_is_not_run(name: str, tmp_path: Path) -> None:
    mark = tmp_path / "ran"
    library = keras if name.startswith("keras3") else tf_keras
    path = tmp_path / name
    build(library, library.layers.Lambda(touch(mark), name="twice")).save(path)
    mark.unlink(missing_ok=True)
    with pytest.raises(ValueError, match="is not loaded") as refused:
        load(path)
    assert "SavedModel is a program" in str(refused.value) or "'twice'" in str(refused.value)
    assert not mark.exists()


def test_that_lambda_does_run_where_it_is_trusted(tmp_path: Path) -> None:
    """The file of the test above is a real attack: Keras alone runs it."""
    mark = tmp_path / "ran"
    build(tf_keras, tf_keras.layers.Lambda(touch(mark))).save(tmp_path / "model.h5")
    mark.unlink(missing_ok=True)
    model = tfdq.load_model(tmp_path / "model.h5", safe_mode=False)
    model.predict(np.zeros((1, 4), np.float32), verbose=0)
    assert mark.exists()


def test_what_is_no_model_for_tf_keras_names_what_to_give(tmp_path: Path) -> None:
    build(keras, keras.layers.Dense(3)).save(tmp_path / "keras3.h5")
    with pytest.raises(ValueError, match=r"h5 file of Keras 3\.\S+; load it there and save it"):
        tfdq.load_model(tmp_path / "keras3.h5")
    for library, name in ((keras, "keras3"), (tf_keras, "tf_keras")):
        weights = tmp_path / f"{name}.weights.h5"
        build(library).save_weights(weights)
        with pytest.raises(ValueError, match="holds weights only; save the whole model"):
            tfdq.load_model(weights)
    (tmp_path / "model.tflite").write_bytes(b"TFL3")
    with pytest.raises(ValueError, match=r"is an integer file.*give the Keras model"):
        tfdq.load_model(tmp_path / "model.tflite")


@pytest.mark.parametrize("safe_mode", [True, False])
@pytest.mark.parametrize("name", ["model.keras", "model.h5"])
def test_pipes_and_devices_are_not_opened(name: str, safe_mode: bool, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / name)
    (tmp_path / f"link_{name}").symlink_to("/dev/zero")
    for path in (tmp_path / name, tmp_path / f"link_{name}"):
        with pytest.raises(ValueError, match=rf"{name}' is a pipe or a device; copy the model"):
            tfdq.load_model(path, safe_mode=safe_mode)


FUNCTION = {
    "module": "os",
    "class_name": "function",
    "config": "system",
    "registered_name": "system",
}


def _set_activation(config: Config, function: Any) -> None:
    config["config"]["layers"][-1]["config"]["activation"] = function


def _append(config: Config, layer: Config, node: Any) -> None:
    config["config"]["layers"].append({**layer, "name": "odd", "inbound_nodes": [node]})


def _called(config: Config, layer: Config) -> None:
    """Append a layer that is called with a constant in place of a tensor."""
    _append(config, layer, [["_CONSTANT_VALUE", -1, "touch run", {}]])


def _activation_called(config: Config, function: Config) -> None:
    _called(config, {"class_name": "Activation", "config": {"activation": function}})


ATTACKS: dict[str, tuple[Callable[[Config], None], str]] = {
    "a function as activation": (lambda c: _set_activation(c, FUNCTION), "'system'"),
    "eval as activation": (
        lambda c: _set_activation(c, {**FUNCTION, "module": "builtins", "config": "eval"}),
        "'eval'",
    ),
    "a download as activation": (
        lambda c: _set_activation(c, {**FUNCTION, "module": "keras.utils", "config": "get_file"}),
        "'get_file'",
    ),
    "safe mode switched off": (
        lambda c: _set_activation(
            c,
            {**FUNCTION, "module": "keras.config", "config": "enable_unsafe_deserialization"},
        ),
        "'enable_unsafe_deserialization'",
    ),
    "a function as layer": (
        lambda c: _append(c, FUNCTION, [["_CONSTANT_VALUE", -1, "touch run", {}]]),
        "one of its layers",
    ),
    "a class of any module": (
        lambda c: _append(c, {"module": "subprocess", "class_name": "Popen", "config": {}}, []),
        "module 'subprocess'",
    ),
    "a TensorFlow operation": (
        lambda c: _append(
            c,
            {"class_name": "TFOpLambda", "config": {"name": "odd", "function": "io.write_file"}},
            [["_CONSTANT_VALUE", -1, "run", {"contents": "x"}]],
        ),
        "tf.io.write_file",
    ),
    # Keras looks one of the names up as registered, and imports by another.
    "a function under a registered name": (
        lambda c: _activation_called(c, {**FUNCTION, "registered_name": "tfdq>FusedConv2D"}),
        "'system'",
    ),
    "a function in place of a class": (
        lambda c: _set_activation(
            c, {"module": "keras.utils", "class_name": "get_file", "config": {}}
        ),
        "'get_file'",
    ),
    "a function in place of a registered class's": (
        lambda c: _set_activation(
            c,
            {
                "module": "os",
                "class_name": "system",
                "config": {},
                "registered_name": "tfdq>FusedConv2D",
            },
        ),
        "'system'",
    ),
    "a class under a known function's name": (
        lambda c: _set_activation(
            c, {"module": "subprocess", "class_name": "Popen", "config": "relu"}
        ),
        "module 'subprocess'",
    ),
    "another name in the module": (
        lambda c: _set_activation(
            c,
            {
                "module": "keras.activations",
                "class_name": "function",
                "config": "relu",
                "registered_name": "deserialize",
            },
        ),
        "'relu'",
    ),
    "an attribute of an attribute": (
        lambda c: _set_activation(
            c, {**FUNCTION, "module": "keras.activations", "config": "tf.load_op_library"}
        ),
        "'tf.load_op_library'",
    ),
    "a program as module": (
        lambda c: _append(c, {"module": "tfdq.__main__", "class_name": "Dense", "config": {}}, []),
        "'tfdq.__main__'",
    ),
    "a subclass of a TensorFlow operation": (
        lambda c: _append(
            c,
            {
                "class_name": "SlicingOpLambda",
                "config": {"name": "odd", "function": "io.write_file"},
            },
            [["_CONSTANT_VALUE", -1, "run", {"contents": "x"}]],
        ),
        "tf.io.write_file",
    ),
    "a function as type": (
        lambda c: _append(
            c,
            {
                "class_name": "__typespec__",
                "spec_name": "write_file",
                "module": "tensorflow.io",
                "registered_name": None,
                "config": ["run", "x"],
            },
            [],
        ),
        "'write_file'",
    ),
    "a SavedModel inside": (
        lambda c: _append(c, {"class_name": "TFSMLayer", "config": {"filepath": "elsewhere"}}, []),
        "path of a SavedModel",
    ),
    "a vocabulary file": (
        lambda c: _append(
            c, {"class_name": "StringLookup", "config": {"vocabulary": "/etc/passwd"}}, []
        ),
        "'/etc/passwd'",
    ),
}


@pytest.mark.parametrize("name", ["tf_keras.keras", "tf_keras.h5", "keras3.keras"])
@pytest.mark.parametrize("attack", ATTACKS)
def test_names_in_the_configuration_are_not_followed(
    attack: str, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    change, message = ATTACKS[attack]
    build(keras if name.startswith("keras3") else tf_keras).save(tmp_path / name)
    path = changed(tmp_path / name, change)
    with pytest.raises(ValueError, match="is not loaded") as refused:
        load(path)
    assert message in str(refused.value)
    assert not (tmp_path / "run").exists()


def archive(path: Path, *members: zipfile.ZipInfo | str) -> Path:
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("config.json", "{}")
        for member in members:
            file.writestr(member, "x")
    return path


@pytest.mark.parametrize(
    "name", ["../outside", "assets/../../outside", "/outside", "..\\outside", "C:\\outside"]
)
def test_paths_that_lead_out_of_an_archive(name: str, tmp_path: Path) -> None:
    with pytest.raises(UnsafeModelError, match="leads out of it"):
        check_model_file(archive(tmp_path / "model.keras", name))


def test_links_and_doubles_in_an_archive(tmp_path: Path) -> None:
    link = zipfile.ZipInfo("assets/link")
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    with pytest.raises(UnsafeModelError, match="holds a link"):
        check_model_file(archive(tmp_path / "link.keras", link))
    with pytest.warns(UserWarning, match="Duplicate"):
        path = archive(tmp_path / "double.keras", "config.json")
    with pytest.raises(UnsafeModelError, match="two files of one name"):
        check_model_file(path)


@pytest.mark.filterwarnings("ignore:Duplicate")
def test_an_archive_that_unpacks_to_too_much(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "bomb.keras"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("config.json", " " * (1 << 20))
    monkeypatch.setattr("tfdq.model_files.containers._LARGEST_CONFIG", 1 << 19)
    with pytest.raises(UnsafeModelError, match="larger than"):
        check_model_file(path)
    monkeypatch.setattr("tfdq.model_files.containers._LARGEST_FILE", 1 << 18)
    with pytest.raises(UnsafeModelError, match="unpacks to more"):
        check_model_file(path)


@pytest.mark.parametrize("suffix", [".h5", ".keras"])
@pytest.mark.parametrize("kind", ["link", "storage", "view"])
def test_weights_that_lie_in_another_file(kind: str, suffix: str, tmp_path: Path) -> None:
    with h5py.File(tmp_path / "secret.h5", "w") as file:
        file["password"] = np.arange(4.0)
    weights = tmp_path / "weights.h5"
    with h5py.File(weights, "w") as file:
        inner = file.create_group("layers/dense")
        if kind == "link":
            inner["kernel"] = h5py.ExternalLink("secret.h5", "password")
        elif kind == "storage":
            external = [(str(tmp_path / "secret.h5"), 0, 32)]
            inner.create_dataset("kernel", (4,), "f8", external=external)
        else:
            layout = h5py.VirtualLayout((4,), "f8")
            layout[:] = h5py.VirtualSource(str(tmp_path / "secret.h5"), "password", (4,))
            inner.create_virtual_dataset("kernel", layout)
    path = weights
    if suffix == ".keras":
        path = archive(tmp_path / "model.keras")
        with zipfile.ZipFile(path, "a") as file:
            file.write(weights, "model.weights.h5")
    with pytest.raises(UnsafeModelError, match=r"'kernel' in it is (a link|stored)"):
        check_model_file(path)


def test_a_damaged_configuration_is_named(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "model.h5", "w") as file:
        file.attrs["model_config"] = "{"
    with pytest.raises(ValueError, match="configuration is not JSON"):
        tfdq.load_model(tmp_path / "model.h5")


@tf_keras.saving.register_keras_serializable("mine")
class Doubling(tf_keras.layers.Layer):
    def call(self, x: Any) -> Any:
        return 2 * x


@pytest.mark.parametrize("suffix", [".keras", ".h5"])
def test_honest_files_pass(suffix: str, tmp_path: Path) -> None:
    """Registered classes, arithmetic on tensors, metrics and optimizers by name."""
    layers = tf_keras.layers
    image = tf_keras.Input((8, 8, 3))
    x = layers.Conv2D(4, 3, activation="relu", kernel_regularizer="l2")(image / 2 + 1)
    x = Doubling()(layers.BatchNormalization()(x))
    x = tf_keras.activations.gelu(x)
    model = tf_keras.Model(image, layers.Dense(3, activation=tf_keras.activations.softmax)(x))
    model.compile("adam", tf_keras.losses.sparse_categorical_crossentropy, metrics=["accuracy"])
    model.save(tmp_path / f"model{suffix}")
    again = tfdq.load_model(tmp_path / f"model{suffix}")
    images = np.random.default_rng(0).uniform(size=(2, 8, 8, 3)).astype(np.float32)
    np.testing.assert_array_equal(
        again.predict(images, verbose=0), model.predict(images, verbose=0)
    )


@pytest.mark.parametrize("name", ["MobileNetV2", "MobileNetV3Small"])
def test_the_applications_of_keras_pass(name: str, tmp_path: Path) -> None:
    for library, file in ((keras, "keras3.keras"), (tf_keras, "tf.keras"), (tf_keras, "tf.h5")):
        model = getattr(library.applications, name)((32, 32, 3), weights=None, classes=10)
        model.save(tmp_path / file)
        check_model_file(tmp_path / file)


def test_a_class_that_nobody_registered_is_not_imported(tmp_path: Path) -> None:
    """The module would be found, beside the file."""
    (tmp_path / "layers_of_mine.py").write_text(
        "import tf_keras\n"
        "print('imported')\n"
        "class Mine(tf_keras.layers.Layer):\n"
        "    def call(self, x):\n"
        "        return x\n"
    )
    script = (
        "import sys, tf_keras, layers_of_mine\n"
        "image = tf_keras.Input((4,))\n"
        "tf_keras.Model(image, layers_of_mine.Mine()(image)).save('model.keras')\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True, cwd=tmp_path, capture_output=True)
    with pytest.raises(UnsafeModelError, match="module 'layers_of_mine'"):
        tfdq.load_model(tmp_path / "model.keras")
