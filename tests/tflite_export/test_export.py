"""convert: what it takes, what it proves, what it refuses."""

from pathlib import Path

import numpy as np
import pytest
import tf_keras

import tfdq
import tflite_export
from tests.tflite_export.trained import digits, enlarged, quantized, trained_float
from tfdq.grid import Grid
from tflite_export.files.read import read
from tflite_export.lowering.grids import clamp_plan
from tflite_export.lowering.lower import lower
from tflite_export.runtime.device import selftest

L = tf_keras.layers


def test_exported_model(small_model, tmp_path):
    qat, exported, images, labels = small_model
    assert exported.parity.exact
    assert exported.parity.agreement >= 0.99
    assert exported.labels[0] == "digit 0"
    assert len(exported) == len(exported.content)
    path = exported.save(tmp_path / "new" / "model.tflite")
    assert path.read_bytes() == exported.content
    again = tflite_export.convert(qat, tmp_path / "again.tflite", calibration=images)
    assert (tmp_path / "again.tflite").read_bytes() == again.content
    assert again.path == tmp_path / "again.tflite"
    accuracy = (exported.interpreter().predict(images).argmax(-1) == labels).mean()
    assert accuracy == (qat.predict_on_batch(images).argmax(-1) == labels).mean()


def test_self_test_passes_and_finds_other_kernels(small_model):
    content = small_model[1].content
    passed = selftest(content)
    assert passed
    assert passed.samples == 24
    assert "PASS" in str(passed)
    for kernels in ("builtin", "reference"):
        found = selftest(content, kernels=kernels)
        twin = small_model[1].twin(kernels=kernels)
        golden = small_model[2][:24]
        same = np.array_equal(
            twin.integers(golden).numpy(), small_model[1].twin().integers(golden).numpy()
        )
        assert bool(found) == same
        if not found:
            assert kernels in found.arithmetic
            assert found.deviations
            assert all(d.largest >= 1 for d in found.deviations)
            assert "DIFFERENT" in str(found)


def test_self_test_needs_golden_vectors(small_model):
    qat, _, images, _ = small_model
    bare = tflite_export.convert(qat, calibration=images[:32], golden=0)
    with pytest.raises(ValueError, match="golden"):
        selftest(bare.content)
    assert len(bare) < len(small_model[1])


def test_without_data_it_verifies_on_noise(small_model):
    qat, exported, _, _ = small_model
    other = tflite_export.convert(qat)
    assert other.facts["verified"]["data"] == "noise"
    assert other.parity.exact
    for left, right in zip(other.graph.tensors, exported.graph.tensors, strict=True):
        if left.data is not None:
            np.testing.assert_array_equal(left.data, right.data)


def test_rounding_biases_once_is_rounding_them_for_good():
    qat = quantized("small", 4, 4)
    images = digits()[0]
    before = qat.predict_on_batch(images)
    first = tflite_export.round_biases(qat)
    second = tflite_export.round_biases(qat)
    assert first > 1e-5
    assert second < 1e-6
    assert np.abs(qat.predict_on_batch(images) - before).max() < 3.0
    exported = tflite_export.convert(qat, calibration=images[:64], round_biases=False)
    same = exported.interpreter().integers(images) == exported.twin().integers(images).numpy()
    assert same.all()
    report = tflite_export.verify(qat, exported, images[:512])
    assert report.between("model", "twin")[0].identical > 0.99


def test_the_model_is_left_alone_when_asked():
    qat = quantized("small", 4, 4)
    before = [w.copy() for w in qat.get_weights()]
    tflite_export.convert(qat, round_biases=False, min_agreement=0.0)
    for old, new in zip(before, qat.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)


