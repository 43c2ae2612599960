"""`tfdq audit theirs.tflite --data photos`: a file that nothing of ours has made."""

from __future__ import annotations

import hashlib
import importlib
import io
import json
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.another_tool import by_another_tool
from tests.cli.test_command_line import tfdq
from tflite_export.files.write import write
from tflite_export.ir.graph import (
    FullyConnected,
    IntegerGraph,
    NoOptions,
    Operator,
    Quantization,
    Softmax,
    Tensor,
)
from tflite_export.ops.arg_max import ArgMax

NAMES = ("light", "dark", "middle")
"""In the order of the outputs; folders are sorted by name."""


def by_brightness() -> IntegerGraph:
    """A file that takes images in [-1, 1], and tells dark, middle and light ones from each other.

    Its logits are 8 m, -8 m and 3.2, m being the mean of the image.
    """
    grid = Quantization.per_tensor
    graph = IntegerGraph()
    pixels = 8 * 6 * 3
    step, slope = 2 / 255, 8 / pixels
    weights = np.array([[1], [-1], [0]], np.int8).repeat(pixels, axis=1)
    bias = np.array([0, 0, round(3.2 / (step * slope))], np.int32)
    image = graph.add_tensor(Tensor("image", (-1, 8, 6, 3), "int8", grid(step, 0)))
    shape = graph.add_tensor(Tensor("shape", (2,), "int32", None, np.array([-1, pixels], np.int32)))
    flat = graph.add_tensor(Tensor("flat", (-1, pixels), "int8", grid(step, 0)))
    kernel = graph.add_tensor(Tensor("kernel", weights.shape, "int8", grid(slope, 0), weights))
    offset = graph.add_tensor(Tensor("bias", (3,), "int32", grid(step * slope, 0), bias))
    logits = graph.add_tensor(Tensor("logits", (-1, 3), "int8", grid(0.08, 0)))
    output = graph.add_tensor(Tensor("probabilities", (-1, 3), "int8", grid(1 / 256, -128)))
    graph.operators += [
        Operator("RESHAPE", (image, shape), (flat,), NoOptions()),
        Operator("FULLY_CONNECTED", (flat, kernel, offset), (logits,), FullyConnected()),
        Operator("SOFTMAX", (logits,), (output,), Softmax()),
    ]
    graph.inputs, graph.outputs = (image,), (output,)
    return graph


