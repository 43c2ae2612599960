"""The words of pages, docstrings and messages are those of the field, each written once."""

from __future__ import annotations

import ast
import re

import pytest

from tests.documentation.markdown import ROOT, pages

REFUSED = {
    r"\b(?:is|are) wanted\b": "expected ..., got ...",
    r"\btakers?\b": "consumer",
    r"\bstand-ins?\b": "proxy",
    r"\bin order to\b": "to",
    r"\butili[sz]\w+": "use",
    r"\bleverag(?:e[sd]?|ing)\b": "use",
    r"\bin the place of\b": "in place of",
    r"\bof one's own\b": "of your own",
    r"\b(?:simply|obviously|basically)\b": "nothing",
    r"\bnote that\b": "nothing",
    r"\band/or\b": "or",
    r"\bbehaviors?\b": "behaviour",
    r"(?-i:\b([a-z]{2,}) \1\b(?!/))": "the word once",
}
"""What is not written, and what is written instead."""

SOURCES = [
    str(path.relative_to(ROOT))
    for package in ("tfdq", "tflite_export")
    for path in sorted((ROOT / package).rglob("*.py"))
]


def refused(text: str) -> list[str]:
    """Return what a text says that it should say otherwise, with what to write."""
    words = " ".join(text.split())
    return [
        f"{found.group()!r}: write {instead}"
        for pattern, instead in REFUSED.items()
        for found in re.finditer(pattern, words, re.IGNORECASE)
    ]


def prose(page: str) -> str:
    """Return a page without its code and formulas."""
    text = (ROOT / page).read_text(encoding="utf-8")
    for code in (r"^( *)```.*?^\1```", r"\$\$.*?\$\$"):
        text = re.sub(code, "", text, flags=re.DOTALL | re.MULTILINE)
    return re.sub(r"`[^`]*`|\$[^$\n]*\$|\]\([^)]*\)", "``", text)


def said(source: str) -> list[str]:
    """Return the docstrings and the other texts of a module, without code in them."""
    tree = ast.parse((ROOT / source).read_text(encoding="utf-8"))
    nodes = [node for node in ast.walk(tree) if isinstance(node, ast.Constant)]
    texts = [node.value for node in nodes if isinstance(node.value, str)]
    return [re.sub(r"``[^`]*``|`[^`]*`|^Example:.*", "``", text) for text in texts]


@pytest.mark.parametrize("page", [*pages(), "CONTRIBUTING.md", "SECURITY.md"])
def test_pages(page: str) -> None:
    assert refused(prose(page)) == []


def test_docstrings_and_messages() -> None:
    found = {source: [f for text in said(source) for f in refused(text)] for source in SOURCES}
    assert {source: words for source, words in found.items() if words} == {}


@pytest.mark.parametrize(
    ("text", "instead"),
    [
        ("a Keras 3 model\n    is wanted", "expected"),
        ("its only taker", "consumer"),
        ("Note that a stand-in is used", "proxy"),
        ("In order to utilize it", "use"),
        ("a layer of one's own", "your own"),
        ("a proxy in the place of the target", "in place of"),
        ("the the kernel", "once"),
    ],
)
def test_what_is_refused(text: str, instead: str) -> None:
    assert any(instead in found for found in refused(text))
    assert refused("Quantize the kernel, then its consumers.") == []
