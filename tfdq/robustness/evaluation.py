"""Robust accuracy of models under a suite of attacks, piece by piece and resumable."""

from __future__ import annotations

import hashlib
import itertools
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from typing import Any

import numpy as np

from tfdq.mistakes import UnknownNameError
from tfdq.robustness.attacks.base import Norm, run_attack
from tfdq.robustness.attacks.inputs import checked_label_range, checked_settings, checked_width
from tfdq.robustness.attacks.projections import l2_norm
from tfdq.robustness.attacks.ranges import Extent, as_clip, as_extent, as_json, largest, shown
from tfdq.robustness.attacks.registry import AttackSpec, attack_suites, available_attacks
from tfdq.robustness.batches import count_batches, iterate_batches
from tfdq.robustness.progress import progress_bar
from tfdq.robustness.report import AttackRecord, ModelRecord, RobustnessReport
from tfdq.robustness.result_store import ResultStore, digest, model_digest
from tfdq.robustness.targets import Target, as_target
from tfdq.robustness.versions import package_versions

_PIECE = {"broken": str, "queries": int, "gradients": int, "seconds": float}


@dataclass(frozen=True)
class _Plan:
    """What is to be computed for each batch; checked before any work is done."""

    targets: dict[str, Target]
    surrogates: dict[str, Target]
    proxies: dict[str, Target]
    attacks: tuple[AttackSpec, ...]
    radii: dict[float, Extent]
    survivors_only: bool
    norm: Norm
    clip: tuple[Extent, Extent]
    batch_size: int
    seed: int
    options: dict[str, dict[str, Any]]
    identities: dict[str, list[str | None]]
    store: ResultStore

    @property
    def epsilons(self) -> tuple[float, ...]:
        """What the radii are called: the radius, or the largest where channels differ."""
        return tuple(self.radii)


@dataclass
class _Tally:
    """Results of one attack on one model at one epsilon, gathered over the batches."""

    attempted: list[np.ndarray] = field(default_factory=list)
    broken: list[np.ndarray] = field(default_factory=list)
    queries: int = 0
    gradients: int = 0
    seconds: float = 0.0


