"""Attacks on classifiers, all called through `attack(name, model, x, y, eps)`."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from tfdq.robustness.attacks.base import AttackResult, AttackTask, attack, run_attack
from tfdq.robustness.attacks.registry import (
    AttackCost,
    attack_spec,
    attack_suites,
    available_attacks,
    load_builtin_attacks,
    register_attack,
)

if TYPE_CHECKING:
    from tfdq.robustness.attacks.surrogates import smooth_surrogate


def __getattr__(name: str) -> Any:
    """Imports `smooth_surrogate` on first use: it needs TensorFlow (PEP 562)."""
    if name == "smooth_surrogate":
        return import_module(f"{__name__}.surrogates").smooth_surrogate
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


__all__ = [
    "AttackCost",
    "AttackResult",
    "AttackTask",
    "attack",
    "attack_spec",
    "attack_suites",
    "available_attacks",
    "load_builtin_attacks",
    "register_attack",
    "run_attack",
    "smooth_surrogate",
]
