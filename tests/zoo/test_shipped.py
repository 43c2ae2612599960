"""The files that come with tfdq: their cards, their rows on the leaderboard, and `load`."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import tfdq
from tests.documentation.markdown import ROOT
from tfdq.cli import main
from tfdq.data.idx import DEBIAN_FASHION_MNIST
from tfdq.zoo.cards import find_card, read_cards, zoo_folder
from tfdq.zoo.leaderboard import BEGIN, END, table, update

NAMES = list(read_cards())
PAGE = ROOT / "docs" / "leaderboard.md"


def status(arguments: list[str]) -> int:
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    return int(stopped.value.code or 0)


@pytest.fixture
def copied(tmp_path: Path) -> Path:
    """A zoo of one file."""
    for suffix in (".json", ".tflite"):
        shutil.copy(zoo_folder() / f"fashion-dq4{suffix}", tmp_path)
    return tmp_path


def test_one_line_gives_interpreter_twin_and_card() -> None:
    entry = tfdq.zoo.load("fashion-dq4")
    images = np.random.default_rng(0).uniform(size=(4, 28, 28, 1)).astype(np.float32)
    outputs = entry.interpreter.predict(images)
    assert outputs.shape == (4, 10)
    np.testing.assert_array_equal(np.asarray(entry.twin(images)), outputs)
    assert entry.twin is entry.twin
    assert entry.card.sha256 == hashlib.sha256(entry.path.read_bytes()).hexdigest()
    with pytest.raises(dataclasses.FrozenInstanceError):
        entry.card = None  # type: ignore[misc,assignment]


def test_loading_needs_no_tensorflow_and_no_keras() -> None:
    code = (
        "import sys, tfdq\n"
        "assert tfdq.zoo.load('fashion-dq4').card.seed == 0\n"
        "heavy = {'tensorflow', 'tf_keras', 'keras', 'jax', 'torch'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


def test_unknown_names_get_the_close_ones(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no 'fashion-dq5'; did you mean .*fashion-dq4"):
        tfdq.zoo.load("fashion-dq5")
    with pytest.raises(ValueError, match="no 'resnet'; it has: fashion-dq4, "):
        tfdq.zoo.load("resnet")
    with pytest.raises(ValueError, match="no 'none'; it has: nothing"):
        tfdq.zoo.load("none", tmp_path)
    with pytest.raises(FileNotFoundError, match=r"no folder .* with model cards"):
        tfdq.zoo.load("none", tmp_path / "nowhere")


def test_a_file_that_is_not_the_cards_is_refused(copied: Path) -> None:
    assert tfdq.zoo.load("fashion-dq4", copied).card.name == "fashion-dq4"
    (copied / "fashion-dq4.tflite").write_bytes(b"another")
    with pytest.raises(ValueError, match="SHA-256 differs"):
        tfdq.zoo.load("fashion-dq4", copied)
    (copied / "fashion-dq4.tflite").unlink()
    with pytest.raises(FileNotFoundError, match="is missing beside its card"):
        tfdq.zoo.load("fashion-dq4", copied)


def test_damaged_cards(copied: Path) -> None:
    (copied / "a.json").write_text('{"name": "a"}')
    with pytest.raises(ValueError, match=r"a\.json is no model card: format"):
        read_cards(copied)
    (copied / "a.json").unlink()
    path = copied / "fashion-dq4.json"
    content = json.loads(path.read_text())
    content["model_info"]["clean_acc"] = "99.00"
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"the card's own figures give .*tfdq zoo add"):
        read_cards(copied)


def test_cards_of_format_1_load_beside_the_others(copied: Path) -> None:
    """One as tfdq 0.2.0 wrote it: without `model_info`."""
    old = json.loads((ROOT / "tests" / "zoo" / "cards" / "format-1.json").read_text())
    assert (old["format"], old["name"]) == ("tfdq model card 1", "fashion-dq4")
    assert "model_info" not in old
    old["name"] = "old"
    (copied / "old.json").write_text(json.dumps(old))
    cards = read_cards(copied)
    assert list(cards) == ["fashion-dq4", "old"]
    assert cards["old"].format == "tfdq model card 2"
    assert cards["old"].model_info == cards["fashion-dq4"].model_info
    del old["clean"]
    (copied / "old.json").write_text(json.dumps(old))
    with pytest.raises(ValueError, match=r"old\.json is no model card: .*clean.*`tfdq zoo add`"):
        read_cards(copied)


def test_a_single_attack_is_no_suite() -> None:
    card = read_cards()["fashion-dq8"]
    single = next(
        found
        for found in card.robust
        if found.attacks == ("pgd",) and found.gradients == "integer twin"
    )
    evaluation = card.settings.evaluation.model_copy(update={"pgd_steps": 7})
    settings = card.settings.model_copy(update={"evaluation": evaluation})
    alone = card.model_copy(update={"robust": (single,), "settings": settings})
    cells = table([alone, card]).splitlines()[-1].split(" | ")
    assert cells[6] == "no suite"
    assert "PGD (20 steps)" in cells[7]
    trained = single.model_copy(update={"gradients": "trained network"})
    alone = alone.model_copy(update={"robust": (trained,)})
    assert "PGD (7 steps)" in table([alone])


def test_the_page_has_the_rows_of_the_cards() -> None:
    text = PAGE.read_text(encoding="utf-8")
    assert update(text, read_cards().values(), PAGE) == text
    shown = text.partition(BEGIN)[2].partition(END)[0].strip().splitlines()
    assert shown[0].split(" | ")[0] == "| file"
    # Against the card's JSON itself.
    for row in shown[2:]:
        cells = [cell.strip() for cell in row.strip("|").split("|")]
        card = json.loads((zoo_folder() / f"{cells[0].strip('`')}.json").read_text())
        assert cells[3] == str(
            round(len((zoo_folder() / f"{card['name']}.tflite").read_bytes()) / 1024)
        )
        assert float(cells[5].split()[0]) == float(card["model_info"]["clean_acc"])
        worst = next(found for found in card["robust"] if "square" in found["attacks"])
        assert cells[6] == "{accuracy:.1f} [{low:.1f}, {high:.1f}]".format(
            **{key: 100 * worst[key] for key in ("accuracy", "low", "high")}
        )
        assert f"{worst['images']:,} images" in cells[7]
        assert "Square (5,000 queries)" in cells[7]
        assert float(cells[8].split()[0]) == 100 * card["certified"][0]["accuracy"]
        assert cells[9].startswith("passed") == card["audit"]["passed"]
    assert len(shown) == 2 + len(NAMES)


def test_a_row_without_attack_audit_or_proof_says_so() -> None:
    card = read_cards()["fashion-dq4"]
    bare = card.model_copy(
        update={"robust": (), "certified": (), "audit": None, "speed_over_float": None}
    )
    row = table([bare]).splitlines()[-1]
    for cell in ("not measured", "not attacked", "not certified", "| none |"):
        assert cell in row
    assert card.audit is not None
    failed = card.audit.model_copy(update={"passed": False, "failed": ("black-box",)})
    assert "failed: black-box" in table([card.model_copy(update={"audit": failed})])


def test_the_command_writes_the_page_and_finds_a_stale_one(
    copied: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = copied / "page.md"
    page.write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n")
    command = ["zoo", "leaderboard", "--zoo", str(copied), "--out", str(page)]
    assert status([*command, "--check"]) == 1
    assert "stale" in capsys.readouterr().out
    assert status(command) == 0
    assert status([*command, "--check"]) == 0
    lines = page.read_text().splitlines()
    assert (lines[0], lines[-1]) == ("before", "after")
    assert lines[4].startswith("| `fashion-dq4` | fashion_mnist | 8 / 4 | 28 |")
    capsys.readouterr()
    assert status(["zoo", "leaderboard", "--zoo", str(copied)]) == 0
    assert capsys.readouterr().out.strip() == "\n".join(lines[2:5])
    page.write_text("no place\n")
    assert status(command) == 2
    assert "put a line <!-- leaderboard -->" in capsys.readouterr().err
    page.unlink()
    assert status(command) == 2
    told = capsys.readouterr().err
    assert "there is no page" in told
    assert f"make one with a line {BEGIN} and a line {END}" in told
    assert status(["zoo", "leaderboard", "--check"]) == 2


def test_check_takes_all_names_before_it_begins(capsys: pytest.CaptureFixture[str]) -> None:
    assert status(["zoo", "check", "fashion-dq4", "fashion-dq5"]) == 2
    assert "did you mean" in capsys.readouterr().err


@pytest.mark.parametrize("name", NAMES)
def test_the_shipped_cards_hold(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    card, path = find_card(name)
    assert hashlib.sha256(path.read_bytes()).hexdigest() == card.sha256
    assert path.stat().st_size == card.bytes < 2**20
    if not DEBIAN_FASHION_MNIST.is_dir() or card.settings.data.name != "fashion_mnist":
        pytest.skip(f"{card.settings.data.name} is not on this machine")
    assert status(["zoo", "check", name]) == 0, capsys.readouterr().out
