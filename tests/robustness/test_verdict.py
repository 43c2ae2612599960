"""One verdict on an audit, whoever shows it."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import tf_keras

from tfdq.experiments.figures import audit_reasons
from tfdq.report import experiment_table, run_report
from tfdq.robustness import audit
from tfdq.robustness.masking.verdict import Check, MaskingAudit
from tfdq.robustness.report import verdict_text
from tfdq.robustness.verdict import verdict_of


def audited(states: list[str], constant: int | None = None) -> MaskingAudit:
    checks = tuple(Check(f"check {i}", s, {}, "", "") for i, s in enumerate(states))  # type: ignore[arg-type]
    return MaskingAudit("net", 0.1, 16, checks, constant_class=constant)


CASES = {
    "passed": (audited(["passed", "not run"]), "passed", "passed (1 of 2 checks run)"),
    "failed": (audited(["passed", "failed"]), "failed", "failed: check 1 (2 of 2 checks run)"),
    "constant": (
        audited(["passed", "not run"], constant=3),
        "failed",
        "failed: constant model (1 of 2 checks run)",
    ),
    "nothing": (
        audited(["not run", "not run"]),
        "incomplete",
        "incomplete: no check was run (0 of 2 checks run)",
    ),
    "constant and nothing": (
        audited(["not run"], constant=0),
        "failed",
        "failed: constant model (0 of 1 checks run)",
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_every_place_shows_one_verdict(case: str) -> None:
    found, status, text = CASES[case]
    data = found.to_dict()
    assert found.verdict.status == data["verdict"]["status"] == verdict_of(data).status == status
    assert found.passed == data["passed"] == (status == "passed")
    assert found.to_markdown().startswith(f"## Gradient-masking audit of net: {text}\n")
    assert str(found.to_rich().renderables[0]).endswith(text)  # type: ignore[attr-defined]
    assert MaskingAudit.from_json(found.to_json()).verdict == found.verdict
    assert verdict_text(data) == f"audit {text}"
    network: Any = SimpleNamespace(name="net", figures={"audit": data})
    cell = run_report._audit_cell(network)
    assert cell.text == text
    assert cell.verdict == {"passed": "good", "failed": "bad", "incomplete": "unknown"}[status]
    run = {"seed": 0, "variant": "net", "figures": {"audit": data}}
    reasons = audit_reasons([run], "net")
    assert reasons == {"0": data["verdict"]["reasons"]}
    assert experiment_table._audit(reasons).startswith(status)


def test_figures_and_tables_without_an_audit_say_so() -> None:
    assert verdict_text(None) == "not audited"
    assert experiment_table._audit({}) == "not audited"


def test_an_audit_that_was_left_out_is_counted() -> None:
    passed, left_out = {"audit": CASES["passed"][0].to_dict()}, {"audit_left_out": "3 of 1000"}
    failed = {"audit": CASES["failed"][0].to_dict()}

    def shown(*figures: dict[str, Any]) -> str:
        runs = [{"seed": n, "variant": "net", "figures": f} for n, f in enumerate(figures)]
        return experiment_table._audit(audit_reasons(runs, "net"))

    assert shown(passed, left_out, passed) == "passed (2 of 3; 1 at chance)"
    assert shown(passed, failed, left_out) == "failed (1 of 3; 1 at chance): check 1"
    assert shown(left_out, left_out) == "not audited (2 of 2 at chance)"
    assert shown(passed, {}) == "passed (1 of 1)"
    network: Any = SimpleNamespace(name="net", figures=left_out)
    assert run_report._audit_cell(network).text == "not audited: 3 of 1000"


def test_a_constant_classifier_is_not_taken_for_probabilities() -> None:
    """Logits 9, 0, 0 ... divided by their size are one-hot rows; so says only their scaled copy."""
    image = tf_keras.Input((4, 4, 1))
    bias = tf_keras.initializers.Constant([9.0] + [0.0] * 9)
    flat = tf_keras.layers.Flatten()(image)
    logits = tf_keras.layers.Dense(10, kernel_initializer="zeros", bias_initializer=bias)(flat)
    rng = np.random.default_rng(0)
    x = rng.uniform(0, 1, (40, 4, 4, 1)).astype(np.float32)
    y = np.repeat([0, 1], 20)
    found = audit(
        tf_keras.Model(image, logits), x, y, eps=0.1, examples=16, queries=5, checks=["logit scale"]
    )
    assert found.check("logit scale").status != "not run"
    assert 1 / 9 in found.check("logit scale").figures["scales"]
    assert str(found.verdict).startswith("failed: constant model")
