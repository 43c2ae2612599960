"""Every class that Keras' deserializers can reach: built if it is on the list, refused if not."""

import contextlib
import importlib
import inspect
import json
import sys
import warnings
import zipfile
from collections.abc import Callable, Iterator
from itertools import chain
from pathlib import Path
from typing import Any

import h5py
import keras
import pytest
import tensorflow as tf
import tf_keras
from keras.src.saving import serialization_lib as keras3_serialization
from tf_keras.src.layers import serialization as layer_tables
from tf_keras.src.saving import serialization_lib as tf_keras_serialization

import tfdq
import tfdq.keras3
from tfdq.model_files.configuration import Registry, UnsafeModelError, check_training
from tfdq.model_files.harmless_classes import harmless_names, is_unlisted_name
from tfdq.quantization.keras3 import load_keras3

pytestmark = pytest.mark.filterwarnings("ignore")
Config = dict[str, Any]
FORMATS = ["tf_keras.keras", "tf_keras.h5", "keras3.keras"]
OPERATIONS = ("TFOpLambda", "SlicingOpLambda")
LIBRARIES = ("keras", "tf_keras", "tensorflow_model_optimization", "tfdq")


@pytest.fixture(scope="module")
def reachable() -> list[tuple[str, str, Any]]:
    """Return the module, the name and the object of every class and function of the libraries."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for library in (keras, tf_keras):
            folder = Path(library.__path__[0])
            for file in sorted((folder / "src").rglob("*.py")):
                parts = (library.__name__, *file.relative_to(folder).with_suffix("").parts)
                # The other backends are not installed.
                if not {"backend", "__init__", "benchmarks"} & set(parts) and not any(
                    "test" in part or "torch" in part or "jax" in part for part in parts
                ):
                    with contextlib.suppress(ImportError):
                        importlib.import_module(".".join(parts))
    return [
        (path, name, item)
        for path, module in list(sys.modules.items())
        if path.split(".")[0] in LIBRARIES and module is not None
        for name, item in list(vars(module).items())
        if inspect.isclass(item) or inspect.isfunction(item)
    ]


@pytest.fixture(scope="module")
def listed() -> set[int]:
    """Return the identities of what is on the list, and of what tfdq registers."""
    names = harmless_names()
    registered = [kit.saving.get_custom_objects().values() for kit in (tf_keras, keras)]
    return {id(x) for x in chain(names.classes.values(), names.functions.values(), *registered)}


@contextlib.contextmanager
def noting(built: set[type]) -> Iterator[None]:
    """Note the classes that are built, or asked to build themselves from a configuration."""

    def note(frame: Any, event: str, _: Any) -> None:
        code = frame.f_code
        if event == "call" and code.co_name in ("__init__", "from_config") and code.co_argcount:
            owner = frame.f_locals.get(code.co_varnames[0])
            built.add(owner if isinstance(owner, type) else type(owner))

    sys.setprofile(note)
    try:
        yield
    finally:
        sys.setprofile(None)


def passes(item: Config) -> bool:
    try:
        check_training(item, Registry())
    except UnsafeModelError:
        return False
    return True


def found(item: Config) -> Iterator[Any]:
    """Return what each of the libraries takes for an object with a module."""
    kind = "function" if item["class_name"] == "function" else "class"
    name = item["config"] if kind == "function" else item["class_name"]
    for library in (keras3_serialization, tf_keras_serialization):
        with contextlib.suppress(TypeError, ValueError, ModuleNotFoundError):
            yield library._retrieve_class_or_fn(
                name, item["registered_name"], item["module"], kind, item, {}
            )


def test_names_with_a_module(reachable: list[tuple[str, str, Any]], listed: set[int]) -> None:
    """What passes leads both libraries to what is on the list; nothing else does."""
    classes = {id(item) for _, _, item in reachable if inspect.isclass(item)}
    assert len(classes) > 1000
    assert "ReloadedLayer" in {name for _, name, _ in reachable}
    passed = 0
    for path, name, item in reachable:
        for module in {path, path.removeprefix("tf_"), item.__module__}:
            objects = [
                {"module": module, "class_name": name, "config": {}, "registered_name": known_as}
                for known_as in (None, name)
            ]
            if inspect.isfunction(item):
                objects += [
                    {
                        "module": place,
                        "class_name": "function",
                        "config": name,
                        "registered_name": "function",
                    }
                    for place in (module, "builtins")
                ]
            for described in objects:
                if passes(described):
                    passed += 1
                    results = list(found(described))
                    assert all(id(result) in listed for result in results), described
                else:
                    assert (module, name) not in harmless_names().classes or (
                        # Which operation it calls counts as well.
                        described["class_name"] in ("function", *OPERATIONS)
                    ), described
    assert passed > 1000


def tables() -> Iterator[tuple[str, dict[str, Any]]]:
    """Return the tables in which names without a module are looked up."""
    layer_tables.populate_deserializable_objects()
    yield "tf_keras layers", layer_tables.LOCAL.ALL_OBJECTS
    for path in (
        "tf_keras.src.losses",
        "tf_keras.src.metrics",
        "tf_keras.src.regularizers",
        "tf_keras.src.constraints",
        "tf_keras.src.activations",
        "tf_keras.src.initializers",
        "tf_keras.src.optimizers.schedules.learning_rate_schedule",
        "keras.layers",
        "keras.src.losses",
        "keras.src.metrics",
        "keras.src.regularizers",
        "keras.src.constraints",
        "keras.src.activations",
        "keras.src.initializers",
        "keras.src.optimizers",
    ):
        yield path, vars(importlib.import_module(path))
    for path, module in list(sys.modules.items()):
        if path.startswith("tensorflow_model_optimization.python.core") and module is not None:
            yield path, vars(module)


def test_names_without_a_module(listed: set[int]) -> None:
    seen = 0
    for path, table in tables():
        for name, item in list(table.items()):
            if not inspect.isclass(item) or item.__module__ == "typing":
                continue
            seen += 1
            if passes({"class_name": name, "config": {}}):
                assert id(item) in listed, (path, name)
            elif path.endswith("layers"):
                assert is_unlisted_name(name) or path == "tf_keras layers", name
    assert seen > 500


def save(path: Path) -> Path:
    library = keras if path.name.startswith("keras3") else tf_keras
    image = library.Input((4,), name="image")
    model = library.Model(image, library.layers.Dense(2, name="logits")(image))
    model.compile("sgd", "mse")
    model.save(path)
    return path


PLACES: list[Callable[[Config, Config], Any]] = [
    lambda config, item: config.update(item),
    lambda config, item: config["config"]["layers"].append(
        {**item, "name": "odd", "inbound_nodes": []}
    ),
    lambda config, item: config["config"]["layers"][-1]["config"].update(activation=item),
    lambda config, item: config["config"]["layers"][-1]["config"].update(kernel_regularizer=item),
    lambda config, item: config.update(build_config={"input_shape": item}),
]


@pytest.mark.parametrize("name", FORMATS)
def test_no_class_outside_the_list_is_built(
    name: str, reachable: list[tuple[str, str, Any]], listed: set[int], tmp_path: Path
) -> None:
    """Files that name every class of the libraries, each in another place of the configuration."""
    path = save(tmp_path / name)
    load = load_keras3 if name.startswith("keras3") else tfdq.load_model
    others = {
        id(item): (module, known_as, item)
        for module, known_as, item in reachable
        if inspect.isclass(item)
        and id(item) not in listed
        and item.__module__ == module
        and not module.startswith("tfdq.model_files.")
    }
    assert len(others) > 700
    if path.suffix == ".h5":
        with h5py.File(path) as file:
            original = file.attrs["model_config"]
    else:
        with zipfile.ZipFile(path) as archive:
            contents = {member: archive.read(member) for member in archive.namelist()}
        original = contents["config.json"]
    known = {*harmless_names().by_name, *tf_keras.saving.get_custom_objects()}
    built: set[type] = set()
    # A third in each format; the names of all of them are checked above.
    for index, (module, known_as, _) in list(enumerate(others.values()))[FORMATS.index(name) :: 3]:
        item = {"module": module, "class_name": known_as, "config": {}}
        if index % 4:
            item["registered_name"] = known_as if index % 4 == 1 else None
        # Without a module it would be another class of that name where one is listed or registered.
        if path.suffix == ".h5" and index % 2 and known_as not in known:
            del item["module"]
        config = json.loads(original)
        PLACES[index % len(PLACES)](config, item)
        if path.suffix == ".h5":
            with h5py.File(path, "a") as file:
                file.attrs["model_config"] = json.dumps(config)
        else:
            with zipfile.ZipFile(path, "w") as archive:
                for member, content in {**contents, "config.json": json.dumps(config)}.items():
                    archive.writestr(member, content)
        with noting(built), pytest.raises(UnsafeModelError, match="is not loaded"):
            load(path)
    assert not {kind for kind in built if id(kind) in others}


def test_a_built_class_is_noted(tmp_path: Path) -> None:
    built: set[type] = set()
    with noting(built):
        tfdq.load_model(save(tmp_path / "tf_keras.keras"))
    assert {tf_keras.layers.Dense, tf_keras.initializers.Zeros} <= built


def test_plain_names_build_what_is_listed(listed: set[int]) -> None:
    """A string is looked up in Keras' own tables: what is built of it is on the list, too."""
    kinds = (
        tf_keras.layers.Layer,
        tf_keras.losses.Loss,
        tf_keras.optimizers.Optimizer,
        tf_keras.metrics.Metric,
        keras.Operation,
        keras.losses.Loss,
        keras.optimizers.Optimizer,
        keras.metrics.Metric,
    )
    built: set[type] = set()
    names = {name for _, table in tables() for name, item in table.items() if inspect.isclass(item)}
    for library in (tf_keras, keras):
        for namespace in (
            "losses",
            "metrics",
            "regularizers",
            "constraints",
            "activations",
            "initializers",
            "optimizers",
        ):
            get = getattr(library, namespace).get
            for name in names:
                with noting(built), contextlib.suppress(Exception):
                    get(name)
    odd = {kind.__name__ for kind in built if issubclass(kind, kinds) and id(kind) not in listed}
    assert not odd


