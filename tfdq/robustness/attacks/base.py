"""One call shape for every attack: the bookkeeping, `attack` and `run_attack`."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from copy import copy
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from tfdq.mistakes import WrongTypeError
from tfdq.robustness.attacks.inputs import (
    checked_images_and_labels,
    checked_label_range,
    checked_settings,
)
from tfdq.robustness.attacks.projections import linf_bounds, project_l2
from tfdq.robustness.attacks.ranges import Extent, as_json, check_broadcast, largest
from tfdq.robustness.attacks.registry import attack_spec
from tfdq.robustness.targets import (
    DEFAULT_BATCH_SIZE,
    LossFunction,
    Target,
    as_target,
    no_gradients_message,
)

Norm = Literal["linf", "l2"]

# Images per batch from which on the time of a small network grows in proportion.
_EFFICIENT_BATCH = 128


@dataclass
class AttackTask:
    """One batch of images under attack: what an attack may ask, and what is written down.

    Attributes:
        target: The classifier to break.
        surrogate: The classifier that gradients come from; the target itself unless one was given.
        proxy: Classifier for gradient-free queries; the target unless one was given.
        x: Clean images, float32 [n, ...].
        y: True labels, int64 [n].
        eps: Radius of the ball, in input units; in L_inf also one for each channel, float64.
        norm: ``"linf"`` or ``"l2"``.
        clip: Range of the inputs, each end likewise.
        rng: The source of every random number the attack draws.
        clean_logits: The target's logits of the clean images, float32 [n, classes].
        early_stop: Leave images alone once they are misclassified. If False, an attack runs to its
            end and returns the images of highest loss, as wanted for transfer.
        adversarial: The best image so far for each example; clean images to begin with.
        broken: Whether `adversarial` is known to be misclassified, bool [n].
        queries: Forward passes spent on each image, int64 [n].
        gradients: Gradients (a forward and a backward pass) spent on each image, int64 [n].
    """

    target: Target
    surrogate: Target
    x: np.ndarray
    y: np.ndarray
    eps: Extent
    norm: Norm
    clip: tuple[Extent, Extent]
    rng: np.random.Generator
    clean_logits: np.ndarray
    early_stop: bool = True
    proxy: Target | None = None
    adversarial: np.ndarray = field(init=False)
    broken: np.ndarray = field(init=False)
    queries: np.ndarray = field(init=False)
    gradients: np.ndarray = field(init=False)
    lower: np.ndarray = field(init=False)
    upper: np.ndarray = field(init=False)

    def __post_init__(self) -> None:
        """Sets up the bounds and the counters."""
        n = len(self.x)
        self.adversarial = self.x.copy()
        self.broken = np.zeros(n, bool)
        self.queries = np.zeros(n, np.int64)
        self.gradients = np.zeros(n, np.int64)
        self.lower, self.upper = linf_bounds(
            self.x, self.eps if self.norm == "linf" else np.inf, self.clip
        )

    def through(self, surrogate: Target) -> AttackTask:
        """The same images and books, with the gradients of another model."""
        other = copy(self)
        other.surrogate = surrogate
        return other

    def active(self) -> np.ndarray:
        """Indices of the examples still to be worked on, int64."""
        return np.flatnonzero(~self.broken) if self.early_stop else np.arange(len(self.x))

    def targeted_batches(self, target_classes: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Batches for targeted attacks: examples still to be broken, and a class for each.

        Classes come in the order of the clean logits, most likely wrong one first. A network is
        slow on few images, so where few examples are left, several classes are aimed at in one
        batch: an example then appears once for each, and leaves with all copies when it breaks.

        Args:
            target_classes: How many classes to aim at; all wrong ones if there are fewer.

        Yields:
            Indices of examples, int64 [m], and classes, float32 [m].
        """
        ranked = np.argsort(self.clean_logits, axis=1, kind="stable")[:, ::-1]
        rank, last = 1, min(target_classes, ranked.shape[1] - 1)
        while rank <= last:
            rows = self.active()
            if len(rows) == 0:
                return
            together = min(max(1, _EFFICIENT_BATCH // len(rows)), last + 1 - rank)
            aims = ranked[rows, rank : rank + together].T.reshape(-1)
            yield np.tile(rows, together), aims.astype(np.float32)
            rank += together

    def project(self, x_adv: np.ndarray, rows: np.ndarray | None = None) -> np.ndarray:
        """The images moved into the ball and the clip range, exactly in float32.

        Args:
            x_adv: Candidates for the examples `rows` (all of them if None).
            rows: Indices of the examples.

        Returns:
            float32 images.
        """
        rows = np.arange(len(self.x)) if rows is None else rows
        x_adv = x_adv.astype(np.float32, copy=False)
        if self.norm == "linf":
            return np.minimum(np.maximum(x_adv, self.lower[rows]), self.upper[rows])
        return project_l2(x_adv, self.x[rows], largest(self.eps), self.clip)

    def logits(self, x_adv: np.ndarray, rows: np.ndarray, *, record: bool = True) -> np.ndarray:
        """The target's logits, counted as queries; misclassified candidates are noted.

        Args:
            x_adv: Candidates, inside the ball unless `record` is False.
            rows: The examples they belong to.
            record: Note the successes among them.

        Returns:
            float32 logits, [len(rows), classes].
        """
        logits = self.target.logits(x_adv)
        np.add.at(self.queries, rows, 1)
        if record:
            self.record(x_adv, logits, rows)
        return logits

    def scores(self, x_adv: np.ndarray, rows: np.ndarray, *, record: bool = True) -> np.ndarray:
        """Logits without gradients: the proxy's where there is one, else the target's.

        Counted as queries. What a proxy misclassifies is put to the target, and noted only if
        that agrees; an answer in which the two differ is the target's.

        Args:
            x_adv: Candidates, inside the ball unless `record` is False.
            rows: The examples they belong to.
            record: Note the successes among them; else the target is not asked.

        Returns:
            float32 logits, [len(rows), classes].
        """
        if self.proxy is None:
            return self.logits(x_adv, rows, record=record)
        logits = self.proxy.logits(x_adv)
        np.add.at(self.queries, rows, 1)
        if not record:
            return logits
        doubtful = np.flatnonzero(np.argmax(logits, axis=1) != self.y[rows])
        if len(doubtful):
            logits[doubtful] = self.logits(x_adv[doubtful], rows[doubtful])
        return logits

    def loss_gradient(
        self,
        loss: LossFunction,
        x_adv: np.ndarray,
        rows: np.ndarray,
        aux: np.ndarray | None = None,
        *,
        record: bool = True,
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Logits, losses and input gradients, counted; misclassified candidates are noted.

        With a surrogate, losses and gradients are the surrogate's and the logits are the target's
        (one query more, unless the surrogate is known to have the target's values); without
        `record` the target is not asked and the logits are the surrogate's.

        Args:
            loss: See `Target.loss_gradient`.
            x_adv: Candidates.
            rows: The examples they belong to.
            aux: One number per candidate for the loss.
            record: Note the successes among them.

        Returns:
            float32 logits [m, classes], losses [m], gradients [m, ...].
        """
        logits, losses, gradients = self.surrogate.loss_gradient(loss, x_adv, self.y[rows], aux)
        np.add.at(self.gradients, rows, 1)
        if record:
            if self.target not in (self.surrogate, getattr(self.surrogate, "values_of", None)):
                logits = self.logits(x_adv, rows)
            else:
                self.record(x_adv, logits, rows)
        return logits, losses, gradients

    def record(self, x_adv: np.ndarray, logits: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """Notes the candidates that are misclassified and belong to examples not yet broken.

        Returns:
            Whether each candidate is misclassified, bool [len(rows)].
        """
        wrong = np.argmax(logits, axis=1) != self.y[rows]
        new = wrong & ~self.broken[rows]
        self.adversarial[rows[new]] = x_adv[new]
        self.broken[rows[new]] = True
        return wrong


@dataclass(frozen=True)
class AttackResult:
    """What an attack did to each image.

    Attributes:
        x_adv: Adversarial images, float32 like the input, inside the ball and the clip range;
            unchanged where the clean image was already misclassified (unless `early_stop=False`).
        success: Whether the target misclassifies `x_adv`, bool [n].
        correct: Whether the target classified the clean image rightly, bool [n].
        labels: The true labels, int64 [n].
        queries: Forward passes of the target per image, int64 [n]; the passes that establish
            `correct` and `success` count.
        gradients: Gradients per image, int64 [n] (each is a forward and a backward pass).
        seconds: Wall time, tracing included.
        settings: Everything needed to repeat the run, ready for JSON.
    """

    x_adv: np.ndarray
    success: np.ndarray
    correct: np.ndarray
    labels: np.ndarray
    queries: np.ndarray
    gradients: np.ndarray
    seconds: float
    settings: dict[str, Any]

    @property
    def clean_accuracy(self) -> float:
        """Share of clean images classified rightly."""
        return float(np.mean(self.correct))

    @property
    def robust_accuracy(self) -> float:
        """Share of images still classified rightly after the attack."""
        return float(np.mean(~self.success))


def attack(
    name: str,
    model: Any,
    x: Any,
    y: Any,
    eps: Any,
    *,
    norm: Norm = "linf",
    clip: tuple[Any, Any] = (0.0, 1.0),
    batch_size: int = DEFAULT_BATCH_SIZE,
    seed: int = 0,
    surrogate: Any = None,
    proxy: Any = None,
    early_stop: bool = True,
    **options: Any,
) -> np.ndarray:
    """Adversarial images: `run_attack(...).x_adv`; see there for arguments and errors."""
    return run_attack(
        name,
        model,
        x,
        y,
        eps,
        norm=norm,
        clip=clip,
        batch_size=batch_size,
        seed=seed,
        surrogate=surrogate,
        proxy=proxy,
        early_stop=early_stop,
        **options,
    ).x_adv


def run_attack(
    name: str,
    model: Any,
    x: Any,
    y: Any,
    eps: Any,
    *,
    norm: Norm = "linf",
    clip: tuple[Any, Any] = (0.0, 1.0),
    batch_size: int = DEFAULT_BATCH_SIZE,
    seed: int = 0,
    surrogate: Any = None,
    proxy: Any = None,
    early_stop: bool = True,
    progress: Callable[[int, int], None] | None = None,
    **options: Any,
) -> AttackResult:
    """Attacks a classifier and reports what happened to each image.

    Args:
        name: Of a registered attack: ``fgsm r+fgsm bim pgd mim cw spsa apgd-ce apgd-dlr apgd-t fab
            square`` and more; `available_attacks` lists them.
        model: What to attack: anything `as_target` takes.
        x: Images, NumPy [n, ...] or a finite `tf.data.Dataset` of batches of images, of (images,
            labels) batches or of single (image, label) examples; within `clip`.
        y: Labels, integers [n] or one-hot [n, classes]; None if the dataset has them.
        eps: Radius of the perturbation, in input units: 8/255 for images in [0, 1]. In L_inf also
            one for each channel: `8 / 255 / std` for images normalized to `(x - mean) / std`.
        norm: ``"linf"`` or ``"l2"``.
        clip: Smallest and largest value of an input; each a number, or one for each channel.
        batch_size: Images attacked together.
        seed: Of every random choice; the same seed and batch size give the same images.
        surrogate: A differentiable model to take gradients from: another network (transfer), or a
            differentiable approximation of a target without useful gradients (BPDA, Athalye et al.
            2018).
        proxy: A faster classifier with nearly the same answers, for queries without gradients
            (random searches, FAB's test of the side it is on): the exported ``.tflite`` of a
            quantized Keras model. Only what breaks the target itself counts.
        early_stop: Leave images alone once they are misclassified, and attack no image that is
            misclassified from the start. False maximises the loss on every image, for transfer.
        progress: Called with (images done, images in all) after each batch.
        **options: The attack's own options; see its page or `available_attacks()[name].defaults()`.

    Returns:
        The `AttackResult`.

    Raises:
        ValueError: NaN images, images outside `clip`, labels out of range, a negative `eps`, an
            unknown attack or norm, an attack that needs gradients of a black box, probabilities
            where logits are expected.
        TypeError: An option the attack does not have, labels that are no class numbers.
    """
    started = time.perf_counter()
    spec = attack_spec(name)
    radius, limits = checked_settings(spec.name, spec.norms, eps, norm, clip, batch_size)
    defaults = spec.defaults()
    unknown = sorted(set(options) - set(defaults))
    if unknown:
        raise WrongTypeError(
            f"{name} has no option {', '.join(unknown)}; it has: {', '.join(defaults) or 'none'}"
        )
    images, labels = checked_images_and_labels(x, y, limits)
    check_broadcast(radius, images.shape[1:], "eps")
    target = as_target(model)
    source = target if surrogate is None else as_target(surrogate)
    if spec.gradients and not source.differentiable:
        raise ValueError(f"{name} needs gradients: " + no_gradients_message(source.name))
    if spec.quantized and not source.quantized:
        raise ValueError(
            f"{name} looks inside a quantized model of tf_keras, which {source.name} is not; "
            "attack what tfdq.quantize_model made of one (tfdq.from_keras3 makes one of a float "
            "Keras 3 model), or pass it as surrogate="
        )
    queried = None if proxy is None else as_target(proxy)
    x_adv = images.copy()
    correct = np.zeros(len(images), bool)
    success = np.zeros(len(images), bool)
    queries = np.zeros(len(images), np.int64)
    gradients = np.zeros(len(images), np.int64)
    for number, start in enumerate(range(0, len(images), batch_size)):
        batch = slice(start, start + batch_size)
        clean_logits = target.logits(images[batch])
        checked_label_range(labels[batch], clean_logits.shape[1], target.name)
        if target.num_classes < spec.least_classes:
            raise ValueError(
                f"{name} needs at least {spec.least_classes} classes, {target.name} has "
                f"{target.num_classes}"
            )
        correct[batch] = np.argmax(clean_logits, axis=1) == labels[batch]
        queries[batch] += 1
        rows = start + np.flatnonzero(correct[batch] | (not early_stop))
        if len(rows):
            task = AttackTask(
                target,
                source,
                images[rows],
                labels[rows],
                radius,
                norm,
                limits,
                np.random.default_rng([seed, number]),
                clean_logits[rows - start],
                early_stop,
                queried,
            )
            final = spec.function(task, **options)
            if early_stop:
                final = np.where(
                    task.broken.reshape(-1, *[1] * (images.ndim - 1)), task.adversarial, final
                )
            x_adv[rows] = task.project(final)
            queries[rows] += task.queries + 1
            gradients[rows] += task.gradients
        success[batch] = ~correct[batch]
        if len(rows):
            success[rows] = target.predict(x_adv[rows]) != labels[rows]
        if progress is not None:
            progress(min(start + batch_size, len(images)), len(images))
    settings = {
        "attack": name,
        "target": target.name,
        **({} if target.input_range is None else {"input_range": target.input_range}),
        "surrogate": None if source is target else source.name,
        "proxy": None if queried is None else queried.name,
        "eps": as_json(radius),
        "norm": norm,
        "clip": [as_json(end) for end in limits],
        "batch_size": batch_size,
        "seed": seed,
        "early_stop": early_stop,
        "options": {key: as_json(value) for key, value in {**defaults, **options}.items()},
    }
    return AttackResult(
        x_adv,
        success,
        correct,
        labels,
        queries,
        gradients,
        time.perf_counter() - started,
        settings,
    )
