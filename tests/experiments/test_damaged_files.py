"""Files of runs that a disk or an editor damaged: named with a remedy, never a fault of tfdq."""

from __future__ import annotations

import copy
import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import tensorflow as tf

from tests.robustness.damage import damaged_texts, refusals
from tfdq.cli import main
from tfdq.experiments.checkpoints import DamagedCheckpointWarning, restore_newest
from tfdq.experiments.folder import join_folder
from tfdq.experiments.known_results import KnownResults
from tfdq.experiments.result_files import read_results_file
from tfdq.experiments.run_folder import kept_history
from tfdq.report.results_page import read_results, write_page
from tfdq.robustness import json_files

ROOT = Path(__file__).resolve().parents[2]
RESULTS = read_results_file(ROOT / "results" / "placement_seeds.json")


def tfdq(*arguments: object) -> int:
    with pytest.raises(SystemExit) as left:
        main([str(argument) for argument in arguments])
    return int(left.value.code or 0)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished `tfdq train`."""
    out = tmp_path_factory.mktemp("damaged") / "run"
    assert tfdq(*command(out)) == 0
    return out


def command(out: Path) -> tuple[object, ...]:
    return ("train", "--out", out, "--epochs", 1, "--train-limit", 64, "--float")


@pytest.mark.parametrize("name", ["tfdq-run.json", "settings.json", "training.json"])
def test_a_damaged_file_of_a_training_is_named(
    name: str, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = run / name
    whole = path.read_text()
    try:
        for text in damaged_texts(whole):
            path.write_text(text)
            capsys.readouterr()
            assert tfdq(*command(run)) == 2
            said = capsys.readouterr().err
            assert said.startswith(f"error: {str(path)!r} is damaged (")
            assert "remove it" in said
            assert said.count("\n") == 1
    finally:
        path.write_text(whole)
    assert tfdq(*command(run)) == 0


@pytest.mark.parametrize("odd", ["pipe", "device", "folder", "loop", "too large"])
def test_what_has_no_end_is_not_read(
    odd: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "environment.json"
    make: dict[str, Callable[[], object]] = {
        "pipe": lambda: os.mkfifo(path),
        "device": lambda: path.symlink_to("/dev/zero"),
        "folder": path.mkdir,
        "loop": lambda: path.symlink_to(path),
        "too large": lambda: path.write_text(json.dumps({"a": "b" * 2000})),
    }
    make[odd]()
    monkeypatch.setattr(json_files, "LARGEST", 1000)
    kind = OSError if odd == "loop" else ValueError
    with pytest.raises(kind, match=r"environment\.json"):
        json_files.read_json(path, "remove it")


def test_a_record_that_lacks_an_entry_is_named(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = run / "training.json"
    whole = path.read_text()
    try:
        for name in ("weights", "seconds", "history", "data", "test_accuracy", "test_images"):
            path.write_text(json.dumps({**json.loads(whole), name: None}))
            capsys.readouterr()
            assert tfdq(*command(run)) == 2
            assert f"training.json' is damaged ({name!r} is None)" in capsys.readouterr().err
    finally:
        path.write_text(whole)


def test_a_mark_that_says_nothing_is_another_folders(tmp_path: Path) -> None:
    join_folder(tmp_path / "a", "train")
    (tmp_path / "a" / "tfdq-run.json").write_text("{}")
    with pytest.raises(ValueError, match=r"tfdq-run\.json' is damaged \(no entry 'kind'\)"):
        join_folder(tmp_path / "a", "train")


@pytest.mark.parametrize(
    "text", ["", "{", "{}", "[1]", '[{"loss": 1.0}]', "[]", "[" * 100_000], ids=repr
)
def test_a_damaged_history_is_named(text: str, tmp_path: Path) -> None:
    (tmp_path / "history.json").write_text(text)
    with pytest.raises(ValueError, match=r"history\.json' is damaged \(.*: remove the folder"):
        kept_history(tmp_path, 2)
    (tmp_path / "history.json").write_text(json.dumps([{"seconds": 1.0, "loss": 2.0}] * 3))
    assert len(kept_history(tmp_path, 2)) == 2


def saved(folder: Path) -> tuple[tf.train.Checkpoint, tf.Variable]:
    """Two checkpoints, of the values 4 and 8 at those steps."""
    value = tf.Variable(tf.zeros(1000))
    checkpoint = tf.train.Checkpoint(value=value)
    manager = tf.train.CheckpointManager(checkpoint, folder, max_to_keep=2)
    for step in (4, 8):
        value.assign(tf.fill([1000], float(step)))
        manager.save(checkpoint_number=step)
    value.assign(tf.zeros(1000))
    return checkpoint, value


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def turn_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(bytes(content))


def overwrite(path: Path) -> None:
    path.write_bytes(b"\x00" * path.stat().st_size)


DAMAGES = [cut, turn_a_bit, overwrite, Path.unlink]


@pytest.mark.parametrize("part", ["data-00000-of-00001", "index"])
@pytest.mark.parametrize("damage", DAMAGES)
def test_the_older_checkpoint_serves_where_the_newest_is_damaged(
    damage: Callable[[Path], None], part: str, tmp_path: Path
) -> None:
    checkpoint, value = saved(tmp_path)
    damage(tmp_path / f"ckpt-8.{part}")
    if (damage, part) == (Path.unlink, "index"):  # then it is none
        assert restore_newest(checkpoint, tmp_path) == tmp_path / "ckpt-4"
    else:
        with pytest.warns(DamagedCheckpointWarning, match=r"ckpt-8' \(.*going on from .*ckpt-4'"):
            assert restore_newest(checkpoint, tmp_path) == tmp_path / "ckpt-4"
    assert (value.numpy() == 4).all()
    damage(tmp_path / f"ckpt-4.{part}")
    if (damage, part) != (Path.unlink, "index"):
        with pytest.raises(ValueError, match=r"no checkpoint can be read: .*ckpt-4'.*; remove "):
            restore_newest(checkpoint, tmp_path)


@pytest.mark.parametrize("damage", DAMAGES)
def test_checkpoints_are_found_without_the_list_of_them(
    damage: Callable[[Path], None], tmp_path: Path
) -> None:
    checkpoint, value = saved(tmp_path)
    damage(tmp_path / "checkpoint")
    assert restore_newest(checkpoint, tmp_path) == tmp_path / "ckpt-8"
    assert (value.numpy() == 8).all()
    assert restore_newest(checkpoint, tmp_path / "nowhere") is None


def test_results_damaged_in_any_place_are_named(tmp_path: Path) -> None:
    """The page of results and `--known` take a file, or refuse it by name."""
    path = tmp_path / "results" / "odd.json"
    path.parent.mkdir()

    def page(text: str) -> object:
        path.write_text(text)
        return read_results(path.parent)

    def known(text: str) -> object:
        path.write_text(text)
        return KnownResults([path])

    for read in (page, known):
        assert refusals(RESULTS, 100, read, f"{str(path)!r} ") >= 12
    path.write_text(json.dumps(RESULTS))
    assert set(write_page(path.parent, tmp_path / "page.md")) == {"odd"}
    assert len(KnownResults([path]).without([])) == len(RESULTS["runs"])


def test_damaged_results_are_a_mistake_of_the_input(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    content = copy.deepcopy(RESULTS)
    del content["runs"][1]["figures"]["attacks"]
    (tmp_path / "odd.json").write_text(json.dumps(content))
    assert tfdq("results", tmp_path, "--out", tmp_path / "page.md") == 2
    said = capsys.readouterr().err
    assert "odd.json' is damaged (no entry 'attacks'): copy it here again, or move it" in said
    assert not (tmp_path / "page.md").exists()
