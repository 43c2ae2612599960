"""The complete procedure against brute force: every input of a tiny network's box is run."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests.certificates.integer_networks import NETWORKS, plain
from tests.certificates.test_intervals import whole_box
from tests.certificates.test_linear_bounds import deep
from tfdq.certificates import certify, complete
from tfdq.certificates.complete import CompleteVerifier, complete_certificate
from tfdq.certificates.interval_certificate import certify_box, input_box, predict_classes
from tflite_export.files.write import write
from tflite_export.ir.affine import quantize
from tflite_export.ir.graph import IntegerGraph, Operator, Quantization, Tensor
from tflite_export.runtime.interpreter import Interpreter
from tflite_export.runtime.reference import run

ALL = {"deep": deep, **NETWORKS}


@pytest.fixture(autouse=True)
def _split_to_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """Enumerate four inputs at most, so that tiny networks are searched as large ones are."""
    monkeypatch.setattr(complete, "_ENUMERATED", 4)


def examples(seed: int, count: int = 4) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (count, 2, 2, 1)).astype(np.float32) / 255


def truly_robust(graph: IntegerGraph, low, high, label: int, kernels: str) -> bool:
    outputs = run(graph, [whole_box(low, high)], kernels)[graph.outputs[0]].astype(int)
    return bool(np.all(outputs[:, [label]] > np.delete(outputs, label, axis=1)))


@pytest.mark.parametrize("kernels", ["xnnpack", "reference-2.14"])
@pytest.mark.parametrize("network", ALL)
def test_every_verdict_is_that_of_brute_force(network: str, kernels: str) -> None:
    verdicts, stages = [], set()
    for seed in range(3):
        graph = ALL[network](seed)
        verifier = CompleteVerifier(graph, kernels, batch_size=3)
        x = examples(seed)
        labels = predict_classes(graph, x, kernels)
        labels[0] = (labels[0] + 1) % 3
        for steps in (1, 3):
            lows, highs = input_box(graph, x, steps / 255)
            for low, high, label in zip(lows, highs, labels, strict=True):
                found = verifier.decide(low, high, int(label))
                robust = truly_robust(graph, low, high, label, kernels)
                assert found.verdict == ("verified" if robust else "broken")
                if not robust:
                    point = found.counterexample
                    assert np.all((point >= low) & (point <= high))
                    outputs = run(graph, [point[None]], kernels)[graph.outputs[0]][0].astype(int)
                    assert np.delete(outputs, label).max() >= outputs[label]
                verdicts.append(found.verdict)
                stages.add(found.stage)
    assert set(verdicts) == {"verified", "broken"}
    assert "interval" in stages


def test_each_stage_decides_what_those_before_it_do_not() -> None:
    found: set[str] = set()
    for seed in range(20):
        if len(found) == 4:
            break
        graph = deep(seed)
        verifier = CompleteVerifier(graph)
        x = examples(seed)
        labels = predict_classes(graph, x)
        for low, high, label in zip(*input_box(graph, x, 2 / 255), labels, strict=True):
            found.add(verifier.decide(low, high, int(label)).stage)
    assert found == {"interval", "attack", "linear", "branching"}


def test_no_attack_is_needed_to_be_complete(monkeypatch: pytest.MonkeyPatch) -> None:
    """Branch and bound alone finds what is broken."""
    monkeypatch.setattr(CompleteVerifier, "_attack", lambda *arguments: None)
    broken = 0
    for seed in range(4):
        graph = deep(seed)
        verifier = CompleteVerifier(graph)
        x = examples(seed)
        labels = predict_classes(graph, x)
        for low, high, label in zip(*input_box(graph, x, 2 / 255), labels, strict=True):
            found = verifier.decide(low, high, int(label))
            robust = truly_robust(graph, low, high, label, "xnnpack")
            assert found.verdict == ("verified" if robust else "broken")
            broken += not robust
    assert broken > 0


def test_certificate_counts_and_holds_counterexamples_that_litert_takes() -> None:
    graph = deep(3)
    x = examples(3, 12)
    labels = predict_classes(graph, x)
    labels[0] = (labels[0] + 1) % 3
    eps = 3 / 255
    found = certify(graph, x, labels, norm="linf", method="complete", eps=eps, seconds=30)
    assert found.decisions[0].verdict == "broken"
    assert found.clean_accuracy == 11 / 12
    assert found.share("verified") == found.certified_accuracy(eps) > 0
    assert found.share("unknown") == 0
    assert found.share("broken") > 1 / 12
    scores = Interpreter(write(graph)).predict(np.nan_to_num(found.counterexamples))
    for row, decision in enumerate(found.decisions):
        image = found.counterexamples[row]
        if decision.verdict == "verified":
            assert np.isnan(image).all()
            continue
        assert np.abs(image - x[row]).max() <= eps + 1e-7
        assert np.delete(scores[row], labels[row]).max() >= scores[row][labels[row]]
    text = found.summary()
    assert "12 examples" in text
    assert "0 unknown" in text
    assert found.to_dict()["decisions"][0]["verdict"] == "broken"
    # It proves no less than intervals do, and nothing that they do not allow.
    plainly = certify_box(graph, x, labels, eps)
    assert np.all(plainly <= (found.radius > 0))
    with pytest.raises(ValueError, match="verified, broken, unknown"):
        found.share("perhaps")


def test_a_float_input_is_searched_on_the_integers_behind_it() -> None:
    inner = deep(3)
    graph = IntegerGraph(list(inner.tensors), list(inner.operators), (), inner.outputs)
    outside = graph.add_tensor(Tensor("float", (-1, 2, 2, 1), "float32"))
    graph.inputs = (outside,)
    graph.operators.insert(0, Operator("QUANTIZE", (outside,), (inner.inputs[0],)))
    x = examples(3, 8)
    labels = predict_classes(inner, x)
    expected = complete_certificate(inner, x, labels, 3 / 255)
    found = complete_certificate(graph, x, labels, 3 / 255)
    assert [f.verdict for f in found.decisions] == [f.verdict for f in expected.decisions]
    assert expected.share("broken") > 0
    graph.operators.append(Operator("QUANTIZE", (outside,), (inner.inputs[0],)))
    with pytest.raises(ValueError, match=r"'float' goes into QUANTIZE, QUANTIZE"):
        CompleteVerifier(graph)


def test_time_that_is_up_leaves_unknown_and_more_time_decides(tmp_path) -> None:
    graph, x = deep(3), examples(3, 6)
    labels = predict_classes(graph, x)
    file = tmp_path / "record.jsonl"
    short = complete_certificate(graph, x, labels, 3 / 255, seconds=1e-9, resume=file)
    assert {f.verdict for f in short.decisions} <= {"verified", "broken", "unknown"}
    assert short.share("unknown") > 0
    kept = file.read_text(encoding="utf-8").splitlines()
    assert len(kept) == 7
    seen: list[tuple[int, int]] = []
    long = complete_certificate(
        graph, x, labels, 3 / 255, resume=file, progress=lambda *p: seen.append(p)
    )
    assert seen[-1] == (6, 6)
    assert long.share("unknown") == 0
    lines = file.read_text(encoding="utf-8").splitlines()
    assert len(lines) == 7 + round(6 * short.share("unknown"))
    again = complete_certificate(graph, x, labels, 3 / 255, resume=file)
    assert file.read_text(encoding="utf-8").splitlines() == lines
    np.testing.assert_array_equal(again.radius, long.radius)
    np.testing.assert_array_equal(again.counterexamples, long.counterexamples)
    for other in ({"eps": 1 / 255}, {"kernels": "builtin"}):
        with pytest.raises(ValueError, match="another run"):
            complete_certificate(graph, x, labels, **{"eps": 3 / 255, **other}, resume=file)
    with pytest.raises(ValueError, match="another run"):
        complete_certificate(deep(4), x, labels, 3 / 255, resume=file)


def test_a_machine_that_computes_otherwise_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    graph, x = deep(3), examples(3, 12)
    labels = predict_classes(graph, x)
    right = Interpreter.invoke

    def other(self, feeds):
        (outputs,) = right(self, feeds)
        rigged = np.full_like(outputs, -128)
        rigged[np.arange(len(outputs)), labels[self.at]] = 127
        return [rigged]

    (at,) = np.flatnonzero(complete_certificate(graph, x, labels, 3 / 255).radius == 0)[:1]
    monkeypatch.setattr(Interpreter, "invoke", other)
    monkeypatch.setattr(Interpreter, "at", at, raising=False)
    with pytest.raises(ValueError, match="selftest"):
        complete_certificate(graph, x[[at]], labels[[at]], 3 / 255)


def test_boxes_of_more_inputs_than_a_float_counts_are_counted_without_a_warning() -> None:
    low, high = np.zeros(1024, np.int8), np.full(1024, 2, np.int8)
    assert complete._inputs_in(low[:4], high[:4]) == 81
    assert complete._inputs_in(low, high) == np.inf


def test_wrong_arguments_are_refused() -> None:
    graph, x, y = plain(0), np.zeros((2, 2, 2, 1)), np.zeros(2, int)
    for arguments, message in (
        ({"eps": 0.0}, "eps"),
        ({"eps": np.inf}, "finite"),
        ({"seconds": 0.0}, "seconds"),
        ({"seconds": np.inf}, "finite"),
        ({"bounds": (0.0, 1.0, 2.0)}, "bounds"),
        ({"batch_size": 2.5}, "batch_size"),
        ({"kernels": "metal"}, "known"),
        ({"bounds": (1.0, 0.0)}, "bounds"),
        ({"batch_size": 0}, "batch_size"),
    ):
        with pytest.raises(ValueError, match=message):
            complete_certificate(graph, x, y, **arguments)
    with pytest.raises(ValueError, match="linf"):
        certify(graph, x, y, norm="l2", method="complete")
    strange = plain(0)
    strange.operators.append(Operator("COS", strange.outputs, (0,)))
    with pytest.raises(ValueError, match="COS"):
        CompleteVerifier(strange)


def test_counterexamples_keep_to_the_bounds_where_the_grid_does_not() -> None:
    found = 0
    for seed in range(6):
        graph = plain(seed)
        tensor = graph.tensors[graph.inputs[0]]
        grid = Quantization.per_tensor(1.07 * float(tensor.scale), tensor.zero_point)
        graph.tensors[graph.inputs[0]] = replace(tensor, quantization=grid)
        x = np.random.default_rng(seed).choice([0.0, 1.0], (4, 2, 2, 1)).astype(np.float32)
        result = complete_certificate(graph, x, predict_classes(graph, x), 0.2)
        broken = ~np.isnan(result.counterexamples[:, 0, 0, 0])
        points = result.counterexamples[broken]
        assert points.size == 0 or (points.min() >= 0.0 and points.max() <= 1.0)
        assert np.abs(points - x[broken]).max(initial=0.0) <= np.float32(0.2)
        integers = quantize(points, graph.tensors[graph.inputs[0]])
        stored = [d.counterexample for d in result.decisions if d.counterexample is not None]
        np.testing.assert_array_equal(integers, np.array(stored).reshape(integers.shape))
        found += broken.sum()
    assert found


def test_a_record_without_a_field_is_no_record(tmp_path: Path) -> None:
    path, x = tmp_path / "decisions.jsonl", examples(0)
    graph = plain(0)
    labels = predict_classes(graph, x)
    complete_certificate(graph, x, labels, resume=path)
    path.write_text(path.read_text().replace('"budget"', '"spent"'))
    with pytest.raises(ValueError, match=r"decisions\.jsonl is not a record .* lacks budget"):
        complete_certificate(graph, x, labels, resume=path)
