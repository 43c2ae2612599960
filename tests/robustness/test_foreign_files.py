"""Files of other makers: attacked on the logits before a softmax, judged by their own decision."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

import tflite_export
from tests.another_tool import by_another_tool
from tfdq.certificates import SmoothingSettings, certify
from tfdq.robustness import as_target, audit, evaluate, run_attack, transfer_matrix
from tfdq.robustness.attacks.losses import cross_entropy
from tfdq.robustness.targets import DifferentiableTarget
from tflite_export import IntegerTwin, Interpreter
from tflite_export.files.read import read
from tflite_export.files.write import write
from tflite_export.ir.graph import (
    FullyConnected,
    IntegerGraph,
    NoOptions,
    Operator,
    Quantization,
    Softmax,
    Tensor,
)
from tflite_export.ops.arg_max import ArgMax

EPS = 0.1
Foreign = Callable[[float], Path]


def ending_in_softmax(graph: IntegerGraph, beta: float, classes: int = 10) -> IntegerGraph:
    """The graph with an 8-bit softmax behind it, and nothing that says who made it."""
    made = dataclasses.replace(
        graph,
        tensors=list(graph.tensors),
        operators=list(graph.operators),
        metadata={},
        signature_outputs=(),
    )
    grid = Quantization.per_tensor(1 / 256, -128)
    output = made.add_tensor(Tensor("probabilities", (-1, classes), "int8", grid))
    made.operators.append(Operator("SOFTMAX", graph.outputs, (output,), Softmax(beta)))
    made.outputs = (output,)
    return made


@pytest.fixture(scope="module")
def logits_file(quantized: Any, tmp_path_factory: Any) -> Path:
    path = tmp_path_factory.mktemp("foreign") / "logits.tflite"
    tflite_export.convert(quantized(4), path)
    return path


@pytest.fixture(scope="module")
def foreign(logits_file: Path) -> Foreign:
    """Give the path of a file whose softmax has a factor beta, made once."""

    def get(beta: float) -> Path:
        path = logits_file.with_name(f"softmax_{beta:g}.tflite")
        if not path.exists():
            content = write(ending_in_softmax(read(logits_file), beta))
            path.write_bytes(by_another_tool(content))
        return path

    return get


@pytest.mark.parametrize("beta", [0.005, 1.0, 20.0])
def test_logits_are_those_before_the_softmax_and_the_decision_is_the_files(
    beta: float, foreign: Foreign, logits_file: Path, digits: Any
) -> None:
    """A flat softmax ties classes whose logits differ; then the first of them is the decision."""
    path, x = foreign(beta), digits.x_test
    before = Interpreter(logits_file).predict(x)
    decision = Interpreter(path).predict(x).argmax(1)
    expected = np.minimum(before, before[np.arange(len(x)), decision][:, None])
    for model in (path, str(path), IntegerTwin(path)):
        target = as_target(model)
        np.testing.assert_array_equal(target.logits(x), expected)
        np.testing.assert_array_equal(target.predict(x), decision)
    np.testing.assert_array_equal(as_target(path).logits_tensor(tf.constant(x)).numpy(), expected)
    assert (decision != before.argmax(1)).any() == (beta < 1)


@pytest.fixture(scope="module")
def decides(logits_file: Path) -> Path:
    """A file whose output is the number of the class, of logits behind a softmax."""
    graph = ending_in_softmax(read(logits_file), 1.0)
    axis = graph.add_tensor(Tensor("axis", (), "int32", None, np.array(-1, np.int32)))
    output = graph.add_tensor(Tensor("class", (-1,), "int64"))
    graph.operators.append(Operator("ARG_MAX", (*graph.outputs, axis), (output,), ArgMax("int64")))
    graph.outputs = (output,)
    path = logits_file.with_name("decides.tflite")
    path.write_bytes(by_another_tool(write(graph)))
    return path


def test_a_file_that_says_the_class_alone_is_attacked_on_the_logits_before(
    decides: Path, foreign: Foreign, digits: Any
) -> None:
    x, y = digits.x_test[:60], digits.y_test[:60]
    said = Interpreter(decides).predict(x)
    assert said.dtype == np.int64
    np.testing.assert_array_equal(IntegerTwin(decides).integers(x).numpy(), said)
    expected = as_target(foreign(1.0)).logits(x)
    for model in (decides, IntegerTwin(decides)):
        target = as_target(model)
        np.testing.assert_array_equal(target.logits(x), expected)
        np.testing.assert_array_equal(target.predict(x), said)
    same = [run_attack("pgd", path, x, y, EPS, steps=5).x_adv for path in (decides, foreign(1.0))]
    np.testing.assert_array_equal(*same)


@pytest.mark.parametrize("method", ["interval", "lipschitz", "smoothing"])
def test_what_is_proven_of_the_scores_is_proven_of_the_class(
    method: Any, decides: Path, foreign: Foreign, digits: Any
) -> None:
    x, y = digits.x_test[:20], digits.y_test[:20]
    settings = SmoothingSettings(0.05, 20, 100)
    chosen = {"smoothing": settings} if method == "smoothing" else {}
    norm = "linf" if method == "interval" else "l2"
    radii = [certify(path, x, y, norm, method, **chosen).radius for path in (decides, foreign(1.0))]
    np.testing.assert_array_equal(*radii)


def test_gradients_are_those_of_the_logits(foreign: Foreign, digits: Any) -> None:
    """Behind the saturated 8-bit softmax most gradients are zero; before it none is."""
    x, y = digits.x_test[:100], digits.y_test[:100]
    twin = IntegerTwin(foreign(20.0))
    behind = DifferentiableTarget(
        lambda images: tf.math.log(tf.maximum(twin(images), 1e-12)), name="behind"
    )
    shares = []
    for target in (behind, as_target(foreign(20.0))):
        _, _, gradient = target.loss_gradient(cross_entropy, x, y)
        shares.append(np.mean(np.abs(gradient).reshape(len(x), -1).max(1) == 0))
    assert shares[0] > 0.5
    assert shares[1] == 0


def test_white_pixels_beyond_the_grid_can_be_made_darker(foreign: Foreign, digits: Any) -> None:
    """A grid that ends below 1.0, as those of images in [-1, 1] do."""
    target = as_target(foreign(1.0))
    # As on a grid of 0 to 0.75: four thirds of the image, of which the file sees 1.0 at most.
    x = digits.x_test[:50] / np.float32(0.75)
    _, _, gradient = target.loss_gradient(cross_entropy, x, target.predict(x))
    assert np.mean(gradient[x > 1.01] != 0) > 0.9
    inside = np.clip(x, 0, 1)
    np.testing.assert_array_equal(target.logits(x), target.logits(inside))
    np.testing.assert_array_equal(
        gradient, target.loss_gradient(cross_entropy, inside, target.predict(x))[2]
    )


@pytest.mark.parametrize("name", ["pgd", "square", "spsa"])
def test_attacks_take_the_path_and_are_judged_by_the_runtime(
    name: str, foreign: Foreign, logits_file: Path, digits: Any
) -> None:
    x, y = digits.x_test[:40], digits.y_test[:40]
    options: dict[str, Any] = {"pgd": {}, "square": {"queries": 50}, "spsa": {"steps": 3}}[name]
    found = run_attack(name, str(foreign(1.0)), x, y, EPS, **options)
    decisions = Interpreter(foreign(1.0)).predict(found.x_adv).argmax(1)
    np.testing.assert_array_equal(found.success, decisions != y)
    assert found.robust_accuracy < found.clean_accuracy
    assert (found.gradients.sum() > 0) == (name == "pgd")
    # The softmax changes no decision here, so it changes no attack.
    same = run_attack(name, logits_file, x, y, EPS, **options)
    np.testing.assert_array_equal(found.x_adv, same.x_adv)


def test_every_call_takes_a_path(foreign: Foreign, float_model: Any, digits: Any) -> None:
    path, x, y = foreign(1.0), digits.x_test[:60], digits.y_test[:60]
    report = evaluate(str(path), x, y, attacks=["pgd"], epsilons=EPS)
    assert report.model("model").attacks[0].skipped == ""
    matrix = transfer_matrix({"file": path, "float": float_model}, x, y, eps=EPS)
    assert matrix.surrogates == ("file", "float")
    # The images for transfer are of full strength, from other random starts.
    assert abs(matrix.standing[0, 0] / 60 - report.robust("model", EPS).value) <= 0.1
    verdict = audit(str(path), x, y, eps=EPS, examples=16, checks=["model vs twin vs runtime"])
    figures = verdict.check("model vs twin vs runtime").figures
    assert figures["twin_label_agreement"] == 1.0
    for found in (
        certify(str(path), x[:8], y[:8], norm="linf", max_steps=1),
        certify(path, x[:8], y[:8], method="lipschitz"),
        certify(path, x[:8], y[:8], method="smoothing", smoothing=SmoothingSettings(0.1, 20, 50)),
    ):
        assert found.radius.shape == (8,)


def test_two_classes_with_one_logit(logits_file: Path, digits: Any, tmp_path: Path) -> None:
    """A dense layer takes the logit of the ones from that of the zeros: positive for zeros."""
    graph = read(logits_file)
    (before,) = graph.outputs
    weights = np.zeros((1, 10), np.int8)
    weights[0, :2] = 127, -127
    scale = graph.tensors[before].scale
    constant = Tensor("kernel", (1, 10), "int8", Quantization.per_tensor(1 / 127), weights)
    kernel = graph.add_tensor(constant)
    grid = Quantization.per_tensor(2 * scale)
    output = graph.add_tensor(Tensor("logit", (-1, 1), "int8", grid))
    operands = (before, kernel, -1)
    graph.operators.append(Operator("FULLY_CONNECTED", operands, (output,), FullyConnected()))
    graph.outputs, graph.signature_outputs, graph.metadata = (output,), (), {}
    path = tmp_path / "one_logit.tflite"
    path.write_bytes(write(graph))
    chosen = digits.y_test <= 1
    x, y = digits.x_test[chosen], 1 - digits.y_test[chosen]
    ten = Interpreter(logits_file).predict(x)
    found = as_target(path).logits(x)
    assert found.shape == (len(x), 2)
    np.testing.assert_allclose(found[:, 1] - found[:, 0], ten[:, 0] - ten[:, 1], atol=2 * scale)
    decision = Interpreter(path).predict(x)[:, 0] > 0
    np.testing.assert_array_equal(as_target(path).predict(x), decision)
    assert np.mean(decision == y) > 0.95
    report = evaluate(path, x, y, epsilons=0.2, options={"square": {"queries": 20}})
    skipped = {piece.attack: piece.skipped for piece in report.model("model").attacks}
    assert skipped["apgd-t"] == "fewer than 4 classes"
    assert report.robust("model", 0.2).value < 0.8
    checks = ["zero gradients", "single step vs iterated", "model vs twin vs runtime"]
    verdict = audit(path, x, y, eps=0.1, examples=16, checks=checks)
    assert [verdict.check(check).status for check in checks] == ["passed"] * 3


@pytest.mark.parametrize("classes", [10, 1])
def test_a_sigmoid_at_the_end_is_taken_off(
    classes: int, logits_file: Path, digits: Any, tmp_path: Path
) -> None:
    graph = read(logits_file)
    (before,) = graph.outputs
    if classes == 1:
        kernel = np.zeros((1, 10), np.int8)
        kernel[0, :2] = 127, -127
        constant = Tensor("kernel", (1, 10), "int8", Quantization.per_tensor(1 / 127), kernel)
        step = Quantization.per_tensor(float(graph.tensors[before].scale) / 40)
        logit = graph.add_tensor(Tensor("logit", (-1, 1), "int8", step))
        operands = (before, graph.add_tensor(constant), -1)
        graph.operators.append(Operator("FULLY_CONNECTED", operands, (logit,), FullyConnected()))
        before = logit
    grid = Quantization.per_tensor(1 / 256, -128)
    output = graph.add_tensor(Tensor("probabilities", (-1, classes), "int8", grid))
    graph.operators.append(Operator("LOGISTIC", (before,), (output,), NoOptions()))
    graph.outputs, graph.signature_outputs, graph.metadata = (output,), (), {}
    path = tmp_path / "sigmoid.tflite"
    path.write_bytes(write(graph))
    x = digits.x_test
    shares = Interpreter(path).predict(x)
    decision = shares.argmax(1) if classes > 1 else shares[:, 0] > 0.5
    for model in (path, IntegerTwin(path)):
        target = as_target(model)
        np.testing.assert_array_equal(target.predict(x), decision)
        if classes > 1:
            assert (target.logits(x).max(1) > 4).any()  # beyond what probabilities can tell
    np.testing.assert_array_equal(
        as_target(path).logits_tensor(tf.constant(x)).numpy(), as_target(path).logits(x)
    )


def test_an_end_without_a_kernel_of_ours_is_refused_by_name(
    foreign: Foreign, tmp_path: Path
) -> None:
    path = tmp_path / "log_softmax.tflite"
    path.write_bytes(by_another_tool(foreign(1.0).read_bytes(), {"SOFTMAX": "LOG_SOFTMAX"}))
    with pytest.raises(ValueError, match=r"log_softmax\.tflite.*LOG_SOFTMAX"):
        as_target(path)
