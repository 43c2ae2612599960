"""An experiment as data: a TOML file that names the variants, the claims and what was published."""

from __future__ import annotations

import copy
import itertools
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, model_validator

from tfdq.experiments.settings import RunSettings
from tfdq.mistakes import UnknownNameError
from tfdq.settings.section import Section, validated

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

SCALES = ("small", "paper")
SETUPS = "setups.toml"
# Where those of recipes are others than those of `tfdq train`.
_DEFAULTS: dict[str, dict[str, Any]] = {
    "data": {"name": "fashion_mnist"},
    "training": {"epochs": 8},
}
OTHER_SEED = 1000
"""Added to a seed for the separately trained networks that a black-box attack starts from."""


class VariantSettings(Section):
    """One line of the table.

    Attributes:
        name: what it is called.
        set: settings that differ from the recipe's own, by section.
        grid: dotted setting -> values; one variant is made for every combination.
    """

    name: str = Field(min_length=1)
    set: dict[str, Any] = Field(default_factory=dict)
    grid: dict[str, list[Any]] = Field(default_factory=dict)


class Claim(Section):
    """A statement of the paper's that the figures can support or not.

    Attributes:
        text: the statement.
        better: the variant that it says does better.
        worse: the variant that it compares with.
        metric: an attack of ``evaluation.attacks``, ``"clean"``, ``"worst"`` or ``"transfer"``.
        eps: in 1/255; None: the largest that was measured.
    """

    text: str
    better: str
    worse: str
    metric: str
    eps: float | None = None


class Published(Section):
    """A figure that somebody published.

    Attributes:
        what: what was measured.
        value: the figure with its unit.
        source: where it stands.
    """

    what: str
    value: str
    source: str


class FigureSettings(Section):
    """The figure that is drawn.

    Attributes:
        kind: ``"lines"`` (accuracy against a setting), ``"bars"`` (by variant), ``"depth"`` (error
            amplification) or ``"transfer"``.
        x: the dotted setting on the x axis of ``"lines"``.
        metrics: what is drawn: attacks, ``"clean"``, ``"worst"``.
    """

    kind: Literal["lines", "bars", "depth", "transfer"] = "bars"
    x: str | None = None
    metrics: tuple[str, ...] = ("clean", "fgsm", "worst")

    @model_validator(mode="after")
    def _has_an_axis(self) -> FigureSettings:
        if self.kind == "lines" and self.x is None:
            raise ValueError("a figure of kind 'lines' needs x, a setting such as penalty.beta")
        return self


class Transfer(Section):
    """Black-box attack: images made on separately trained networks.

    Attributes:
        surrogates: variants of which another seed is trained to make the images.
        attack: what makes them.
        eps: strengths in 1/255; None: those of the evaluation.
        images: test images.
    """

    surrogates: tuple[str, ...] = Field(min_length=1)
    attack: str = "pgd"
    eps: tuple[float, ...] | None = None
    images: int = Field(default=1000, ge=1)


class RecipeContent(Section):
    """What stands in the file of a recipe; see docs/experiments.md."""

    title: str
    paper: str = ""
    setups: str | None = None
    default_setup: str | None = None
    seeds: int = Field(default=3, ge=1)
    first_seed: int = Field(default=0, ge=0)
    data: dict[str, Any] = Field(default_factory=dict)
    model: dict[str, Any] = Field(default_factory=dict)
    quantization: dict[str, Any] = Field(default_factory=dict)
    penalty: dict[str, Any] = Field(default_factory=dict)
    adversarial: dict[str, Any] = Field(default_factory=dict)
    training: dict[str, Any] = Field(default_factory=dict)
    evaluation: dict[str, Any] = Field(default_factory=dict)
    variants: tuple[VariantSettings, ...] = Field(min_length=1)
    claims: tuple[Claim, ...] = ()
    published: tuple[Published, ...] = ()
    figure: FigureSettings = FigureSettings()
    transfer: Transfer | None = None

    @model_validator(mode="after")
    def _names_are_known(self) -> RecipeContent:
        names = [variant.name for variant in self.variants]
        if len(set(names)) < len(names):
            raise ValueError(f"every variant needs a name of its own, got {names}")
        used = [] if self.transfer is None else list(self.transfer.surrogates)
        unknown = sorted(set(used) - set(names))
        if unknown:
            raise ValueError(f"transfer names variants {unknown}, but there are {names}")
        return self


