"""Runtime, twin, certificates and attacks refuse the same inputs."""

import dataclasses
from collections.abc import Callable

import numpy as np
import pytest
import tensorflow as tf
import tf_keras

import tfdq
import tflite_export
from tests.certificates.integer_networks import plain
from tfdq import certificates
from tfdq.robustness.targets import as_target
from tflite_export.files.write import write
from tflite_export.ir.graph import IntegerGraph, Operator, Tensor
from tflite_export.runtime.interpreter import Interpreter
from tflite_export.twin.integer_twin import IntegerTwin

GOOD = np.random.default_rng(0).uniform(0, 1, (4, 2, 2, 1)).astype(np.float32)
NAN = np.where(np.arange(16).reshape(4, 2, 2, 1) == 3, np.nan, GOOD).astype(np.float32)
BAD = {
    "bytes": (np.rint(GOOD * 255), "takes values from 0 to 1"),
    "integers": (np.rint(GOOD * 255).astype(np.uint8), "takes values from 0 to 1"),
    "nan": (NAN, "NaN"),
    "wide": (np.zeros((4, 2, 3, 1), np.float32), "shape"),
    "flat": (np.zeros((4, 4), np.float32), "shape"),
}


def from_floats() -> IntegerGraph:
    """The same network with a QUANTIZE in front: its input is float32."""
    inner = plain(0)
    graph = IntegerGraph(list(inner.tensors), list(inner.operators), (), inner.outputs)
    outside = graph.add_tensor(Tensor("float", (-1, 2, 2, 1), "float32"))
    graph.inputs = (outside,)
    graph.operators.insert(0, Operator("QUANTIZE", (outside,), (inner.inputs[0],)))
    return graph


def consumers(graph: IntegerGraph) -> dict[str, Callable]:
    content = write(graph)
    y = np.zeros(4, int)
    twin = IntegerTwin(graph)
    twin.compile(loss="mse")
    batches = tf.data.Dataset.from_tensor_slices
    return {
        "predict": Interpreter(content).predict,
        "integers": Interpreter(content).integers,
        "twin": twin,
        "twin.integers": twin.integers,
        "twin.predict": lambda x: twin.predict(x, verbose=0),
        "twin.predict of batches": lambda x: twin.predict(batches(x).batch(4), verbose=0),
        "twin.predict_on_batch": twin.predict_on_batch,
        "twin.evaluate": lambda x: twin.evaluate(x, np.eye(3)[[0, 1, 2, 0]], verbose=0),
        "twin.evaluate of batches": lambda x: twin.evaluate(
            batches((x, np.eye(3)[[0, 1, 2, 0]])).batch(4), verbose=0
        ),
        "twin.test_on_batch": lambda x: twin.test_on_batch(x, np.eye(3)[[0, 1, 2, 0]]),
        "interval": lambda x: certificates.certify(content, x, y, norm="linf", max_steps=1),
        "lipschitz": lambda x: certificates.certify(content, x, y, norm="l2", method="lipschitz"),
        "attacked twin": lambda x: as_target(twin).logits(x),
        "attacked file": lambda x: as_target(Interpreter(content)).logits(x),
    }


@pytest.mark.parametrize("fault", BAD)
@pytest.mark.parametrize("make", [lambda: plain(0), from_floats], ids=["int8", "float32"])
def test_what_predict_refuses_is_refused_everywhere(make, fault) -> None:
    x, message = BAD[fault]
    for consumer in consumers(make()).values():
        consumer(GOOD)
        with pytest.raises(ValueError, match=message):
            consumer(x)


def test_labels_out_of_range_and_outputs_that_are_no_scores_are_refused() -> None:
    graph = plain(0)
    for norm, method in (("linf", "interval"), ("l2", "lipschitz"), ("linf", "lipschitz")):
        with pytest.raises(ValueError, match=r"label 3 is beyond the network's 3 classes 0\.\.2"):
            certificates.certify(graph, GOOD, np.array([0, 1, 2, 3]), norm, method)
        with pytest.raises(ValueError, match="labels must be integers >= 0, got -1"):
            certificates.certify(graph, GOOD, np.array([0, -1, 2, 1]), norm, method)
        images = dataclasses.replace(graph, outputs=(graph.operators[0].outputs[0],))
        images.operators = graph.operators[:1]
        with pytest.raises(ValueError, match="one score for each class"):
            certificates.certify(images, GOOD, np.zeros(4, int), norm, method)


def test_smoothing_refuses_images_of_another_size() -> None:
    layers = tf_keras.layers
    model = tf_keras.Sequential([layers.Input((2, 2, 1)), layers.Flatten(), layers.Dense(3)])
    with pytest.raises(ValueError, match=r"shape \(\d+, 3, 2, 1\), expected \(n, 2, 2, 1\)"):
        certificates.certify(
            model, np.zeros((4, 3, 2, 1), np.float32), np.zeros(4, int), "l2", "smoothing"
        )


def test_a_traced_twin_still_checks_shapes() -> None:
    call = tf.function(IntegerTwin(plain(0)))
    assert call(GOOD).shape == (4, 3)
    with pytest.raises(ValueError, match=r"shape \(4, 2, 3, 1\), expected \(n, 2, 2, 1\)"):
        call(np.zeros((4, 2, 3, 1), np.float32))


def test_a_quantized_keras_model_is_certified_on_its_own_scale_only() -> None:
    image = tf_keras.Input((2, 2, 1))
    flat = tf_keras.layers.Flatten()(image)
    model = tf_keras.Model(image, tf_keras.layers.Dense(3)(flat))
    quantized = tfdq.quantize_model(model, input_range=(0.0, 1.0))
    tfdq.calibrate(quantized, GOOD)
    for norm in ("l2", "linf"):
        certificates.certify(quantized, GOOD, np.zeros(4, int), norm)
        for fault in ("bytes", "nan", "wide"):
            x, message = BAD[fault]
            with pytest.raises(ValueError, match=message):
                certificates.certify(quantized, x, np.zeros(4, int), norm)


def test_ranges_that_saw_black_images_only_are_refused_by_name() -> None:
    image = tf_keras.Input((4, 4, 1))
    x = tf_keras.layers.Conv2D(4, 3, activation="relu", use_bias=False, name="stem")(image)
    model = tf_keras.Model(image, tf_keras.layers.Dense(3)(tf_keras.layers.Flatten()(x)))
    quantized = tfdq.quantize_model(model, input_range=(0.0, 1.0))
    black = np.zeros((8, 4, 4, 1), np.float32)
    tfdq.calibrate(quantized, black)
    with pytest.raises(ValueError, match=r"'quant_stem': the range has seen no data but zeros"):
        tflite_export.convert(quantized, calibration=black)
    images = np.random.default_rng(0).uniform(0, 1, black.shape).astype(np.float32)
    tfdq.calibrate(quantized, images)
    assert tflite_export.convert(quantized, calibration=images).parity.exact
