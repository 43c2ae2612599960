"""Options for the settings of a run: the one place that knows how a field becomes an option."""

from __future__ import annotations

import functools
import inspect
import re
import types
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import typer
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from tfdq.cli.options import EPS_HELP, complete_data, complete_model, number, size
from tfdq.experiments.recipe import parse_value
from tfdq.experiments.settings import RunSettings
from tfdq.settings.section import validated

_PLAIN = (bool, int, float, str, Path)


def _target(text: str) -> str | float:
    if text == "1/k":
        return text
    try:
        return number(text, "--target")
    except ValueError as error:
        raise ValueError(f"--target takes 1/k or a number above 0, got {text!r}") from error


@dataclass(frozen=True)
class Spelling:
    """What is not to be read off a field: how it is called and written on the command line.

    Attributes:
        name: of the option; None: the field's, with dashes.
        metavar: what the help calls its value; None: typer's choice.
        read: returns the field's value of the text; None: the text is read as in a recipe.
        complete: returns the values that a word may become.
        help: where the option's unit is another than the field's.
    """

    name: str | None = None
    metavar: str | None = None
    read: Callable[[str], Any] | None = None
    complete: Callable[[str], list[str]] | None = None
    help: str | None = None


SPELLINGS = {
    "data.name": Spelling("--data", "NAME|PATH", complete=complete_data),
    "data.dir": Spelling("--data-dir"),
    "data.image_size": Spelling(None, "SIZE|HxW[xC]", size),
    "data.train_images": Spelling("--train-limit"),
    "model.name": Spelling("--model", complete=complete_model),
    "model.options": Spelling("--model-option"),
    "penalty.name": Spelling("--penalty"),
    "penalty.target": Spelling(None, "1/k|NUMBER", _target),
    "penalty.ramp": Spelling(None, "BEGIN,END"),
    "adversarial.attack": Spelling("--adversarial"),
    "adversarial.eps": Spelling(None, "EPS", lambda text: 255 * number(text), help=EPS_HELP),
    "adversarial.ratio": Spelling("--adversarial-ratio"),
    "adversarial.steps": Spelling("--adversarial-steps"),
    "adversarial.warmup_epochs": Spelling("--adversarial-warmup-epochs"),
}
# A run records them.
RECORDED = {"data.digest", "model.start_digest"}


def option_name(place: str) -> str:
    """Return the option of a field, such as ``--beta`` of ``penalty.beta``."""
    given = SPELLINGS.get(place, Spelling()).name
    return given or f"--{place.rpartition('.')[2].replace('_', '-')}"


def fields(*chosen: str) -> dict[str, FieldInfo]:
    """Return the fields that have options, by dotted name.

    Args:
        *chosen: sections of `RunSettings`, or dotted names of single fields.
    """
    found = {}
    for section, field in RunSettings.model_fields.items():
        kind = field.annotation
        assert isinstance(kind, type)
        assert issubclass(kind, BaseModel)
        for name, inner in kind.model_fields.items():
            place = f"{section}.{name}"
            if place not in RECORDED and (section in chosen or place in chosen):
                found[place] = inner
    return found


