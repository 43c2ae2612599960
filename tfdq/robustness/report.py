"""What an evaluation found, example by example, with everything needed to repeat it."""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tfdq.mistakes import UnknownNameError
from tfdq.robustness.json_files import naming
from tfdq.robustness.result_store import write_atomically
from tfdq.robustness.statistics import PairedComparison, Proportion, holm, mcnemar, wilson
from tfdq.robustness.verdict import verdict_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FORMAT = "tfdq robustness report"
FORMAT_VERSION = 1
NOT_AUDITED = "not audited"


def verdict_text(audit: dict[str, Any] | None) -> str:
    """Return what stands beside a robustness figure for an audit given as plain data.

    Returns:
        "audit " and its `Verdict` ("passed", "failed: ...", "incomplete: ..."), or "not audited".
    """
    if audit is None:
        return NOT_AUDITED
    return f"audit {verdict_of(audit)}"


@dataclass(frozen=True, eq=False)
class AttackRecord:
    """One attack against one model at one epsilon.

    Attributes:
        attack: Name of the attack.
        epsilon: Radius in input units.
        attempted: Which examples it was run on, shape (n,), bool. Examples that are misclassified
            clean are never attacked, those an earlier attack broke only if each attack stands
            alone.
        broken: Which of the attempted examples it broke, shape (n,), bool.
        queries: Images sent through a forward pass.
        gradients: Images differentiated.
        seconds: Wall-clock time.
        skipped: Why the attack does not apply to this model ("no gradients" and no surrogate to
            take them from, "not a quantized model", "fewer than 4 classes"), "" if it was run.
        surrogate: Name of the model the gradients came from, "" for the model itself.
    """

    attack: str
    epsilon: float
    attempted: np.ndarray
    broken: np.ndarray
    queries: int
    gradients: int
    seconds: float
    skipped: str = ""
    surrogate: str = ""


@dataclass(frozen=True, eq=False)
class ModelRecord:
    """Everything measured on one model.

    Attributes:
        name: Name in the report.
        correct: Which clean examples it gets right, shape (n,), bool.
        attacks: One record per attack and epsilon, in the order they were run.
        audit: The masking audit of this model as `MaskingAudit.to_dict()` gives it, or None.
    """

    name: str
    correct: np.ndarray
    attacks: tuple[AttackRecord, ...]
    audit: dict[str, Any] | None = None


