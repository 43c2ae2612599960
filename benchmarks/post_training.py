"""Float networks to integers without training: accuracy and time, beside the stock converter.

python -m benchmarks.post_training --gtsrb gtsrb32.npz

Each network is trained in float on real images; then `quantize_model`, `calibrate` and `convert`
make a file of 8 bits, and TensorFlow's converter its full-integer file, from the same 256 images.
Started again it goes on: what stands in the file of results is not done again.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

CALIBRATION = 256
CALLS = 300
COMMAND = "python -m benchmarks.post_training --gtsrb gtsrb32.npz"


class Case(NamedTuple):
    """A network and the images that it is trained on.

    Attributes:
        data: ``"Fashion-MNIST"`` or ``"GTSRB"``.
        train: number of images to train on.
        epochs: passes over them.
        network: from shape of an image and number of classes to the float network; pixels of
            0 to 255.
    """

    data: str
    train: int
    epochs: int
    network: Callable[[tuple[int, int, int], int], Any]


def residual(shape: tuple[int, int, int], classes: int) -> Any:
    """Return a residual network of three blocks, with BatchNormalization and ReLU."""
    import keras

    layers = keras.layers

    def conv(x: Any, filters: int, strides: int = 1) -> Any:
        x = layers.Conv2D(filters, 3, strides, padding="same", use_bias=False)(x)
        return layers.BatchNormalization(momentum=0.9)(x)

    image = keras.Input(shape)
    x = layers.ReLU()(conv(layers.Rescaling(1 / 255)(image), 16, 2))
    for filters, strides in ((16, 1), (32, 2), (32, 1)):
        y = conv(layers.ReLU()(conv(x, filters, strides)), filters)
        if strides == 2:
            x = layers.Conv2D(filters, 1, strides)(x)
        x = layers.ReLU()(layers.Add()([x, y]))
    return keras.Model(image, layers.Dense(classes)(layers.GlobalAveragePooling2D()(x)))


def mobilenet_v3(shape: tuple[int, int, int], classes: int) -> Any:
    """Return blocks of MobileNetV3 with a stem of 16 channels."""
    from benchmarks.squeezing_networks import mobilenet_v3_like

    return mobilenet_v3_like(shape, classes, width=16)


def efficientnet(shape: tuple[int, int, int], classes: int) -> Any:
    """Return blocks of EfficientNet with a stem of 16 channels."""
    from benchmarks.squeezing_networks import efficientnet_like

    return efficientnet_like(shape, classes, width=16)


CASES = {
    "residual": Case("Fashion-MNIST", 12_000, 3, residual),
    "EfficientNet-like": Case("Fashion-MNIST", 12_000, 4, efficientnet),
    "MobileNetV3-like": Case("GTSRB", 19_604, 6, mobilenet_v3),
}


def trained(case: Case, data: Any) -> Any:
    """Return the float network, trained."""
    import keras
    import numpy as np

    keras.utils.set_random_seed(0)
    model = case.network(data.input_shape, data.classes)
    logits = not isinstance(model.layers[-1], keras.layers.Dense) or (
        model.layers[-1].activation is keras.activations.linear
    )
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=logits)
    rate = keras.optimizers.schedules.CosineDecay(4e-3, case.epochs * (case.train // 64))
    model.compile(keras.optimizers.Adam(rate), loss)
    chosen = np.random.default_rng(0).permutation(len(data.x_train))[: case.train]
    x, y = data.x_train[chosen].astype(np.float32), data.y_train[chosen]
    model.fit(x, y, batch_size=64, epochs=case.epochs, verbose=0)
    return model


def stock_file(model: Any, images: Any) -> bytes:
    """Return the full-integer file of TensorFlow's converter, int8 to int8."""
    import keras
    import tensorflow as tf

    with tempfile.TemporaryDirectory() as folder:
        signature = [keras.InputSpec("float32", (1, *images.shape[1:]))]
        model.export(folder, input_signature=signature, verbose=False)
        converter = tf.lite.TFLiteConverter.from_saved_model(folder)
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
        converter.representative_dataset = lambda: ([image[None]] for image in images)
        converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
        converter.inference_input_type = converter.inference_output_type = tf.int8
        return bytes(converter.convert())


def measured(case: Case, data: Any) -> dict[str, float]:
    """Return accuracies on all test images, and the time of our file over the stock file's."""
    import numpy as np

    import tfdq
    from tflite_export import convert
    from tflite_export.runtime.interpreter import Interpreter
    from tflite_export.runtime.timing import measure

    model = trained(case, data)
    test, labels = data.x_test.astype(np.float32), data.y_test
    chosen = np.random.default_rng(1).permutation(len(data.x_train))[:CALIBRATION]
    images = data.x_train[chosen].astype(np.float32)
    quantized = tfdq.quantize_model(model, 0.0, input_range=(0.0, 255.0))
    tfdq.calibrate(quantized, images)
    exported = convert(quantized, calibration=images)
    assert exported.parity.exact

    def accuracy(scores: Any) -> float:
        return round(float(np.mean(np.asarray(scores).argmax(axis=1) == labels)), 4)

    files = [exported.content, stock_file(model, images)]
    ours, stock = (Interpreter(content, trusted=True) for content in files)
    times = measure([ours, stock], 1, CALLS, 5, 20.0)
    ratio = statistics.median(a / b for a, b in zip(*times, strict=True))
    return {
        "float": accuracy(model.predict(test, batch_size=500, verbose=0)),
        "file": accuracy(ours.predict(test)),
        "stock file": accuracy(stock.predict(test)),
        "time over stock": round(ratio, 3),
        "microseconds": round(statistics.median(times[0]) * 1e6, 1),
        "bytes": len(files[0]),
        "stock bytes": len(files[1]),
    }


def main(arguments: list[str] | None = None) -> int:
    """Measure each network and write the result file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--gtsrb", required=True, help="GTSRB as tfdq.data.load takes it")
    parser.add_argument("--out", type=Path, default=Path("results/post_training.json"))
    options = parser.parse_args(arguments)
    from tfdq.data import load
    from tfdq.robustness.result_store import write_atomically

    sources = {"Fashion-MNIST": "fashion_mnist", "GTSRB": options.gtsrb}
    record: dict[str, Any] = {"command": COMMAND, "networks": {}}
    if options.out.exists():
        record = json.loads(options.out.read_text(encoding="utf-8"))
    found = record["networks"]
    for name, case in CASES.items():
        key = f"{name}, {case.data}"
        if key not in found:
            found[key] = measured(case, load(sources[case.data]))
            print(key, found[key], flush=True)
            write_atomically(options.out, json.dumps(record, indent=1, sort_keys=True) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
