"""Transfer of adversarial images: every model as surrogate against every model as victim."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from tfdq.robustness.attacks.base import Norm, run_attack
from tfdq.robustness.attacks.inputs import checked_settings
from tfdq.robustness.attacks.ranges import as_json, largest
from tfdq.robustness.attacks.registry import attack_spec
from tfdq.robustness.batches import count_batches, iterate_batches
from tfdq.robustness.json_files import naming
from tfdq.robustness.plot_text import plain
from tfdq.robustness.progress import progress_bar
from tfdq.robustness.report import NOT_AUDITED, verdict_text
from tfdq.robustness.result_store import write_atomically
from tfdq.robustness.statistics import Proportion, wilson
from tfdq.robustness.targets import Target, as_target
from tfdq.robustness.versions import package_versions

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True, eq=False)
class TransferMatrix:
    """Accuracy of every victim on the images made on every surrogate.

    Attributes:
        surrogates: Names of the models the images were made on.
        victims: Names of the models they were shown to.
        correct: Clean images each victim gets right, shape (victims,), int.
        standing: Images it still gets right, shape (surrogates, victims), int: right on the clean
            image and on the surrogate's version of it.
        examples: Number of images.
        settings: Attack, its options, epsilon, norm, clip, seed, confidence.
        versions: Versions of the packages.
        verdicts: What stands beside each victim's figures: its audit's verdict, or "not audited".
    """

    surrogates: tuple[str, ...]
    victims: tuple[str, ...]
    correct: np.ndarray
    standing: np.ndarray
    examples: int
    settings: dict[str, Any] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    verdicts: dict[str, str] = field(default_factory=dict)

    def verdict(self, victim: str) -> str:
        """Return the audit's verdict that stands beside a victim's figures."""
        return self.verdicts.get(victim, NOT_AUDITED)

    def accuracy(self, surrogate: str, victim: str) -> Proportion:
        """Return the victim's accuracy on the surrogate's images, with its Wilson interval.

        Raises:
            ValueError: If a name is unknown.
        """
        at = self.surrogates.index(surrogate), self.victims.index(victim)
        confidence = float(self.settings.get("confidence", 0.95))
        return wilson(int(self.standing[at]), self.examples, confidence)

    def success_rate(self, surrogate: str, victim: str) -> float:
        """Return the share of the images the victim gets right clean that the attack breaks.

        NaN if it gets none right.

        Raises:
            ValueError: If a name is unknown.
        """
        at = self.surrogates.index(surrogate), self.victims.index(victim)
        right = int(self.correct[at[1]])
        return float(1 - self.standing[at] / right) if right else float("nan")

    def to_dict(self) -> dict[str, Any]:
        """Return the matrix as plain data."""
        return {
            "surrogates": list(self.surrogates),
            "victims": list(self.victims),
            "examples": self.examples,
            "correct": self.correct.tolist(),
            "standing": self.standing.tolist(),
            "settings": self.settings,
            "versions": self.versions,
            "verdicts": {victim: self.verdict(victim) for victim in self.victims},
        }

    def to_json(self, path: str | os.PathLike[str] | None = None) -> str:
        """Return the matrix as JSON, and write it to `path` if one is given.

        Raises:
            OSError: If the file can't be written.
        """
        text = json.dumps(self.to_dict(), indent=1)
        if path is not None:
            write_atomically(path, text + "\n")
        return text

    @classmethod
    def from_json(cls, text: str) -> TransferMatrix:
        """Read a matrix back from its JSON text.

        Raises:
            ValueError: If the text is no transfer matrix.
        """
        with naming("the transfer matrix", "write it again with TransferMatrix.to_json"):
            data = json.loads(text)
            return cls(
                tuple(data["surrogates"]),
                tuple(data["victims"]),
                np.array(data["correct"], np.int64),
                np.array(data["standing"], np.int64).reshape(
                    len(data["surrogates"]), len(data["victims"])
                ),
                data["examples"],
                data["settings"],
                data["versions"],
                data.get("verdicts", {}),
            )

    def to_markdown(self) -> str:
        """Return accuracies in percent: a row per surrogate, a column per victim."""
        lines = [
            f"Accuracy under {self._what()}, images made on the row's model, shown to the column's",
            "",
            "| made on | " + " | ".join(self.victims) + " |",
            "|---|" + "---|" * len(self.victims),
            "| (clean) | "
            + " | ".join(f"{100 * right / self.examples:.1f} %" for right in self.correct)
            + " |",
        ]
        for surrogate in self.surrogates:
            cells = [str(self.accuracy(surrogate, victim)) for victim in self.victims]
            lines.append(f"| {surrogate} | " + " | ".join(cells) + " |")
        lines.append(
            "| (gradient-masking audit) | " + " | ".join(map(self.verdict, self.victims)) + " |"
        )
        return "\n".join(lines) + "\n"

    def plot(self, path: str | os.PathLike[str] | None = None) -> Figure:
        """Plot the accuracies as a heat map.

        Args:
            path: Image file to write, or None.

        Returns:
            The figure.
        """
        from matplotlib.figure import Figure

        rows, columns = self.standing.shape
        plot = Figure(figsize=(2.5 + 1.1 * columns, 1.8 + 0.8 * rows), layout="constrained")
        axes = plot.subplots()
        shares = self.standing / self.examples
        image = axes.imshow(shares, vmin=0, vmax=1, cmap="viridis", aspect="auto")
        for row in range(rows):
            for column in range(columns):
                share = shares[row, column]
                colour = "black" if share > 0.6 else "white"
                axes.text(column, row, f"{100 * share:.0f}", ha="center", va="center", color=colour)
        beside = [f"{victim}\n{self.verdict(victim).split(':')[0]}" for victim in self.victims]
        axes.set_xticks(range(columns), [plain(name) for name in beside], rotation=30, ha="right")
        axes.set_yticks(range(rows), [plain(name) for name in self.surrogates])
        axes.set(xlabel="victim", ylabel="surrogate")
        axes.set_title(f"Accuracy (%) under {self._what()}", fontsize=9)
        plot.colorbar(image, ax=axes)
        if path is not None:
            plot.savefig(path, dpi=150)
        return plot

    def _what(self) -> str:
        return f"{self.settings.get('attack')}, eps {self.settings.get('epsilon', 0):.4g}"


def transfer_matrix(
    models: Mapping[str, Any],
    x: Any,
    y: Any = None,
    *,
    eps: Any,
    attack: str = "pgd",
    victims: Mapping[str, Any] | None = None,
    audits: Mapping[str, Any] | None = None,
    norm: Norm = "linf",
    clip: tuple[Any, Any] = (0.0, 1.0),
    batch_size: int = 256,
    seed: int = 0,
    confidence: float = 0.95,
    progress: bool | None = None,
    **options: Any,
) -> TransferMatrix:
    """Make adversarial images on every model and show them to every model.

    The images are made to the attack's full strength (no early stop), as is right for transfer;
    where that overshoots and its surrogate is not fooled, the image at which it first was is used.
    So the diagonal is the white-box attack. A model that gives no gradients
    (a function) is a victim only.

    Args:
        models: `{name: model}`, each anything `as_target` takes.
        x: Images, shape (n, ...), or a `tf.data.Dataset` of `(image, label)`, streamed.
        y: Labels, (n,) or one-hot; None for a dataset.
        eps: Radius in input units, > 0; in L_inf also one for each channel, which the matrix then
            calls by its largest number.
        attack: Name of the attack to make them with.
        victims: Further models that are shown the images and make none.
        audits: `{name: MaskingAudit}` from `audit`; the verdicts stand beside the figures.
        norm: `"linf"` or `"l2"`.
        clip: `(lo, hi)` of valid inputs; each a number, or one for each channel.
        batch_size: Examples per batch.
        seed: Seed of every random choice.
        confidence: Coverage of the Wilson intervals.
        progress: Show a progress bar on stderr; by default if that is a terminal.
        **options: Options of the attack.

    Returns:
        The matrix.

    Raises:
        ValueError: If there is no surrogate, a name is given twice, or an argument is out of range.

    Source: Papernot et al., Transferability in Machine Learning, 2016.
    """
    spec = attack_spec(attack)
    radius, limits = checked_settings(attack, spec.norms, eps, norm, clip, batch_size)
    twice = set(models) & set(victims or {})
    if twice:
        raise ValueError(f"{sorted(twice)} are among both models and victims: name each once")
    targets = {name: as_target(model) for name, model in {**models, **(victims or {})}.items()}
    unknown = sorted(set(audits or {}) - set(targets))
    if unknown:
        raise ValueError(f"audits names {unknown}, but there are only {sorted(targets)}")
    verdicts = {
        name: verdict_text(audit if isinstance(audit, dict) else audit.to_dict())
        for name, audit in (audits or {}).items()
    }
    makers = [name for name in models if targets[name].differentiable or not spec.gradients]
    if not makers:
        raise ValueError(f"none of {sorted(models)} can make images with {attack}: no gradients")
    common = {"eps": radius, "norm": norm, "clip": limits, "batch_size": batch_size, **options}
    correct = np.zeros(len(targets), np.int64)
    standing = np.zeros((len(makers), len(targets)), np.int64)
    total = 0
    batches = count_batches(x, batch_size)
    steps = None if batches is None else batches * len(makers)
    with progress_bar("transfer", steps, progress) as advance:
        for number, (images, labels) in enumerate(iterate_batches(x, y, batch_size, limits)):
            right = {name: t.predict(images) == labels for name, t in targets.items()}
            correct += [int(r.sum()) for r in right.values()]
            total += len(images)
            for row, maker in enumerate(makers):
                made = _make(targets[maker], images, labels, attack, seed + number, common)
                for column, (name, target) in enumerate(targets.items()):
                    held = right[name] & (target.predict(made) == labels)
                    standing[row, column] += int(held.sum())
                advance(maker)
    settings = {
        "attack": attack,
        "options": {key: as_json(v) for key, v in {**spec.defaults(), **options}.items()},
        "epsilon": largest(radius),
        **({} if isinstance(radius, float) else {"radius": as_json(radius)}),
        "norm": norm,
        "clip": [as_json(end) for end in limits],
        "batch_size": batch_size,
        "seed": seed,
        "confidence": confidence,
    }
    return TransferMatrix(
        tuple(makers),
        tuple(targets),
        correct,
        standing,
        total,
        settings,
        package_versions(),
        verdicts,
    )


def _make(
    maker: Target,
    images: np.ndarray,
    labels: np.ndarray,
    attack: str,
    seed: int,
    settings: dict[str, Any],
) -> np.ndarray:
    """Return the strongest images, and where they do not fool their maker the first that did."""
    made = run_attack(attack, maker, images, labels, early_stop=False, seed=seed, **settings)
    rows = np.flatnonzero(made.correct & ~made.success)
    moved = made.x_adv.copy()
    if len(rows):
        again = run_attack(attack, maker, images[rows], labels[rows], seed=seed, **settings)
        moved[rows[again.success]] = again.x_adv[again.success]
    return moved
