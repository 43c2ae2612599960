"""Objects that a model file names: those on the list are built, and the caller's own, no others."""

import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import keras
import pytest
import tensorflow as tf
import tf_keras
from tf_keras.src.export.export_lib import ReloadedLayer

import tfdq
from tfdq.model_files.configuration import Registry, UnsafeModelError, check_training
from tfdq.model_files.containers import check_model_file
from tfdq.quantization.keras3 import load_keras3

pytestmark = pytest.mark.filterwarnings("ignore:You are saving your model as an HDF5 file")
Config = dict[str, Any]
FORMATS = ["tf_keras.keras", "tf_keras.h5", "keras3.keras"]


def save(path: Path) -> Path:
    """Save a small compiled model; the library goes by the file's name."""
    library = keras if path.name.startswith("keras3") else tf_keras
    image = library.Input((4,), name="image")
    model = library.Model(image, library.layers.Dense(2, name="logits")(image))
    model.compile(library.optimizers.SGD(0.1), "mse", metrics=["accuracy"])
    model.save(path)
    return path


def rewrite(path: Path, change: Callable[[Config], Config | None]) -> Path:
    """Change the configuration in a file, that of an .h5 file put together as in an archive."""
    if path.suffix == ".h5":
        with h5py.File(path, "a") as file:
            training = json.loads(file.attrs["training_config"])
            config = {**json.loads(file.attrs["model_config"]), "compile_config": training}
            config = change(config) or config
            file.attrs["training_config"] = json.dumps(config.pop("compile_config", training))
            file.attrs["model_config"] = json.dumps(config)
        return path
    with zipfile.ZipFile(path) as old:
        contents = {name: old.read(name) for name in old.namelist()}
    config = json.loads(contents["config.json"])
    contents["config.json"] = json.dumps(change(config) or config).encode()
    with zipfile.ZipFile(path, "w") as new:
        for name, content in contents.items():
            new.writestr(name, content)
    return path


def load(path: Path) -> Any:
    return load_keras3(path) if path.name.startswith("keras3") else tfdq.load_model(path)


PLACES: dict[str, Callable[[Config, Config], Config | None]] = {
    "root": lambda config, item: item,
    "loss": lambda config, item: config["compile_config"].update(loss=item),
    "metric": lambda config, item: config["compile_config"].update(metrics=[[item]]),
    "optimizer": lambda config, item: config["compile_config"].update(
        optimizer=item, optimizer_config=item
    ),
    "layer": lambda config, item: config["config"]["layers"].append(
        {**item, "name": "odd", "inbound_nodes": []}
    ),
    "activation": lambda config, item: config["config"]["layers"][-1]["config"].update(
        activation=item
    ),
    "initializer": lambda config, item: config["config"]["layers"][-1]["config"].update(
        kernel_initializer=item
    ),
    "build": lambda config, item: config.update(build_config={"input_shape": item}),
    "call": lambda config, item: config["config"]["layers"][-1].update(
        inbound_nodes=[[["image", 0, 0, {"mask": item}]]]
    ),
}


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a SavedModel, which lies beside the model files and is not one of them."""

    class Program(tf.Module):
        @tf.function(input_signature=[tf.TensorSpec([None, 4], tf.float32)])
        def serve(self, x: tf.Tensor) -> tf.Tensor:
            return x

    folder = tmp_path_factory.mktemp("program")
    tf.saved_model.save(Program(), folder)
    return folder


def reloaded(program: Path) -> Config:
    return {
        "module": "tf_keras.src.export.export_lib",
        "class_name": "ReloadedLayer",
        "config": {"filepath": str(program), "call_endpoint": "serve"},
        "registered_name": "ReloadedLayer",
    }


@pytest.fixture
def programs_read(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return the list of SavedModels that are loaded from now on."""
    read: list[str] = []
    original = ReloadedLayer.__init__

    def noted(self: Any, filepath: str, *args: Any, **keywords: Any) -> None:
        read.append(filepath)
        original(self, filepath, *args, **keywords)

    monkeypatch.setattr(ReloadedLayer, "__init__", noted)
    return read


