"""Runs that are killed, run out of disk or meet another process."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

import tfdq
from tfdq.experiments.folder import BusyError, hold, join_folder, open_folder, write_json
from tfdq.experiments.networks import weights_digest

SCRIPT = Path(__file__).with_name("killed_training.py")


def train(folder: Path, trouble: str = "none", step: int = 0) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(SCRIPT), str(folder), trouble, str(step)],
        capture_output=True,
        text=True,
        env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"},
        check=False,
        timeout=300,
    )


def test_killed_and_started_again_the_weights_are_the_same_bit_for_bit(tmp_path: Path) -> None:
    # 4 steps an epoch, 3 epochs; checkpoints at 3, 4, 7, 8, 11, 12.
    whole = train(tmp_path / "whole")
    assert whole.returncode == 0, whole.stderr[-2000:]
    folder = tmp_path / "killed"
    assert train(folder, "kill", 6).returncode == -signal.SIGKILL
    assert tf.train.latest_checkpoint(folder / "checkpoints").endswith("ckpt-4")
    # A disk may spoil the newest checkpoint: the older one, after 3 steps, serves.
    spoilt = folder / "checkpoints" / "ckpt-4.data-00000-of-00001"
    spoilt.write_bytes(spoilt.read_bytes()[:-100])
    second = train(folder, "kill-in-save", 8)
    assert second.returncode == -signal.SIGKILL
    assert "ckpt-4" in second.stderr
    assert "going on from" in second.stderr
    assert tf.train.latest_checkpoint(folder / "checkpoints").endswith("ckpt-7")
    last = train(folder, "full-disk", 11)
    assert last.returncode == 0, last.stderr[-2000:]
    trouble, finished = last.stdout.splitlines()
    assert "File too large" in trouble
    assert "what was finished is kept" in trouble
    assert finished == whole.stdout.strip()
    # The saved files say the same as the record.
    weights, epochs = finished.split()
    record = json.loads((folder / "training.json").read_text())
    assert (record["weights"], len(record["history"])) == (weights, 3) == (weights, int(epochs))
    models = [
        tfdq.load_model(tmp_path / name / "model.keras", compile=False)
        for name in ("whole", "killed")
    ]
    assert weights_digest(models[0]) == weights
    for a, b in zip(models[0].get_weights(), models[1].get_weights(), strict=True):
        assert np.array_equal(a, b)
    assert not (folder / "checkpoints").exists()
    described = json.loads((folder / "environment.json").read_text())
    assert described["versions"]["tensorflow"] == tf.__version__
    assert described["threads"] == 1
    assert json.loads((folder / "settings.json").read_text())["seed"] == 0
    # TensorBoard's files: one accuracy for each epoch, those before the kill included.
    logged = scalars(tmp_path / "whole" / "logs", "accuracy")
    kept = json.loads((tmp_path / "whole" / "history.json").read_text())
    assert logged == pytest.approx({number: row["accuracy"] for number, row in enumerate(kept)})


def scalars(folder: Path, name: str) -> dict[int, float]:
    """Return step -> value of a scalar, read from the event files as TensorBoard reads them."""
    found = {}
    for path in folder.glob("events*"):
        for event in tf.compat.v1.train.summary_iterator(str(path)):
            for value in event.summary.value:
                if value.tag == name:
                    assert value.metadata.plugin_data.plugin_name == "scalars"
                    found[event.step] = float(tf.make_ndarray(value.tensor))
    return found


def test_a_folder_is_held_by_one_process(tmp_path: Path) -> None:
    code = (
        "import sys, time; from pathlib import Path; from tfdq.experiments.folder import hold\n"
        "with hold(Path(sys.argv[1])): print('held', flush=True); time.sleep(600)"
    )
    other = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    try:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        with pytest.raises(BusyError, match="another process is writing"), hold(tmp_path):
            pass
    finally:
        other.kill()
        other.wait()
    # A killed process holds nothing.
    with hold(tmp_path):
        pass


def test_two_runs_in_one_folder_are_refused(tmp_path: Path) -> None:
    with (
        open_folder(tmp_path / "run", "train"),
        pytest.raises(ValueError, match="another process"),
        open_folder(tmp_path / "run", "train"),
    ):
        pass


def test_a_folder_that_another_process_joins_meanwhile_is_joined(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its mark is not there yet, its files are: half a mark, or a lock a moment later."""
    (tmp_path / ".tfdq-run.json.0123456789abcdef").write_text("")
    join_folder(tmp_path, "reproduce")
    (tmp_path / "tfdq-run.json").unlink()
    (tmp_path / ".lock").touch()
    listed = Path.iterdir

    def joined_by(kind: str) -> None:
        def iterdir(path: Path) -> Iterator[Path]:
            write_json(tmp_path / "tfdq-run.json", {"kind": kind})
            return listed(path)

        monkeypatch.setattr(Path, "iterdir", iterdir)

    joined_by("reproduce")
    join_folder(tmp_path, "reproduce")
    (tmp_path / "tfdq-run.json").unlink()
    joined_by("train")
    with pytest.raises(ValueError, match="holds a run of `tfdq train`"):
        join_folder(tmp_path, "reproduce")


def test_a_folder_of_something_else_is_refused(tmp_path: Path) -> None:
    join_folder(tmp_path / "a", "reproduce")
    with pytest.raises(ValueError, match="holds a run of `tfdq reproduce`"):
        join_folder(tmp_path / "a", "train")
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "thesis.txt").touch()
    with pytest.raises(ValueError, match="files that tfdq did not write"):
        join_folder(tmp_path / "b", "reproduce")
    with pytest.raises(ValueError, match="is a file"):
        join_folder(tmp_path / "b" / "thesis.txt", "reproduce")


def test_an_unwritable_folder_is_an_os_error() -> None:
    # Even root cannot make a folder there.
    with pytest.raises(OSError, match="/proc"):
        join_folder("/proc/tfdq", "reproduce")


def test_a_result_that_cannot_be_written_leaves_the_earlier_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "results.json"
    write_json(path, {"figure": 1})

    def full(handle: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_json(path, {"figure": 2})
    assert json.loads(path.read_text()) == {"figure": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["results.json"]
