"""The one verdict on an audit, wherever it is shown."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

CONSTANT = "constant model"
NOTHING_RAN = "no check was run"


@dataclass(frozen=True)
class Verdict:
    """Whether an audit passed, and why not.

    Attributes:
        status: "passed": some check ran, none failed, and the model is not constant; "failed";
            "incomplete": no check ran, so that nothing is known.
        reasons: Why it did not pass: the checks that failed, a constant model, nothing run.
        ran: Number of checks that were run.
        checks: Number of checks that there are.
    """

    status: Literal["passed", "failed", "incomplete"]
    reasons: tuple[str, ...]
    ran: int
    checks: int

    def __str__(self) -> str:
        """The verdict with its reasons, and how many checks it is from."""
        text = self.status + (": " + ", ".join(self.reasons) if self.reasons else "")
        return f"{text} ({self.ran} of {self.checks} checks run)"

    def to_dict(self) -> dict[str, Any]:
        """Return status and reasons as plain data."""
        return {"status": self.status, "reasons": list(self.reasons)}


def verdict_of(audit: Mapping[str, Any]) -> Verdict:
    """Return the verdict on an audit given as plain data, `MaskingAudit.to_dict()`."""
    states = [check["status"] for check in audit["checks"]]
    ran = sum(state != "not run" for state in states)
    reasons = [check["name"] for check in audit["checks"] if check["status"] == "failed"]
    if audit.get("constant_class") is not None:
        reasons.append(CONSTANT)
    if reasons:
        return Verdict("failed", tuple(reasons), ran, len(states))
    if not ran:
        return Verdict("incomplete", (NOTHING_RAN,), ran, len(states))
    return Verdict("passed", (), ran, len(states))
