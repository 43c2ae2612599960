"""The transfer matrix against attacks made and judged one by one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from tests.robustness.damage import refusals
from tfdq.robustness import TransferMatrix, as_target, attack, audit, transfer_matrix

EPS = 0.15


def black_box(model: Any) -> Any:
    return as_target(lambda x: model(x).numpy(), name="box", differentiable=False)


@pytest.fixture(scope="module")
def matrix(float_model: Any, other_float_model: Any, quantized: Any, digits: Any) -> TransferMatrix:
    return transfer_matrix(
        {"a": float_model, "b": other_float_model, "4 bits": quantized(4)},
        digits.x_test[:150],
        digits.y_test[:150],
        eps=EPS,
        victims={"box": black_box(float_model)},
        batch_size=150,
        steps=10,
    )


def test_shape_and_roles(matrix: TransferMatrix) -> None:
    assert matrix.surrogates == ("a", "b", "4 bits")
    assert matrix.victims == ("a", "b", "4 bits", "box")
    assert matrix.standing.shape == (3, 4)
    assert matrix.examples == 150


def test_entries_equal_single_attacks(
    matrix: TransferMatrix, float_model: Any, other_float_model: Any, digits: Any
) -> None:
    x, y = digits.x_test[:150], digits.y_test[:150]
    settings: dict[str, Any] = {"batch_size": 150, "steps": 10, "seed": 0}
    moved = attack("pgd", float_model, x, y, EPS, early_stop=False, **settings)
    standing = np.flatnonzero(float_model(moved).numpy().argmax(1) == y)
    moved[standing] = attack("pgd", float_model, x[standing], y[standing], EPS, **settings)
    for name, model in (("a", float_model), ("b", other_float_model)):
        clean = model(x).numpy().argmax(1) == y
        held = clean & (model(moved).numpy().argmax(1) == y)
        assert matrix.accuracy("a", name).successes == held.sum()
        assert matrix.success_rate("a", name) == pytest.approx(1 - held.sum() / clean.sum())


def test_a_box_around_a_model_is_that_model(matrix: TransferMatrix) -> None:
    for surrogate in matrix.surrogates:
        assert matrix.accuracy(surrogate, "box") == matrix.accuracy(surrogate, "a")


def test_white_box_is_the_strongest(matrix: TransferMatrix) -> None:
    accuracies = matrix.standing / matrix.examples
    for column in range(3):
        assert accuracies[:, column].argmin() == column


def test_renderings(matrix: TransferMatrix, tmp_path: Path) -> None:
    text = matrix.to_json(tmp_path / "matrix.json")
    message = "the transfer matrix is damaged ("
    assert refusals(json.loads(text), 80, TransferMatrix.from_json, message) >= 20
    again = TransferMatrix.from_json(text)
    assert again.to_json() == matrix.to_json()
    text = matrix.to_markdown()
    assert "pgd, eps 0.15" in text
    assert str(matrix.accuracy("b", "4 bits")) in text
    figure = matrix.plot(tmp_path / "heat.png")
    np.testing.assert_allclose(
        figure.axes[0].get_images()[0].get_array(), matrix.standing / matrix.examples
    )
    assert (tmp_path / "heat.png").stat().st_size > 5000


def test_verdicts_stand_beside_the_figures(float_model: Any, digits: Any) -> None:
    x, y = digits.x_test[:40], digits.y_test[:40]
    verdict = audit(float_model, x, y, eps=EPS, examples=16, checks=["determinism"])
    made = transfer_matrix(
        {"one": float_model, "two": float_model}, x, y, eps=EPS, audits={"two": verdict}, steps=2
    )
    last = made.to_markdown().splitlines()[-1]
    checks = len(verdict.checks)
    expected = f"| not audited | audit passed (1 of {checks} checks run) |"
    assert last == "| (gradient-masking audit) " + expected
    assert TransferMatrix.from_json(made.to_json()).to_markdown() == made.to_markdown()
    with pytest.raises(ValueError, match="audits names"):
        transfer_matrix({"one": float_model}, x, y, eps=EPS, audits={"three": verdict})


def test_streamed_from_a_dataset(float_model: Any, digits: Any) -> None:
    x, y = digits.x_test[:60], digits.y_test[:60]
    dataset = tf.data.Dataset.from_tensor_slices((x, y)).batch(13)
    settings: dict[str, Any] = {"eps": 0.1, "batch_size": 20, "steps": 3}
    arrays = transfer_matrix({"a": float_model}, x, y, **settings)
    streamed = transfer_matrix({"a": float_model}, dataset, **settings)
    np.testing.assert_array_equal(arrays.standing, streamed.standing)


def test_a_victim_that_is_never_right(float_model: Any, digits: Any) -> None:
    constant = as_target(
        lambda x: np.tile(np.eye(10, dtype=np.float32)[3] * 5, (len(x), 1)), differentiable=False
    )
    x = digits.x_test[digits.y_test != 3][:20]
    y = digits.y_test[digits.y_test != 3][:20]
    found = transfer_matrix(
        {"a": float_model}, x, y, eps=0.1, attack="fgsm", victims={"constant": constant}
    )
    assert np.isnan(found.success_rate("a", "constant"))
    assert found.accuracy("a", "constant").value == 0


def test_bad_input_is_named(float_model: Any, digits: Any) -> None:
    x, y = digits.x_test[:8], digits.y_test[:8]
    with pytest.raises(ValueError, match="no gradients"):
        transfer_matrix({"box": black_box(float_model)}, x, y, eps=0.1)
    with pytest.raises(ValueError, match="name each once"):
        transfer_matrix({"a": float_model}, x, y, eps=0.1, victims={"a": float_model})
    with pytest.raises(ValueError, match="unknown attack"):
        transfer_matrix({"a": float_model}, x, y, eps=0.1, attack="nope")
    with pytest.raises(ValueError, match="eps"):
        transfer_matrix({"a": float_model}, x, y, eps=-0.1)
