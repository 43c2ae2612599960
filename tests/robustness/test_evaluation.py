"""`evaluate` against a closed form, by the AutoAttack protocol, resumed, streamed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from statsmodels.stats.contingency_tables import mcnemar as reference_mcnemar

from tests.robustness.damage import refusals
from tfdq.robustness import (
    BitDepthSqueeze,
    RobustnessReport,
    as_target,
    audit,
    evaluate,
    register_attack,
    squeeze,
)
from tfdq.robustness.attacks import AttackTask

RNG = np.random.default_rng(0)
WEIGHTS = RNG.normal(size=(16, 5)).astype(np.float32)
OTHER = (WEIGHTS + RNG.normal(scale=0.4, size=WEIGHTS.shape)).astype(np.float32)
X = RNG.uniform(0.3, 0.7, (90, 4, 4, 1)).astype(np.float32)
Y = (X.reshape(90, -1) @ WEIGHTS).argmax(1)
CALLS: list[int] = []


def linear(weights: np.ndarray = WEIGHTS, name: str = "linear") -> Any:
    """A linear classifier: its exact robust accuracy is known."""
    kernel = tf.constant(weights)
    return as_target(lambda x: tf.reshape(x, [-1, 16]) @ kernel, name=name, differentiable=True)


def exactly_robust(weights: np.ndarray, eps: float) -> np.ndarray:
    """Margin to each class less eps times the L1 norm of the difference of the weights."""
    scores = X.reshape(90, -1).astype(np.float64) @ weights
    alive = np.ones(90, bool)
    for other in range(5):
        gap = scores[np.arange(90), Y] - scores[:, other]
        reach = eps * np.abs(weights[:, Y] - weights[:, [other]]).sum(0)
        alive &= (gap > reach) | (other == Y)
    return alive


@register_attack("test-shift", gradients=False)
def shift_all(task: AttackTask, *, shift: float = 0.0) -> np.ndarray:
    """Record the call and shift the images."""
    CALLS.append(len(task.x))
    return task.x + np.float32(shift)


@register_attack("test-leaves-the-ball", gradients=False)
def leaves_the_ball(task: AttackTask) -> np.ndarray:
    task.lower[:] = -np.inf
    task.upper[:] = np.inf
    return task.x + 10 * np.float32(task.eps)


EPSILONS = (0.02, 0.05, 0.1)


def test_linear_model_in_closed_form() -> None:
    report = evaluate(linear(), X, Y, attacks=["apgd-t"], epsilons=EPSILONS, batch_size=32)
    assert report.clean("model").value == 1.0
    for eps in EPSILONS:
        np.testing.assert_array_equal(report.survived("model", eps), exactly_robust(WEIGHTS, eps))


def test_standard_suite_is_the_worst_case_of_its_attacks() -> None:
    report = evaluate(
        linear(), X, Y, epsilons=EPSILONS[1:], batch_size=64, options={"square": {"queries": 200}}
    )
    assert report.attacks == ("apgd-ce", "apgd-t", "fab", "square")
    assert report.survivors_only
    for eps in EPSILONS[1:]:
        np.testing.assert_array_equal(report.survived("model", eps), exactly_robust(WEIGHTS, eps))


def test_each_attack_gets_the_survivors_only() -> None:
    short = {"square": {"queries": 100}}
    report = evaluate(
        {"a": linear()}, X, Y, attacks=["pgd", "square"], epsilons=EPSILONS, survivors_only=True,
        options=short,
    )  # fmt: skip
    standing = report.model("a").correct.copy()
    for piece in report.model("a").attacks:
        np.testing.assert_array_equal(piece.attempted, standing)
        assert not np.any(piece.broken & ~piece.attempted)
        standing &= ~piece.broken
        np.testing.assert_array_equal(report.survived("a", piece.epsilon, piece.attack), standing)
    alone = evaluate(
        {"a": linear()}, X, Y, attacks=["pgd", "square"], epsilons=EPSILONS, options=short
    )
    for piece in alone.model("a").attacks:
        np.testing.assert_array_equal(piece.attempted, alone.model("a").correct)
    worst = [alone.survived("a", 0.02, name) for name in ("pgd", "square")]
    np.testing.assert_array_equal(alone.survived("a", 0.02), worst[0] & worst[1])


def test_misclassified_examples_are_never_robust() -> None:
    wrong = (Y + 1) % 5
    labels = np.where(np.arange(90) < 30, wrong, Y)
    report = evaluate(linear(), X, labels, attacks=["pgd"], epsilons=0.005)
    assert report.clean("model").successes == 60
    assert not report.survived("model", 0.005)[:30].any()
    assert not report.model("model").attacks[0].attempted[:30].any()


def test_cost_is_counted() -> None:
    report = evaluate(linear(), X, Y, attacks=["pgd"], epsilons=1e-6, options={"pgd": {"steps": 7}})
    cost = report.cost("model")
    # Nothing breaks at this radius: seven gradients for each of the 90 examples.
    assert cost["gradients"] == 7 * 90
    assert cost["queries"] >= 90
    assert cost["seconds"] > 0


def test_dataset_gives_what_arrays_give() -> None:
    settings: dict[str, Any] = {"attacks": ["pgd"], "epsilons": 0.02, "batch_size": 32}
    arrays = evaluate(linear(), X, Y, **settings)
    pairs = tf.data.Dataset.from_tensor_slices((X, Y))
    one_hot = tf.data.Dataset.from_tensor_slices((X, np.eye(5)[Y]))
    for dataset in (pairs, pairs.batch(7), one_hot, one_hot.batch(7)):
        streamed = evaluate(linear(), dataset, **settings)
        assert streamed.data_digest == arrays.data_digest
        np.testing.assert_array_equal(
            streamed.survived("model", 0.02), arrays.survived("model", 0.02)
        )


def test_a_dataset_is_streamed() -> None:
    drawn: list[int] = []
    ahead: list[int] = []

    def examples() -> Any:
        for index in range(90):
            drawn.append(index)
            yield X[index], Y[index]

    spec = (tf.TensorSpec((4, 4, 1), tf.float32), tf.TensorSpec((), tf.int64))
    dataset = tf.data.Dataset.from_generator(examples, output_signature=spec)

    def answer(x: np.ndarray) -> np.ndarray:
        ahead.append(len(drawn))
        return x.reshape(-1, 16) @ WEIGHTS

    evaluate(
        as_target(answer, differentiable=False), dataset, batch_size=10,
        attacks=["test-shift"], epsilons=0.01,
    )  # fmt: skip
    # The first batch was worked on before most of the data was read.
    assert ahead[0] < 45
    assert len(drawn) == 90


def test_resumes_where_it_was_cut_off(tmp_path: Path) -> None:
    settings: dict[str, Any] = {
        "attacks": ["test-shift"], "epsilons": [0.01, 0.02], "batch_size": 30,
        "results": tmp_path,
    }  # fmt: skip
    CALLS.clear()
    first = evaluate(linear(), X, Y, **settings)
    assert len(CALLS) == 6
    files = sorted(tmp_path.glob("*.json"))
    assert len(files) == 6
    for lost in files[:2]:
        lost.unlink()
    CALLS.clear()
    second = evaluate(linear(), X, Y, **settings)
    assert len(CALLS) == 2
    one, two = (json.loads(report.to_json()) for report in (first, second))
    assert [m["clean_accuracy"] for m in one["models"]] == [
        m["clean_accuracy"] for m in two["models"]
    ]
    for before, after in zip(one["models"][0]["attacks"], two["models"][0]["attacks"], strict=True):
        assert {**before, "seconds": 0} == {**after, "seconds": 0}


@pytest.mark.parametrize(
    "change",
    [{"seed": 1}, {"options": {"test-shift": {"shift": 0.001}}}, {"epsilons": [0.011]}],
)
def test_other_settings_are_computed_anew(change: dict[str, Any], tmp_path: Path) -> None:
    base: dict[str, Any] = {
        "attacks": ["test-shift"], "epsilons": [0.01], "results": tmp_path,
    }  # fmt: skip
    evaluate(linear(), X, Y, **base)
    CALLS.clear()
    evaluate(linear(), X, Y, **{**base, **change})
    assert len(CALLS) == 1


def test_other_weights_are_computed_anew(tmp_path: Path, build_network: Any, digits: Any) -> None:
    settings: dict[str, Any] = {"attacks": ["test-shift"], "results": tmp_path}
    model = build_network(seed=1)
    x = digits.x_test[:64]
    y = model(x).numpy().argmax(1)
    evaluate(model, x, y, **settings)
    model.layers[-1].bias.assign_add([1e-7] + [0.0] * 9)
    CALLS.clear()
    evaluate(model, x, y, **settings)
    assert len(CALLS) == 1


def test_another_function_is_computed_anew(tmp_path: Path, build_network: Any) -> None:
    settings: dict[str, Any] = {"attacks": ["test-shift"], "results": tmp_path}
    for weights, calls in ((WEIGHTS, 1), (WEIGHTS, 0), (WEIGHTS * 1.1, 1)):
        CALLS.clear()
        evaluate(linear(weights), X, Y, **settings)
        assert len(CALLS) == calls
    # The same weights in another structure: only the number of bits in front differs.
    inner = build_network(seed=1)
    x = np.random.default_rng(0).uniform(size=(32, 8, 8, 1)).astype(np.float32)
    for bits, calls in ((3, 1), (3, 0), (4, 1)):
        model = squeeze(inner, [BitDepthSqueeze(bits, name="bits")], name="squeezed")
        y = model(x).numpy().argmax(1)
        CALLS.clear()
        evaluate({"m": model}, x, y, **settings)
        assert len(CALLS) == calls


@pytest.mark.parametrize("result", [{}, [], {"broken": 1}, {"broken": "0", "queries": None}, None])
def test_a_piece_with_another_result_is_computed_anew(result: Any, tmp_path: Path) -> None:
    settings: dict[str, Any] = {"attacks": ["test-shift"], "results": tmp_path}
    whole = evaluate(linear(), X, Y, **settings).model("model").attacks[0]
    piece = next(tmp_path.glob("*.json"))
    piece.write_text(json.dumps({**json.loads(piece.read_text()), "result": result}))
    with pytest.warns(UserWarning, match=rf"not reusing .*{piece.name}: .*; it is computed anew"):
        again = evaluate(linear(), X, Y, **settings).model("model").attacks[0]
    np.testing.assert_array_equal(again.broken, whole.broken)
    # Of too few images it is no piece either.
    made = json.loads(piece.read_text())
    made["result"]["broken"] = made["result"]["broken"][:-1]
    piece.write_text(json.dumps(made))
    cut = evaluate(linear(), X, Y, **settings).model("model").attacks[0]
    np.testing.assert_array_equal(cut.broken, whole.broken)


def test_a_spoilt_piece_is_computed_anew_with_a_warning(tmp_path: Path) -> None:
    settings: dict[str, Any] = {"attacks": ["test-shift"], "results": tmp_path}
    evaluate(linear(), X, Y, **settings)
    piece = next(tmp_path.glob("*.json"))
    piece.write_text(piece.read_text()[:40])
    CALLS.clear()
    with pytest.warns(UserWarning, match="computed anew"):
        evaluate(linear(), X, Y, **settings)
    assert len(CALLS) == 1


def test_killed_at_any_moment_it_leaves_whole_pieces(tmp_path: Path) -> None:
    script = """
        import sys
        from tfdq.robustness.result_store import ResultStore
        store = ResultStore(sys.argv[1])
        for number in range(400):
            store.put({"piece": number}, {"bits": "1" * 20000})
            print(number, flush=True)
    """
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(script), str(tmp_path)],
        stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout is not None
    for line in process.stdout:
        if int(line) >= 20:
            break
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    pieces = list(tmp_path.glob("*.json"))
    assert len(pieces) >= 21
    assert all(json.loads(path.read_text())["result"]["bits"] == "1" * 20000 for path in pieces)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_without_leave_is_named(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(PermissionError, match="choose another"):
        evaluate(linear(), X, Y, attacks=["pgd"], results=tmp_path)


def test_an_attack_that_cheats_is_found_out() -> None:
    with pytest.raises(RuntimeError, match="left the allowed region"):
        evaluate(linear(), X, Y, attacks=["test-leaves-the-ball"], epsilons=0.01)


def test_black_box_with_and_without_surrogate() -> None:
    box = as_target(lambda x: x.reshape(-1, 16) @ WEIGHTS, name="box", differentiable=False)
    report = evaluate(
        box, X, Y, attacks=["pgd", "square"], epsilons=0.02, options={"square": {"queries": 50}}
    )
    assert [piece.skipped for piece in report.model("model").attacks] == ["no gradients", ""]
    assert "not applicable: no gradients" in report.to_markdown()
    helped = evaluate(
        {"box": box}, X, Y, attacks=["apgd-t"], epsilons=0.05, surrogates={"box": linear()}
    )
    np.testing.assert_array_equal(helped.survived("box", 0.05), exactly_robust(WEIGHTS, 0.05))
    assert helped.model("box").attacks[0].surrogate == "linear"


def test_two_classes_do_without_the_targeted_attack() -> None:
    labels = (X.reshape(90, -1) @ WEIGHTS[:, :2]).argmax(1)
    report = evaluate(
        linear(WEIGHTS[:, :2]), X, labels, epsilons=0.05, options={"square": {"queries": 50}}
    )
    skipped = [piece.skipped for piece in report.model("model").attacks]
    assert skipped == ["", "fewer than 4 classes", "", ""]
    gaps = X.reshape(90, -1) @ (WEIGHTS[:, 0] - WEIGHTS[:, 1])
    exact = np.abs(gaps) > 0.05 * np.abs(WEIGHTS[:, 0] - WEIGHTS[:, 1]).sum()
    np.testing.assert_array_equal(report.survived("model", 0.05), exact)


def test_paired_comparison_equals_statsmodels() -> None:
    report = evaluate(
        {"a": linear(), "b": linear(OTHER)}, X, Y, attacks=["pgd"], epsilons=[0.01, 0.02]
    )
    rows = report.comparisons()
    assert [row.epsilon for row in rows] == [0.0, 0.01, 0.02]
    for row in rows:
        a, b = report.survived("a", row.epsilon), report.survived("b", row.epsilon)
        table = [[np.sum(a & b), np.sum(a & ~b)], [np.sum(b & ~a), np.sum(~a & ~b)]]
        assert row.p_value == pytest.approx(reference_mcnemar(table, exact=True).pvalue)
        assert row.difference == pytest.approx(a.mean() - b.mean())
        assert row.p_adjusted >= row.p_value


def test_report_goes_to_json_and_back(tmp_path: Path) -> None:
    report = evaluate(
        {"a": linear(), "b": linear(OTHER)}, X, Y, attacks=["pgd"], epsilons=[0.01, 0.02]
    )
    path = tmp_path / "report.json"
    text = report.to_json(path)
    for source in (text, path, str(path)):
        again = RobustnessReport.from_json(source)
        assert again.to_json() == text
        assert again.to_markdown() == report.to_markdown()
    with pytest.raises(ValueError, match="not a robustness report"):
        RobustnessReport.from_json('{"format": "something"}')

    def read(content: str) -> object:
        path.write_text(content)
        return RobustnessReport.from_json(path)

    assert refusals(json.loads(text), 150, read, f"{str(path)!r} is damaged (") >= 20
    later = json.loads(text)
    later["format_version"] = 99
    with pytest.raises(ValueError, match="upgrade tfdq"):
        RobustnessReport.from_json(json.dumps(later))
    versions = json.loads(text)["versions"]
    assert versions["numpy"] == np.__version__
    assert versions["tensorflow"] == tf.__version__


def test_every_rendering_names_the_attacks_and_the_audit(tmp_path: Path) -> None:
    verdict = audit(linear(), X, Y, eps=0.02, examples=32, queries=10, checks=["determinism"])
    report = evaluate(
        {"audited": linear(), "other": linear(OTHER)}, X, Y,
        attacks=["pgd"], epsilons=[0.01, 8 / 255], audits={"audited": verdict},
    )  # fmt: skip
    text = report.to_markdown()
    assert text.startswith("## Robust accuracy under these attacks")
    assert "Attacks: pgd" in text
    assert "audit passed (1 of 14 checks run)" in text
    assert "not audited" in text
    assert "8/255" in text
    data = report.to_dict()
    assert "under these attacks" in data["note"]
    assert [m["audit_verdict"] for m in data["models"]][1] == "not audited"
    figure = report.plot(tmp_path / "plot.png")
    axes = figure.axes[0]
    assert "under these attacks" in axes.get_title()
    assert "pgd" in axes.get_title()
    legend = [item.get_text() for item in axes.get_legend().get_texts()]
    assert any("not audited" in item for item in legend)
    assert (tmp_path / "plot.png").stat().st_size > 5000


def test_figures_in_the_table_are_those_of_the_examples() -> None:
    report = evaluate(linear(), X, Y, attacks=["apgd-t"], epsilons=0.05)
    hits = int(exactly_robust(WEIGHTS, 0.05).sum())
    assert 20 < hits < 85
    share = report.robust("model", 0.05)
    assert (share.successes, share.total) == (hits, 90)
    assert f"| {share} |" in report.to_markdown()


def test_progress_goes_to_stderr(capsys: Any) -> None:
    evaluate(linear(), X, Y, attacks=["pgd"], epsilons=0.02, progress=True)
    captured = capsys.readouterr()
    assert "evaluating" in captured.err
    assert captured.out == ""


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"models": {}}, ValueError, "models is empty"),
        ({"attacks": []}, ValueError, "at least one attack"),
        ({"attacks": ["pgd", "pgd"]}, ValueError, "each once"),
        ({"attacks": "nope"}, ValueError, "unknown attack 'nope'; known: .*suites quick, record"),
        ({"epsilons": [0.0]}, ValueError, "each > 0"),
        ({"epsilons": -0.1}, ValueError, "each > 0"),
        ({"epsilons": []}, ValueError, "at least one radius"),
        ({"options": {"pgd": {"nope": 1}}}, ValueError, "has no option"),
        ({"options": {"nope": {}}}, KeyError, "options names"),
        ({"audits": {"nope": None}}, KeyError, "audits names"),
        ({"surrogates": {"nope": None}}, KeyError, "surrogates names"),
        ({"x": X[:0], "y": Y[:0]}, ValueError, "x is empty"),
        ({"y": Y[:5]}, ValueError, "5 labels"),
        ({"y": None}, ValueError, "y is None"),
        ({"y": np.full(90, 5)}, ValueError, "labels must lie in 0..4"),
        ({"x": np.full_like(X, np.nan)}, ValueError, "NaN"),
        ({"x": X * 255}, ValueError, "outside clip"),
        ({"clip": (1, 0)}, ValueError, "clip"),
        ({"batch_size": 0}, ValueError, "batch_size"),
        ({"x": tf.data.Dataset.from_tensor_slices((X, Y)).repeat(), "y": None},
         ValueError, "infinite"),
        ({"x": tf.data.Dataset.from_tensor_slices((X, Y))}, ValueError, "pass y=None"),
        ({"x": tf.data.Dataset.from_tensor_slices(X), "y": None}, ValueError, "image, label"),
    ],
)  # fmt: skip
def test_bad_input_is_named(change: dict[str, Any], error: Any, message: str) -> None:
    arguments = {"models": linear(), "x": X, "y": Y, "attacks": ["pgd"], "epsilons": 0.02}
    arguments.update(change)
    with pytest.raises(error, match=message):
        evaluate(arguments.pop("models"), arguments.pop("x"), arguments.pop("y"), **arguments)


def test_probabilities_are_refused() -> None:
    soft = as_target(
        lambda x: tf.nn.softmax(tf.reshape(x, [-1, 16]) @ tf.constant(WEIGHTS)),
        differentiable=True,
    )
    with pytest.raises(ValueError, match="probabilities"):
        evaluate(soft, X, Y, attacks=["pgd"])


def test_reports_unknown_names() -> None:
    report = evaluate(linear(), X, Y, attacks=["pgd"], epsilons=0.02)
    with pytest.raises(KeyError, match="no model"):
        report.clean("nope")
    with pytest.raises(KeyError, match="epsilon"):
        report.robust("model", 0.5)
    with pytest.raises(KeyError, match="attack"):
        report.robust("model", 0.02, "square")
