"""The registry of attacks: what each needs and costs, what it is called, and its suites."""

from __future__ import annotations

import difflib
import inspect
import math
import numbers
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import numpy as np

from tfdq.mistakes import WrongTypeError
from tfdq.robustness.targets import Target

AttackFunction = Callable[..., np.ndarray]
CostRule = Callable[[Mapping[str, Any], int], "AttackCost"]


@dataclass(frozen=True)
class AttackCost:
    """What an attack spends on an image that it does not break.

    Attributes:
        gradients: Gradients (a forward and a backward pass), at most.
        queries: Forward passes, at most; without those that give the clean and the final verdict.
    """

    gradients: int
    queries: int


def cost_of_steps(options: Mapping[str, Any], classes: int) -> AttackCost:
    """The cost of one gradient a step and a last look at the image, in each restart."""
    runs = options.get("restarts", 1)
    return AttackCost(options.get("steps", 1) * runs, runs)


def cost_of_queries(options: Mapping[str, Any], classes: int) -> AttackCost:
    """The cost of a search of `queries` steps from a starting point, in each restart."""
    return AttackCost(0, (options.get("queries", 0) + 1) * options.get("restarts", 1))


@dataclass(frozen=True)
class AttackSpec:
    """A registered attack, and what it needs.

    Attributes:
        name: The name `attack` takes.
        function: `function(task, **options)` -> adversarial images; see `register_attack`.
        gradients: Whether it differentiates the model (or its surrogate).
        norms: The norms it works in.
        least_classes: The fewest classes that the model may have.
        quantized: Whether it looks inside a model of `tfdq.quantize_model` (or such a surrogate).
        cost_rule: `cost_rule(options, classes)` -> `AttackCost`, options complete.
        title: What tables call it.
        suites: The suites that it is part of, with its place: attacks run in ascending order.
        settings: Options that an experiment sets, with the field of its evaluation settings.
    """

    name: str
    function: AttackFunction
    gradients: bool
    norms: tuple[str, ...]
    least_classes: int
    quantized: bool
    cost_rule: CostRule
    title: str
    suites: Mapping[str, float]
    settings: Mapping[str, str]

    def defaults(self) -> dict[str, Any]:
        """The attack's own options with their default values."""
        parameters = list(inspect.signature(self.function).parameters.values())[1:]
        return {p.name: p.default for p in parameters}

    def cost(self, options: Mapping[str, Any], classes: int) -> AttackCost:
        """What the attack spends on an image that it does not break.

        Args:
            options: Of its options those that are not the defaults.
            classes: Of the model.
        """
        return self.cost_rule({**self.defaults(), **options}, classes)

    def label(self, options: Mapping[str, Any]) -> str:
        """The title with the number of steps, where the attack can take several: "PGD-20".

        Args:
            options: Of its options those that are not the defaults.
        """
        steps = {**self.defaults(), **options}.get("steps")
        return self.title if steps is None else f"{self.title}-{steps}"

    def missing(self, source: Target, classes: int) -> str:
        """What the attack needs and a model has not, or "" if it applies.

        Args:
            source: Where gradients come from: the model, or its surrogate.
            classes: Of the model.
        """
        if self.gradients and not source.differentiable:
            return "no gradients"
        if self.quantized and not source.quantized:
            return "not a quantized model"
        if classes < self.least_classes:
            return f"fewer than {self.least_classes} classes"
        return ""


_REGISTRY: dict[str, AttackSpec] = {}

_SHIPPED_SUITES = ("quick", "record", "standard")

# What settings and audits call no suite, and their own choice.
_RESERVED = ("none", "default")

_BUILTIN = (
    "apgd",
    "carlini_wagner",
    "fab",
    "gradient_steps",
    "low_bit",
    "spsa",
    "square",
    "temperature",
)


