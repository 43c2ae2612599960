"""Keras 3 model files: recognised, read safely, converted, and saved again by tf_keras."""

import subprocess
import sys
import textwrap
import zipfile
from pathlib import Path

import keras
import numpy as np
import pytest
import tf_keras

import tfdq
from tfdq import data
from tfdq.either_keras import is_quantized
from tfdq.model_files.keras3 import is_keras3_file
from tfdq.quantization.keras3 import from_keras3, load_keras3

layers = keras.layers


def test_a_trained_net_from_a_keras_file(tmp_path):
    digits = data.load("digits")
    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [
            keras.Input((8, 8, 1), name="image"),
            layers.RandomTranslation(0.1, 0.1, name="jitter"),
            layers.Conv2D(16, 3, padding="same", use_bias=False, name="conv"),
            layers.BatchNormalization(name="bn"),
            layers.ReLU(6.0, name="relu"),
            layers.MaxPooling2D(name="pool"),
            layers.Flatten(name="flatten"),
            layers.Dropout(0.1, name="drop"),
            layers.Dense(10, kernel_regularizer="l2", name="logits"),
        ],
        name="mine",
    )
    model.compile(
        keras.optimizers.Adam(0.01),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    model.fit(digits.x_train / 255, digits.y_train, epochs=4, verbose=0)
    path = tmp_path / "mine.keras"
    model.save(path)
    assert is_keras3_file(path)
    converted = tfdq.load_model(path)
    x = (digits.x_test / 255).astype(np.float32)
    np.testing.assert_allclose(
        converted.predict(x, verbose=0), model.predict(x, verbose=0), rtol=1e-4, atol=1e-4
    )
    accuracy = (converted.predict(x, verbose=0).argmax(1) == digits.y_test).mean()
    assert accuracy > 0.9
    # It trains on, with its regularizer, and is saved by tf_keras, whose file is not Keras 3's.
    assert len(converted.losses) == 1
    converted.compile("sgd", tf_keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    converted.fit(digits.x_train[:64] / 255, digits.y_train[:64], verbose=0)
    converted.save(tmp_path / "converted.keras")
    assert not is_keras3_file(tmp_path / "converted.keras")
    again = tf_keras.models.load_model(tmp_path / "converted.keras")
    np.testing.assert_array_equal(again.predict(x, verbose=0), converted.predict(x, verbose=0))


def test_files(tmp_path):
    with pytest.raises(FileNotFoundError, match="no file"):
        load_keras3(tmp_path / "absent.keras")
    broken = tmp_path / "broken.keras"
    broken.write_bytes(b"PK not a zip")
    assert not is_keras3_file(broken)
    assert not is_keras3_file(tmp_path / "absent.keras")
    with zipfile.ZipFile(broken, "w") as archive:
        archive.writestr("metadata.json", '["keras_version"]')
    assert not is_keras3_file(broken)
    with pytest.raises(ValueError, match=r"can't load .*broken\.keras"):
        load_keras3(broken)


def test_python_code_in_files_is_not_run(tmp_path):
    image = keras.Input((3,))
    path = tmp_path / "lambda.keras"
    keras.Model(image, layers.Lambda(lambda v: v + 1)(image)).save(path)
    with pytest.raises(ValueError, match=r"can't load .*[Ll]ambda"):
        load_keras3(path)


def test_a_quantized_model_of_keras_3_is_loaded_as_one(tmp_path):
    image = keras.Input((6,))
    x = np.random.default_rng(0).random((9, 6)).astype(np.float32)
    model = tfdq.quantize_model(keras.Model(image, layers.Dense(3, activation="relu")(image)))
    tfdq.calibrate(model, x).save(tmp_path / "quantized.keras")
    loaded = tfdq.load_model(tmp_path / "quantized.keras")
    assert isinstance(loaded, keras.Model)
    assert is_quantized(loaded)
    assert not is_quantized(keras.Model(image, layers.Dense(3)(image)))
    np.testing.assert_array_equal(loaded.predict(x, verbose=0), model.predict(x, verbose=0))
    with pytest.raises(ValueError, match="is quantized: convert the float model"):
        from_keras3(loaded)


def test_the_converted_model_needs_nothing_of_keras3(tmp_path):
    """A model with hard_silu, saved and read in a process that only imports tfdq's quantization."""
    image = keras.Input((4,), name="image")
    model = keras.Model(image, layers.Dense(3, activation="hard_silu", name="dense")(image))
    converted = from_keras3(model)
    x = np.linspace(-5, 5, 20).reshape(5, 4).astype(np.float32)
    converted.save(tmp_path / "model.keras")
    np.save(tmp_path / "x.npy", x)
    np.save(tmp_path / "y.npy", converted(x).numpy())
    code = f"""
        import numpy as np, tf_keras
        import tfdq.quantization.keras3_layers
        folder = {str(tmp_path)!r}
        model = tf_keras.models.load_model(folder + "/model.keras")
        y = model(np.load(folder + "/x.npy")).numpy()
        assert np.array_equal(y, np.load(folder + "/y.npy"))
        print("equal")
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.stdout.strip() == "equal", done.stderr[-2000:]
