"""Run the checks of the gradient-masking audit on one model."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from tfdq.robustness.attacks.inputs import checked_label_range, checked_settings, checked_width
from tfdq.robustness.attacks.ranges import as_json, check_broadcast, largest
from tfdq.robustness.attacks.registry import attack_spec, attack_suites
from tfdq.robustness.batches import iterate_batches
from tfdq.robustness.deployed import DeployedFile
from tfdq.robustness.input_ranges import RescaledTarget
from tfdq.robustness.masking import attack_checks, deployment_checks, gradient_checks
from tfdq.robustness.masking.features import features_of
from tfdq.robustness.masking.planted import planted_image
from tfdq.robustness.masking.task import AuditTask, WhiteBox
from tfdq.robustness.masking.verdict import AuditThresholds, Check, MaskingAudit
from tfdq.robustness.progress import progress_bar
from tfdq.robustness.result_store import ResultStore, digest
from tfdq.robustness.targets import Target, as_target
from tfdq.robustness.versions import package_versions

_LOW_BIT: WhiteBox = ("low-bit", {"queries": 0})
_DEFAULT: tuple[WhiteBox, ...] = (("apgd-ce", {}), ("apgd-t", {"target_classes": 3}), _LOW_BIT)
_DEFAULT_FEW_CLASSES: tuple[WhiteBox, ...] = (
    ("apgd-ce", {}),
    ("pgd", {"steps": 50, "restarts": 2, "loss": "margin"}),
    _LOW_BIT,
)

# Name, function, and whether it needs gradients; in the order of the report.
_CHECKS: tuple[tuple[str, Callable[[AuditTask], Check], bool], ...] = (
    ("determinism", deployment_checks.determinism, False),
    ("zero gradients", gradient_checks.zero_gradients, True),
    ("local linearity", gradient_checks.local_linearity, True),
    ("logit scale", attack_checks.logit_scale, True),
    ("single step vs iterated", attack_checks.single_step, True),
    ("plateau in steps", attack_checks.steps_plateau, True),
    ("plateau in restarts", attack_checks.restarts_plateau, True),
    ("monotone in epsilon", attack_checks.monotone, True),
    ("unbounded epsilon", attack_checks.unbounded, True),
    ("random sampling", attack_checks.random_sampling, True),
    ("white box vs transfer", attack_checks.transfer, True),
    ("white box vs black box", attack_checks.black_box, True),
    ("model vs twin vs runtime", deployment_checks.twin_and_runtime, True),
)
_PLANTED = "planted adversarial image"
_PIECE = {"check": dict, "white_box_accuracy": object}
CHECK_NAMES = (*(name for name, _, _ in _CHECKS), _PLANTED)


def audit(
    model: Any,
    x: Any,
    y: Any = None,
    *,
    eps: Any = 8 / 255,
    clip: tuple[Any, Any] = (0.0, 1.0),
    examples: int = 256,
    surrogate: Any = None,
    transfer_from: Mapping[str, Any] | None = None,
    twin: Any = None,
    tflite: Any = None,
    white_box: str | Sequence[WhiteBox] = "default",
    queries: int = 1000,
    thresholds: AuditThresholds | None = None,
    checks: Sequence[str] | None = None,
    batch_size: int = 256,
    seed: int = 0,
    name: str | None = None,
    results: str | os.PathLike[str] | None = None,
    progress: bool | None = None,
) -> MaskingAudit:
    """Check whether a model's robust accuracy can be believed, or its gradients are masked.

    Works on the first `examples` images that the model classifies rightly, in L_inf. Each check
    keeps the figures behind its verdict, its threshold and its source; one that lacks what it needs
    says "not run".

    Args:
        model: Anything `as_target` takes.
        x: Images, shape (n, ...), or a `tf.data.Dataset` of `(image, label)`.
        y: Labels, (n,) or one-hot; None for a dataset.
        eps: Radius in input units, > 0: the one whose figures are to be believed; a number, or an
            array, one for each channel, which the audit then calls by its largest number.
        clip: `(lo, hi)` of valid inputs; each a number, or an array, one for each channel.
        examples: Largest number of images used, at least 8.
        surrogate: Where gradients come from if the model gives none, or in place of its own:
            those of a `.tflite` file are its integer twin's.
        transfer_from: Independently trained models `{name: model}` for the transfer check.
        twin: The exact integer twin of the model, a callable from images to logits; that of a
            `.tflite` file is known.
        tflite: The deployed file: its path, or an `Interpreter`.
        white_box: The best white-box effort, after PGD-20 on the cross-entropy: `(attack, options)`
            pairs; or the name of a suite of `evaluate`, whose attacks that use gradients are then
            taken (those that apply to the model); or `"default"`: APGD on the cross-entropy,
            targeted APGD with 3 targets (PGD on the margin where there are fewer than 4 classes),
            and on quantized models the gradient part of the low-bit attack. The audit judges what
            these attacks leave, so give those whose figures are to be believed.
        queries: Forward passes per image of Square and of random sampling.
        thresholds: Where to draw the lines; the defaults are in `AuditThresholds`.
        checks: Names of the checks to run, all by default; the others are "not run".
        batch_size: Images per batch.
        seed: Seed of every random choice.
        name: Name of the model in reports.
        results: Folder that keeps every finished check. Started again with the same folder, the
            audit goes on where it was cut off.
        progress: Show a progress bar on stderr; by default if that is a terminal.

    Returns:
        The audit; `.passed` says whether no check failed.

    Raises:
        ValueError: If an argument is out of range, an unknown check is named, or fewer than 8
            images are classified rightly.

    Source: Athalye, Carlini, Wagner, Obfuscated Gradients, ICML 2018; Carlini et al., On
    Evaluating Adversarial Robustness, 2019; and those named in the checks.

    Example:
        >>> verdict = audit(qat, x, y, eps=8 / 255, transfer_from={"float": model})
        >>> print(verdict.to_markdown())
    """
    started = time.perf_counter()
    radius, limits = checked_settings("audit", ("linf",), eps, "linf", clip, batch_size)
    if largest(radius) == 0:
        raise ValueError("eps must be > 0: there is nothing to audit in an empty ball")
    checked_width(radius, limits)
    if examples < 8 or queries < 1:
        raise ValueError(f"need examples >= 8 and queries >= 1, got {examples} and {queries}")
    wanted = CHECK_NAMES if checks is None else tuple(checks)
    unknown = set(wanted) - set(CHECK_NAMES)
    if unknown:
        raise ValueError(f"unknown checks {sorted(unknown)}; there are {list(CHECK_NAMES)}")
    target = as_target(model)
    source = target if surrogate is None else as_target(surrogate)
    _check_white_box(white_box)
    images, labels, clean, constant = _rightly_classified(
        target, x, y, examples, batch_size, limits
    )
    check_broadcast(radius, images.shape[1:], "eps")
    effort = _white_box(white_box, source, target.num_classes)
    task = AuditTask(
        target,
        source if source.differentiable else None,
        images,
        labels,
        radius,
        limits,
        batch_size,
        int(seed),
        effort,
        int(queries),
        thresholds or AuditThresholds(),
        {other: _named(other, given) for other, given in (transfer_from or {}).items()},
        _twin_of(target) if twin is None else as_target(twin),
        None if tflite is None else as_target(tflite),
    )
    settings = {
        **({} if target.input_range is None else {"input_range": target.input_range}),
        "clip": [as_json(end) for end in task.clip],
        **({} if isinstance(task.eps, float) else {"radius": as_json(task.eps)}),
        "surrogate": None if source is target else source.name,
        "transfer_from": sorted(task.transfer_from),
        "white_box": [[attack_name, dict(options)] for attack_name, options in effort],
        "queries": task.queries,
        "batch_size": batch_size,
        "seed": task.seed,
    }
    kept = _Kept(ResultStore(results), task, settings)
    features = features_of(surrogate if surrogate is not None else model, source)
    done = []
    with progress_bar(f"auditing {name or target.name}", len(CHECK_NAMES), progress) as advance:
        for check_name, function, needs_gradients in _CHECKS:
            done.append(_run(check_name, function, needs_gradients, check_name in wanted, kept))
            advance(check_name)
        done.append(
            _run(_PLANTED, lambda s: planted_image(s, features), True, _PLANTED in wanted, kept)
        )
        advance(_PLANTED)
    return MaskingAudit(
        name or target.name,
        largest(task.eps),
        len(images),
        tuple(done),
        settings,
        AuditThresholds(**asdict(task.thresholds)),
        package_versions(),
        time.perf_counter() - started,
        clean_accuracy=clean,
        white_box_accuracy=kept.white_box_accuracy,
        constant_class=constant,
    )


def _twin_of(target: Target) -> Target | None:
    """Return the integer twin behind a deployed file, None of another target."""
    if isinstance(target, RescaledTarget):
        inner = _twin_of(target.inner)
        return None if inner is None else RescaledTarget(inner, target.range)
    function = getattr(target, "function", None)
    if not isinstance(function, DeployedFile):
        return None
    return as_target(function.twin.model, name=f"twin of {target.name}")


def _check_white_box(given: str | Sequence[WhiteBox]) -> None:
    """Raise a ValueError if the suite or an attack is unknown, or an attack uses no gradients."""
    if isinstance(given, str):
        if given not in (*attack_suites(), "default"):
            raise ValueError(
                f"white_box must be 'default', one of {list(attack_suites())} or pairs, "
                f"got {given!r}"
            )
        return
    for name, _ in given:
        if not attack_spec(name).gradients:
            raise ValueError(f"white_box holds {name!r}, which uses no gradients")


def _white_box(
    given: str | Sequence[WhiteBox], source: Target, classes: int
) -> tuple[WhiteBox, ...]:
    """Return attacks with options: as given, or those of a suite that apply to the model."""
    if not isinstance(given, str):
        return tuple((name, dict(options)) for name, options in given)
    if given == "default":
        enough = all(classes >= attack_spec(name).least_classes for name, _ in _DEFAULT)
        pairs = _DEFAULT if enough else _DEFAULT_FEW_CLASSES
    else:
        pairs = tuple((name, {}) for name in attack_suites()[given] if attack_spec(name).gradients)
    return tuple(
        (name, dict(options))
        for name, options in pairs
        if not attack_spec(name).missing(source, classes)
    )


def _named(name: str, model: Any) -> Target:
    target = as_target(model)
    if not target.differentiable:
        raise ValueError(f"transfer_from[{name!r}] gives no gradients: it can't make the images")
    return target


def _run(
    name: str,
    function: Callable[[AuditTask], Check],
    needs_gradients: bool,
    wanted: bool,
    kept: _Kept,
) -> Check:
    """Run a check, or say why it was not."""
    if not wanted:
        return Check(name, "not run", {}, "", "", "not asked for")
    if needs_gradients and kept.task.surrogate is None:
        return Check(
            name, "not run", {}, "", "", "the model gives no gradients and no surrogate was given"
        )
    return kept.get(name, function)


class _Kept:
    """The checks of one audit, each done once, also across runs with the same folder.

    Args:
        store: Where they are kept.
        task: What is audited.
        settings: Of the audit.
    """

    def __init__(self, store: ResultStore, task: AuditTask, settings: dict[str, Any]) -> None:
        self.task = task
        self._store = store
        self._found: float | None = None
        others = (task.surrogate, task.twin, task.runtime)
        models = [task.target, *others, *task.transfer_from.values()]
        self._key: dict[str, Any] = {}
        if store.folder is not None:
            self._key = {
                "models": [m and digest(np.round(m.logits(task.x), 2)) for m in models],
                "examples": digest(task.x, task.y),
                "eps": as_json(task.eps),
                "settings": settings,
                "thresholds": asdict(task.thresholds),
            }

    @property
    def white_box_accuracy(self) -> float | None:
        """Share of the examples that the white-box attacks leave; None if they were not run."""
        measured = self.task.white_box_accuracy_if_known
        return self._found if measured is None else measured

    def get(self, name: str, function: Callable[[AuditTask], Check]) -> Check:
        """Return a check as it was kept, or run it and keep it."""
        key = {**self._key, "check": name}
        piece = self._store.get(key, _PIECE)
        if piece is not None:
            if isinstance(piece["white_box_accuracy"], float):
                self._found = piece["white_box_accuracy"]
            return Check(**piece["check"])
        check = function(self.task)
        piece = {"check": asdict(check), "white_box_accuracy": self.white_box_accuracy}
        self._store.put(key, piece)
        return check


def _rightly_classified(
    target: Target, x: Any, y: Any, examples: int, batch_size: int, clip: Any
) -> tuple[np.ndarray, np.ndarray, float, int | None]:
    """Find the first `examples` images that the target classifies rightly.

    Returns:
        The images and their labels; the accuracy on all that were looked at; the class that was
        given to all of those, if it was one.
    """
    images, labels, have, looked_at = [], [], 0, 0
    answers: set[int] = set()
    classes: set[int] = set()
    for batch, truth in iterate_batches(x, y, batch_size, clip):
        answer = target.predict(batch)
        right = answer == truth
        checked_label_range(truth, target.num_classes, target.name)
        looked_at += len(truth)
        answers.update(answer.tolist())
        classes.update(truth.tolist())
        images.append(batch[right])
        labels.append(truth[right])
        have += int(right.sum())
        if have >= examples:
            break
    if have < 8:
        raise ValueError(
            f"{target.name} classifies only {have} of the images rightly; an audit needs at least "
            "8. Are the labels and the clip range right?"
        )
    constant = answers.pop() if len(answers) == 1 < len(classes) else None
    x_right, y_right = np.concatenate(images)[:examples], np.concatenate(labels)[:examples]
    return x_right, y_right, have / looked_at, constant
