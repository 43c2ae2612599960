"""Run an experiment: every variant with every seed, each resumable, shared between processes."""

from __future__ import annotations

import gc
import hashlib
import itertools
import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from tfdq.data import Dataset, steps_per_epoch
from tfdq.experiments.blackbox import transfer
from tfdq.experiments.folder import BusyError, hold, join_folder, write_json
from tfdq.experiments.known_results import KnownResults
from tfdq.experiments.machines import Machines, check_batch, scaled_to
from tfdq.experiments.measuring import Measurement, evaluation_images
from tfdq.experiments.networks import build, load_images, with_start_digest
from tfdq.experiments.process import forget_networks
from tfdq.experiments.recipe import OTHER_SEED, Recipe, Transfer, Variant
from tfdq.experiments.resumable import train_run
from tfdq.experiments.run_folder import MODEL, RECORD, DivergedError, environment, read_record
from tfdq.experiments.settings import DataSettings, RunSettings
from tfdq.robustness.json_files import read_json

T = TypeVar("T")

KIND = "reproduce"
_POLL_SECONDS = 2.0


@dataclass(frozen=True)
class Unit:
    """One piece of work: a variant trained with a seed, and what is measured on it.

    Attributes:
        variant: with all of its settings.
        seed: of everything.
        measured: whether it is measured; a surrogate is trained only.
    """

    variant: Variant
    seed: int
    measured: bool = True

    @property
    def title(self) -> str:
        """What it is called in messages."""
        return f"{self.variant.name}, seed {self.seed}"

    def folder(self, out: Path) -> Path:
        """Return the folder of the run; variants that are trained alike share it."""
        return out / "runs" / self.variant.settings.training_key(self.seed)

    def result(self, out: Path) -> Path:
        """Return the file that stands when the unit is finished."""
        if not self.measured:
            return self.folder(out) / RECORD
        return self.folder(out) / f"evaluation-{self.variant.settings.evaluation_key()}.json"


def _share(items: Sequence[T], do: Callable[[T], None], done: Callable[[T], bool]) -> None:
    """Process the items that no other process holds a lock on, then wait for the others."""
    while items:
        left = []
        for item in items:
            try:
                do(item)
            except BusyError:
                left.append(item)
        if len(left) == len(items):
            time.sleep(_POLL_SECONDS)
        items = [item for item in left if not done(item)]