def test_negative_and_vanishing_batch_norm_factors():
    """Folded exactly: the sign goes into the integers; a dead channel is its bias."""
    tf_keras.utils.set_random_seed(3)
    rng = np.random.default_rng(0)
    image = L.Input((8, 8, 2))
    x = L.Conv2D(12, 3, padding="same", use_bias=False)(image)
    x = L.BatchNormalization(name="norm")(x)
    x = L.ReLU(6.0)(x)
    x = L.BatchNormalization(name="second", center=False)(x)
    x = L.GlobalAveragePooling2D()(x)
    model = tf_keras.Model(image, L.Dense(5)(x))
    gamma = rng.uniform(0.5, 1.5, 12) * np.where(np.arange(12) % 3, 1, -1)
    gamma[:4] = [0.0, 1e-12, -1e-7, 1e-3]
    norm = model.get_layer("norm")
    norm.set_weights([gamma, rng.normal(1, 1, 12), rng.normal(0, 1, 12), rng.uniform(0.1, 2, 12)])
    second = model.get_layer("second")
    second.set_weights([-gamma, rng.normal(0, 1, 12), rng.uniform(0.1, 2, 12)])
    images = rng.normal(0, 1, (256, 8, 8, 2)).astype(np.float32)
    for bits in (2, 4, 8):
        qat = tfdq.quantize_model(model, 0.0, weight_bits=bits, activation_bits=bits)
        tfdq.calibrate(qat, images)
        exported = tflite_export.convert(qat, calibration=images)
        assert exported.parity.agreement >= 0.99
        ours, theirs = exported.interpreter().predict(images), qat.predict_on_batch(images)
        step = exported.graph.tensors[exported.graph.outputs[0]].scale
        assert (np.abs(ours - theirs) < 0.5 * step).mean() > 0.99


def test_a_layer_that_was_always_zero_is_named():
    image = L.Input((8, 8, 1))
    x = L.Conv2D(4, 3, bias_initializer=tf_keras.initializers.Constant(-50.0))(image)
    x = L.GlobalAveragePooling2D()(L.ReLU(6.0, name="dead")(x))
    model = tf_keras.Model(image, L.Dense(3)(x))
    qat = tfdq.calibrate(tfdq.quantize_model(model, 0.0), digits()[0][:64])
    with pytest.raises(ValueError, match=r"has seen no data but zeros .*a layer whose outputs"):
        tflite_export.convert(qat, calibration=digits()[0][:64])


@pytest.mark.parametrize("name", ["small", "inverted", "dense"])
@pytest.mark.parametrize("bits", [2, 3, 4])
def test_int4_weights_are_half_the_size_and_exact(name, bits):
    qat = quantized(name, bits, bits, activation_range="relu6")
    images = enlarged(digits()[0], qat.input_shape[1])[:512]
    # packed first: it only moves the biases to a coarser grid, which the int8 form holds too
    packed = tflite_export.convert(
        qat, weights="int4", calibration=images[:64], golden=0, min_agreement=0.0
    )
    np.testing.assert_array_equal(
        packed.interpreter().integers(images), packed.twin().integers(images).numpy()
    )
    plain = tflite_export.convert(qat, calibration=images[:64], golden=0)
    weights = [r for r in packed.quantization if r["weight_type"] == "int4"]
    assert weights
    kernels = [
        sum(t.data.size for t in e.graph.tensors if t.name.endswith("/weights") and t.dtype == kind)
        for e, kind in ((plain, "int8"), (packed, "int4"))
    ]
    assert kernels[1] > 0.8 * kernels[0]
    assert plain.graph.constant_bytes() > packed.graph.constant_bytes()
    assert tflite_export.integer_only(packed.content)
    assert packed.parity.worst_layer().largest <= 1


def test_defensive_and_vanilla_files_cost_the_same():
    sizes, operators = [], []
    for beta in (0.0, 2e-3):
        model = trained_float("convex")
        qat = tfdq.quantize_model(model, beta, weight_bits=4, activation_bits=4)
        images = enlarged(digits()[0], 16)
        tfdq.calibrate(qat, images[:64])
        exported = tflite_export.convert(qat, calibration=images[:64])
        sizes.append(len(exported))
        operators.append([op.kind for op in exported.graph.operators])
    assert operators[0] == operators[1]
    assert sizes[0] == pytest.approx(sizes[1], rel=0.01)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"input_type": "int16"}, "int8, uint8, float32"),
        ({"output_type": "bool"}, "output_type"),
        ({"weights": "int2"}, "int8, int4"),
        ({"labels": ["a"]}, "10 names"),
        ({"labels": "0123456789"}, "10 names"),
        ({"golden": -1}, "golden"),
        ({"min_agreement": 2.0}, "min_agreement"),
        ({"verify_samples": 0}, "verify_samples"),
        ({"calibration": np.zeros((0, 8, 8, 1))}, "calibration"),
        ({"calibration": np.zeros((3, 9, 8, 1))}, "calibration"),
        ({"calibration": iter([1.0])}, "iterator.*give an array"),
        ({"facts": {"accuracy": object()}}, "JSON"),
    ],
)
def test_wrong_arguments_are_named(small_model, options, message):
    with pytest.raises(ValueError, match=message):
        tflite_export.convert(small_model[0], **options)