def evaluate(
    models: Any,
    x: Any,
    y: Any = None,
    *,
    attacks: str | Sequence[str] = "standard",
    epsilons: Any = (8 / 255,),
    norm: Norm = "linf",
    clip: tuple[Any, Any] = (0.0, 1.0),
    batch_size: int = 256,
    seed: int = 0,
    survivors_only: bool | None = None,
    surrogates: Mapping[str, Any] | None = None,
    proxies: Mapping[str, Any] | None = None,
    options: Mapping[str, Mapping[str, Any]] | None = None,
    audits: Mapping[str, Any] | None = None,
    results: str | os.PathLike[str] | None = None,
    confidence: float = 0.95,
    progress: bool | None = None,
) -> RobustnessReport:
    """Measure clean and robust accuracy of models on the same examples.

    With `attacks="standard"` this is the AutoAttack protocol: APGD-CE, APGD-T, FAB and Square,
    each only on the examples that the ones before left standing; and an example that is broken at
    one epsilon counts as broken at the larger ones. The worst case over the suite is the robust
    accuracy *under these attacks*: an upper bound on the true one. What an attack returns is put
    through the model again and counts only inside the ball and the clip range.

    Args:
        models: `{name: model}`, each anything `as_target` takes: a tf_keras or Keras model, an
            IntegerTwin, a `.tflite` file, a function. A single model is called "model".
        x: Images, shape (n, ...), or a finite `tf.data.Dataset` of `(image, label)`, which is
            streamed: one batch is in memory at a time.
        y: Labels, (n,) or one-hot (n, classes); None for a dataset.
        attacks: A suite, or names of attacks. `"standard"` is AutoAttack's; `"record"` adds the
            attack made for low-bit networks (on models of `tfdq.quantize_model`, and on what has
            one as surrogate), and is the one for figures on record; all suites: `attack_suites`.
        epsilons: A radius in input units, > 0, or several; `8/255` for images in [0, 1]. In L_inf
            one of several may be an array, a radius for each channel:
            `[4 / 255 / std, 8 / 255 / std]`. The report then calls it by its largest number, and
            `settings["radii"]` has all of them.
        norm: `"linf"` or `"l2"`.
        clip: `(lo, hi)` of valid inputs; each a number, or an array, one for each channel.
        batch_size: Examples per batch.
        seed: Seed of every random choice.
        survivors_only: Whether each attack gets only what the earlier ones left standing; True for
            a suite and False for a list of names, so that the list's figures can be compared.
        surrogates: `{name of a black box: differentiable model}`, from which gradient attacks on
            it take their gradients. Without one they are reported as not applicable.
        proxies: `{name of a model: faster classifier with nearly its answers}`, to which random
            searches put their queries: the `.tflite` that `tflite_export.convert` made of the
            model, say. Only what breaks the model itself counts.
        options: `{attack: {option: value}}`.
        audits: `{name: MaskingAudit}` from `audit`, shown beside the figures; a model without one
            is shown as "not audited".
        results: Folder that keeps every finished piece. Started again with the same folder, the
            evaluation goes on where it was cut off; pieces with other settings, weights or
            examples are left alone.
        confidence: Coverage of the Wilson intervals.
        progress: Show a progress bar on stderr; by default if that is a terminal.

    Returns:
        The report.

    Raises:
        ValueError: If there are no models, attacks, epsilons or examples; if an epsilon is not
            positive, an attack is unknown, images hold NaN or lie outside `clip`, labels are out
            of range, or a model returns probabilities.
        KeyError: If `surrogates`, `proxies`, `audits` or `options` names something that is not
            evaluated.
        RuntimeError: If an attack returns images outside the ball or the clip range.

    Source: Croce and Hein, Reliable evaluation of adversarial robustness with an ensemble of
    diverse parameter-free attacks, ICML 2020.

    Example:
        >>> report = evaluate({"float": model, "dq": qat}, x, y, epsilons=[4 / 255, 8 / 255])
        >>> print(report.to_markdown())
    """
    plan = _plan(
        models, attacks, epsilons, norm, clip, batch_size, seed, survivors_only, surrogates,
        proxies, options, results,
    )  # fmt: skip
    _only_known("audits", audits, plan.targets)
    started = datetime.now(timezone.utc).isoformat(timespec="seconds")
    correct: dict[str, list[np.ndarray]] = {name: [] for name in plan.targets}
    tallies: dict[tuple[str, float, str], _Tally] = {
        (name, epsilon, spec.name): _Tally()
        for name, epsilon, spec in itertools.product(plan.targets, plan.epsilons, plan.attacks)
    }
    digests = []
    batches = count_batches(x, batch_size)
    total = None if batches is None else batches * len(tallies)
    with progress_bar("evaluating", total, progress) as advance:
        for number, (images, labels) in enumerate(iterate_batches(x, y, batch_size, plan.clip)):
            digests.append(digest(images, labels))
            for name in plan.targets:
                right = _clean(plan, name, images, labels)
                correct[name].append(right)
                _attack_batch(plan, name, number, images, labels, right, tallies, advance)
    ranges = {
        name: target.input_range
        for name, target in plan.targets.items()
        if target.input_range is not None
    }
    settings = {
        "norm": norm,
        **({"input_ranges": ranges} if ranges else {}),
        "clip": [as_json(end) for end in plan.clip],
        "radii": {
            f"{name:.10g}": as_json(radius)
            for name, radius in plan.radii.items()
            if not isinstance(radius, float)
        },
        "batch_size": batch_size,
        "seed": seed,
        "confidence": confidence,
        "options": {spec.name: _options(plan, spec) for spec in plan.attacks},
        "surrogates": {name: target.name for name, target in plan.surrogates.items()},
        "proxies": {name: target.name for name, target in plan.proxies.items()},
    }
    return RobustnessReport(
        tuple(_record(plan, name, correct[name], tallies, audits) for name in plan.targets),
        tuple(spec.name for spec in plan.attacks),
        plan.epsilons,
        plan.survivors_only,
        settings,
        hashlib.sha256("".join(digests).encode()).hexdigest()[:24],
        package_versions(),
        started,
    )


