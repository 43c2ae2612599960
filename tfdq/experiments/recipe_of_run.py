"""A run as a recipe of one variant, so that it can be repeated."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tfdq.data.loading import names
from tfdq.experiments.settings import RunSettings


def recipe_of_run(settings: RunSettings, seed: int, title: str) -> str:
    """Return the TOML text of a recipe of one variant, every setting spelled out.

    Paths are absolute, so that the recipe may be moved. What a run measures is not part of it but
    for what the network forbids.

    Args:
        settings: of the run.
        seed: of the run.
        title: of the recipe.
    """
    content = settings.model_dump(mode="json", exclude={"evaluation"})
    data, model = settings.data, settings.model
    if data.name not in names() and Path(data.name).expanduser().exists():
        content["data"]["name"] = str(Path(data.name).expanduser().resolve())
    if data.dir is not None:
        content["data"]["dir"] = str(data.dir.resolve())
    if model.start is not None:
        content["model"]["start"] = str(model.start.resolve())
    if not settings.evaluation.export:
        content["evaluation"] = {"export": False}
    lines = [f"title = {_toml(title)}", "seeds = 1", f"first_seed = {seed}"]
    for section, values in content.items():
        lines += ["", f"[{section}]"]
        lines += [f"{name} = {_toml(value)}" for name, value in values.items() if value is not None]
    return "\n".join([*lines, "", "[[variants]]", 'name = "run"', ""])


def _toml(value: Any) -> str:
    """Return a value as TOML writes it."""
    if isinstance(value, dict):
        inner = ", ".join(f"{_toml(name)} = {_toml(inner)}" for name, inner in value.items())
        return f"{{ {inner} }}"
    if isinstance(value, list):
        return f"[{', '.join(map(_toml, value))}]"
    if isinstance(value, str):
        # JSON's text is TOML's, but for pairs of surrogates and for DEL.
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    return str(value).lower() if isinstance(value, bool) else repr(value)