def test_models_without_an_integer_form_are_named():
    model = trained_float("small")
    with pytest.raises(ValueError, match="quantize_model"):
        tflite_export.convert(model)
    with pytest.raises(TypeError, match="tf_keras model"):
        tflite_export.convert("model.keras")
    unseen = tfdq.quantize_model(model, 0.0)
    with pytest.raises(ValueError, match="not seen any data"):
        tflite_export.convert(unseen)
    partly = tfdq.quantize_model(model, 0.0, skip=["stem_conv"])
    with pytest.raises(ValueError, match="stem_conv"):
        tflite_export.convert(partly)


@pytest.mark.parametrize("calibration", [None, np.zeros((4, 8, 8, 1), np.float32)])
def test_inputs_of_unknown_size_are_named_with_the_remedy(calibration):
    """And the remedy works: a model of a fixed size takes the weights over."""

    def network(size):
        image = L.Input((size, size, 1), name="image")
        x = L.ReLU()(L.Conv2D(4, 3)(image))
        return tf_keras.Model(image, L.Dense(3)(L.GlobalAveragePooling2D()(x)))

    images = np.random.default_rng(0).uniform(size=(16, 8, 8, 1)).astype(np.float32)
    trained = tfdq.calibrate(tfdq.quantize_model(network(None), 0.0), images)
    with pytest.raises(ValueError, match=r"'image' has shape \(None, None, None, 1\).*set_weights"):
        tflite_export.convert(trained, calibration=calibration)
    fixed = tfdq.quantize_model(network(8), 0.0)
    fixed.set_weights(trained.get_weights())
    exported = tflite_export.convert(fixed, calibration=images)
    np.testing.assert_allclose(
        exported.interpreter().predict(images),
        trained.predict_on_batch(images),
        atol=1.5 * exported.graph.tensors[exported.graph.outputs[0]].scale,
    )


def test_a_file_that_computes_something_else_is_an_error(small_model, monkeypatch):
    """Flip one weight between lowering and writing: the layer's own check finds it."""
    import tflite_export.conversion.export as export

    qat, _, images, _ = small_model

    def wrong(description, **options):
        lowered = lower(description, **options)
        kernel = next(t for t in lowered.graph.tensors if t.name == "stem_conv/weights")
        kernel.data[0, 1, 1] = -kernel.data[0, 1, 1] - 3
        return lowered

    monkeypatch.setattr(export, "lower", wrong)
    with pytest.raises(tflite_export.ParityError, match="stem_conv") as caught:
        tflite_export.convert(qat, calibration=images, round_biases=False)
    assert caught.value.report.worst_layer().identical < 0.98


def test_verify_reports_every_pair(small_model):
    qat, exported, images, _ = small_model
    report = tflite_export.verify(qat, exported, images[:100])
    assert report.samples == 100
    assert report.kernels == "xnnpack"
    assert report.exact
    text = str(report)
    assert "xnnpack" in text
    assert "reference" in text
    names = {c.tensor for c in report.layers if c.right == report.default}
    computed = {exported.graph.tensors[i].name for i, _ in exported.graph.activations()}
    assert names == computed
    assert all(c.identical == 1.0 for c in report.layers if c.right == report.default)
    assert report.as_dict()["samples"] == 100
    with pytest.raises(ValueError, match="empty"):
        tflite_export.verify(qat, exported, images[:0])
    with pytest.raises(ValueError, match="not exported from"):
        tflite_export.verify(quantized("softmax", 4, 4), exported, images[:4])


def test_integer_only_names_offenders(small_model):
    qat, exported, images, _ = small_model
    proof = tflite_export.integer_only(exported.content)
    assert proof
    assert proof.operands > proof.operators > 5
    floats = tflite_export.convert(qat, input_type="float32", calibration=images[:32])
    proof = tflite_export.integer_only(floats.content)
    assert not proof
    assert "DEQUANTIZE" in str(proof)
    assert "'image'" in str(proof) or "image" in proof.offenders[0]