def _plan(
    models: Any,
    attacks: str | Sequence[str],
    epsilons: Any,
    norm: Norm,
    clip: tuple[Any, Any],
    batch_size: int,
    seed: int,
    survivors_only: bool | None,
    surrogates: Mapping[str, Any] | None,
    proxies: Mapping[str, Any] | None,
    options: Mapping[str, Mapping[str, Any]] | None,
    results: str | os.PathLike[str] | None,
) -> _Plan:
    """Check everything that can be checked before the first forward pass."""
    named = dict(models) if isinstance(models, Mapping) else {"model": models}
    if not named:
        raise ValueError("models is empty: give {name: model}")
    suites = attack_suites()
    suite = isinstance(attacks, str) and attacks in suites
    names = suites[str(attacks)] if suite else [attacks] if isinstance(attacks, str) else attacks
    if not names or len(set(names)) != len(names):
        raise ValueError(f"attacks must name at least one attack, each once; got {list(names)}")
    known = available_attacks()
    for name in names:
        if name not in known:
            raise ValueError(
                f"unknown attack {name!r}; known: {', '.join(known)}; or, in place of attacks, "
                f"one of the suites {', '.join(suites)}"
            )
    specs = tuple(known[name] for name in names)
    radii = _radii(epsilons)
    limits = as_clip(clip)
    for spec, radius in itertools.product(specs, radii.values()):
        checked_settings(spec.name, spec.norms, radius, norm, clip, batch_size)
    if norm == "linf":
        for radius in radii.values():
            checked_width(radius, limits)
    _only_known("surrogates", surrogates, named)
    _only_known("proxies", proxies, named)
    _only_known("options", options, {spec.name: spec for spec in specs})
    chosen = {name: dict(values) for name, values in (options or {}).items()}
    for spec in specs:
        unknown = set(chosen.get(spec.name, {})) - set(spec.defaults())
        if unknown:
            raise ValueError(
                f"attack {spec.name!r} has no option {sorted(unknown)}; it has "
                f"{sorted(spec.defaults())}"
            )
    sources = {name: as_target(model) for name, model in (surrogates or {}).items()}
    for name, source in sources.items():
        if not source.differentiable:
            raise ValueError(f"the surrogate of {name!r}, {source.name}, gives no gradients")
    return _Plan(
        {name: as_target(model) for name, model in named.items()},
        sources,
        {name: as_target(model) for name, model in (proxies or {}).items()},
        specs,
        radii,
        suite if survivors_only is None else survivors_only,
        norm,
        limits,
        batch_size,
        int(seed),
        chosen,
        {
            name: [
                model_digest(given[name])
                for given in (named, surrogates or {}, proxies or {})
                if name in given
            ]
            for name in named
        },
        ResultStore(results),
    )


def _radii(epsilons: Any) -> dict[float, Extent]:
    """Return the radii by what they are called, smallest first; each ball lies in the next.

    Raises:
        ValueError: There is none, one is not positive, or two of them are neither inside each
            other.
    """
    given = [epsilons] if np.ndim(epsilons) == 0 else list(epsilons)
    found: dict[float, Extent] = {}
    for value in sorted((as_extent(value, "epsilons") for value in given), key=largest):
        if largest(value) <= 0 or np.min(value) < 0:
            raise ValueError(f"epsilons must hold at least one radius, each > 0; got {epsilons}")
        last = next(reversed(found.values()), None)
        if last is not None and np.array_equal(last, value):
            continue
        if last is not None and (largest(value) == largest(last) or np.any(last > value)):
            raise ValueError(
                f"of the epsilons {shown(last)} and {shown(value)} neither lies inside the other: "
                "what breaks an image within the smaller one counts within the larger one; "
                "evaluate them apart"
            )
        found[largest(value)] = value
    if not found:
        raise ValueError(f"epsilons must hold at least one radius, each > 0; got {epsilons}")
    return found


def _identity(plan: _Plan, name: str, images: np.ndarray) -> list[str]:
    """Return what stands for a model, its surrogate and its proxy in the key of a piece.

    Where one can't be looked into, its answers to the images stand for it.
    """
    every = (plan.targets, plan.surrogates, plan.proxies)
    targets = [given[name] for given in every if name in given]
    return [
        known or digest(np.round(target.logits(images), 2))
        for known, target in zip(plan.identities[name], targets, strict=True)
    ]


def _only_known(argument: str, given: Mapping[str, Any] | None, known: Mapping[str, Any]) -> None:
    unknown = set(given or {}) - set(known)
    if unknown:
        raise UnknownNameError(
            f"{argument} names {sorted(unknown)}, but there are only {sorted(known)}"
        )


