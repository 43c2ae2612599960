"""A group of settings, and what is said of a mistake in one."""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Mapping, Sequence
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

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())


def validated(kind: type[Kind], content: Any, where: str) -> Kind:
    """Return checked settings.

    Args:
        kind: the model that checks them.
        content: what was given.
        where: what the message begins with, such as the name of a file.

    Raises:
        ValueError: something is wrong; lists everything that is.
    """
    try:
        return kind.model_validate(content)
    except ValidationError as error:
        raise ValueError(f"{where}: {problems(kind, error)}") from error


def problems(kind: type[BaseModel], error: ValidationError) -> str:
    """Return all that is wrong, in one line, each with the name of its setting."""
    return "; ".join(_problem(kind, found) for found in error.errors())


def _problem(kind: type[BaseModel], found: Mapping[str, Any]) -> str:
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
    return f"{place}{separator}{message}" if place else message


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
