"""A group of settings, and what is said of a mistake in one."""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

Kind = TypeVar("Kind", bound=BaseModel)


def _finite(value: float) -> float:
    if not math.isfinite(value):
        raise ValueError(f"must be finite, got {value}")
    return value


Finite = Annotated[float, AfterValidator(_finite)]
Share = Annotated[Finite, Field(gt=0, le=1)]


class Section(BaseModel):
    """A group of settings; unknown keys are errors."""

    # The command line shows settings long before it checks any: build the checks at first use.
    model_config = ConfigDict(
        extra="forbid", frozen=True, protected_namespaces=(), defer_build=True
    )


def validated(
    kind: type[Kind],
    content: Any,
    where: str = "",
    called: Callable[[str], str] = lambda place: place,
) -> Kind:
    """Return checked settings.

    Args:
        kind: the model that checks them.
        content: what was given.
        where: what the message begins with, such as the name of a file.
        called: returns what the user knows a setting as, of its dotted name; "" for what has none.

    Raises:
        ValueError: something is wrong; lists everything that is.
    """
    try:
        return kind.model_validate(content)
    except ValidationError as error:
        found = problems(kind, error, called)
        raise ValueError(f"{where}: {found}" if where else found) from error


def problems(
    kind: type[BaseModel],
    error: ValidationError,
    called: Callable[[str], str] = lambda place: place,
) -> str:
    """Return all that is wrong, in one line, each with the name of its setting."""
    return "; ".join(_problem(kind, found, called) for found in error.errors())


def _problem(kind: type[BaseModel], found: Mapping[str, Any], called: Callable[[str], str]) -> str:
    place = ".".join(str(part) for part in found["loc"])
    if found["type"] == "extra_forbidden":
        known = _keys_beside(kind, found["loc"])
        near = difflib.get_close_matches(str(found["loc"][-1]), known, 1)
        hint = f", did you mean {near[0]!r}?" if near else f"; known are {', '.join(known)}"
        return f"unknown key {place!r}{hint}"
    message = re.sub("^Value error, ", "", found["msg"])
    given = found.get("input")
    shown = f", got {given!r}" if isinstance(given, (int, float, str)) else ""
    message += shown if "got" not in message else ""
    separator = " " if message.startswith("must ") else ": "
    name = called(place)
    return f"{name}{separator}{message}" if name else message


def _keys_beside(kind: type[BaseModel], location: Sequence[Any]) -> list[str]:
    """Return the keys that are known where an unknown one was found."""
    for part in location[:-1]:
        if isinstance(part, int):
            continue
        annotation = kind.model_fields[str(part)].annotation
        inner = [annotation, *getattr(annotation, "__args__", ())]
        models = [t for t in inner if isinstance(t, type) and issubclass(t, BaseModel)]
        if not models:
            return []
        kind = models[0]
    return list(kind.model_fields)