@dataclass(frozen=True, eq=False)
class RobustnessReport:
    """Clean and robust accuracy of some models under a stated set of attacks.

    Every figure is an upper bound on the true robust accuracy: it counts the examples that
    survived *under these attacks*. The audit verdict stands beside it wherever it is shown.

    Attributes:
        models: One record per model.
        attacks: Names of the attacks, in the order of the suite.
        epsilons: Radii in input units, ascending.
        survivors_only: True for the AutoAttack protocol: each attack gets the examples that all
            earlier ones (and the whole suite at smaller epsilons) left standing.
        settings: Norm, clip, batch size, seed, options of the attacks, confidence.
        data_digest: SHA-256 over the examples, 24 hexadecimal digits.
        versions: Versions of the packages that computed it.
        started: UTC time at which the evaluation began, ISO 8601.
    """

    models: tuple[ModelRecord, ...]
    attacks: tuple[str, ...]
    epsilons: tuple[float, ...]
    survivors_only: bool
    settings: dict[str, Any]
    data_digest: str
    versions: dict[str, str] = field(default_factory=dict)
    started: str = ""

    @property
    def examples(self) -> int:
        """Number of examples."""
        return len(self.models[0].correct)

    @property
    def confidence(self) -> float:
        """Coverage of the intervals."""
        return float(self.settings.get("confidence", 0.95))

    def model(self, name: str) -> ModelRecord:
        """Return the record of a model.

        Raises:
            KeyError: If there is none of that name.
        """
        for record in self.models:
            if record.name == name:
                return record
        raise UnknownNameError(
            f"no model {name!r} in the report; it has {[m.name for m in self.models]}"
        )

    def clean(self, name: str) -> Proportion:
        """Return the clean accuracy of a model with its interval."""
        correct = self.model(name).correct
        return wilson(int(correct.sum()), len(correct), self.confidence)

    def survived(self, name: str, epsilon: float, attack: str | None = None) -> np.ndarray:
        """Return which examples a model gets right clean and under attack.

        Args:
            name: Name of the model.
            epsilon: One of `epsilons`; 0 means no attack.
            attack: One attack, or None for the worst case over the suite. Under the survivors
                protocol, an attack's figure includes what the earlier ones broke.

        Returns:
            Shape (n,), bool.

        Raises:
            KeyError: If the report has no such model, epsilon or attack.
        """
        record = self.model(name)
        standing = record.correct.copy()
        if epsilon == 0:
            return standing
        if not any(np.isclose(epsilon, known) for known in self.epsilons):
            raise UnknownNameError(
                f"epsilon {epsilon:g} is not in the report; it has {self.epsilons}"
            )
        if attack is not None and attack not in self.attacks:
            raise UnknownNameError(f"attack {attack!r} is not in the report; it has {self.attacks}")
        for piece in record.attacks:
            same = bool(np.isclose(piece.epsilon, epsilon))
            if self.survivors_only:
                # What breaks an example inside a ball breaks it inside every larger one.
                if piece.epsilon <= epsilon or same:
                    standing &= ~piece.broken
                if same and piece.attack == attack:
                    break
            elif same and attack in (None, piece.attack):
                standing &= ~piece.broken
        return standing

    def robust(self, name: str, epsilon: float, attack: str | None = None) -> Proportion:
        """Return the accuracy of a model under these attacks, with its Wilson interval.

        Args:
            name: Name of the model.
            epsilon: One of `epsilons`.
            attack: One attack, or None for the worst case over the suite.

        Raises:
            KeyError: If the report has no such model, epsilon or attack.
        """
        standing = self.survived(name, epsilon, attack)
        return wilson(int(standing.sum()), len(standing), self.confidence)

    def comparisons(self) -> list[PairedComparison]:
        """Compare every pair of models on the same examples, clean and at every epsilon.

        Returns:
            Exact McNemar tests of the worst case, with p-values also adjusted by Holm's procedure
            for the number of comparisons in the list.
        """
        names = [record.name for record in self.models]
        found = []
        for epsilon in (0.0, *self.epsilons):
            for first, second in itertools.combinations(names, 2):
                only_first, only_second, p_value = mcnemar(
                    self.survived(first, epsilon), self.survived(second, epsilon)
                )
                found.append(
                    (first, second, epsilon, only_first, only_second, self.examples, p_value)
                )
        adjusted = holm([row[-1] for row in found])
        return [
            PairedComparison(*row, p_adjusted=p) for row, p in zip(found, adjusted, strict=True)
        ]

    def verdict(self, name: str) -> str:
        """Return the audit verdict that stands beside a model's figures.

        Returns:
            "audit " with its `Verdict` ("passed", "failed: ...", "incomplete: ..."), or
            "not audited".
        """
        return verdict_text(self.model(name).audit)

    def cost(self, name: str) -> dict[str, float]:
        """Return the queries, gradients and seconds spent on a model, summed over the attacks."""
        records = self.model(name).attacks
        return {
            "queries": sum(r.queries for r in records),
            "gradients": sum(r.gradients for r in records),
            "seconds": sum(r.seconds for r in records),
        }

    def to_dict(self) -> dict[str, Any]:
        """Return the report as plain data, with the figures beside the examples."""
        return {
            "format": FORMAT,
            "format_version": FORMAT_VERSION,
            "note": "accuracies under these attacks: upper bounds on the true robust accuracy",
            "attacks": list(self.attacks),
            "epsilons": list(self.epsilons),
            "survivors_only": self.survivors_only,
            "settings": self.settings,
            "examples": self.examples,
            "data_digest": self.data_digest,
            "versions": self.versions,
            "started": self.started,
            "models": [self._model_dict(record) for record in self.models],
            "comparisons": [asdict(row) for row in self.comparisons()],
        }

    def _model_dict(self, record: ModelRecord) -> dict[str, Any]:
        worst = {
            f"{epsilon:.10g}": asdict(self.robust(record.name, epsilon))
            for epsilon in self.epsilons
        }
        return {
            "name": record.name,
            "audit_verdict": self.verdict(record.name),
            "audit": record.audit,
            "clean_accuracy": asdict(self.clean(record.name)),
            "worst_case_accuracy_under_these_attacks": worst,
            "correct": _bits(record.correct),
            "attacks": [
                {
                    "attack": piece.attack,
                    "epsilon": piece.epsilon,
                    "skipped": piece.skipped,
                    "surrogate": piece.surrogate,
                    "queries": piece.queries,
                    "gradients": piece.gradients,
                    "seconds": piece.seconds,
                    "attempted": _bits(piece.attempted),
                    "broken": _bits(piece.broken),
                }
                for piece in record.attacks
            ],
        }

    def to_json(self, path: str | os.PathLike[str] | None = None) -> str:
        """Return the report as JSON, and write it to `path` if one is given.

        Args:
            path: File to write, whole or not at all.

        Raises:
            OSError: If the file can't be written.
        """
        text = json.dumps(self.to_dict(), indent=1)
        if path is not None:
            write_atomically(path, text + "\n")
        return text

    @classmethod
    def from_json(cls, source: str | os.PathLike[str]) -> RobustnessReport:
        """Read a report back.

        Args:
            source: The JSON text, or the path of a file that holds it.

        Returns:
            A report equal to the one written.

        Raises:
            ValueError: If it is no robustness report, a damaged one, or one of a later format.
            OSError: If the file can't be read.
        """
        text = source if isinstance(source, str) and source.lstrip()[:1] == "{" else None
        called = "the robustness report" if text is not None else Path(source)
        with naming(called, "write it again with RobustnessReport.to_json"):
            data = json.loads(text if text is not None else Path(source).read_text("utf-8"))
            if data.get("format") != FORMAT:
                raise ValueError(f"not a robustness report: its format is {data.get('format')!r}")
            if data["format_version"] > FORMAT_VERSION:
                raise ValueError(
                    f"it has format version {data['format_version']}, this tfdq reads up to "
                    f"{FORMAT_VERSION}: upgrade tfdq"
                )
            return cls._of(data)

    @classmethod
    def _of(cls, data: dict[str, Any]) -> RobustnessReport:
        models = tuple(
            ModelRecord(
                entry["name"],
                _array(entry["correct"]),
                tuple(
                    AttackRecord(
                        **{**piece, "attempted": _array(piece["attempted"])}
                        | {"broken": _array(piece["broken"])}
                    )
                    for piece in entry["attacks"]
                ),
                entry["audit"],
            )
            for entry in data["models"]
        )
        return cls(
            models,
            tuple(data["attacks"]),
            tuple(data["epsilons"]),
            data["survivors_only"],
            data["settings"],
            data["data_digest"],
            data["versions"],
            data["started"],
        )

    def to_markdown(self) -> str:
        """Return the figures as Markdown tables, the audit verdict in every row."""
        from tfdq.robustness.report_rendering import markdown

        return markdown(self)

    def plot(self, path: str | os.PathLike[str] | None = None) -> Figure:
        """Plot the worst-case accuracy against epsilon, with intervals and audit verdicts.

        Args:
            path: Image file to write (`.png`, `.svg`, `.pdf`); None writes none.

        Returns:
            The figure.
        """
        from tfdq.robustness.report_rendering import figure

        return figure(self, path)


def _bits(mask: np.ndarray) -> str:
    """Return one character per example, 0 or 1: compact, and a difference can be seen."""
    return "".join("1" if value else "0" for value in mask)


def _array(bits: str | Sequence[bool]) -> np.ndarray:
    return np.array([bit == "1" for bit in bits], dtype=bool)