@pytest.mark.parametrize(
    ("target", "activation", "levels", "second"),
    [
        (Grid(6 / 15, -128, -128, -113), "RELU6", (-128, -113), False),
        (Grid(6 / 255, -128, -128, 127), "NONE", (-128, 127), False),
        (Grid(0.1, -128, -128, 127), "NONE", (-128, 127), False),
        (Grid(0.05, 10, -128, 127), "NONE", (-128, 127), False),
        (Grid(0.3, -128, -128, -125), "RELU", (124, 127), False),
        (Grid(0.3, -126, -128, -125), "NONE", (-128, -125), True),
    ],
)
def test_clamps(target, activation, levels, second):
    from tflite_export.ir.graph import Quantization, Tensor, activation_range

    first, fused, then = clamp_plan(target)
    assert (then is not None) == second
    if second:
        # saturate at the top, then at the bottom, of int8
        assert first.qmax == 127
        assert (then.qmin, then.zero_point - then.qmin) == (-128, target.zero_point - target.qmin)
        return
    tensor = Tensor("", (), "int8", Quantization.per_tensor(first.scale, first.zero_point))
    low, high = activation_range(fused, tensor)
    assert (low, high) == levels
    assert (low - first.zero_point, high - first.zero_point) == (
        target.qmin - target.zero_point,
        target.qmax - target.zero_point,
    )
    if activation != "NONE":
        assert fused.startswith("RELU")


def test_two_clamps_in_a_row_compute_the_grid():
    from tflite_export.files.write import write
    from tflite_export.ir.graph import BATCH
    from tflite_export.lowering.assemble import Assembler
    from tflite_export.runtime.interpreter import Interpreter

    assembler = Assembler("two")
    source = assembler.value("x", (BATCH, 3, 3, 4), Grid(0.1, 0))
    result = assembler.rescale(source, Grid(0.3, -126, -128, -125), "clamped")
    assembler.graph.inputs, assembler.graph.outputs = (source,), (result,)
    values = np.arange(-108, 108).reshape(6, 3, 3, 4).astype(np.int8)
    found = Interpreter(write(assembler.graph)).integers(values)
    expected = np.clip(np.rint(values * 0.1 / 0.3) - 126, -128, -125)
    ties = np.isclose(np.abs(values * 0.1 / 0.3) % 1, 0.5)
    np.testing.assert_array_equal(found[~ties], expected[~ties])


def test_large_networks_stay_in_memory_and_time(tmp_path):
    """A network the size of VGG-16 (15 M weights) is exported in seconds."""
    import time
    import tracemalloc

    image = x = L.Input((8, 8, 64))
    for _ in range(4):
        x = L.ReLU(6.0)(L.Conv2D(640, 3, padding="same", use_bias=False)(x))
    model = tf_keras.Model(image, L.Dense(10)(L.GlobalAveragePooling2D()(x)))
    qat = tfdq.quantize_model(model, 0.0, activation_bits=4)
    noise = np.random.default_rng(0).random((4, 8, 8, 64)).astype(np.float32)
    tfdq.calibrate(qat, noise)
    tracemalloc.start()
    began = time.monotonic()
    exported = tflite_export.convert(qat, calibration=noise, round_biases=False, min_agreement=0.0)
    elapsed = time.monotonic() - began
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert 11e6 < len(exported) < 12e6
    assert peak < 1.5 * 2**30
    assert elapsed < 120
    assert read(exported.content).constant_bytes() < len(exported)


def test_a_dictionary_of_outputs_is_exported_in_the_order_of_its_keys(tmp_path: Path) -> None:
    image = L.Input((6, 6, 2), name="photo")
    x = L.Flatten()(L.Conv2D(4, 3, activation="relu")(image))
    outputs = {"kind": L.Dense(3, name="k")(x), "age": L.Dense(1, name="a")(x)}
    qat = tfdq.quantize_model(tf_keras.Model({"photo": image}, outputs), 0.0)
    images = np.random.default_rng(0).uniform(size=(16, 6, 6, 2)).astype(np.float32)
    tfdq.calibrate(qat, images)
    path = tmp_path / "model.tflite"
    tflite_export.convert(qat, path, calibration=images)
    expected = qat(images, training=False)
    found = tflite_export.Interpreter(path).predict(images)
    for name, values in zip(("age", "kind"), found, strict=True):
        step = np.ptp(expected[name]) / 255
        np.testing.assert_allclose(values, expected[name], atol=2 * step)