@pytest.mark.parametrize("place", ["root", "loss"])
def test_keras_alone_does_load_the_program(
    place: str, tmp_path: Path, program: Path, programs_read: list[str]
) -> None:
    """The attack of the next test is real: safe mode does not stop it."""
    path = rewrite(save(tmp_path / "tf_keras.keras"), lambda c: PLACES[place](c, reloaded(program)))
    tf_keras.models.load_model(path, safe_mode=True)
    assert programs_read == [str(program)]


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("name", FORMATS)
def test_a_program_elsewhere_is_not_loaded(
    name: str, place: str, tmp_path: Path, program: Path, programs_read: list[str]
) -> None:
    path = rewrite(save(tmp_path / name), lambda c: PLACES[place](c, reloaded(program)))
    with pytest.raises(UnsafeModelError, match=r"is not loaded: .*the path of a SavedModel"):
        load(path)
    assert programs_read == []


DENSE = {"config": {"units": 2}}
NAMES = {
    "a class of the module beside": {"module": "keras.src.layers", "class_name": "TFSMLayer"},
    "an alias that is new": {"module": "keras.layers", "class_name": "LayerOfNextYear"},
    "a class without a module": {"class_name": "LayerOfNextYear"},
    "a good class in a bad module": {"module": "tf_keras.src.export.x", "class_name": "Dense"},
    "a bad class under a good name": {
        "module": "tf_keras.src.export.export_lib",
        "class_name": "ExportArchive",
        "registered_name": "Dense",
    },
    "a good class under a bad name": {
        "module": "keras.layers",
        "class_name": "Dense",
        "registered_name": "ExportArchive",
    },
    "a bad class beside the caller's": {
        "module": "keras.callbacks",
        "class_name": "CSVLogger",
        "registered_name": "named_objects>Own",
    },
    "the caller's class in place of a bad one": {
        "module": "subprocess",
        "class_name": "Own",
        "registered_name": "Popen",
    },
    "a bad class where no module is named": {
        "class_name": "CSVLogger",
        "registered_name": "named_objects>Own",
    },
    "a callback": {"module": "keras.callbacks", "class_name": "CSVLogger"},
    "a name that is a list": {"module": "keras.layers", "class_name": ["Dense"]},
    "a module that is a list": {"module": ["keras.layers"], "class_name": "Dense"},
    "a registered name that is a list": {
        "module": "keras.layers",
        "class_name": "Dense",
        "registered_name": ["Dense"],
    },
    "a function that saves": {
        "module": "keras.models",
        "class_name": "function",
        "config": "save_model",
        "registered_name": "function",
    },
    "a function that looks names up": {
        "module": "builtins",
        "class_name": "function",
        "config": "deserialize",
        "registered_name": "function",
    },
    "a lambda": {"class_name": "__lambda__", "config": {"value": "x"}},
    "a value of an unknown kind": {"class_name": "__pickle__", "config": {"value": "x"}},
    "a type of any module": {
        "class_name": "__typespec__",
        "module": "tensorflow.python.data.ops.dataset_ops",
        "spec_name": "DatasetSpec",
        "registered_name": None,
        "config": [],
    },
    "a type by its registered name": {"class_name": "TypeSpec", "type_spec": "tf.data.DatasetSpec"},
}


@tf_keras.saving.register_keras_serializable("named_objects")
class Own(tf_keras.layers.Layer):
    pass


@pytest.mark.parametrize("case", NAMES)
def test_every_name_of_an_object_counts(case: str) -> None:
    for item in (NAMES[case], {**DENSE, **NAMES[case]}):
        with pytest.raises(UnsafeModelError, match=r"it names|\) is (Python code|the path of)"):
            check_training({"loss": [item]}, Registry())


def test_a_class_derived_from_a_program_is_one(tmp_path: Path) -> None:
    class Mine(tf_keras.layers.Lambda):
        pass

    registry = Registry(custom_objects={"Mine": Mine})
    with pytest.raises(UnsafeModelError, match="a Lambda, which takes Python code"):
        check_training({"class_name": "Mine", "config": {}}, registry)


