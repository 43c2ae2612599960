"""The site builds without a warning, and documents every public name."""

from __future__ import annotations

import importlib
import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.documentation.markdown import ROOT, pages
from tests.needs import required

PACKAGES = (
    "tfdq",
    "tfdq.quantization",
    "tfdq.penalties",
    "tfdq.certificates",
    "tfdq.robustness",
    "tfdq.models",
    "tfdq.data",
    "tfdq.zoo",
    "tflite_export",
)


def documented() -> set[str]:
    """Return the objects that the API pages show."""
    text = "".join(path.read_text("utf-8") for path in (ROOT / "docs" / "api").glob("*.md"))
    return set(re.findall(r"^::: ([\w.]+)$", text, re.MULTILINE))


@pytest.mark.parametrize("package", PACKAGES)
def test_every_public_name_is_in_the_reference(package: str) -> None:
    module = importlib.import_module(package)
    shown = documented()
    for name in set(module.__all__) - {"__version__"}:
        if f"{package}.{name}" in PACKAGES:
            continue
        homes = [path.rpartition(".")[0] for path in shown if path.endswith(f".{name}")]
        objects = [getattr(importlib.import_module(home), name) for home in homes]
        there = getattr(module, name)
        assert any(one is there for one in objects), f"docs/api shows no {package}.{name}"


def test_links_of_the_pages_outside_the_site_lead_somewhere() -> None:
    for page in ("README.md", "CONTRIBUTING.md", "SECURITY.md", "edge/README.md"):
        text = (ROOT / page).read_text(encoding="utf-8")
        for link in re.findall(r"\]\(([^)#:]+)(?:#[\w-]+)?\)", text):
            assert ((ROOT / page).parent / link).exists(), f"{page}: {link}"


def test_every_page_is_in_the_navigation() -> None:
    navigation = (ROOT / "mkdocs.yml").read_text(encoding="utf-8").partition("\nnav:")[2]
    for page in pages()[1:]:
        assert page.removeprefix("docs/") in navigation, page


@required("mkdocs", "docs")
def test_the_site_builds(tmp_path: Path) -> None:
    site = tmp_path / "site"
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "-d", str(site)]
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=False,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    concepts = (site / "concepts.html").read_text(encoding="utf-8")
    assert concepts.count("<math ") > 20
    assert "$" not in re.sub(r"<(script|style).*?</\1>", "", concepts, flags=re.DOTALL)
    # It is complete in itself: no script, font or image from elsewhere.
    for page in site.rglob("*.html"):
        text = page.read_text(encoding="utf-8")
        assert not re.findall(r"<(?:script|img|link)[^>]+(?:src|href)=\"(?:https?:)?//[^\"]+", text)
