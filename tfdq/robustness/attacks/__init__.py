"""Attacks on classifiers, all called through `attack(name, model, x, y, eps)`."""

from __future__ import annotations

from importlib import import_module

from tfdq.robustness.attacks.base import (
    AttackResult,
    AttackTask,
    attack,
    attack_spec,
    available_attacks,
    register_attack,
    run_attack,
)

_BUILTIN = ("apgd", "carlini_wagner", "fab", "gradient_steps", "spsa", "square", "temperature")


def load_builtin_attacks() -> None:
    """Imports the modules that register the attacks that come with the package."""
    for module in _BUILTIN:
        import_module(f"{__name__}.{module}")


__all__ = [
    "AttackResult",
    "AttackTask",
    "attack",
    "attack_spec",
    "available_attacks",
    "load_builtin_attacks",
    "register_attack",
    "run_attack",
]
