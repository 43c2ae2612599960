"""Evaluation, audit and transfer on the exported file and its integer twin."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tf_keras

import tfdq
import tflite_export
from tfdq.robustness import (
    BitDepthSqueeze,
    MedianSqueeze,
    as_target,
    attack,
    audit,
    evaluate,
    run_attack,
    squeeze,
    transfer_matrix,
)

EPS = 0.1


@pytest.fixture(scope="module")
def exported(quantized: Any, tmp_path_factory: Any) -> Path:
    path = tmp_path_factory.mktemp("exported") / "four_bits.tflite"
    tflite_export.convert(quantized(4), path)
    return path


def test_audit_with_twin_and_runtime(quantized: Any, exported: Path, digits: Any) -> None:
    verdict = audit(
        quantized(4),
        digits.x_test,
        digits.y_test,
        eps=EPS,
        examples=64,
        twin=tflite_export.IntegerTwin(exported),
        tflite=exported,
        checks=["model vs twin vs runtime", "determinism"],
    )
    assert verdict.failures == ()
    figures = verdict.check("model vs twin vs runtime").figures
    assert figures["twin_label_agreement"] >= 0.98
    assert figures["runtime_label_agreement"] >= 0.98


def test_the_same_report_for_model_twin_and_file(
    quantized: Any, exported: Path, digits: Any
) -> None:
    model, twin = quantized(4), tflite_export.IntegerTwin(exported)
    report = evaluate(
        {"model": model, "twin": twin, "file": exported},
        digits.x_test[:100],
        digits.y_test[:100],
        attacks=["pgd", "square", "low-bit"],
        epsilons=EPS,
        surrogates={"file": twin},
        options={"square": {"queries": 60}, "low-bit": {"steps": 10, "queries": 20}},
        survivors_only=True,
    )
    file = report.model("file").attacks
    assert [piece.surrogate for piece in file] == ["integer_twin", "", "integer_twin"]
    assert [piece.skipped for piece in file] == ["", "", "not a quantized model"]
    assert [piece.skipped for piece in report.model("model").attacks] == ["", "", ""]
    # The twin computes the file's integers, so the same attack breaks the same examples.
    np.testing.assert_array_equal(report.survived("twin", EPS), report.survived("file", EPS))
    pgd = [report.robust(name, EPS, "pgd").value for name in ("model", "file")]
    assert abs(pgd[0] - pgd[1]) <= 0.1


def test_transfer_to_the_file(
    quantized: Any, exported: Path, float_model: Any, digits: Any
) -> None:
    matrix = transfer_matrix(
        {"float": float_model, "4 bits": quantized(4)},
        digits.x_test[:100],
        digits.y_test[:100],
        eps=EPS,
        victims={"file": exported},
        steps=10,
    )
    own, file = matrix.accuracy("4 bits", "4 bits"), matrix.accuracy("4 bits", "file")
    assert abs(own.value - file.value) <= 0.03
    assert matrix.accuracy("float", "file").value > file.value


def test_stand_in_answers_for_the_model(quantized: Any, exported: Path, digits: Any) -> None:
    """The search runs on the file; what counts is checked on the model."""
    model = quantized(4)
    x, y = digits.x_test[:100], digits.y_test[:100]
    settings = {"attacks": ["square"], "epsilons": EPS, "options": {"square": {"queries": 200}}}
    alone = evaluate({"model": model}, x, y, **settings)
    helped = evaluate({"model": model}, x, y, proxies={"model": exported}, **settings)
    # Converting rounded the model's biases, so the two nearly are one function.
    both = (alone.survived("model", EPS), helped.survived("model", EPS))
    assert np.mean(both[0] != both[1]) <= 0.02
    assert alone.survived("model", EPS).mean() < alone.model("model").correct.mean() - 0.1
    assert helped.settings["proxies"] == {"model": exported.name}


def test_stand_in_that_is_wrong_breaks_nothing(quantized: Any, digits: Any) -> None:
    """A proxy that calls every image broken: the model's own answers still decide."""
    model = quantized(4)
    x, y = digits.x_test[:40], digits.y_test[:40]
    asked = []

    def always_wrong(images: np.ndarray) -> np.ndarray:
        asked.append(len(images))
        return np.eye(10, dtype=np.float32)[np.zeros(len(images), int)] * 9

    report = evaluate(
        {"model": model},
        x,
        y,
        attacks=["square"],
        epsilons=1e-6,
        proxies={"model": as_target(always_wrong, differentiable=False)},
        options={"square": {"queries": 100}},  # of which the same square twice is not asked
    )
    np.testing.assert_array_equal(report.survived("model", 1e-6), report.model("model").correct)
    assert sum(asked) >= 20 * report.model("model").correct.sum()
    with pytest.raises(KeyError, match="proxies names"):
        evaluate({"model": model}, x, y, proxies={"other": always_wrong})


def test_stand_in_is_part_of_what_is_stored(
    quantized: Any, exported: Path, digits: Any, tmp_path: Path
) -> None:
    model, x, y = quantized(4), digits.x_test[:20], digits.y_test[:20]
    settings = {"attacks": ["square"], "epsilons": EPS, "options": {"square": {"queries": 10}}}
    evaluate(model, x, y, results=tmp_path, **settings)
    pieces = len(list(tmp_path.rglob("*.json")))
    for _ in range(2):
        evaluate(model, x, y, results=tmp_path, proxies={"model": exported}, **settings)
        assert len(list(tmp_path.rglob("*.json"))) == 2 * pieces > 0


@pytest.mark.parametrize("trained_with", [False, True])
def test_adaptive_attack_on_a_squeezed_file_is_the_stronger_one(
    trained_with: bool, quantized: Any, float_model: Any, digits: Any, tmp_path: Path
) -> None:
    """Through the squeezers, which the twin's gradients pass, and past them."""
    squeezers = [BitDepthSqueeze(3), MedianSqueeze(2)]
    if trained_with:
        model = tfdq.quantize_model(squeeze(float_model, squeezers), 0.0, activation_bits=4)
        loss = tf_keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        model.compile(tf_keras.optimizers.Adam(1e-3), loss)
        model.fit(digits.x_train, digits.y_train, batch_size=64, epochs=5, verbose=0)
    else:
        model = squeeze(quantized(4), squeezers)
    path = tmp_path / "squeezed.tflite"
    tflite_export.convert(model, path, calibration=digits.x_train[:200])
    twin, file = tflite_export.IntegerTwin(path), as_target(path)
    x, y = digits.x_test[:200], digits.y_test[:200]
    oblivious = attack("pgd", quantized(4), x, y, EPS, early_stop=False)
    figures = {
        "clean": np.mean(file.predict(x) == y),
        "oblivious": np.mean(file.predict(oblivious) == y),
        "adaptive": run_attack("pgd", path, x, y, EPS, surrogate=twin).robust_accuracy,
        "on the model": run_attack("pgd", model, x, y, EPS).robust_accuracy,
    }
    assert figures["adaptive"] < figures["oblivious"] - 0.05, figures
    assert figures["oblivious"] < figures["clean"], figures
    # The model and the file are one function, and the twin's gradients are the model's, at black
    # pixels too: a clamp of the squeezer's that stopped them there hid 17 points.
    assert abs(figures["adaptive"] - figures["on the model"]) <= 0.03, figures
