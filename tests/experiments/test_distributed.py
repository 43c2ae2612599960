"""tf.distribute: two replicas and two real workers do what one device does."""

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tfdq
from tfdq.experiments.machines import scaled_to
from tfdq.experiments.settings import RunSettings
from tfdq.experiments.strategy import open_machines

SCRIPT = Path(__file__).with_name("distributed_training.py")
QUIET = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"}


@pytest.fixture(scope="module")
def two_replicas(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """Return the folder and the figures of a run on one device and on two replicas."""
    folder = tmp_path_factory.mktemp("mirrored")
    done = subprocess.run(
        [sys.executable, str(SCRIPT), "mirrored", str(folder)],
        capture_output=True,
        text=True,
        env=QUIET,
        check=False,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return folder, json.loads(done.stdout.splitlines()[-1])


def test_two_replicas_train_like_one_device(two_replicas: tuple[Path, dict[str, Any]]) -> None:
    found = two_replicas[1]
    assert found["replicas"] == found["devices"] == 2
    # 16 steps; float sums over two halves of a batch differ in their last bits. The moving
    # variance of a synchronized BatchNormalization lacks Bessel's factor, 1.0005 here.
    assert found["apart"] < 2e-3 * found["largest"]
    assert found["losses"][0] == pytest.approx(found["losses"][1], rel=2e-3)


def test_images_shared_out_are_attacked_alike(two_replicas: tuple[Path, dict[str, Any]]) -> None:
    found = two_replicas[1]
    assert found["attacked"] == 300
    assert found["same_figures"]


def start_workers(folder: Path, step: int, *also: Path) -> list[subprocess.Popen[str]]:
    """Start two workers on free ports of loopback; worker 1 kills itself at a step, 0: at none."""
    with socket.socket() as first, socket.socket() as second:
        first.bind(("127.0.0.1", 0))
        second.bind(("127.0.0.1", 0))
        addresses = [f"127.0.0.1:{s.getsockname()[1]}" for s in (first, second)]
    workers = []
    for index in range(2):
        config = {"cluster": {"worker": addresses}, "task": {"type": "worker", "index": index}}
        workers.append(
            subprocess.Popen(
                [sys.executable, str(SCRIPT), "worker", str(folder), str(step), *map(str, also)],
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                env={**QUIET, "TF_CONFIG": json.dumps(config)},
            )
        )
    return workers


def test_a_killed_worker_started_again_resumes(
    tmp_path: Path, two_replicas: tuple[Path, dict[str, Any]]
) -> None:
    folder = tmp_path / "run"
    first, second = start_workers(folder, 6)
    try:
        assert second.wait(300) == -signal.SIGKILL
        # The other one cannot go on alone: it notices, or whoever runs the cluster ends it.
        try:
            assert first.wait(20) != 0
        except subprocess.TimeoutExpired:
            first.kill()
    finally:
        for worker in (first, second):
            worker.kill()
            worker.communicate()
    assert (folder / "checkpoints" / "ckpt-3.index").exists()
    assert not (folder / "training.json").exists()
    workers = start_workers(folder, 0, two_replicas[0] / "one" / "model.keras")
    outputs = [worker.communicate(timeout=400) for worker in workers]
    for worker, (_, errors) in zip(workers, outputs, strict=True):
        assert worker.returncode == 0, errors[-3000:]
    found = [json.loads(output.splitlines()[-1]) for output, _ in outputs]
    assert [f["worker"] for f in found] == [0, 1]
    assert {f["workers"] for f in found} == {f["replicas"] for f in found} == {2}
    # Every worker ends with all figures, though each attacked its own images only.
    assert found[0]["clean"] == found[1]["clean"]
    assert found[0]["attacks"] == found[1]["attacks"]
    # The network of one device falls to two workers' attacks where it falls to that device's.
    assert found[0]["also"] == found[1]["also"] == two_replicas[1]["figures"]
    resumed, alone = (
        tfdq.load_model(path / "model.keras", compile=False).get_weights()
        for path in (folder, two_replicas[0] / "one")
    )
    largest = max(float(np.abs(weight).max()) for weight in alone)
    for a, b in zip(resumed, alone, strict=True):
        assert np.abs(a - b).max() < 2e-3 * largest


@pytest.mark.parametrize("name", ["gpu", "", "Mirrored"])
def test_unknown_strategies(name: str) -> None:
    with pytest.raises(ValueError, match="strategy must be one of auto, one_device, mirrored"):
        open_machines(name)


@pytest.mark.parametrize("config", ["", "{}", "nonsense", '{"cluster": {}}'])
def test_multiworker_says_what_it_needs(config: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TF_CONFIG", config)
    with pytest.raises(ValueError, match=r"strategy multiworker needs TF_CONFIG='\{\"cluster\""):
        open_machines("multiworker")


def test_tpu_says_what_it_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TPU_NAME", raising=False)
    with pytest.raises(ValueError, match="found no TPU"):
        open_machines("tpu")


def test_batch_and_rate_are_scaled_together() -> None:
    settings = RunSettings.model_validate({"training": {"batch_size": 64, "learning_rate": 0.1}})
    scaled = scaled_to(settings, 8).training
    assert (scaled.batch_size, scaled.learning_rate) == (512, 0.8)