def _clean(plan: _Plan, name: str, images: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Return which clean images a model gets right, and check the labels against its classes."""
    target = plan.targets[name]
    predicted = target.predict(images)
    checked_label_range(labels, target.num_classes, repr(name))
    return predicted == labels


def _attack_batch(
    plan: _Plan,
    name: str,
    number: int,
    images: np.ndarray,
    labels: np.ndarray,
    right: np.ndarray,
    tallies: dict[tuple[str, float, str], _Tally],
    advance: Any,
) -> None:
    """Run every attack at every epsilon on one batch of one model."""
    standing = right.copy()
    for epsilon, spec in itertools.product(plan.epsilons, plan.attacks):
        tally = tallies[name, epsilon, spec.name]
        attempted = standing if plan.survivors_only else right
        if _skipped(plan, name, spec):
            attempted = np.zeros_like(right)
        broken = np.zeros_like(right)
        rows = np.flatnonzero(attempted)
        if len(rows):
            piece = _piece(plan, name, spec, epsilon, number, images[rows], labels[rows])
            broken[rows[np.array([bit == "1" for bit in piece["broken"]], bool)]] = True
            tally.queries += piece["queries"]
            tally.gradients += piece["gradients"]
            tally.seconds += piece["seconds"]
        tally.attempted.append(attempted.copy())
        tally.broken.append(broken)
        standing = standing & ~broken
        advance(f"{name}, {spec.name}, eps {epsilon:.3g}, {int(standing.sum())} standing")


def _skipped(plan: _Plan, name: str, spec: AttackSpec) -> str:
    target = plan.targets[name]
    return spec.missing(plan.surrogates.get(name, target), target.num_classes)


def _options(plan: _Plan, spec: AttackSpec) -> dict[str, Any]:
    options = {**spec.defaults(), **plan.options.get(spec.name, {})}
    return {key: as_json(value) for key, value in options.items()}


def _piece(
    plan: _Plan,
    name: str,
    spec: AttackSpec,
    epsilon: float,
    number: int,
    images: np.ndarray,
    labels: np.ndarray,
) -> dict[str, Any]:
    """Return the outcome of one attack on one batch, from the store if it is there."""
    target = plan.targets[name]
    # Batches differ in their random numbers, and so do attacks, whatever their order.
    text = f"{plan.seed}/{number}/{spec.name}/{epsilon:.12g}"
    seed = int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big")
    key = {
        "model": _identity(plan, name, images) if plan.store.folder else [],
        "attack": spec.name,
        "options": _options(plan, spec),
        "epsilon": as_json(plan.radii[epsilon]),
        "norm": plan.norm,
        "clip": [as_json(end) for end in plan.clip],
        "batch_size": plan.batch_size,
        "seed": seed,
        "examples": digest(images, labels),
    }
    found = plan.store.get(key, _PIECE)
    if found is not None and len(found["broken"]) == len(images):
        return found
    result = run_attack(
        spec.name,
        target,
        images,
        labels,
        plan.radii[epsilon],
        norm=plan.norm,
        clip=plan.clip,
        batch_size=plan.batch_size,
        seed=seed,
        surrogate=plan.surrogates.get(name) if spec.gradients else None,
        proxy=plan.proxies.get(name),
        **plan.options.get(spec.name, {}),
    )
    _check_inside(spec.name, images, result.x_adv, plan.radii[epsilon], plan.norm, plan.clip)
    broken = target.predict(result.x_adv) != labels
    made = {
        "broken": "".join("1" if value else "0" for value in broken),
        "queries": int(result.queries.sum()) + len(images),
        "gradients": int(result.gradients.sum()),
        "seconds": float(result.seconds),
    }
    plan.store.put(key, made)
    return made


def _check_inside(
    attack: str,
    x: np.ndarray,
    x_adv: np.ndarray,
    epsilon: Extent,
    norm: str,
    clip: tuple[Extent, Extent],
) -> None:
    """Raise if an attack cheated: its images left the ball or the clip range."""
    if x_adv.shape != x.shape or not np.isfinite(x_adv).all():
        raise RuntimeError(
            f"attack {attack!r} returned NaN or the shape {x_adv.shape} for {x.shape}"
        )
    moved = x_adv.astype(np.float64) - x
    size = np.abs(moved) if norm == "linf" else l2_norm(moved)
    slack = 1e-6 * max(1.0, *(float(np.max(np.abs(end))) for end in clip))
    in_clip = np.all((x_adv >= clip[0] - slack) & (x_adv <= clip[1] + slack))
    if np.any(size > epsilon + slack) or not in_clip:
        raise RuntimeError(
            f"attack {attack!r} left the allowed region: distance {size.max():.6g} for epsilon "
            f"{shown(epsilon)}, values {x_adv.min():.6g} to {x_adv.max():.6g} for clip "
            f"({shown(clip[0])}, {shown(clip[1])})"
        )


def _record(
    plan: _Plan,
    name: str,
    correct: list[np.ndarray],
    tallies: dict[tuple[str, float, str], _Tally],
    audits: Mapping[str, Any] | None,
) -> ModelRecord:
    records = []
    for epsilon, spec in itertools.product(plan.epsilons, plan.attacks):
        tally = tallies[name, epsilon, spec.name]
        uses = name in plan.surrogates and spec.gradients
        records.append(
            AttackRecord(
                spec.name,
                epsilon,
                np.concatenate(tally.attempted),
                np.concatenate(tally.broken),
                tally.queries,
                tally.gradients,
                tally.seconds,
                _skipped(plan, name, spec),
                plan.surrogates[name].name if uses else "",
            )
        )
    audit = (audits or {}).get(name)
    plain = audit if audit is None or isinstance(audit, dict) else audit.to_dict()
    return ModelRecord(name, np.concatenate(correct), tuple(records), plain)
