"""Which attacks an experiment runs, and with what options: what each attack says of itself."""

from __future__ import annotations

from typing import Any

from tfdq.experiments.settings import EvaluationSettings
from tfdq.robustness.attacks import attack_spec, attack_suites

NO_SUITE = "none"


def suite_of(settings: EvaluationSettings) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the attacks of the suite with gradients and those without, in the order they run."""
    names = () if settings.suite == NO_SUITE else attack_suites()[settings.suite]
    with_gradients = tuple(name for name in names if attack_spec(name).gradients)
    return with_gradients, tuple(name for name in names if name not in with_gradients)


def attack_options(settings: EvaluationSettings, attack: str) -> dict[str, Any]:
    """Return the options that the settings give an attack.

    Args:
        settings: of the evaluation.
        attack: its name.

    Raises:
        ValueError: it was registered with a setting that there is not.
    """
    fields = attack_spec(attack).settings
    known = type(settings).model_fields
    for option, name in fields.items():
        if name not in known:
            raise ValueError(
                f"attack {attack!r} takes its option {option!r} from the evaluation setting "
                f"{name!r}, which there is not; register it with one of {', '.join(known)}"
            )
    return {option: getattr(settings, name) for option, name in fields.items()}
