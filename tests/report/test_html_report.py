"""The HTML report, as a browser and its reader see it."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.report.conftest import HOSTILE
from tfdq.report.drawings import on_cell
from tfdq.report.networks import ImageSource, open_networks
from tfdq.report.page import Cell, Section, Table, render
from tfdq.report.run_report import write_report

SECTIONS = [
    "Summary",
    "Robust accuracy by strength",
    "Error amplification",
    "Singular values of the deployed layers",
    "Transfer",
    "Clean and adversarial images",
    "Parity of the integer file",
    "Layers and bits",
    "Latency and size",
    "Certificates",
    "Gradient-masking audits",
    "Model cards",
    "How to repeat this",
]
# The contrast of every text with what is behind it, by WCAG 2.2.
CONTRAST = """
const parts = (colour) => colour.match(/[\\d.]+/g).map(Number);
const linear = (v) => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4;
const light = ([r, g, b]) =>
  0.2126 * linear(r / 255) + 0.7152 * linear(g / 255) + 0.0722 * linear(b / 255);
const behind = (element) => {
  for (let at = element; at; at = at.parentElement) {
    const found = parts(getComputedStyle(at).backgroundColor);
    if (found.length === 3 || found[3] === 1) return found;
  }
  return [255, 255, 255];
};
return [...document.querySelectorAll("body *")]
  .filter((e) => !e.closest("svg") && !["SCRIPT", "STYLE"].includes(e.tagName))
  .filter((e) => [...e.childNodes].some((n) => n.nodeType === 3 && n.textContent.trim()))
  .map((e) => {
    const [a, b] = [light(parts(getComputedStyle(e).color)), light(behind(e))];
    return [(Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05), e.tagName, e.textContent];
  });