@dataclass(frozen=True)
class Variant:
    """One line of the table with all of its settings.

    Attributes:
        name: what it is called.
        group: the name in the recipe, the same for all that one grid makes.
        point: the grid's settings of this variant, by dotted name.
        settings: everything about its runs but the seed.
    """

    name: str
    group: str
    point: dict[str, Any]
    settings: RunSettings


@dataclass(frozen=True)
class Recipe:
    """A checked recipe.

    Attributes:
        name: of the experiment.
        content: the file.
        setup: name of the data set, network and training it is run on; "" where the recipe has
            them itself.
        variants: what is trained and compared.
        overrides: settings given from outside, by dotted name.
    """

    name: str
    content: RecipeContent
    setup: str
    variants: tuple[Variant, ...]
    overrides: dict[str, list[Any]] = field(default_factory=dict)

    def variant(self, name: str) -> Variant:
        """Return a variant by name.

        Raises:
            KeyError: there is none of that name.
        """
        for variant in self.variants:
            if variant.name == name:
                return variant
        raise UnknownNameError(f"no variant {name!r}; there are {[v.name for v in self.variants]}")

    def to_dict(self) -> dict[str, Any]:
        """Return the recipe with every setting spelled out, ready for JSON."""
        return {
            "name": self.name,
            "setup": self.setup,
            "overrides": self.overrides,
            "content": self.content.model_dump(mode="json"),
            "variants": [
                {
                    "name": variant.name,
                    "group": variant.group,
                    "point": variant.point,
                    "settings": variant.settings.model_dump(mode="json"),
                }
                for variant in self.variants
            ],
        }


def recipe_names(scale: str) -> tuple[str, ...]:
    """Return the names of the recipes that come with the package.

    Raises:
        ValueError: there is no such scale.
    """
    return tuple(sorted(path.stem for path in _shipped(scale) if path.name != SETUPS))


def _shipped(scale: str) -> list[Path]:
    if scale not in SCALES:
        raise ValueError(f"scale must be one of {', '.join(SCALES)}, got {scale!r}")
    folder = Path(str(files("tfdq.experiments") / "recipes" / scale))
    return sorted(folder.glob("*.toml"))


@dataclass(frozen=True)
class _Unchecked:
    """A variant whose settings may be wrong: `--only` may leave it out."""

    name: str
    group: str
    point: dict[str, Any]
    sections: dict[str, Any]

    def checked(self, where: str) -> Variant:
        """Return the variant.

        Args:
            where: name of the file, for the message.

        Raises:
            ValueError: a setting is unknown or out of its range.
        """
        settings = validated(RunSettings, self.sections, f"{where}, variant {self.name!r}")
        return Variant(self.name, self.group, self.point, settings)


def load_recipe(
    name_or_path: str | Path,
    scale: str = "small",
    setup: str | None = None,
    overrides: Mapping[str, Sequence[Any]] | None = None,
    only: Sequence[str] = (),
) -> Recipe:
    """Read a recipe, spell its variants out, and check every setting of those that are kept.

    Args:
        name_or_path: a name of `recipe_names`, or the path of a ``.toml`` file.
        scale: ``"small"`` or ``"paper"``, for a name.
        setup: data set, network and training, of those that the recipe has; None: its first.
        overrides: dotted setting -> values that take the place of the recipe's; several values
            make one variant each.
        only: names of the variants to keep, as the recipe has them or as a grid spells them out;
            all by default.

    Raises:
        ValueError: an unknown recipe, key, setup or variant, or a setting out of its range; the
            message names the file and the setting.
        FileNotFoundError: there is no such file.
    """
    path = _find(str(name_or_path), scale)
    content = validated(RecipeContent, _read(path), path.name)
    chosen, sections = _setup(content, path, setup)
    base = copy.deepcopy(_DEFAULTS)
    _merge(base, sections)
    for section in RunSettings.model_fields:
        _merge(base.setdefault(section, {}), copy.deepcopy(getattr(content, section)))
    given = {key: list(values) for key, values in (overrides or {}).items()}
    every = [part for entry in content.variants for part in _expand(entry, base, given)]
    groups = [entry.name for entry in content.variants]
    names = list(dict.fromkeys([*groups, *(part.name for part in every)]))
    unknown = sorted(set(only) - set(names))
    if unknown:
        listed = ", ".join(map(repr, names))
        raise ValueError(f"{path.name} has no variant {unknown[0]!r}; it has {listed}")
    kept = [
        part.checked(path.name)
        for part in every
        if not only or part.group in only or part.name in only
    ]
    return Recipe(path.stem, content, chosen, tuple(kept), given)


