"""Measure the trained network of a run: attacks, suite, audit, amplification, integer file."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

import tfdq
from tfdq.data import Dataset
from tfdq.data.dataset import draw_stratified
from tfdq.either_keras import is_quantized
from tfdq.experiments.images import scaled
from tfdq.experiments.machines import Machines
from tfdq.experiments.networks import load_keras3
from tfdq.experiments.process import TF_KERAS, threads_of
from tfdq.experiments.settings import EvaluationSettings, parse_squeezer
from tfdq.experiments.suite import NO_SUITE, attack_options, suite_of
from tfdq.robustness import (
    RobustnessReport,
    audit,
    error_amplification,
    evaluate,
    run_attack,
)
from tfdq.robustness.attacks import attack_spec
from tflite_export import IntegerTwin, Interpreter, ParityError, convert, integer_only

CHUNK = 250
"""Images that are attacked together; each chunk has random numbers of its own."""

_CALIBRATION = 256
# The runtime computes on the CPU, one call for every step of an attack.
_FILE_IMAGES = 1000
# What an audit needs at least, rightly classified.
_AUDITED = 8


def evaluation_images(
    dataset: Dataset, images: int, held_out: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """Return test images in [0, 1] and their labels: the same ones for every run.

    Args:
        dataset: the images.
        images: how many at most; the classes are in proportion.
        held_out: draw them from the half of the test images that calls without it for up to as many
            images never draw from.

    Raises:
        ValueError: that leaves fewer than asked for.
    """
    if held_out:
        count = len(dataset.y_test)
        if 2 * images > count:
            raise ValueError(
                f"evaluation.held_out with evaluation.images = {images} needs {2 * images} test "
                f"images, {dataset.name} has {count}; lower evaluation.images"
            )
        # A smaller draw is a part of a larger one, but for rounding: hence both.
        drawn = [draw_stratified(dataset.y_test, n, seed=0) for n in (count // 2, images)]
        left = np.setdiff1d(np.arange(count), np.concatenate(drawn))
        dataset = replace(dataset, x_test=dataset.x_test[left], y_test=dataset.y_test[left])
    part = dataset.subset(test=min(images, len(dataset.y_test)), seed=0)
    # The draw is sorted by position: mixed again, so that the first of them are a fair part, too.
    order = np.random.default_rng(0).permutation(len(part.y_test))
    return scaled(part.x_test[order]), part.y_test[order]


def load_trained(path: Path, backend: str) -> Any:
    """Return the model that a training wrote, of the Keras that trained it.

    Args:
        path: of the model.
        backend: what it was trained on.
    """
    return tfdq.load_model(path, compile=False) if backend == TF_KERAS else load_keras3(path)


class Measurement:
    """What is measured on one trained network; every finished piece is kept in its folder.

    Args:
        settings: what to measure.
        seed: of the attacks.
        dataset: the images.
        folder: of the run, with ``model.keras`` in it.
        machines: the devices; images are shared out among them.
        tell: called with a note as it goes on.
        backend: what the network was trained on.
    """

    def __init__(
        self,
        settings: EvaluationSettings,
        seed: int,
        dataset: Dataset,
        folder: Path,
        machines: Machines,
        tell: Callable[[str], None] = lambda note: None,
        backend: str = TF_KERAS,
    ) -> None:
        self.backend = backend
        self.settings, self.seed, self.folder = settings, seed, folder
        self.machines, self.tell = machines, tell
        self.x, self.y = evaluation_images(dataset, settings.images, settings.held_out)
        self.copies = {device: self._load(device) for device in machines.devices()}
        self.model = next(iter(self.copies.values()))

    def _load(self, device: str) -> Any:
        with self.machines.on(device):
            model = load_trained(self.folder / "model.keras", self.backend)
            return _squeezed(model, self.settings.squeezing)

    def run(self) -> dict[str, Any]:
        """Measure everything; JSON-ready.

        Figures for each image are strings of 0 and 1, one character an image, 1 where the network
        is right (clean and under the attack).
        """
        settings = self.settings
        self.tell("attacks")
        plain = self._attack(self.copies, settings.attacks, settings.epsilons, len(self.x))
        found: dict[str, Any] = {
            "images": len(self.x),
            "clean": _bits(plain.model("model").correct),
            "attacks": _single(plain, settings.epsilons),
        }
        runners: dict[str, Interpreter] = {}
        if settings.export and is_quantized(self.model):
            self.tell("integer file")
            found["tflite"], runners = self._exported()
        if settings.suite != NO_SUITE and settings.suite_images:
            self.tell("suite")
            # The file answers Square's queries several times faster; the network decides.
            found["suite"] = self._suite(
                self.copies, settings.suite_images, proxies=runners or None
            )
            if runners and settings.tflite_images:
                self.tell("suite on the integer file")
                found["tflite"]["suite"] = self._suite(
                    runners, settings.tflite_images, surrogates=self.copies
                )
        if settings.amplification:
            self.tell("amplification")
            found["amplification"] = self._amplification()
        if settings.audit_images:
            right = found["clean"].count("1")
            if right < _AUDITED:
                self.tell(f"no audit: {right} of {len(self.x)} images are right, {_AUDITED} needed")
                found["audit_left_out"] = f"{right} of {len(self.x)} images right"
            else:
                self.tell("audit")
                found["audit"] = self._audit()
        return found

    def _attack(
        self,
        copies: Mapping[str, Any],
        attacks: Sequence[str],
        epsilons: Sequence[float],
        images: int,
        survivors_only: bool = False,
        surrogates: Mapping[str, Any] | None = None,
        proxies: Mapping[str, Any] | None = None,
    ) -> RobustnessReport:
        """Attack chunk by chunk, on all devices; the figures do not depend on their number."""
        starts = list(range(0, images, CHUNK))

        def chunk(number: int, device: str) -> RobustnessReport:
            part = slice(starts[number], min(starts[number] + CHUNK, images))
            with self.machines.on(device):
                return evaluate(
                    {"model": copies[device]},
                    self.x[part],
                    self.y[part],
                    attacks=list(attacks),
                    epsilons=[strength / 255 for strength in epsilons],
                    batch_size=CHUNK,
                    seed=self.seed * 1_000_003 + number,
                    survivors_only=survivors_only,
                    surrogates=None if surrogates is None else {"model": surrogates[device]},
                    proxies=None if proxies is None else {"model": proxies[device]},
                    options={name: attack_options(self.settings, name) for name in attacks},
                    results=self.folder / "pieces",
                    progress=False,
                )

        devices = list(copies)
        if self.machines.workers > 1:
            for number in range(self.machines.worker, len(starts), self.machines.workers):
                chunk(number, devices[0])
            self.machines.wait_for_all()

        def share(index: int) -> list[RobustnessReport]:
            return [chunk(n, devices[index]) for n in range(index, len(starts), len(devices))]

        if len(devices) == 1:
            parts = [share(0)]
        else:
            with ThreadPoolExecutor(len(devices)) as pool:
                parts = list(pool.map(share, range(len(devices))))
        return joined([parts[n % len(devices)][n // len(devices)] for n in range(len(starts))])

    def _suite(
        self,
        copies: Mapping[str, Any],
        images: int,
        surrogates: Mapping[str, Any] | None = None,
        proxies: Mapping[str, Any] | None = None,
    ) -> dict[str, Any]:
        """Return which images stand the white-box attacks, and which stand the black-box ones."""
        count, strengths = min(images, len(self.x)), self.settings.suite_strengths
        # Some attacks take the network apart, which a squeezer in front does not let them.
        open_to_them = is_quantized(self.model) and not self.settings.squeezing
        all_white_box, black_box = suite_of(self.settings)
        white_box = [
            name for name in all_white_box if open_to_them or not attack_spec(name).quantized
        ]
        white = self._attack(copies, white_box, strengths, count, True, surrogates, proxies)
        black = self._attack(copies, black_box, strengths, count, True, None, proxies)
        return {
            "attacks": [*white_box, *black_box],
            "black_box": list(black_box),
            "target_classes": self.settings.target_classes,
            "images": count,
            "clean": _bits(white.model("model").correct),
            "eps": {
                _name(strength): {
                    "white_box": _bits(white.survived("model", strength / 255)),
                    "black_box": _bits(black.survived("model", strength / 255)),
                    "worst": _bits(
                        white.survived("model", strength / 255)
                        & black.survived("model", strength / 255)
                    ),
                }
                for strength in strengths
            },
        }

    def _amplification(self) -> dict[str, Any]:
        moved = {
            strength: run_attack(
                "fgsm", self.model, self.x, self.y, strength / 255, early_stop=False, seed=self.seed
            ).x_adv
            for strength in self.settings.amplification
        }
        measured = error_amplification({"model": self.model}, self.x, moved, progress=False)
        return {
            _name(curve.strength): {
                "layers": list(curve.layers),
                "distance": list(curve.distance),
                "deviation": list(curve.deviation),
            }
            for curve in measured.curves
        }

    def _file(self) -> Path:
        """Return where the integer file goes; a squeezed network has one of its own."""
        return self.folder / f"{'-'.join(['model', *self.settings.squeezing])}.tflite"

    def _exported(self) -> tuple[dict[str, Any], dict[str, Interpreter]]:
        """Export, verify and attack the integer file, gradients from the network it is made of.

        Returns:
            Its figures, and the file in the runtime for each device; none if it does not compute
            what was trained.
        """
        path = self._file()
        try:
            content = convert(self.model, calibration=self.x[:_CALIBRATION], round_biases=False)
        except ParityError as error:
            return {"failed": str(error)}, {}
        proof = integer_only(content.content)
        if not proof:
            raise RuntimeError(f"the export of {str(self.folder)!r} is not integer-only: {proof}")
        if self.machines.chief:
            unfinished = path.with_name("unfinished.tflite")
            content.save(unfinished)
            unfinished.replace(path)
        settings = self.settings
        threads = threads_of(self.backend)
        runners = {
            device: content.interpreter(batch_size=CHUNK, threads=threads) for device in self.copies
        }
        count = min(len(self.x), _FILE_IMAGES)
        plain = self._attack(
            runners, settings.attacks, settings.epsilons, count, False, self.copies
        )
        right = content.interpreter(batch_size=CHUNK, threads=threads).predict(self.x)
        found = {
            "bytes": len(content),
            "sha256": hashlib.sha256(content.content).hexdigest(),
            "integer_only": True,
            "exact": content.parity.exact,
            "agreement": content.parity.agreement,
            "parity": str(content.parity),
            "clean": _bits(np.argmax(right, axis=-1) == self.y),
            "attacks": _single(plain, settings.epsilons),
        }
        return found, runners

    def _audit(self) -> dict[str, Any]:
        path = self._file()
        exported = path.exists()
        verdict = audit(
            self.model,
            self.x,
            self.y,
            eps=max(self.settings.suite_strengths) / 255,
            examples=self.settings.audit_images,
            queries=self.settings.audit_queries,
            twin=IntegerTwin(path) if exported else None,
            tflite=Interpreter(path, batch_size=CHUNK) if exported else None,
            seed=self.seed,
            progress=False,
        )
        return verdict.to_dict()


def joined(parts: Sequence[RobustnessReport]) -> RobustnessReport:
    """Return one report over the images of several, in their order.

    Raises:
        ValueError: there are none, or they are of different models or attacks.
    """
    if not parts:
        raise ValueError("there are no reports to join")
    first = parts[0]
    shapes = {(r.attacks, r.epsilons, tuple(m.name for m in r.models)) for r in parts}
    if len(shapes) > 1:
        raise ValueError("reports of different models, attacks or epsilons can't be joined")
    models = []
    for index, record in enumerate(first.models):
        records = [part.models[index] for part in parts]
        attacks = tuple(
            replace(
                piece,
                attempted=np.concatenate([r.attacks[n].attempted for r in records]),
                broken=np.concatenate([r.attacks[n].broken for r in records]),
                queries=sum(r.attacks[n].queries for r in records),
                gradients=sum(r.attacks[n].gradients for r in records),
                seconds=sum(r.attacks[n].seconds for r in records),
            )
            for n, piece in enumerate(record.attacks)
        )
        correct = np.concatenate([r.correct for r in records])
        models.append(replace(record, correct=correct, attacks=attacks))
    digests = "".join(part.data_digest for part in parts)
    return replace(
        first,
        models=tuple(models),
        data_digest=hashlib.sha256(digests.encode()).hexdigest()[:24],
    )


def _single(report: RobustnessReport, epsilons: Sequence[float]) -> dict[str, dict[str, str]]:
    """Return eps in 1/255 -> attack -> which images stand it."""
    return {
        _name(strength): {
            attack: _bits(report.survived("model", strength / 255, attack))
            for attack in report.attacks
        }
        for strength in epsilons
    }


def _name(strength: float) -> str:
    """Return a strength as a key of a result: 8 for 8.0."""
    return f"{strength:.10g}"


def _bits(mask: np.ndarray) -> str:
    return "".join("1" if value else "0" for value in mask)


def _squeezed(model: Any, squeezing: Sequence[str]) -> Any:
    """Return a model of tf_keras behind the squeezers that are named; itself without any."""
    if not squeezing:
        return model
    from tfdq.robustness import BitDepthSqueeze, MedianSqueeze, squeeze

    kinds = {"bit_depth": BitDepthSqueeze, "median": MedianSqueeze}
    named = [parse_squeezer(text) for text in squeezing]
    return squeeze(model, [kinds[kind](number) for kind, number in named])
