"""Checks that compare attacks with each other: a stronger one must not look weaker.

The figure to be believed is the accuracy that the white-box attacks leave; most checks ask what
share of the examples some further effort breaks that those did not.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from tfdq.robustness.attacks.ranges import largest
from tfdq.robustness.masking.task import SINGLE_STEPS, AuditTask
from tfdq.robustness.masking.verdict import Check
from tfdq.robustness.targets import DifferentiableTarget

ATHALYE = "Athalye, Carlini, Wagner 2018 (Obfuscated Gradients), section 3.1"
CARLINI = "Carlini et al. 2019 (On Evaluating Adversarial Robustness)"
EPSILON_FACTORS = (0.5, 1.0, 2.0, 4.0)
RESTARTS = 5
LOGIT_SCALES = (0.01, 0.1, 10.0, 100.0)


def single_step(task: AuditTask) -> Check:
    """One step of FGSM must not beat the iterated attack."""
    limit = task.thresholds.single_step_excess
    one = task.attack("fgsm").success
    iterated = task.pgd.success
    figures = {
        "fgsm_accuracy": _accuracy(one),
        "pgd_accuracy": _accuracy(iterated),
        "only_fgsm_breaks": float(np.mean(one & ~iterated)),
    }
    return task.verdict(
        "single step vs iterated",
        figures["pgd_accuracy"] <= figures["fgsm_accuracy"] + limit,
        figures,
        f"PGD-{SINGLE_STEPS} accuracy <= FGSM accuracy + {limit:g}",
        ATHALYE,
        "one step beats twenty: the gradient misleads away from the clean image",
    )


def black_box(task: AuditTask) -> Check:
    """Square, which sees no gradient, must not break what the white-box attacks do not."""
    limit = task.thresholds.black_box_only
    share = _gain(task, "square", queries=task.queries)
    white = _accuracy(task.white_box_broken)
    figures = {
        "white_box_accuracy": white,
        "accuracy_with_square": white - share,
        "only_square_breaks": share,
        "queries": task.queries,
    }
    return task.verdict(
        "white box vs black box",
        share <= limit,
        figures,
        f"share broken by Square only <= {limit:g}",
        f"{ATHALYE}; {CARLINI}, section 4.3",
        "an attack without gradients finds what the gradients hide",
    )


def transfer(task: AuditTask) -> Check:
    """Images made on other models must not break what the white-box attacks do not."""
    name, limit = "white box vs transfer", task.thresholds.transfer_only
    criterion = f"share broken by transferred images only <= {limit:g}"
    if not task.transfer_from:
        remark = "no independent model was given: transfer_from=, command line: --transfer-from"
        return Check(name, "not run", {}, criterion, CARLINI, remark)
    moved = np.zeros(len(task.x), bool)
    figures = {"white_box_accuracy": _accuracy(task.white_box_broken)}
    for other, surrogate in task.transfer_from.items():
        made = task.attack("pgd", target=surrogate, early_stop=False, steps=SINGLE_STEPS)
        hit = task.target.predict(made.x_adv) != task.y
        figures[f"accuracy_under_transfer_from_{other}"] = _accuracy(hit)
        moved |= hit
    only = float(np.mean(moved & ~task.white_box_broken))
    figures["only_transfer_breaks"] = only
    return task.verdict(
        name,
        only <= limit,
        figures,
        criterion,
        f"{ATHALYE}; {CARLINI}, section 4.4",
        "another model's images break what the model's own gradients do not",
    )


def unbounded(task: AuditTask) -> Check:
    """With the whole input range allowed, nothing may survive."""
    limit = task.thresholds.unbounded_accuracy
    whole = np.subtract(task.clip[1], task.clip[0])
    broken = np.zeros(len(task.x), bool)
    for loss in ("ce", "margin"):
        rows = np.flatnonzero(~broken)
        if len(rows):
            made = task.attack(
                "pgd", eps=whole, rows=rows, loss=loss, steps=60, step_size=whole / 8
            )
            broken[rows] |= made.success
    figures = {"epsilon": largest(whole), "accuracy": _accuracy(broken)}
    return task.verdict(
        "unbounded epsilon",
        figures["accuracy"] <= limit,
        figures,
        f"PGD accuracy at eps {largest(whole):g} <= {limit:g}",
        f"{ATHALYE}; {CARLINI}, section 4.2",
        "an attack that may turn an image into any other one does not find a way out",
    )


def random_sampling(task: AuditTask) -> Check:
    """Blind sampling in the ball must not break what the white-box attacks do not."""
    limit = task.thresholds.random_only
    rng = np.random.default_rng([task.seed, 101])
    rows = task.survivors
    total = len(task.x)
    found = 0
    for draw in range(task.queries):
        if not len(rows):
            break
        clean = task.x[rows]
        noise = rng.uniform(-task.eps, task.eps, clean.shape)
        if draw % 2:  # half of the draws on the corners, where most of what there is lies
            noise = task.eps * np.sign(noise)
        images = np.clip(clean + noise, *task.clip).astype(np.float32)
        standing = task.target.predict(images) == task.y[rows]
        found += int((~standing).sum())
        rows = rows[standing]
    figures = {"only_random_breaks": found / total, "samples_per_example": task.queries}
    return task.verdict(
        "random sampling",
        found / total <= limit,
        figures,
        f"share broken by random samples only <= {limit:g}",
        ATHALYE,
        "blind sampling finds what the gradients do not",
    )


def monotone(task: AuditTask) -> Check:
    """A larger ball must not leave more examples standing."""
    limit = task.thresholds.rise_with_epsilon
    epsilons = [largest(task.eps * factor) for factor in EPSILON_FACTORS]
    accuracies = [
        _accuracy(
            task.pgd.success
            if factor == 1
            else task.attack("pgd", eps=task.eps * factor, steps=SINGLE_STEPS).success
        )
        for factor in EPSILON_FACTORS
    ]
    rise = float(max(0.0, *np.diff(accuracies)))
    return task.verdict(
        "monotone in epsilon",
        rise <= limit,
        {"epsilons": epsilons, "accuracies": accuracies, "largest_rise": rise},
        f"accuracy rises by at most {limit:g} from one epsilon to the next",
        f"{ATHALYE}; {CARLINI}, section 4.2",
        "more room makes the attack worse: its search goes astray",
    )


def steps_plateau(task: AuditTask) -> Check:
    """Many more steps must not break what the white-box attacks left."""
    limit = task.thresholds.steps_gain
    counts = [SINGLE_STEPS, 2 * SINGLE_STEPS, 4 * SINGLE_STEPS, 8 * SINGLE_STEPS]
    accuracies = [_accuracy(task.attack("pgd", steps=n, loss="margin").success) for n in counts]
    gain = _gain(task, "pgd", steps=counts[-1], loss="margin")
    return task.verdict(
        "plateau in steps",
        gain <= limit,
        {"steps": counts, "accuracies": accuracies, "only_more_steps_break": gain},
        f"share broken by margin-PGD-{counts[-1]} only <= {limit:g}",
        f"{CARLINI}, section 4.5",
        "the attacks have not converged: their figure would go on falling",
    )


def restarts_plateau(task: AuditTask) -> Check:
    """Further random starts must not break what the white-box attacks left."""
    limit = task.thresholds.restarts_gain
    gain = _gain(task, "pgd", steps=2 * SINGLE_STEPS, loss="margin", restarts=RESTARTS)
    return task.verdict(
        "plateau in restarts",
        gain <= limit,
        {
            "white_box_accuracy": _accuracy(task.white_box_broken),
            "restarts": RESTARTS,
            "only_more_restarts_break": gain,
        },
        f"share broken by {RESTARTS} further random starts only <= {limit:g}",
        f"{CARLINI}, section 4.6",
        "success depends on the starting point: the loss surface is rugged",
    )


def logit_scale(task: AuditTask) -> Check:
    """Rescaling the logits, which changes no decision, must not break what else was left.

    PGD ascends the cross-entropy of the logits times several constants, among them the one that
    brings the median gap of the two largest logits to 1.
    """
    bounds = task.thresholds
    ordered = np.sort(task.source.logits(task.x), axis=1)
    typical = float(np.median(ordered[:, -1] - ordered[:, -2]))
    scales = sorted({1.0, *LOGIT_SCALES, 1.0 / max(typical, 1e-12)})
    broken = {
        scale: task.pgd.success if scale == 1.0 else _rescaled_pgd(task, scale) for scale in scales
    }
    accuracies = [_accuracy(broken[scale]) for scale in scales]
    any_scale = np.any(list(broken.values()), axis=0)
    gain = float(np.mean(any_scale & ~task.white_box_broken))
    over_pgd = _accuracy(broken[1.0]) - min(accuracies)
    return task.verdict(
        "logit scale",
        gain <= bounds.logit_scale_gain and over_pgd <= bounds.logit_scale_gain_over_pgd,
        {
            "scales": scales,
            "accuracies": accuracies,
            "gain_over_pgd": over_pgd,
            "only_rescaled_breaks": gain,
        },
        f"share broken by PGD on rescaled logits only <= {bounds.logit_scale_gain:g}; best scale "
        f"gains <= {bounds.logit_scale_gain_over_pgd:g} over PGD",
        "Gupta and Ajanthan 2022 (Improved Gradient-Based Adversarial Attacks for Quantized "
        f"Networks); {CARLINI}, section 4.7",
        "the softmax is saturated: gradients vanish in the loss, not in the network",
    )


def _gain(task: AuditTask, name: str, **options: Any) -> float:
    """Return the share of all examples that an attack breaks and the white-box attacks did not."""
    rows = task.survivors
    if not len(rows):
        return 0.0
    return float(task.attack(name, rows=rows, **options).success.sum()) / len(task.x)


def _rescaled_pgd(task: AuditTask, scale: float) -> np.ndarray:
    source = task.source
    scaled = DifferentiableTarget(
        lambda x: scale * source.logits_tensor(x),
        name=f"{source.name} x {scale:g}",
        logits_known=True,
        batch_size=source.batch_size,
        variables=lambda: source.variables,
    )
    made = task.attack("pgd", target=scaled, steps=SINGLE_STEPS)
    if source is task.target:
        return made.success
    return task.target.predict(made.x_adv) != task.y


def _accuracy(broken: np.ndarray) -> float:
    return float(1 - np.mean(broken))