def _find(name: str, scale: str) -> Path:
    if name.endswith(".toml"):
        path = Path(name)
        if not path.is_file():
            raise FileNotFoundError(f"there is no recipe {name!r}")
        return path
    known = {path.stem: path for path in _shipped(scale) if path.name != SETUPS}
    if name not in known:
        raise ValueError(
            f"there is no recipe {name!r} at scale {scale}: choose one of "
            f"{', '.join(known)}, or give the path of a .toml file"
        )
    return known[name]


def _read(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except tomllib.TOMLDecodeError as error:
        raise ValueError(f"{path.name} is no TOML: {error}") from error


def _setup(
    content: RecipeContent, path: Path, wanted: str | None
) -> tuple[str, dict[str, dict[str, Any]]]:
    """Return the name of the setup and a copy of its sections."""
    if content.setups is None:
        if wanted is not None:
            raise ValueError(f"{path.name} has no setups to choose {wanted!r} from")
        return "", {}
    known = _read(path.parent / content.setups)
    name = wanted or content.default_setup or next(iter(known))
    if name not in known:
        raise ValueError(f"{path.name} has no setup {name!r}; it has {', '.join(known)}")
    return name, copy.deepcopy(known[name])


def _merge(into: dict[str, Any], changes: Mapping[str, Any]) -> None:
    """Put nested changes into nested settings."""
    for key, value in changes.items():
        if isinstance(value, Mapping) and isinstance(into.get(key), dict) and key != "options":
            _merge(into[key], value)
        else:
            into[key] = copy.deepcopy(value)


def _expand(
    entry: VariantSettings,
    base: dict[str, dict[str, Any]],
    overrides: Mapping[str, list[Any]],
) -> Iterator[_Unchecked]:
    """Yield a variant for every combination of the grid's values and the overrides'."""
    # An override with several values is a grid; it takes the place of one over the same setting.
    grid = {**entry.grid, **overrides}
    for values in itertools.product(*grid.values()):
        point = dict(zip(grid, values, strict=True))
        sections = copy.deepcopy(base)
        _merge(sections, entry.set)
        for dotted, value in point.items():
            _put(sections, dotted, value)
        shown = {key: value for key, value in point.items() if len(grid[key]) > 1}
        label = ", ".join(f"{key.rpartition('.')[2]} {value}" for key, value in shown.items())
        name = f"{entry.name}, {label}" if label else entry.name
        yield _Unchecked(name, entry.name, shown, sections)


def _put(sections: dict[str, Any], dotted: str, value: Any) -> None:
    """Set a setting by its dotted name."""
    *path, last = dotted.split(".")
    if not path:
        raise ValueError(f"{dotted!r} names no setting; write section.setting, as penalty.beta")
    at = sections
    for part in path:
        at = at.setdefault(part, {})
        if not isinstance(at, dict):
            raise ValueError(f"{dotted!r} goes into {part!r}, which is a value, no section")
    at[last] = value


def parse_assignment(text: str) -> tuple[str, list[Any]]:
    """Return the setting and the values of ``penalty.beta=0.001,0.002``.

    A value is written as in TOML (numbers, ``true``, ``[8, 16]``, ``{a = 1, b = 2}``, quoted text);
    a bare word is text.

    Raises:
        ValueError: there is no ``=``, no setting or no value, or a quote or bracket stays open.
    """
    dotted, separator, given = text.partition("=")
    parts = [part.strip() for part in _between_commas(given)]
    if not separator or "." not in dotted or not all(parts):
        raise ValueError(f"--set takes section.setting=value,..., got {text!r}")
    return dotted.strip(), [parse_value(part) for part in parts]


def _between_commas(text: str) -> list[str]:
    """Return the parts between the commas that stand in no bracket, brace or quotes.

    Raises:
        ValueError: one of these has no partner.
    """
    parts, depth, quote = [""], 0, ""
    for character in text:
        if quote:
            quote = "" if character == quote else quote
        elif character in "'\"":
            quote = character
        else:
            depth += (character in "[{") - (character in "]}")
        if character == "," and depth == 0 and not quote:
            parts.append("")
        else:
            parts[-1] += character
        if depth < 0:
            break
    if quote or depth:
        what = f"the quote {quote}" if quote else "a bracket or brace"
        raise ValueError(
            f"--set: {what} has no partner in {text!r}; add it, or put the text in quotes"
        )
    return parts


def parse_value(text: str) -> Any:
    """Return the value of a text: as in TOML; a bare word is text."""
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text