class Opened:
    """The paths that this process opens, by Python or by TensorFlow."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.paths: list[str] = []
        self._on = True
        sys.addaudithook(self._note)
        for name in ("exists", "isdir", "listdir", "glob", "GFile"):
            monkeypatch.setattr(tf.io.gfile, name, self._noted(getattr(tf.io.gfile, name)))

    def _note(self, event: str, arguments: tuple[Any, ...]) -> None:
        if self._on and event in ("open", "os.listdir", "os.scandir"):
            self.paths.append(str(arguments[0]))

    def _noted(self, original: Any) -> Any:
        def call(path: Any, *args: Any, **keywords: Any) -> Any:
            self.paths.append(str(path))
            return original(path, *args, **keywords)

        return call

    def stop(self) -> None:
        self._on = False


def test_which_arguments_are_opened_as_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Give every argument of every class on the list the path of a file."""
    secret = tmp_path / "secret.txt"
    secret.write_text("one\ntwo\n")
    opened = Opened(monkeypatch)
    reading = set()
    for kind in set(harmless_names().classes.values()):
        if kind.__module__.startswith("keras.src.ops."):
            continue
        parameters = inspect.signature(kind.__init__).parameters
        required = {
            name: 1
            for name, parameter in parameters.items()
            if name != "self"
            and parameter.default is inspect.Parameter.empty
            and parameter.kind is inspect.Parameter.POSITIONAL_OR_KEYWORD
        }
        names = {*parameters, "vocabulary", "filepath", "weights"} - {"self", "name", "dtype"}
        for name in names:
            opened.paths.clear()
            with contextlib.suppress(Exception):
                kind(**{**required, name: str(secret)})
            if any(str(secret) in path for path in opened.paths):
                reading.add((kind.__name__, name))
    opened.stop()
    assert reading == {
        ("StringLookup", "vocabulary"),
        ("IntegerLookup", "vocabulary"),
        ("TextVectorization", "vocabulary"),
    }


