"""Which networks the folders that commands leave stand for."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest

from tests.report.conftest import HOSTILE
from tfdq.data import load
from tfdq.experiments.folder import join_folder
from tfdq.experiments.settings import DataSettings
from tfdq.report.networks import ImageSource, open_networks
from tfdq.report.run_folders import integer_file_of, networks_in
from tfdq.report.run_report import write_report
from tfdq.robustness import audit
from tfdq.robustness.result_store import digest


@pytest.fixture
def demo(models: list[Path], tmp_path: Path) -> Path:
    folder = join_folder(tmp_path / "demo", "demo")
    (folder / "models").mkdir()
    for model in models:
        shutil.copy(model, folder / "models")
        shutil.copy(model.with_suffix(".tflite"), folder)
    return folder


def test_a_demo_stands_for_its_models(demo: Path, models: list[Path]) -> None:
    found = networks_in([demo])
    assert [path.name for path in found] == [path.name for path in models]
    assert [integer_file_of(path) for path in found] == [
        demo / path.with_suffix(".tflite").name for path in models
    ]
    networks, x, y = open_networks([demo], ImageSource(), 16)
    assert {network.name for network in networks} == {HOSTILE, "_vq $a$"}
    assert all(network.file is not None for network in networks)
    assert x.shape == (16, 8, 8, 1)
    assert y.shape == (16,)


def test_a_reproduction_stands_for_its_finished_runs(models: list[Path], tmp_path: Path) -> None:
    folder = join_folder(tmp_path / "out", "reproduce")
    for name in ("b", "a", "begun"):
        (folder / "runs" / name).mkdir(parents=True)
    for name in ("b", "a"):
        shutil.copy(models[0], folder / "runs" / name / "model.keras")
    assert networks_in([folder]) == [folder / "runs" / "a", folder / "runs" / "b"]
    assert networks_in([models[1], folder / "runs" / "b"]) == [models[1], folder / "runs" / "b"]


def test_runs_of_the_same_images_go_into_one_report(models: list[Path], tmp_path: Path) -> None:
    """Those of version 0.1, of `tfdq reproduce` and of `tfdq train` record them otherwise."""
    digits = load("digits")
    recorded = {
        "before": {"name": "digits", "dir": None, "train_images": 100, "pad": None},
        "reproduced": DataSettings(name="digits", dir=tmp_path).model_dump(mode="json"),
        "trained": DataSettings(
            name="digits", digest=digest(digits.x_train, digits.y_train)
        ).model_dump(mode="json"),
        "padded": DataSettings(name="digits", pad=12).model_dump(mode="json"),
    }
    for name, data in recorded.items():
        (tmp_path / name).mkdir()
        shutil.copy(models[0], tmp_path / name / "model.keras")
        settings = {"seed": 0, "settings": {"data": data}}
        (tmp_path / name / "settings.json").write_text(json.dumps(settings))
    same = [tmp_path / name for name in ("before", "reproduced", "trained")]
    for runs in (same, same[::-1]):
        networks, x, _ = open_networks(runs, ImageSource(), 16)
        assert [network.name for network in networks] == [run.name for run in runs]
        assert x.shape == (16, 8, 8, 1)
    with pytest.raises(ValueError, match="the runs are of different data"):
        open_networks([*same, tmp_path / "padded"], ImageSource(), 16)


@pytest.mark.parametrize("kind", ["demo", "reproduce"])
def test_a_folder_without_a_finished_network_is_named(kind: str, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=f"no finished network.*tfdq {kind}"):
        networks_in([join_folder(tmp_path / "out", kind)])


def test_the_folder_of_a_report_is_made_when_its_networks_are_there(
    models: list[Path], tmp_path: Path
) -> None:
    out = tmp_path / "new" / "report.html"
    with pytest.raises(FileNotFoundError, match="there is no"):
        write_report([tmp_path / "none"], out, source=ImageSource("digits"))
    assert not out.parent.exists()
    write_report(models[:1], out, source=ImageSource("digits"), images=8)
    assert out.stat().st_size > 10_000


def test_an_audit_is_of_the_network_that_it_names(demo: Path, tmp_path: Path) -> None:
    """A folder that stands for several networks comes before it."""
    from tflite_export import IntegerTwin

    digits = load("digits")
    x, y = digits.x_test[:40] / np.float32(255), digits.y_test[:40]
    alone = tmp_path / "alone.tflite"
    shutil.copy(next(demo.glob("*.tflite")), alone)
    found = audit(IntegerTwin(alone), x, y, eps=0.1, examples=8, checks=["zero gradients"])
    out, source = tmp_path / "report.html", ImageSource("digits")
    page = write_report([demo, alone], out, source=source, images=8, audits={alone: found})
    text = page.read_text(encoding="utf-8")
    audits = text[text.index('id="audits"') : text.index('id="cards"')]
    assert "alone: " in audits[audits.index("<table") :]
    assert audits.count("not audited; run tfdq audit") == 2
    with pytest.raises(ValueError, match="demo, which is not reported on"):
        write_report([demo, alone], out, source=source, images=8, audits={demo: found})


def test_a_quantized_keras_3_model_is_reported_on(tmp_path: Path) -> None:
    import keras

    import tfdq
    from tflite_export import convert

    digits = load("digits")
    x = digits.x_train[:200] / np.float32(255)
    keras.utils.set_random_seed(0)
    image = keras.Input((8, 8, 1))
    features = keras.layers.Conv2D(4, 3, activation="relu", name="features")(image)
    logits = keras.layers.Dense(10, name="logits")(keras.layers.Flatten()(features))
    model = tfdq.quantize_model(keras.Model(image, logits), input_range=(0, 1))
    convert(tfdq.calibrate(model, x), tmp_path / "mine.tflite")
    model.save(tmp_path / "mine.keras")
    out = tmp_path / "report.html"
    page = write_report([tmp_path / "mine.keras"], out, source=ImageSource("digits"), images=8)
    text = page.read_text(encoding="utf-8")
    spectra = text[text.index('id="spectra"') : text.index('id="transfer"')]
    # Of the kernel as it is deployed, on 8 bits.
    kernel = np.asarray(model.get_layer("features").kernel).reshape(9, 4)
    largest = np.linalg.svd(kernel, compute_uv=False)[0]
    shown = [float(value) for value in re.findall(r'data-value="([\d.]+)"', spectra)]
    assert shown[0] == pytest.approx(largest, rel=0.01)
    assert "model = twin" in text
