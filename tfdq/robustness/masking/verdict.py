"""What the masking audit says: checks, their figures and thresholds, and the verdict."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from tfdq.mistakes import UnknownNameError
from tfdq.robustness.json_files import naming
from tfdq.robustness.result_store import write_atomically
from tfdq.robustness.verdict import Verdict, verdict_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from rich.console import RenderableType

Status = Literal["passed", "failed", "not run"]
FORMAT = "tfdq masking audit"


@dataclass(frozen=True)
class AuditThresholds:
    """Where each check draws its line; shares and accuracies in [0, 1].

    Attributes:
        single_step_excess: Largest tolerated excess of the iterative attack's accuracy over the
            single-step one's.
        black_box_only: Largest share of examples that only Square breaks.
        transfer_only: Largest share of examples that only transferred images break.
        unbounded_accuracy: Largest accuracy when the ball is the whole input range.
        random_only: Largest share of examples that only random sampling breaks.
        rise_with_epsilon: Largest rise of accuracy from one epsilon to the next larger one.
        steps_gain: Largest share of examples that only many more steps break.
        restarts_gain: Largest share of examples that only further random starts break.
        zero_gradients: Largest share of examples with an all-zero or non-finite gradient.
        logit_scale_gain: Largest share of examples that only attacks on rescaled logits break.
        logit_scale_gain_over_pgd: Largest fall of PGD's own accuracy when the logits are rescaled.
        uphill: Smallest share, of the examples whose loss changes along a short gradient step, of
            those whose loss rises.
        alignment: Smallest mean cosine between the gradients at two near points.
        label_agreement: Smallest share of equal labels between model, twin and runtime.
        deployed_accuracy_gap: Largest difference of accuracy under the same adversarial images.
        nondeterminism: Largest difference between two answers to the same images, as a share of
            the spread of the logits.
        planted_found: Smallest share of planted adversarial examples that the attack finds.
    """

    single_step_excess: float = 0.02
    black_box_only: float = 0.03
    transfer_only: float = 0.03
    unbounded_accuracy: float = 0.01
    random_only: float = 0.01
    rise_with_epsilon: float = 0.02
    steps_gain: float = 0.03
    restarts_gain: float = 0.03
    zero_gradients: float = 0.01
    logit_scale_gain: float = 0.01
    logit_scale_gain_over_pgd: float = 0.05
    uphill: float = 0.9
    alignment: float = 0.3
    label_agreement: float = 0.98
    deployed_accuracy_gap: float = 0.02
    nondeterminism: float = 1e-3
    planted_found: float = 0.9


@dataclass(frozen=True)
class Check:
    """One check of the audit.

    Attributes:
        name: Short name, e.g. "zero gradients".
        status: "passed", "failed" or "not run"; never "passed" for something that was not run.
        figures: The numbers behind the verdict.
        criterion: The rule with its threshold, in words.
        source: Where the check comes from.
        remark: What the outcome means, or why the check was not run.
    """

    name: str
    status: Status
    figures: dict[str, Any]
    criterion: str
    source: str
    remark: str = ""


@dataclass(frozen=True)
class MaskingAudit:
    """The verdict on one model.

    Attributes:
        model: Name of the model.
        epsilon: Radius it was audited at, in input units.
        examples: Number of (correctly classified) examples used.
        checks: One entry per check, in a fixed order.
        settings: Everything needed to repeat the audit.
        thresholds: The lines that were drawn.
        versions: Versions of the packages.
        seconds: Wall-clock time.
        clean_accuracy: Of the images looked at to find the examples, in 0..1; None in audits
            written before it was kept.
        white_box_accuracy: Share of the examples that the white-box attacks leave, in 0..1; None if
            no check ran them.
        constant_class: The class that the model gives to every image looked at, if it is one and
            theirs are several.
    """

    model: str
    epsilon: float
    examples: int
    checks: tuple[Check, ...]
    settings: dict[str, Any] = field(default_factory=dict)
    thresholds: AuditThresholds = field(default_factory=AuditThresholds)
    versions: dict[str, str] = field(default_factory=dict)
    seconds: float = 0.0
    clean_accuracy: float | None = None
    white_box_accuracy: float | None = None
    constant_class: int | None = None

    @property
    def passed(self) -> bool:
        """Whether some check ran, none that ran failed, and the model is not constant."""
        return self.verdict.status == "passed"

    @property
    def verdict(self) -> Verdict:
        """Passed, failed or incomplete, with the reasons."""
        checks = [{"name": check.name, "status": check.status} for check in self.checks]
        return verdict_of({"checks": checks, "constant_class": self.constant_class})

    @property
    def complete(self) -> bool:
        """Whether every check was run."""
        return all(check.status != "not run" for check in self.checks)

    @property
    def failures(self) -> tuple[str, ...]:
        """Names of the checks that failed."""
        return tuple(check.name for check in self.checks if check.status == "failed")

    def check(self, name: str) -> Check:
        """Return a check by name.

        Raises:
            KeyError: If there is none of that name.
        """
        for check in self.checks:
            if check.name == name:
                return check
        raise UnknownNameError(
            f"no check {name!r}; there are {[check.name for check in self.checks]}"
        )

    def to_dict(self) -> dict[str, Any]:
        """Return the audit as plain data."""
        data = {
            "format": FORMAT,
            "passed": self.passed,
            "verdict": self.verdict.to_dict(),
            "complete": self.complete,
            **asdict(self),
        }
        return json.loads(json.dumps(data))

    def to_json(self, path: str | os.PathLike[str] | None = None) -> str:
        """Return the audit as JSON, and write it to `path` if one is given.

        Raises:
            OSError: If the file can't be written.
        """
        text = json.dumps(self.to_dict(), indent=1)
        if path is not None:
            write_atomically(path, text + "\n")
        return text

    @classmethod
    def from_json(cls, text: str) -> MaskingAudit:
        """Read an audit back from its JSON text.

        Raises:
            ValueError: If the text is no masking audit.
        """
        with naming("the masking audit", "write it again with MaskingAudit.to_json"):
            data: dict[str, Any] = json.loads(text)
            if data.get("format") != FORMAT:
                raise ValueError(f"not a masking audit: its format is {data.get('format')!r}")
            known: Mapping[str, Any] = {
                name: data[name] for name in cls.__dataclass_fields__ if name in data
            }
            return cls(
                **{
                    **known,
                    "checks": tuple(Check(**check) for check in data["checks"]),
                    "thresholds": AuditThresholds(**data["thresholds"]),
                }
            )

    def to_markdown(self) -> str:
        """Return the checks as a Markdown table under a one-line verdict."""
        from tfdq.robustness.masking.rendering import markdown

        return markdown(self)

    def to_rich(self) -> RenderableType:
        """Return the same for a terminal, as wide as that is: `Console().print(it, crop=False)`."""
        from tfdq.robustness.masking.rendering import for_terminal

        return for_terminal(self)

    def plot(self, path: str | os.PathLike[str] | None = None) -> Figure:
        """Plot accuracy against epsilon, steps and logit scale, with the verdicts listed.

        Args:
            path: Image file to write, or None.

        Returns:
            The figure.
        """
        from tfdq.robustness.masking.rendering import figure

        return figure(self, path)
