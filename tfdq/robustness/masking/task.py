"""The model under audit with the attacks that several checks share, each run once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from tfdq.robustness.attacks.base import AttackResult, run_attack
from tfdq.robustness.attacks.ranges import Extent
from tfdq.robustness.masking.verdict import AuditThresholds, Check
from tfdq.robustness.targets import Target

WhiteBox = tuple[str, dict[str, Any]]
SINGLE_STEPS = 20


@dataclass
class AuditTask:
    """What every check is given.

    Attributes:
        target: The model under audit.
        surrogate: Where gradients come from; the target itself unless it gives none. None if there
            is no source of gradients at all.
        x: Images that the model classifies rightly, float32 (n, ...).
        y: Their labels, int64 (n,).
        eps: Radius, L_inf, in input units; one number, or one for each channel.
        clip: `(lo, hi)` of valid inputs, likewise.
        batch_size: Images per batch.
        seed: Seed of every random choice.
        white_box: The attacks that stand for the best white-box effort.
        queries: Forward passes per image of Square and of random sampling.
        thresholds: Where the checks draw their lines.
        transfer_from: Independent models, `{name: target}`.
        twin: The exact integer twin, or None.
        runtime: The deployed file in its runtime, or None.
    """

    target: Target
    surrogate: Target | None
    x: np.ndarray
    y: np.ndarray
    eps: Extent
    clip: tuple[Extent, Extent]
    batch_size: int
    seed: int
    white_box: Sequence[WhiteBox]
    queries: int
    thresholds: AuditThresholds
    transfer_from: Mapping[str, Target] = field(default_factory=dict)
    twin: Target | None = None
    runtime: Target | None = None

    @property
    def source(self) -> Target:
        """Where gradients come from.

        Raises:
            ValueError: If there are none; checks that need them are then not run.
        """
        if self.surrogate is None:
            raise ValueError(f"{self.target.name} gives no gradients and no surrogate was given")
        return self.surrogate

    def attack(
        self,
        name: str,
        *,
        eps: Extent | None = None,
        rows: np.ndarray | None = None,
        target: Target | None = None,
        early_stop: bool = True,
        **options: Any,
    ) -> AttackResult:
        """Run an attack on the audited examples, or on some of them.

        Args:
            name: Name of the attack.
            eps: Radius; the audit's own by default.
            rows: Indices of the examples; all by default.
            target: Another model to attack, e.g. one with rescaled logits; gradients are then its.
            early_stop: As in `run_attack`.
            **options: The attack's options.
        """
        chosen = slice(None) if rows is None else rows
        victim = self.target if target is None else target
        source = self.surrogate if target is None else target
        return run_attack(
            name,
            victim,
            self.x[chosen],
            self.y[chosen],
            self.eps if eps is None else eps,
            clip=self.clip,
            batch_size=self.batch_size,
            seed=self.seed,
            surrogate=None if source is victim else source,
            early_stop=early_stop,
            **options,
        )

    @cached_property
    def pgd(self) -> AttackResult:
        """PGD on the cross-entropy with the usual 20 steps."""
        return self.attack("pgd", steps=SINGLE_STEPS)

    @cached_property
    def white_box_broken(self) -> np.ndarray:
        """Which examples the white-box attacks break, each run on what the earlier ones left."""
        broken = self.pgd.success.copy()
        for name, options in self.white_box:
            rows = np.flatnonzero(~broken)
            if len(rows):
                broken[rows] |= self.attack(name, rows=rows, **options).success
        return broken

    @property
    def white_box_accuracy_if_known(self) -> float | None:
        """Share of the examples that the white-box attacks leave; None if they were not run."""
        broken = vars(self).get("white_box_broken")
        return None if broken is None else float(1 - np.mean(broken))

    @property
    def survivors(self) -> np.ndarray:
        """Indices of the examples that the white-box attacks left standing."""
        return np.flatnonzero(~self.white_box_broken)

    def verdict(
        self, name: str, good: bool, figures: dict[str, Any], criterion: str, source: str, fail: str
    ) -> Check:
        """Return a check that was run; `fail` says what it means if it failed."""
        return Check(
            name, "passed" if good else "failed", figures, criterion, source, "" if good else fail
        )
