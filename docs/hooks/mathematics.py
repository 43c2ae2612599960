"""Turn mathematics into MathML while the site is built: no script, no font, no network.

Displayed formulas are fenced blocks of the language ``math``, inline ones stand between dollar
signs (GitHub shows both forms as well); docstrings use ``.. math::``.
"""

from __future__ import annotations

import html
import re
from typing import Any

from latex2mathml.converter import convert
from markdown import Extension, Markdown
from markdown.preprocessors import Preprocessor

_FORMULA = re.compile(
    r"^```math\n(?P<fenced>[\s\S]*?)^```$"
    r"|(?P<code>^```[\s\S]*?^```$)"
    r"|^\.\. math:: *(?P<directive>.*(?:\n.+)*)"
    r"|(?P<literal>`[^`\n]+`)"
    r"|\$(?! )(?P<inline>[^$\n]+?)\$",
    re.MULTILINE,
)


class _Formulas(Preprocessor):
    """Replace the formulas of a text; what is code stays."""

    def run(self, lines: list[str]) -> list[str]:
        """Return the lines of a text with its formulas put aside as MathML."""
        return _FORMULA.sub(self._replace, "\n".join(lines)).split("\n")

    def _replace(self, match: re.Match[str]) -> str:
        if match["code"] is not None or match["literal"] is not None:
            return match[0]
        displayed = match["fenced"] or match["directive"]
        source = " ".join((displayed or match["inline"]).split())
        mathml = convert(source, display="block" if displayed else "inline")
        text = html.escape(source, quote=True)
        return self.md.htmlStash.store(mathml.replace("<math ", f'<math alttext="{text}" ', 1))


class Mathematics(Extension):
    """The Markdown extension; it comes between the cleaning of white space and the code fences."""

    def extendMarkdown(self, md: Markdown) -> None:  # noqa: D102 (Markdown's own method)
        md.preprocessors.register(_Formulas(md), "mathematics", 28)


def on_config(config: Any) -> Any:
    """Add the extension; MkDocs calls this, and mkdocstrings takes it over for docstrings."""
    config.markdown_extensions.append(Mathematics())
    return config