"""


@pytest.fixture
def page(browser: Any, report: Path) -> Any:
    for log in ("browser", "performance"):
        browser.get_log(log)
    browser.set_window_size(1200, 900)
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})
    browser.get(report.as_uri())
    return browser


def by_css(page: Any, selector: str) -> list[Any]:
    return page.find_elements("css selector", selector)


def test_tables_say_it_in_plain_words(page: Any) -> None:
    text = page.find_element("css selector", "body").text
    assert "`" not in text
    assert "-1 x" not in text
    assert "8 x 8 x 8" in page.find_element("css selector", "#bits").text
    # A scale of powers would be read with its exponents lost.
    assert "10^" not in text
    drawn = [t.get_attribute("textContent") for t in by_css(page, "#amplification svg text")]
    assert "1" in drawn
    assert not [t for t in drawn if "×" in t]


def test_it_is_whole(page: Any) -> None:
    assert [heading.text for heading in by_css(page, "h2")] == SECTIONS
    links = [link.get_attribute("href").split("#")[1] for link in by_css(page, "nav a")]
    assert all(page.find_element("id", key) for key in links)
    assert len(links) == len(SECTIONS)
    assert "under these attacks only" in page.find_element("css selector", "header").text
    assert "tfdq report" in page.find_element("css selector", "#repeat pre").text


def test_nothing_is_fetched_and_nothing_complains(page: Any) -> None:
    assert page.get_log("browser") == []
    events = [json.loads(entry["message"])["message"] for entry in page.get_log("performance")]
    asked = {
        event["params"]["request"]["url"].split(":")[0]
        for event in events
        if event["method"] == "Network.requestWillBeSent"
    }
    assert asked <= {"file", "data"}
    assert "file" in asked


def test_names_are_text(page: Any) -> None:
    assert "broken" not in page.title.replace(HOSTILE, "")
    names = {cell.text for cell in by_css(page, "#summary tbody th")}
    assert names == {HOSTILE, "_vq $a$"}
    assert len(by_css(page, "script")) == 1


def test_tables_sort(page: Any) -> None:
    heading = page.find_elements("css selector", "#spectra thead th")[2]

    def values() -> list[float]:
        cells = by_css(page, "#spectra tbody td:nth-child(3)")
        return [float(cell.text) for cell in cells]

    before = values()
    heading.find_element("css selector", "button").click()
    assert heading.get_attribute("aria-sort") == "ascending"
    assert values() == sorted(before) != before
    # The same from the keyboard, the other way round.
    page.switch_to.active_element.send_keys("\n")
    assert heading.get_attribute("aria-sort") == "descending"
    assert values() == sorted(before, reverse=True)


def test_what_is_drawn_is_also_said(page: Any) -> None:
    drawings = by_css(page, "[role=img]")
    assert len(drawings) == 7
    for drawing in drawings:
        assert re.search(r"\d", drawing.get_attribute("aria-label"))
        assert drawing.size["height"] > 100
    pictures = by_css(page, "img")
    assert len(pictures) >= 6
    for picture in pictures:
        assert len(picture.get_attribute("alt")) > 10
        assert page.execute_script("return arguments[0].naturalWidth", picture) == 8
    for table in by_css(page, "table"):
        assert table.find_element("css selector", "caption").text
    assert len(by_css(page, "h1")) == 1
    assert page.find_element("css selector", "html").get_attribute("lang") == "en"


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_contrast(page: Any, scheme: str) -> None:
    feature = {"name": "prefers-color-scheme", "value": scheme}
    page.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [feature]})
    paper = page.execute_script("return getComputedStyle(document.body).backgroundColor")
    assert (paper == "rgb(255, 255, 255)") == (scheme == "light")
    found = page.execute_script(CONTRAST)
    assert len(found) > 100
    assert min(found)[0] >= 4.5, min(found)
    # What is drawn follows the scheme, too: lines stand out by 3 to 1.
    lines = page.execute_script(
        "return ['--s0','--s1','--s2','--s3','--s4','--s5','--s6'].map((name) =>"
        " getComputedStyle(document.documentElement).getPropertyValue(name))"
    )
    background = luminance("#ffffff" if scheme == "light" else "#16181b")
    for colour in lines:
        ends = sorted([luminance(colour.strip()), background])
        assert (ends[1] + 0.05) / (ends[0] + 0.05) >= 3
    # All letters are in the page's ink, but for the figures in the heat map's cells.
    texts, ink = page.execute_script(
        "const texts = [...document.querySelectorAll('.drawing svg text')];"
        "return [texts.map((t) => [t.textContent, getComputedStyle(t).fill,"
        " t.closest('section').id]), getComputedStyle(document.body).color]"
    )
    assert len(texts) > 60
    cells = [t for t in texts if t[2] == "transfer" and t[0].isdigit()]
    assert len(cells) == 2 * 4
    assert [t for t in texts if t not in cells and t[1] != ink] == []


@pytest.mark.parametrize("value", np.linspace(0, 1, 21))
def test_figures_in_the_heat_map_can_be_read(value: float) -> None:
    import matplotlib

    red, green, blue = matplotlib.colormaps["viridis"](value)[:3]
    behind = luminance("#" + "".join(f"{round(255 * part):02x}" for part in (red, green, blue)))
    ends = sorted([luminance({"black": "#000000", "white": "#ffffff"}[on_cell(value)]), behind])
    assert (ends[1] + 0.05) / (ends[0] + 0.05) >= 4.5


def luminance(colour: str) -> float:
    values = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [v / 12.92 if v <= 0.04045 else ((v + 0.055) / 1.055) ** 2.4 for v in values]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_on_a_phone(page: Any) -> None:
    metrics = {"width": 360, "height": 740, "deviceScaleFactor": 2, "mobile": True}
    page.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    try:
        page.refresh()
        assert page.execute_script("return document.documentElement.scrollWidth") <= 360
    finally:
        page.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_figures_are_those_of_the_evaluation(page: Any, models: list[Path]) -> None:
    """The clean accuracy in the summary, against plain predictions."""
    import tfdq
    from tfdq.data import load
    from tfdq.experiments.measuring import evaluation_images

    x, y = evaluation_images(load("digits"), 40)
    for path in models:
        model = tfdq.load_model(path, compile=False)
        right = int((np.argmax(model.predict(x, verbose=0), axis=1) == y).sum())
        rows = [
            [cell.text for cell in row.find_elements("css selector", "th, td")]
            for row in by_css(page, "#summary tbody tr")
        ]
        row = next(row for row in rows if row[0] == path.stem and row[1] == "trained")
        assert row[2].startswith(f"{100 * right / 40:.1f} %")
        assert row[4:] == ["not measured", "not audited"]


def test_a_run_shows_what_it_measured(models: list[Path], tmp_path: Path) -> None:
    folder = tmp_path / "3f0c2a"
    folder.mkdir()
    (folder / "model.keras").write_bytes(models[0].read_bytes())
    settings = {
        "data": {"name": "digits"},
        "quantization": {"activation_bits": 4},
        "penalty": {"name": "orthogonal", "on": "deployed", "beta": 0.002},
    }
    check = {"name": "zero gradients", "status": "failed", "criterion": "c", "remark": "r"}
    figures = {
        "clean": "1" * 37 + "0" * 3,
        "attacks": {"8": {"pgd": "1" * 20 + "0" * 20}},
        "suite": {
            "attacks": ["apgd-ce", "square"],
            "eps": {"8": {"worst": "1" * 4 + "0" * 16}},
        },
        "audit": {"passed": False, "checks": [check], "examples": 9, "epsilon": 8 / 255},
    }
    (folder / "settings.json").write_text(json.dumps({"seed": 5, "settings": settings}))
    (folder / "evaluation-abc.json").write_text(json.dumps(figures))
    path = write_report([folder], tmp_path / "report.html", images=16)
    text = path.read_text(encoding="utf-8")
    summary = text[text.index('id="summary"') : text.index('id="curves"')]
    for wanted in (
        "4 bits, orthogonal on deployed 0.002, seed 5",
        "92.5 % [",
        "50.0 % [",
        "20.0 % [",
        "failed: zero gradients",
        "worst case over apgd-ce, square at 8/255",
    ):
        assert wanted in summary
    assert "Parity of the integer file" not in text


def test_a_folder_of_tfdq_train_and_images_in_a_folder(tmp_path: Path) -> None:
    """What the command line gives reaches the report; its last section repeats it."""
    from PIL import Image

    from tests.cli.test_command_line import tfdq
    from tfdq.data import load

    digits = load("digits")
    for label in range(2):
        (tmp_path / "photos" / f"digit-{label}").mkdir(parents=True)
        for number, image in enumerate(digits.x_train[digits.y_train == label][:40]):
            path = tmp_path / "photos" / f"digit-{label}" / f"{number}.png"
            Image.fromarray(image[..., 0]).save(path)
    data = ("--data", tmp_path / "photos", "--image-size", "12")
    run, out = tmp_path / "my run", tmp_path / "report.html"
    assert tfdq("train", "--out", run, "--epochs", 1, *data) == 0
    (network,), images, _ = open_networks([run], ImageSource(), 8)
    assert (network.name, images.shape[:3]) == ("my run", (8, 12, 12))
    kept = (run / "settings.json").rename(tmp_path / "settings.json")
    assert tfdq("report", run, "--out", out) == 2
    kept.rename(run / "settings.json")
    assert tfdq("report", run, "--out", out, "--limit", 8, *data, "--data-dir", tmp_path) == 0
    text = out.read_text(encoding="utf-8")
    assert "Robustness of my run" in text
    assert "batch_norm_momentum" in text[text.index('id="cards"') :]
    repeat = text[text.index('id="repeat"') :]
    for wanted in ("my run", "--image-size 12x12", "--limit 8", "--data-dir", "photos"):
        assert wanted in repeat


def test_everything_is_escaped() -> None:
    nasty = '"><img src=x onerror=alert(1)>'
    table = Table(nasty, (nasty,), ((Cell(nasty, None, ""),),))
    text = render(nasty, nasty, [Section("one", nasty, (table,))])
    assert "<img" not in text
    assert text.count("&lt;img src=x") >= 6


def test_networks_of_one_name_are_told_apart(models: list[Path], tmp_path: Path) -> None:
    """Figures are kept by name: of two alike one would be lost."""
    for folder, model in zip("ab", models, strict=False):
        (tmp_path / folder).mkdir()
        shutil.copy(model, tmp_path / folder / "model.keras")
    runs = [tmp_path / folder / "model.keras" for folder in "ab"]
    out = write_report(runs, tmp_path / "report.html", source=ImageSource("digits"), images=8)
    text = out.read_text(encoding="utf-8")
    assert "Robustness of a/model.keras, b/model.keras" in text
    # The table of singular values has the rows of both.
    spectra = text[text.index('id="spectra"') : text.index('id="transfer"')]
    rows = [spectra.count(f">{folder}/model.keras<") for folder in "ab"]
    assert rows[0] == rows[1] >= 3
    with pytest.raises(ValueError, match="the same run is given twice"):
        write_report([runs[0], runs[0]], out, source=ImageSource("digits"))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("settings.json", "[1]", r"settings.json' is damaged \(it holds no object\): remove it"),
        ("settings.json", "{not json", r"settings.json' is damaged \("),
        ("evaluation-1.json", '{"attacks": "<script>"}', "evaluation-1.json' was not written by"),
        ("model.tflite", "garbage", "model.tflite': "),
    ],
)
def test_damaged_records_are_named(
    name: str, content: str, message: str, models: list[Path], tmp_path: Path
) -> None:
    run = tmp_path / "run"
    run.mkdir()
    shutil.copy(models[0], run / "model.keras")
    (run / name).write_text(content)
    with pytest.raises(ValueError, match=message):
        write_report([run], tmp_path / "report.html", source=ImageSource("digits"), images=8)
    assert not (tmp_path / "report.html").exists()


def test_bad_input(models: list[Path], tmp_path: Path) -> None:
    out = tmp_path / "report.html"
    with pytest.raises(ValueError, match="no runs to report on"):
        write_report([], out)
    with pytest.raises(ValueError, match="at least 8, got 3"):
        write_report(models, out, images=3)
    with pytest.raises(FileNotFoundError, match="no nothing"):
        write_report(["nothing"], out)
    with pytest.raises(FileNotFoundError, match="no finished run"):
        write_report([tmp_path], out)
    with pytest.raises(ValueError, match="give its images with --data"):
        write_report(models, out)
    with pytest.raises(ValueError, match="is a folder; name the HTML file"):
        write_report(models, tmp_path)
    with pytest.raises(ValueError, match="2 cells in a table of 1"):
        Table("", ("a",), ((Cell("1"), Cell("2")),))
    assert not out.exists()