def with_settings(
    *sections: str,
    defaults: Mapping[str, Any] | None = None,
    helps: Mapping[str, str] | None = None,
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command options of `RunSettings`.

    The command takes what was given as the argument ``given``: dotted setting -> value.

    Args:
        *sections: names of sections, or dotted names of single fields.
        defaults: those of the command, where they are others, by dotted name.
        helps: what the command says of options that mean less to it, by dotted name.
    """
    chosen, others, said_of = fields(*sections), defaults or {}, helps or {}
    arguments = {place.replace(".", "_"): place for place in chosen}

    def give(command: Callable[..., None]) -> Callable[..., None]:
        @functools.wraps(command)
        def run(**given: Any) -> None:
            found = {place: given.pop(argument) for argument, place in arguments.items()}
            said = {place: value for place, value in found.items() if value not in (None, [])}
            said = {place: _read(place, value) for place, value in said.items()}
            command(**given, given={**others, **said})

        signature = inspect.signature(command, eval_str=True)
        own = [p for name, p in signature.parameters.items() if name != "given"]
        options = [
            inspect.Parameter(
                argument,
                inspect.Parameter.KEYWORD_ONLY,
                default=_shown(place, chosen[place], others.get(place)),
                annotation=_annotation(place, chosen[place], said_of.get(place)),
            )
            for argument, place in arguments.items()
        ]
        keyword = [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in own]
        run.__signature__ = signature.replace(parameters=[*keyword, *options])  # type: ignore[attr-defined]
        return run

    return give


def settings_of(given: Mapping[str, Any]) -> RunSettings:
    """Return the settings that the options say.

    Args:
        given: dotted setting -> value.

    Raises:
        ValueError: some are out of range; names their options.
    """
    content: dict[str, dict[str, Any]] = {}
    for place, value in given.items():
        section, _, name = place.partition(".")
        content.setdefault(section, {})[name] = value
    try:
        return validated(RunSettings, content, called=_called)
    except ValueError as error:
        raise ValueError(with_options(str(error))) from error


def with_options(message: str) -> str:
    """Return a message that calls settings by their options, not as a recipe does."""
    places = "|".join(map(re.escape, fields(*RunSettings.model_fields)))
    # No part of a path or of a longer name.
    pattern = rf"(?<![\w./'])({places})(?![\w./'])"
    return re.sub(pattern, lambda found: option_name(found.group()), message)


def _called(place: str) -> str:
    """Return the option of a setting, and which of its values is meant; nothing for a section."""
    section, _, name = place.partition(".")
    field, _, inner = name.partition(".")
    return " ".join([option_name(f"{section}.{field}"), inner]).rstrip() if name else ""


def _kind(annotation: Any) -> Any:
    """Return the type of a field without its checks and without None; object: one of several."""
    while get_origin(annotation) is Annotated:
        annotation = get_args(annotation)[0]
    if get_origin(annotation) in (Union, types.UnionType):
        kinds = [kind for kind in get_args(annotation) if kind is not type(None)]
        return _kind(kinds[0]) if len(kinds) == 1 else object
    return annotation


def _annotation(place: str, field: FieldInfo, said: str | None) -> Any:
    """Return the type of a command's argument, and the option that gives it."""
    spelling, kind = SPELLINGS.get(place, Spelling()), _kind(field.annotation)
    metavar = spelling.metavar
    if _is_repeated(kind):
        taken: Any = list[str]
        metavar = metavar or ("NAME=VALUE" if _is_mapping(kind) else "NAME")
    elif spelling.read is None and (kind in _PLAIN or get_origin(kind) is Literal):
        taken = kind
    else:
        taken = str
    option = typer.Option(
        option_name(place),
        help=said or spelling.help or field.description,
        metavar=metavar,
        autocompletion=spelling.complete,
        show_default=True,
        rich_help_panel=place.partition(".")[0].capitalize(),
    )
    return Annotated[taken | None, option]


@dataclass(frozen=True)
class _Shown:
    """A default that the help shows and the command does not get: only what was given counts."""

    text: str

    def __str__(self) -> str:
        return self.text

    def __call__(self) -> None:
        return None


def _shown(place: str, field: FieldInfo, default: Any) -> _Shown | None:
    default = field.get_default(call_default_factory=True) if default is None else default
    if not isinstance(default, (int, float, str)):
        return None
    return _Shown(f"{default:g}/255" if place == "adversarial.eps" else str(default))


def _is_mapping(kind: Any) -> bool:
    origin = get_origin(kind)
    return isinstance(origin, type) and issubclass(origin, Mapping)


def _is_repeated(kind: Any) -> bool:
    return _is_mapping(kind) or get_origin(kind) is frozenset


def _read(place: str, value: Any) -> Any:
    """Return the value of a field of what was written on the command line.

    Raises:
        ValueError: the text is of another form.
    """
    spelling, kind = SPELLINGS.get(place, Spelling()), _kind(fields(place)[place].annotation)
    if spelling.read is not None:
        return spelling.read(value)
    if _is_mapping(kind):
        pairs = [text.partition("=") for text in value]
        for name, separator, text in pairs:
            if not (separator and name and text):
                raise ValueError(f"{option_name(place)} takes NAME=VALUE, got {name + text!r}")
        return {name: parse_value(text) for name, _, text in pairs}
    if get_origin(kind) is tuple:
        return parse_value(f"[{value}]")
    return parse_value(value) if kind not in _PLAIN and isinstance(value, str) else value