@pytest.fixture(scope="module")
def theirs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with the file, its names, and photos that are larger than it takes."""
    folder = tmp_path_factory.mktemp("theirs")
    (folder / "theirs.tflite").write_bytes(by_another_tool(write(by_brightness())))
    (folder / "names.txt").write_text("\n".join(NAMES) + "\n")
    rng = np.random.default_rng(0)
    for name, level in (("dark", 25), ("middle", 140), ("light", 230)):
        (folder / "photos" / name).mkdir(parents=True)
        for number in range(40):
            pixels = rng.integers(level - 20, level + 20, (10, 14, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / "photos" / name / f"{number}.png")
    return folder


def test_the_range_is_tried_and_told(theirs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Size and range are the file's; its classes are those of the file of names."""
    line = (theirs / "theirs.tflite", "--data", theirs / "photos", "--labels", theirs / "names.txt")
    assert tfdq("run", *line, "--json") == 0
    out, err = capsys.readouterr()
    figures = json.loads(out)
    assert figures["accuracy"] == 1.0
    assert figures["images"] == 24
    assert figures["input_range"]["name"] == "-1..1"
    assert figures["input_range"]["tried"]["accuracy"]["0..255"] is None
    assert "-1..1 100.0 %" in err
    assert "taken: -1..1" in err
    assert tfdq("attack", *line, "--eps", "60/255", "--input-range", "-1,1", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    # Means of .1, .55 and .9 against borders at .3 and .7: 38 and 51 of 255 away.
    assert found["clean"] == 1.0
    assert found["robust"] == 0.0
    assert found["settings"]["input_range"]["name"] == "-1,1"
    assert tfdq("attack", *line, "--eps", "30/255", "--json") == 0
    assert json.loads(capsys.readouterr().out)["robust"] == 1.0


def test_data_may_be_the_integers_of_the_files_input(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Not photos but features, as of a keyword spotter; the file gives the class alone."""
    graph = by_brightness()
    axis = graph.add_tensor(Tensor("axis", (), "int32", None, np.array(1, np.int32)))
    output = graph.add_tensor(Tensor("class", (-1,), "int32"))
    graph.operators.append(Operator("ARG_MAX", (*graph.outputs, axis), (output,), ArgMax("int32")))
    graph.outputs = (output,)
    file, data = tmp_path / "theirs.tflite", tmp_path / "features.npz"
    file.write_bytes(by_another_tool(write(graph)))
    labels = np.arange(24, dtype=np.int8) % 3
    rng = np.random.default_rng(0)
    integers = np.array([102, -103, 12])[labels, None, None, None] + rng.integers(
        -20, 20, (24, 8, 6, 3)
    )
    x = integers.astype(np.int8)
    np.savez(data, x_train=x, y_train=labels, x_test=x, y_test=labels)
    line = (file, "--data", data, "--input-range", "grid", "--json")
    assert tfdq("run", *line) == 0
    figures = json.loads(capsys.readouterr().out)
    assert figures["accuracy"] == 1.0
    ends = [np.float32(2 / 255) * q for q in (-128, 127)]
    assert figures["input_range"]["name"] == "grid"
    assert [*figures["input_range"]["low"], *figures["input_range"]["high"]] == ends
    for steps, robust in ((30, 1.0), (60, 0.0)):
        assert tfdq("attack", *line, "--eps", f"{steps}/255") == 0
        found = json.loads(capsys.readouterr().out)
        assert (found["clean"], found["robust"]) == (1.0, robust)


def test_an_autoencoder_is_called_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    grid = Quantization.per_tensor(0.1, 0)
    tensors = [Tensor(name, (-1, 40), "int8", grid) for name in ("features", "again")]
    graph = IntegerGraph(tensors, [Operator("RELU", (0,), (1,), NoOptions())], (0,), (1,))
    file = tmp_path / "autoencoder.tflite"
    file.write_bytes(by_another_tool(write(graph)))
    assert tfdq("audit", file, "--data", "digits") == 2
    said = capsys.readouterr().err
    assert "an autoencoder, which has no classes to attack" in said
    assert said.count("\n") == 1


def test_labels_may_be_packed_behind_the_file(
    theirs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As TFLite Metadata does: a zip archive after the model."""
    packed = io.BytesIO((theirs / "theirs.tflite").read_bytes())
    with zipfile.ZipFile(packed, "a") as archive:
        archive.writestr("labels.txt", "\n".join(NAMES))
    file = tmp_path / "packed.tflite"
    file.write_bytes(packed.getvalue())
    assert tfdq("run", file, "--data", theirs / "photos", "--json") == 0
    assert json.loads(capsys.readouterr().out)["accuracy"] == 1.0


def test_what_does_not_fit_is_refused(
    theirs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = (theirs / "theirs.tflite", "--data", theirs / "photos")
    # In the order of the folders every range is wrong, or as good as a constant answer.
    assert tfdq("audit", *line, "--limit", 8) == 2
    said = capsys.readouterr().err
    assert "always answering the commonest class gives 33.3 %" in said
    assert "--labels" in said
    for names, message in (
        ("light\ndark\n", "names 2 classes"),
        ("light\ndark\nmiddle\nnone\n", "names 4 classes"),
        ("light\ndark\nMiddle\n", "names Middle, but the classes of photos are called middle"),
        ("", "is empty"),
    ):
        (tmp_path / "names.txt").write_text(names)
        assert tfdq("run", *line, "--labels", tmp_path / "names.txt") == 2
        said = capsys.readouterr().err
        assert message in said
        assert said.count("\n") == 1
    assert tfdq("run", *line, "--labels", tmp_path / "missing.txt") == 2
    assert "there is no file" in capsys.readouterr().err
    assert tfdq("run", *line, "--input-range", "1") == 2
    assert "--input-range takes LOW,HIGH" in capsys.readouterr().err
    named = (*line, "--labels", theirs / "names.txt", "--input-range")
    assert tfdq("audit", *named, "10,11") == 2
    assert "accuracy on 24 images by input range: 10,11 33.3 %" in capsys.readouterr().err
    assert tfdq("audit", *named, "0,255") == 2
    assert "none of 0,255 fits the input: input 'image' takes" in capsys.readouterr().err


def test_an_audit_of_it_goes_on_where_it_was(
    theirs: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Interrupted at a late check; the next run does not repeat the early ones."""
    module = importlib.import_module("tfdq.robustness.masking.audit")
    line = (theirs / "theirs.tflite", "--data", theirs / "photos", "--limit", 12, "--eps", "60/255")
    wanted = "determinism,zero gradients,plateau in restarts,monotone in epsilon"
    more = ("--labels", theirs / "names.txt", "--checks", wanted)

    def stop(task: object) -> None:
        raise KeyboardInterrupt

    checks = module._CHECKS
    last = [(n, stop if n == "monotone in epsilon" else f, g) for n, f, g in checks]
    monkeypatch.setattr(module, "_CHECKS", last)
    assert tfdq("audit", *line, *more, "--out", tmp_path) == 130
    assert f"finished checks are kept in {tmp_path}" in capsys.readouterr().err
    assert len(list((tmp_path / "pieces").glob("*.json"))) == 3
    others = [(n, f if n == "monotone in epsilon" else stop, g) for n, f, g in checks]
    monkeypatch.setattr(module, "_CHECKS", others)
    assert tfdq("audit", *line, *more, "--out", tmp_path, "--json") in (0, 1)
    found = json.loads(capsys.readouterr().out)
    assert found["white_box_accuracy"] == 0.0
    assert found["settings"]["input_range"]["name"] == "-1..1"
    monkeypatch.setattr(module, "_CHECKS", checks)
    assert tfdq("audit", *line, *more, "--json") in (0, 1)
    whole = json.loads(capsys.readouterr().out)
    for each in (found, whole):
        each.pop("seconds")
    assert found == whole


def test_a_page_says_what_it_is_how_robust_and_how_sure(
    theirs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = (theirs / "theirs.tflite", "--data", theirs / "photos", "--labels", theirs / "names.txt")
    page = tmp_path / "page.html"
    few = ("--eps", "60/255", "--limit", 8, "--checks", "zero gradients")
    tfdq("audit", *line, *few, "--out", tmp_path / "audit", "--html", page)
    text = page.read_text(encoding="utf-8")
    audit = json.loads((tmp_path / "audit" / "audit.json").read_text(encoding="utf-8"))
    assert "Robustness of theirs" in text
    for wanted in (
        "integer file",
        "FULLY_CONNECTED",
        "SOFTMAX",
        "zero gradients",
        "twin = ai-edge",
    ):
        assert wanted in text
    for gone in ("trained", "no network has a kernel", "not audited"):
        assert gone not in text[text.index('id="summary"') : text.index('id="curves"')]
    # The borders are 38 and 51 of 255 away, the radii that are certified end at 8.
    assert "100.0 % at 8." in text[text.index('id="certificates"') :]
    # The kernel has rank 1: rows 8, -8 and 0 over the number of pixels, in each pixel.
    pixels = 8 * 6 * 3
    largest = np.sqrt(2 * pixels) * 8 / pixels
    spectra = text[text.index('id="spectra"') : text.index('id="transfer"')]
    assert f"{largest:.3f}" in spectra
    card = text[text.index('id="cards"') :]
    assert hashlib.sha256((theirs / "theirs.tflite").read_bytes()).hexdigest() in card
    assert "-1..1" in card
    # The verdict may as well be given to the report; its last section says how to repeat it.
    told = f"{theirs / 'theirs.tflite'}={tmp_path / 'audit' / 'audit.json'}"
    assert tfdq("report", *line, "--limit", 8, "--out", page, "--audit", told) == 0
    text = page.read_text(encoding="utf-8")
    assert audit["checks"][0]["criterion"].split("<")[0] in text
    repeat = text[text.index('id="repeat"') :]
    assert "--labels" in repeat
    assert "(--audit)" in repeat
    capsys.readouterr()
    assert tfdq("report", *line, "--out", page, "--audit", f"other.tflite={told[-1]}") != 0