class Experiment:
    """A recipe being run in a folder.

    Args:
        recipe: what is compared.
        out: folder of the experiment; several recipes may share one, and then share the trained
            networks that they have in common.
        seeds: of every variant.
        machines: the devices.
        scale_batch: multiply batch and learning rate by the number of devices.
        tell: called with a note as it goes on.
        known: figures on record; what is among them is neither trained nor measured again.

    Raises:
        ValueError: a setting does not fit the data, the model or the devices; the folder holds
            something else; known figures for a recipe with a black-box attack, which needs the
            networks themselves.
        FileNotFoundError: a data set or a model to start from is not there; says what to do.
        OSError: the folder can't be written.
    """

    def __init__(
        self,
        recipe: Recipe,
        out: Path,
        seeds: Sequence[int],
        machines: Machines,
        scale_batch: bool = False,
        tell: Callable[[str], None] = lambda note: None,
        known: KnownResults | None = None,
    ) -> None:
        if not seeds or len(set(seeds)) < len(seeds) or min(seeds) < 0 or max(seeds) >= OTHER_SEED:
            raise ValueError(f"seeds must differ and lie in 0..{OTHER_SEED - 1}, got {list(seeds)}")
        variants = []
        for variant in recipe.variants:
            settings = with_start_digest(variant.settings)
            if scale_batch:
                settings = scaled_to(settings, machines.replicas)
            variants.append(replace(variant, settings=settings))
        recipe = replace(recipe, variants=tuple(variants))
        self.recipe, self.seeds, self.machines = recipe, tuple(seeds), machines
        self.tell = tell
        self._known = known or KnownResults()
        if known is not None and self.transfer is not None:
            raise ValueError(
                f"recipe {recipe.name!r} has a black-box attack, which needs the networks "
                "themselves: known results can't stand for them; leave --known out"
            )
        self._images: dict[DataSettings, Dataset] = {}
        self._check()
        self.out = join_folder(out, KIND) if machines.chief else Path(out)

    def _check(self) -> None:
        """Build a network of each kind: what does not fit is said before hours are spent."""
        seen = set()
        for variant in self.recipe.variants:
            check_batch(variant.settings, self.machines)
            images, evaluation = self.images(variant.settings), variant.settings.evaluation
            steps_per_epoch(images, variant.settings.training.batch_size)
            evaluation_images(images, evaluation.images, evaluation.held_out)
            trained = variant.settings.trained()
            # Bits and weights of penalties are checked with the recipe; they break no network.
            kind = [trained["data"], trained["model"], variant.settings.quantized]
            kind += [trained["quantization"].get(name) for name in ("layer_bits", "skip")]
            penalized = variant.settings.penalty.beta > 0
            key = json.dumps([*kind, penalized and trained["penalty"]["name"]])
            if key not in seen:
                seen.add(key)
                self._check_network(variant)
        forget_networks(self.recipe.variants[0].settings.training.backend)

    def _check_network(self, variant: Variant) -> None:
        images = self.images(variant.settings)
        try:
            build(variant.settings, images)
        except (TypeError, ValueError) as error:
            raise ValueError(f"variant {variant.name!r}: {error}") from error

    def images(self, settings: RunSettings) -> Dataset:
        """Return the images of a variant, loaded once."""
        if settings.data not in self._images:
            self._images[settings.data] = load_images(settings.data)
        return self._images[settings.data]

    def units(self) -> list[Unit]:
        """Return all units, seed by seed, so that a part of them is balanced."""
        found = []
        for seed in self.seeds:
            if self.transfer is not None:
                found += [Unit(v, seed + OTHER_SEED, False) for v in self._surrogates()]
            found += [Unit(variant, seed) for variant in self.recipe.variants]
        return found

    @property
    def transfer(self) -> Transfer | None:
        """The black-box attack of the recipe, where there is one."""
        return self.recipe.content.transfer if self._surrogates() else None

    def _surrogates(self) -> list[Variant]:
        wanted = self.recipe.content.transfer
        names = () if wanted is None else wanted.surrogates
        return [v for v in self.recipe.variants if v.name in names or v.group in names]

    def pending(self) -> list[Unit]:
        """Return the units whose figures are neither in the folder nor known from elsewhere."""
        return [
            unit
            for unit in self.units()
            if not unit.result(self.out).exists() and self._known_run(unit) is None
        ]

    def _known_run(self, unit: Unit) -> dict[str, Any] | None:
        return self._known.find(unit.variant.settings, unit.seed)

    def run(self) -> None:
        """Do all units that are not done; waits for those that other processes are at."""
        _share(self.pending(), self._do, lambda unit: unit.result(self.out).exists())
        asked = self.transfer
        if asked is not None and self.machines.chief:
            _share(
                [seed for seed in self.seeds if not self.transfer_file(seed).exists()],
                lambda seed: self._do_transfer(asked, seed),
                lambda seed: self.transfer_file(seed).exists(),
            )

    @contextmanager
    def _held(self, folder: Path) -> Iterator[None]:
        """Hold a folder; under several workers the chief does so for all."""
        with hold(folder) if self.machines.chief else nullcontext():
            yield

    def _do(self, unit: Unit) -> None:
        """Train and measure one unit, and write its result."""
        folder, result = unit.folder(self.out), unit.result(self.out)
        settings = unit.variant.settings
        with self._held(folder):
            if result.exists():
                return
            started = time.perf_counter()
            images = self.images(settings)
            try:
                train_run(
                    settings,
                    unit.seed,
                    images,
                    folder,
                    self.machines,
                    lambda note: self.tell(f"{unit.title}: {note}"),
                )
            except DivergedError as error:
                self.tell(f"{unit.title}: {error}")
                found: dict[str, Any] = {"diverged": str(error)}
            else:
                if not unit.measured:
                    return
                found = Measurement(
                    settings.evaluation,
                    unit.seed,
                    images,
                    folder,
                    self.machines,
                    lambda note: self.tell(f"{unit.title}: {note}"),
                    settings.training.backend,
                ).run()
            found["seconds"] = time.perf_counter() - started
            if self.machines.chief and unit.measured:
                backend = settings.training.backend
                found["environment"] = environment(self.machines, backend)
                found["evaluation"] = settings.evaluation.model_dump(mode="json")
                write_json(result, found)
            self.machines.wait_for_all()
        # Traced functions of dozens of networks would fill the memory.
        forget_networks(settings.training.backend)
        gc.collect()

    def transfer_file(self, seed: int) -> Path:
        """Return the file with the black-box figures of a seed."""
        names = {v.name: v.settings.training_key(seed) for v in self.recipe.variants}
        makers = {v.name: v.settings.training_key(seed + OTHER_SEED) for v in self._surrogates()}
        asked = self.recipe.content.transfer
        asked_for = None if asked is None else asked.model_dump(mode="json")
        content: list[Any] = [names, makers, asked_for, self._transfer_strengths()]
        content += ["held out"] if self._held_out else []
        key = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:12]
        return self.out / "transfers" / f"{key}.json"

    @property
    def _held_out(self) -> bool:
        return self.recipe.variants[0].settings.evaluation.held_out

    def _transfer_strengths(self) -> list[float]:
        asked = self.recipe.content.transfer
        given = None if asked is None else asked.eps
        return list(given or self.recipe.variants[0].settings.evaluation.epsilons)

    def _do_transfer(self, asked: Transfer, seed: int) -> None:
        """Attack all variants with the images of the surrogates, and write the result."""
        path = self.transfer_file(seed)
        with hold(path.with_suffix("")):
            if not path.exists():
                write_json(path, {"seed": seed, **self._measure_transfer(asked, seed)})

    def _measure_transfer(self, asked: Transfer, seed: int) -> dict[str, Any]:
        self.tell(f"black box, seed {seed}")

        def trained(variants: Sequence[Variant], number: int) -> dict[str, Path]:
            paths = {v.name: Unit(v, number).folder(self.out) / MODEL for v in variants}
            return {name: file for name, file in paths.items() if file.exists()}

        victims = trained(self.recipe.variants, seed)
        makers = trained(self._surrogates(), seed + OTHER_SEED)
        images = self.images(self.recipe.variants[0].settings)
        strengths = self._transfer_strengths()
        backend = self.recipe.variants[0].settings.training.backend
        return transfer(asked, strengths, makers, victims, images, seed, self._held_out, backend)

    def found(self) -> Iterator[tuple[Unit, dict[str, Any], dict[str, Any]]]:
        """Yield the finished units with their trainings and their figures."""
        for seed, variant in itertools.product(self.seeds, self.recipe.variants):
            unit = Unit(variant, seed)
            result, record = unit.result(self.out), unit.folder(self.out) / RECORD
            if result.exists() and record.exists():
                remedy = "remove it, and the same command measures again"
                yield unit, read_record(record), read_json(result, remedy)
            elif (run := self._known_run(unit)) is not None:
                yield unit, run["training"], run["figures"]