ARGUMENTS: Config = {
    "units": 2, "filters": 2, "kernel_size": 3, "rate": 0.5, "stddev": 0.1, "pool_size": 2,
    "num_heads": 2, "key_dim": 2, "input_dim": 3, "output_dim": 2, "target_shape": (4,),
    "dims": (1,), "n": 2, "scale": 2.0, "height": 2, "width": 2, "factor": 0.1, "num_bins": 3,
    "equation": "ab,bc->ac", "output_shape": 2, "axes": 1, "initial_learning_rate": 0.1,
    "decay_steps": 3, "decay_rate": 0.5, "first_decay_steps": 3, "boundaries": [1],
    "values": [0.1, 0.2], "num_classes": 2, "precision": 0.5, "recall": 0.5, "sensitivity": 0.5,
    "specificity": 0.5, "target_class_ids": [0], "bin_boundaries": [0.0], "num_tokens": 3,
    "head_dim": 2, "num_query_heads": 2, "num_key_value_heads": 1, "output_size": 2,
}  # fmt: skip


@pytest.mark.parametrize("library", [keras, tf_keras])
def test_what_keras_writes_of_listed_classes_passes(library: Any) -> None:
    """Keras' own serializers name the classes as the list does, with a module and without."""
    written = 0
    for kind in set(harmless_names().classes.values()):
        if kind.__module__.split(".")[0] != library.__name__:
            continue
        parameters = inspect.signature(kind.__init__).parameters
        given = {name: ARGUMENTS[name] for name in parameters if name in ARGUMENTS}
        try:
            instance = kind(**given)
            described = json.loads(json.dumps(library.saving.serialize_keras_object(instance)))
        except Exception:  # It wants arguments that are not in the table.
            continue
        written += 1
        check_training(described, Registry(library.saving))
    assert written > 200


