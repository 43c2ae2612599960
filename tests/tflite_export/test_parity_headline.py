"""The first line of a parity report: how many integers differ, by how much, and do decisions."""

import numpy as np
import pytest
import tf_keras

import tfdq
import tflite_export
from tflite_export.conversion.parity import Comparison, ParityReport
from tflite_export.runtime.interpreter import Interpreter

RUNTIME = "litert 2"


def report(*outputs: Comparison) -> ParityReport:
    return ParityReport(200, "xnnpack", RUNTIME, outputs)


def row(left: str, identical: float, largest: int, top1: float | None) -> Comparison:
    return Comparison(left, f"{RUNTIME} (xnnpack)", "logits", identical, largest, top1)


@pytest.mark.parametrize(
    ("outputs", "expected"),
    [
        (
            (row("twin", 1.0, 0, 1.0), row("model", 0.2, 22, 1.0)),
            "80.0000% of the integers of logits differ from the trained model's, by up to 22 "
            "steps; decisions agree on 100.00%",
        ),
        (
            (row("twin", 1.0, 0, 1.0), row("model", 1.0, 0, 1.0)),
            "none of the integers of logits differ from the trained model's; decisions agree on "
            "100.00%",
        ),
        (
            (row("twin", 0.9999, 1, None),),
            "0.0100% of the integers of logits differ from the integer twin's, by up to 1 step",
        ),
        ((), "no output was compared"),
    ],
)
def test_first_line(outputs, expected) -> None:
    assert str(report(*outputs)).splitlines()[0] == expected


def test_first_line_is_what_model_and_file_give() -> None:
    image = tf_keras.Input((6, 6, 1))
    x = image
    for width in (6, 6, 6):
        x = tf_keras.layers.Conv2D(width, 3, padding="same", activation="relu")(x)
    dense = tf_keras.layers.Dense(5, name="scores")
    model = tf_keras.Model(image, dense(tf_keras.layers.Flatten()(x)))
    quantized = tfdq.quantize_model(model, activation_bits=2, input_range=(0.0, 1.0))
    images = np.random.default_rng(0).uniform(0, 1, (64, 6, 6, 1)).astype(np.float32)
    tfdq.calibrate(quantized, images)
    exported = tflite_export.convert(quantized, calibration=images, min_agreement=0.0)
    interpreter = Interpreter(exported.content)
    ours = interpreter.integers(images).astype(int)
    grid = interpreter.output_tensors[0]
    trained = quantized(images, training=False).numpy()
    steps = np.rint(trained / grid.scale).astype(int) + grid.zero_point
    differing = np.abs(ours - steps)
    agree = (trained.argmax(axis=1) == ours.argmax(axis=1)).mean()
    first = str(exported.parity).splitlines()[0]
    assert first.endswith(f"decisions agree on {agree:.2%}")
    if differing.any():
        assert first.startswith(f"{(differing > 0).mean():.4%} of the integers of ")
        assert f"by up to {differing.max()} step" in first
    else:
        assert first.startswith("none of the integers of ")
    again = tflite_export.verify(quantized, exported, images)
    assert str(again).splitlines()[0] == first