def test_the_callers_own_is_taken() -> None:
    class Unregistered(tf_keras.layers.Layer):
        pass

    item = {"module": "__main__", "class_name": "Unregistered", "config": {}}
    with pytest.raises(UnsafeModelError, match="'Unregistered' of the module '__main__'"):
        check_training(item, Registry())
    check_training(item, Registry(custom_objects={"Unregistered": Unregistered}))
    with tf_keras.saving.custom_object_scope({"Unregistered": Unregistered}):
        check_training(item, Registry())
    own = {"module": None, "class_name": "Own", "registered_name": "named_objects>Own"}
    check_training({**own, "config": {}}, Registry())
    check_training({"class_name": "named_objects>Own", "config": {}}, Registry())


def test_the_root_is_a_model(tmp_path: Path) -> None:
    dense = {"module": "keras.layers", "class_name": "Dense", "config": {"units": 2}}
    for name in FORMATS:
        path = rewrite(save(tmp_path / name), lambda c: dense)
        with pytest.raises(UnsafeModelError, match="the class 'Dense', no model"):
            load(path)
        with pytest.raises(UnsafeModelError, match="not that of a model"):
            load(rewrite(path, lambda c: {"layers": [dense]}))


@pytest.mark.parametrize("value", ["/etc/hostname", {"class_name": "__bytes__", "value": "x"}])
@pytest.mark.parametrize("kind", ["StringLookup", "IntegerLookup", "TextVectorization"])
@pytest.mark.parametrize("argument", ["vocabulary", "filepath", "weights"])
def test_arguments_that_are_opened_as_files(argument: str, kind: str, value: Any) -> None:
    for module in ({}, {"module": "keras.layers"}, {"module": "tf_keras.layers"}):
        item = {**module, "class_name": kind, "config": {argument: value}}
        with pytest.raises(UnsafeModelError, match="reads the file"):
            check_training(item, Registry())
        for words in (None, ["one", "two"]):
            check_training({**item, "config": {argument: words}}, Registry())


def test_two_values_of_one_key(tmp_path: Path) -> None:
    path = save(tmp_path / "model.keras")
    with zipfile.ZipFile(path) as old:
        contents = {name: old.read(name) for name in old.namelist()}
    config = contents["config.json"].decode()
    contents["config.json"] = config.replace("{", '{"module": "os", ', 1).encode()
    with zipfile.ZipFile(path, "w") as new:
        for name, content in contents.items():
            new.writestr(name, content)
    with pytest.raises(UnsafeModelError, match="gives one key two values"):
        tfdq.load_model(path)


def test_what_is_checked_is_what_is_loaded(
    tmp_path: Path, program: Path, monkeypatch: pytest.MonkeyPatch, programs_read: list[str]
) -> None:
    """The file is exchanged for another one between the check and Keras."""
    path = save(tmp_path / "tf_keras.keras")
    original = tf_keras.models.load_model

    def exchanged(*args: Any, **keywords: Any) -> Any:
        rewrite(path, lambda c: PLACES["loss"](c, reloaded(program)))
        return original(*args, **keywords)

    monkeypatch.setattr(tf_keras.models, "load_model", exchanged)
    assert tfdq.load_model(path).loss == "mse"
    assert programs_read == []


def test_pickled_weights_and_arrays_that_expand(tmp_path: Path) -> None:
    path = save(tmp_path / "tf_keras.keras")
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("model.weights.npz", b"")
    with pytest.raises(UnsafeModelError, match="NumPy's archive"):
        tfdq.load_model(path)
    path = save(tmp_path / "large.h5")
    with h5py.File(path, "a") as file:
        file.create_dataset("zeros", (1 << 26,), "f4", chunks=True, compression="gzip")
    with pytest.raises(UnsafeModelError, match="'zeros' in it has 268435456 bytes, but 0"):
        check_model_file(path)
