"""The thin interpreter: floats and integers, batches, threads, errors."""

import numpy as np
import pytest

import tflite_export
from tests.tflite_export.graphs import GRAPHS
from tflite_export.files.write import write
from tflite_export.runtime.interpreter import Interpreter, find_runtime
from tflite_export.runtime.timing import benchmark, thread_counts


def test_floats_and_integers_agree_with_the_raw_runtime(small_model):
    import ai_edge_litert.interpreter as raw

    _, exported, images, _ = small_model
    model = exported.interpreter(batch_size=50)
    inner = raw.Interpreter(model_content=exported.content)
    runner = inner.get_signature_runner("serving_default")
    (name,) = runner.get_input_details()
    details = runner.get_input_details()[name]
    scale, zero = details["quantization"]
    integers = np.clip(np.rint(images / scale) + zero, -128, 127).astype(np.int8)
    (result,) = runner(**{name: integers}).values()
    np.testing.assert_array_equal(model.integers(images), result)
    np.testing.assert_array_equal(model.integers(integers), result)
    (out,) = runner.get_output_details().values()
    step, origin = out["quantization"]
    expected = step * (result.astype(np.float64) - origin)
    np.testing.assert_allclose(model.predict(images), expected, rtol=1e-6)
    np.testing.assert_array_equal(model(images), model.predict(images))


@pytest.mark.parametrize("batch_size", [1, 7, 64, 1000])
@pytest.mark.parametrize("threads", [1, 2])
def test_batches_and_threads_change_nothing(small_model, batch_size, threads):
    _, exported, images, _ = small_model
    expected = exported.interpreter().integers(images[:100])
    model = exported.interpreter(batch_size=batch_size, threads=threads)
    np.testing.assert_array_equal(model.integers(images[:100]), expected)
    np.testing.assert_array_equal(model.integers(images[:3]), expected[:3])


@pytest.mark.parametrize("kind", ["uint8", "float32"])
def test_other_interfaces_compute_the_same(small_model, kind):
    qat, exported, images, _ = small_model
    other = tflite_export.convert(qat, input_type=kind, calibration=images[:64])
    ours, theirs = exported.interpreter(), other.interpreter()
    assert theirs.input_tensors[0].dtype == kind
    offset = 128 if kind == "uint8" else 0
    np.testing.assert_array_equal(
        ours.integers(images).astype(int) + offset, theirs.integers(images).astype(int)
    )
    np.testing.assert_allclose(ours.predict(images), theirs.predict(images), atol=1e-6)
    np.testing.assert_array_equal(theirs.integers(images), other.twin().integers(images).numpy())


def test_mixed_interface(small_model):
    qat, exported, images, _ = small_model
    other = tflite_export.convert(
        qat, input_type="uint8", output_type="float32", calibration=images[:64]
    )
    result = other.interpreter().predict(images)
    np.testing.assert_allclose(result, exported.interpreter().predict(images), atol=1e-6)


def test_tensorflows_own_runtime_computes_the_same(small_model):
    _, exported, images, _ = small_model
    other = exported.interpreter(runtime="tensorflow")
    assert other.runtime == "tensorflow"
    np.testing.assert_array_equal(other.integers(images), exported.interpreter().integers(images))


def test_progress_is_reported(small_model):
    _, exported, images, _ = small_model
    seen = []
    exported.interpreter(batch_size=40).predict(
        images[:100], progress=lambda done, total: seen.append((done, total))
    )
    assert seen == [(40, 100), (80, 100), (100, 100)]


def test_no_samples_give_no_outputs(small_model):
    _, exported, images, _ = small_model
    assert exported.interpreter().predict(images[:0]).shape == (0, 10)


def test_labels(small_model):
    _, exported, _, _ = small_model
    assert exported.interpreter().labels[7] == "digit 7"


def test_several_inputs():
    model = Interpreter(write(GRAPHS["add"](0)))
    values = [np.full((3, 5, 5, 8), 0.1, np.float32), np.zeros((3, 5, 5, 8), np.float32)]
    assert model.predict(values).shape == (3, 5, 5, 8)
    with pytest.raises(ValueError, match="the model takes 2"):
        model.predict(values[:1])
    with pytest.raises(ValueError, match="samples"):
        model.predict([values[0], values[1][:2]])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"threads": 0}, "threads is 0, expected a whole number in 1 to "),
        ({"threads": 10**6}, "threads is 1000000, expected a whole number in 1 to "),
        ({"threads": 2.0}, "threads is 2.0, expected a whole number"),
        ({"batch_size": 0}, "batch_size"),
        ({"kernels": "fast"}, "default, builtin, reference"),
        ({"runtime": "onnx"}, "ai-edge-litert"),
    ],
)
def test_wrong_arguments_are_named(small_model, options, message):
    with pytest.raises(ValueError, match=message):
        small_model[1].interpreter(**options)


def test_a_benchmark_checks_all_numbers_of_threads_before_it_runs(small_file):
    said = []
    with pytest.raises(ValueError, match="threads is 1000000"):
        benchmark(small_file, threads=[1, 10**6], progress=said.append)
    assert said == []


def test_as_many_threads_as_the_processor_has_are_taken(small_model):
    images = small_model[2][:3]
    count = max(thread_counts())
    threaded = small_model[1].interpreter(threads=count).integers(images)
    np.testing.assert_array_equal(threaded, small_model[1].interpreter().integers(images))


def test_wrong_inputs_are_named(small_model):
    model = small_model[1].interpreter()
    with pytest.raises(ValueError, match=r"expected \(n, 8, 8, 1\)"):
        model.predict(np.zeros((4, 8, 8)))
    with pytest.raises(ValueError, match="NaN"):
        model.predict(np.full((1, 8, 8, 1), np.nan))
    assert np.isfinite(model.predict(np.full((1, 8, 8, 1), np.inf))).all()


def test_a_missing_runtime_is_named():
    with pytest.raises(ValueError, match="pip install ai-edge-litert"):
        find_runtime("tflite-runtime")


def test_another_tools_file_needs_trust(small_model):
    import tensorflow as tf
    import tf_keras

    images = small_model[2]
    layers = tf_keras.layers
    model = tf_keras.Sequential(
        [layers.Conv2D(4, 3, input_shape=(8, 8, 1), activation="elu"), layers.Flatten()]
    )
    content = tf.lite.TFLiteConverter.from_keras_model(model).convert()
    with pytest.raises(ValueError, match="ELU"):
        Interpreter(content)
    floats = Interpreter(content, trusted=True).predict(images[:20])
    np.testing.assert_allclose(floats, model.predict_on_batch(images[:20]), atol=1e-3)
    proof = tflite_export.integer_only(content)
    assert not proof
    assert any("float32" in line for line in proof.offenders)