def register_attack(
    name: str,
    *,
    gradients: bool,
    norms: tuple[str, ...] = ("linf",),
    least_classes: int = 2,
    quantized: bool = False,
    cost: CostRule | None = None,
    title: str | None = None,
    suites: Mapping[str, float] | None = None,
    settings: Mapping[str, str] | None = None,
) -> Callable[[AttackFunction], AttackFunction]:
    """Decorator that makes an attack callable by name.

    The function takes an `AttackTask` and keyword options with defaults, and returns one float32
    image per example of the task. It asks the task for logits and gradients: successes are noted on
    the way, so that an image once broken stays broken whatever the function returns for it.

    Example:
        >>> @register_attack("corner", gradients=False)
        ... def corner(task):
        ...     return task.project(task.x + task.eps)

    Args:
        name: Lower-case name; replaces nothing: a name in use raises.
        gradients: Whether the attack differentiates the model.
        norms: The norms it works in, of ``"linf"`` and ``"l2"``.
        least_classes: The fewest classes that the model may have.
        quantized: Whether the attack looks inside a model of `tfdq.quantize_model`.
        cost: `cost(options, classes)` -> `AttackCost`, for estimates; by default a gradient for
            each of its `steps` in each of its `restarts`, or `queries` where it has no gradients.
        title: What tables call it; by default its name.
        suites: The suites that it is to be part of, each with its place in the order of attacks:
            ``{"record": 25}`` runs it after low-bit (20) and before APGD-T (30).
        settings: Options that the evaluation settings of an experiment give, ``{option: field}``.

    Returns:
        The decorator; it leaves the function as it is.

    Raises:
        ValueError: The name is taken, a suite has a name that is not free or a place that is no
            number, or a setting is of an option that the function has not.
        TypeError: `suites` or `settings` is not a mapping.
    """
    places, fields = _checked_suites(name, suites), _mapping(name, "settings", settings)

    def register(function: AttackFunction) -> AttackFunction:
        if name in _REGISTRY:
            raise ValueError(f"an attack named {name!r} is already registered")
        _check_settings(name, function, fields)
        rule = cost or (cost_of_steps if gradients else cost_of_queries)
        _REGISTRY[name] = AttackSpec(
            name,
            function,
            gradients,
            norms,
            least_classes,
            quantized,
            rule,
            name if title is None else title,
            places,
            fields,
        )
        return function

    return register


def _mapping(attack: str, argument: str, given: Any) -> dict[str, Any]:
    if given is None:
        return {}
    if not isinstance(given, Mapping):
        example = '{"record": 25}' if argument == "suites" else '{"steps": "pgd_steps"}'
        raise WrongTypeError(
            f"{argument} of attack {attack!r} must be a mapping such as {example}, got {given!r}"
        )
    return dict(given)


def _checked_suites(attack: str, given: Any) -> dict[str, float]:
    """Return the suites of an attack, or say which is none."""
    places = _mapping(attack, "suites", given)
    known = {*_SHIPPED_SUITES, *(suite for spec in _REGISTRY.values() for suite in spec.suites)}
    for suite, place in places.items():
        if not isinstance(suite, str) or not suite or suite in (*_RESERVED, *_REGISTRY, attack):
            raise ValueError(
                f"{suite!r} cannot be a suite of attack {attack!r}: name one of "
                f"{', '.join(sorted(known))}, or one of your own that is no attack's name"
            )
        near = [] if suite in known else difflib.get_close_matches(suite, known, 1, 0.8)
        if near:
            raise ValueError(
                f"there is no suite {suite!r} for attack {attack!r}; did you mean {near[0]!r}? "
                "A suite of your own needs a name less like it"
            )
        number = isinstance(place, numbers.Real) and not isinstance(place, bool)
        if not number or not math.isfinite(place):
            raise ValueError(
                f"the place of attack {attack!r} in the suite {suite!r} must be a number, got "
                f"{place!r}; attacks run in ascending order"
            )
    return places


def _check_settings(attack: str, function: AttackFunction, fields: Mapping[str, Any]) -> None:
    """Check that a function has the options that settings give."""
    options = list(inspect.signature(function).parameters)[1:]
    for option, field in fields.items():
        if option not in options:
            raise ValueError(
                f"settings of attack {attack!r} name the option {option!r}, which its function "
                f"has not; it has {', '.join(options) or 'none'}"
            )
        if not isinstance(field, str) or not field.isidentifier():
            raise ValueError(
                f"settings of attack {attack!r} must give {option!r} the name of an evaluation "
                f"setting, such as 'pgd_steps', got {field!r}"
            )


def load_builtin_attacks() -> None:
    """Imports the modules that register the attacks that come with the package."""
    for module in _BUILTIN:
        import_module(f"{__package__}.{module}")


def available_attacks() -> dict[str, AttackSpec]:
    """Every registered attack by name."""
    load_builtin_attacks()
    return dict(sorted(_REGISTRY.items()))


def attack_spec(name: str) -> AttackSpec:
    """The registered attack of that name.

    Raises:
        ValueError: There is none; the message lists those there are.
    """
    known = available_attacks()
    if name not in known:
        raise ValueError(f"unknown attack {name!r}; known: {', '.join(known)}")
    return known[name]


def attack_suites() -> dict[str, tuple[str, ...]]:
    """Every suite by name: the attacks registered for it, in the order they run.

    ``"standard"`` is AutoAttack's; ``"record"`` adds the attack made for low-bit networks, and is
    the one for figures on record; ``"quick"`` is that without FAB, which takes half of the time.
    What breaks most comes early, as the later ones cost most where an image stands.
    """
    found: dict[str, list[tuple[float, str]]] = {}
    for spec in available_attacks().values():
        for suite, place in spec.suites.items():
            found.setdefault(suite, []).append((place, spec.name))
    return {suite: tuple(name for _, name in sorted(found[suite])) for suite in sorted(found)}