SCHEDULES: dict[str, Callable[[], Any]] = {
    "Adam": lambda: 0.1,
    "SGD": lambda: tf_keras.optimizers.schedules.CosineDecay(0.1, 5),
    "legacy.Adam": lambda: tf_keras.optimizers.schedules.PiecewiseConstantDecay([1], [0.1, 0.01]),
    "RMSprop": lambda: tf_keras.optimizers.schedules.ExponentialDecay(0.1, 5, 0.9),
}


@pytest.mark.parametrize("suffix", [".keras", ".h5"])
@pytest.mark.parametrize("optimizer", [*SCHEDULES, "scaled"])
def test_compiled_models_load(optimizer: str, suffix: str, tmp_path: Path) -> None:
    """What is compiled is loaded with the model: optimizers, schedules, losses, metrics."""
    image = tf_keras.Input((4,))
    model = tf_keras.Model(image, tf_keras.layers.Dense(2, "softmax")(image))
    if optimizer == "scaled":
        compiled = tf_keras.mixed_precision.LossScaleOptimizer(tf_keras.optimizers.Adam())
    else:
        kind: Any = tf_keras.optimizers
        for part in optimizer.split("."):
            kind = getattr(kind, part)
        compiled = kind(SCHEDULES[optimizer]())
    losses = tf_keras.losses
    loss = {
        "Adam": "sparse_categorical_crossentropy",
        "SGD": losses.sparse_categorical_crossentropy,
    }.get(optimizer, losses.SparseCategoricalCrossentropy())
    metrics = ["accuracy", tf_keras.metrics.SparseTopKCategoricalAccuracy(k=2)]
    model.compile(compiled, loss, metrics=metrics)
    if optimizer == "scaled":
        # tf_keras can't read this optimizer before its first step, from its own files.
        model.fit(tf.zeros((4, 4)), tf.zeros((4,)), verbose=0)
    # tf_keras writes metrics of a model that has seen data only.
    expected = model.evaluate(tf.zeros((4, 4)), tf.zeros((4,)), verbose=0)
    model.save(tmp_path / f"model{suffix}")
    again = tfdq.load_model(tmp_path / f"model{suffix}")
    assert type(again.optimizer) is type(model.optimizer)
    assert again.evaluate(tf.zeros((4, 4)), tf.zeros((4,)), verbose=0) == expected
