"""What the integer export costs and gains: every figure a ratio of two measured in one run."""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

CALLS = 300
BATCH = 8
ROUNDS = 5
SHAPE = (32, 32, 3)


class Row(NamedTuple):
    """One measured ratio."""

    name: str
    ratio: float
    goal: str
    detail: str


def _images(count: int) -> np.ndarray:
    return np.random.default_rng(0).random((count, *SHAPE), np.float32)


def _float_model() -> Any:
    import tf_keras

    from tfdq.models import resnet20

    tf_keras.utils.set_random_seed(0)
    return resnet20(SHAPE, 10)


def _quantized(bits: int, beta: float = 0.0) -> Any:
    import tfdq

    model = tfdq.quantize_model(
        _float_model(), beta, weight_bits=max(bits, 2), activation_bits=bits
    )
    return tfdq.calibrate(model, _images(32))


def _exported(bits: int, beta: float = 0.0, **options: Any) -> Any:
    import tflite_export

    # noise decides nothing, so only the integers are compared
    return tflite_export.convert(
        _quantized(bits, beta), calibration=_images(16), min_agreement=0.0, golden=0, **options
    )


def _float_file() -> bytes:
    import tensorflow as tf

    return tf.lite.TFLiteConverter.from_keras_model(_float_model()).convert()


def _paired(first: bytes, second: bytes) -> float:
    """Time of ``first`` over time of ``second``, median over pairs of calls of one image."""
    from tflite_export.runtime.interpreter import Interpreter
    from tflite_export.runtime.timing import measure

    models = [Interpreter(content, trusted=True) for content in (first, second)]
    ours, theirs = measure(models, 1, CALLS, 5, 20.0)
    return statistics.median(a / b for a, b in zip(ours, theirs, strict=True))


def int8_over_float() -> list[Row]:
    """Speed and size of the 8-bit file against the float file of the same ResNet-20."""
    exported, floats = _exported(8), _float_file()
    speed = _paired(floats, exported.content)
    size = len(exported) / len(floats)
    sizes = f"{len(exported):,} against {len(floats):,} bytes"
    return [
        Row("int8 speed over float32 (LiteRT, batch 1)", speed, ">= 2", "ResNet-20 32x32"),
        Row("int8 size over float32", size, "<= 0.35", sizes),
    ]


def few_bits_over_eight() -> list[Row]:
    """Time of 4- and 2-bit files over the 8-bit file: the same operators, so the same time."""
    eight = _exported(8)
    rows = []
    for bits in (4, 2):
        few = _exported(bits)
        time_ratio = _paired(few.content, eight.content)
        rows.append(Row(f"{bits}-bit time over 8-bit", time_ratio, "1.00 +- 0.03", "ResNet-20"))
    packed = _exported(4, weights="int4")
    size = len(packed) / len(eight)
    slower = _paired(packed.content, eight.content)
    rows.append(Row("int4-packed size over int8", size, "<= 0.65", f"{len(packed):,} bytes"))
    rows.append(Row("int4-packed time over int8", slower, "for size, not speed", "ResNet-20"))
    return rows


def defensive_over_vanilla() -> list[Row]:
    """Time and size of a defensive file over a vanilla one."""
    defensive, vanilla = _exported(4, 2e-3), _exported(4, 0.0)
    time_ratio = _paired(defensive.content, vanilla.content)
    size = len(defensive) / len(vanilla)
    return [
        Row("DQ time over VQ", time_ratio, "1.00 +- 0.03", "ResNet-20, 4 bits"),
        Row("DQ size over VQ", size, "1.00 +- 0.01", f"{len(defensive):,} bytes"),
    ]


def _alternating(
    first: Callable[[], Any], second: Callable[[], Any], rounds: int = ROUNDS
) -> float:
    """Time of ``first`` over time of ``second``, the calls taking turns."""

    def seconds(function: Callable[[], Any]) -> float:
        start = time.perf_counter()
        function()
        return time.perf_counter() - start

    first(), second()
    return statistics.median(seconds(first) / seconds(second) for _ in range(rounds))


def _gradient_of(model: Any) -> Callable[[Any], Any]:
    import tensorflow as tf

    def gradient(x: Any) -> Any:
        with tf.GradientTape() as tape:
            tape.watch(x)
            loss = tf.reduce_sum(model(x, training=False))
        return tape.gradient(loss, x)

    return gradient


def twin_over_fake_quantized() -> list[Row]:
    """Forward pass, and forward with input gradient, of the twin over the trained model."""
    import tensorflow as tf

    from tflite_export import IntegerTwin

    rows = []
    images = tf.constant(_images(64))
    for bits in (8, 4):
        trained = _quantized(bits)
        models = (IntegerTwin(trained), trained)
        forward = [tf.function(partial(model, training=False)) for model in models]
        backward = [tf.function(_gradient_of(model)) for model in models]
        for name, pair in (("forward", forward), ("gradient", backward)):
            ratio = _alternating(partial(pair[0], images), partial(pair[1], images))
            label = f"twin {name} over fake-quantized, {bits} bits"
            rows.append(Row(label, ratio, "<= 3", "ResNet-20, batch 64"))
    return rows


def export_over_stock() -> list[Row]:
    """Time of an export over the stock 8-bit conversion of the same model."""
    import tensorflow as tf
    import tensorflow_model_optimization as tfmot

    import tflite_export
    from tflite_export.files.write import write
    from tflite_export.lowering.lower import lower
    from tflite_export.lowering.trained import trained

    model = _quantized(8)
    stock = tfmot.quantization.keras.quantize_model(_float_model())
    stock(_images(8), training=True)

    def convert_stock() -> bytes:
        converter = tf.lite.TFLiteConverter.from_keras_model(stock)
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
        return converter.convert()

    def written() -> bytes:
        return write(lower(trained(model).description).graph)

    def verified() -> Any:
        return tflite_export.convert(
            model, calibration=_images(16), min_agreement=0.0, verify_samples=16
        )

    written_ratio = 1.0 / _alternating(written, convert_stock, 2)
    verified_ratio = 1.0 / _alternating(verified, convert_stock, 2)
    return [
        Row("stock conversion over export (lower + write)", written_ratio, ">= 10", "ResNet-20"),
        Row("stock conversion over convert with its proof", verified_ratio, ">= 1", "16 samples"),
    ]


def peak_memory() -> list[Row]:
    """Memory that loading and running the file takes, over that of the float file.

    What Python and the runtime's library take is not counted.
    """
    from tflite_export.runtime.memory import peak_memory as measure_peak

    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder, name) for name in ("int8.tflite", "float.tflite")]
        paths[0].write_bytes(_exported(8).content)
        paths[1].write_bytes(_float_file())
        ours, theirs = (measure_peak(path, 1, BATCH) for path in paths)
    if ours is None or theirs is None:
        return []
    detail = f"{ours:.1f} against {theirs:.1f} MiB, batch {BATCH}"
    return [Row("int8 peak memory over float32", ours / theirs, "<= 1", detail)]


MEASURES = (
    int8_over_float,
    few_bits_over_eight,
    defensive_over_vanilla,
    twin_over_fake_quantized,
    export_over_stock,
    peak_memory,
)


def main() -> None:
    """Run every measure and print its rows."""
    for measure in MEASURES:
        for row in measure():
            print(f"{row.name:48} {row.ratio:8.3f}   {row.goal:20} {row.detail}", flush=True)


if __name__ == "__main__":
    main()
