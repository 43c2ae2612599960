"""What attacks cost and how strong they are, against their references, side by side in one run.

The references (pyautoattack with PyTorch, the Adversarial Robustness Toolbox) are optional: a row
whose reference is not installed is left out.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import io
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from benchmarks.rows import Row, print_rows

EPS = 8 / 255
# Square second: a query to the file costs a quarter of a gradient, and what falls to it needs none.
SUITE = ("apgd-ce", "square", "apgd-t", "fab")


class Images(NamedTuple):
    """Images in [0, 1], float32 [n, height, width, channels], and labels."""

    x_train: np.ndarray
    y_train: np.ndarray
    x: np.ndarray
    y: np.ndarray


@functools.cache
def images() -> Images:
    """Return Fashion-MNIST where Debian's package has it, else the embedded 8x8 digits."""
    from tfdq.data import load

    try:
        data = load("fashion_mnist")
    except FileNotFoundError:
        data = load("digits")
    scale = np.float32(255)
    return Images(
        data.x_train[:20000] / scale, data.y_train[:20000], data.x_test / scale, data.y_test
    )


def small_resnet(width: int = 16) -> Any:
    """Return a residual network of three blocks, `width` to `4 * width` channels, float."""
    import tf_keras

    from tfdq.models import blocks

    image, _ = blocks.image_input(images().x.shape[1:], 4, 8)
    x = blocks.conv_bn_relu(image, width, 3, 1, "stem")
    for index, (filters, strides) in enumerate([(width, 1), (2 * width, 2), (4 * width, 2)]):
        x = blocks.post_activation_block(x, filters, strides, f"block{index}")
    x = tf_keras.layers.GlobalAveragePooling2D()(x)
    return tf_keras.Model(image, blocks.logits(x, 10))


@functools.cache
def trained(activation_bits: int, seed: int = 0, epochs: int = 6) -> Any:
    """Return the small ResNet quantized defensively (folded penalty, beta 0.002) and trained."""
    import tf_keras

    import tfdq

    tf_keras.utils.set_random_seed(seed)
    model = tfdq.quantize_model(
        small_resnet(),
        2e-3,
        on="folded",
        activation_bits=activation_bits,
        activation_range="relu6",
        input_range=(0.0, 1.0),
    )
    model.compile(
        tf_keras.optimizers.legacy.Adam(1e-3),
        tf_keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    )
    model.fit(images().x_train, images().y_train, batch_size=128, epochs=epochs, verbose=0)
    return model


def _installed(*modules: str) -> bool:
    return all(importlib.util.find_spec(module) is not None for module in modules)


def _timed(run: Callable[[], Any]) -> tuple[float, Any]:
    start = time.perf_counter()
    result = run()
    return time.perf_counter() - start, result


def pgd_steps(rounds: int = 5, batch: int = 64) -> list[Row]:
    """Measure PGD-20 against 20 bare gradients of the same network and batch, taking turns.

    `early_stop` is off: every image takes all 20 steps, and the attack pays for its clean and its
    final forward pass as well.
    """
    import tensorflow as tf

    from tfdq.models import resnet20
    from tfdq.robustness import as_target, run_attack

    model = resnet20()
    generator = np.random.default_rng(0)
    x = generator.random((batch, 32, 32, 3), dtype=np.float32)
    target = as_target(model)
    y = target.predict(x)
    images_, labels = tf.constant(x), tf.constant(y)

    @tf.function
    def gradient(points: tf.Tensor) -> tf.Tensor:
        with tf.GradientTape() as tape:
            tape.watch(points)
            logits = model(points, training=False)
            loss = tf.nn.sparse_softmax_cross_entropy_with_logits(labels=labels, logits=logits)
        return tape.gradient(loss, points)

    def bare() -> None:
        for _ in range(20):
            gradient(images_).numpy()

    def pgd() -> None:
        run_attack("pgd", target, x, y, EPS, steps=20, early_stop=False)

    for run in (bare, pgd):
        run()
    pairs = [(_timed(pgd)[0], _timed(bare)[0]) for _ in range(rounds)]
    detail = (
        f"{statistics.median(p for p, _ in pairs):.2f} s over "
        f"{statistics.median(b for _, b in pairs):.2f} s, ResNet-20, batch {batch}"
    )
    ratio = statistics.median(p / b for p, b in pairs)
    return [Row("PGD-20 / 20 gradients", ratio, "<= 1.05", detail)]


def standard_suite(count: int = 96, art_count: int = 4, eps: float = EPS) -> list[Row]:
    """Measure APGD-CE + APGD-T + FAB + Square against pyautoattack and ART's AutoAttack.

    All attack the same 4-bit network and images and pass on what is not broken yet. Ours puts the
    queries of its random search to the network's export; the others cannot. ART's takes minutes for
    each image that stands, so it is given few images, and ours is timed on the same ones.
    """
    from tfdq.robustness import as_target
    from tflite_export import convert

    rows = []
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "small_resnet.tflite"
        convert(trained(4), path, calibration=images().x[:256])
        target, proxy = as_target(trained(4)), as_target(path)
        for traced in (target, proxy):
            traced.logits(images().x[:count])  # before the clock starts, for all alike
        for name, modules, run, size in (
            ("pyautoattack", ("torch", "pyautoattack"), _pyautoattack, count),
            ("ART AutoAttack", ("art", "multiprocess"), _art_autoattack, art_count),
        ):
            if not _installed(*modules):
                continue
            x, y = images().x[:size], images().y[:size]
            clocks = [time.process_time()]
            seconds, ours = _timed(functools.partial(_suite, target, proxy, x, y, eps))
            clocks.append(time.process_time())
            theirs, adversarial = _timed(functools.partial(run, target, x, y, eps))
            clocks.append(time.process_time())
            ours_busy, theirs_busy = np.diff(clocks)
            robust = float(np.mean(target.predict(adversarial) == y))
            detail = (
                f"{theirs:.0f} s over {seconds:.0f} s (processor time {theirs_busy:.0f} over "
                f"{ours_busy:.0f}), robust accuracy {ours:.3f} against {robust:.3f}, 4-bit small "
                f"ResNet, {size} images, eps {eps * 255:.0f}/255"
            )
            rows.append(Row(f"{name} / standard suite", theirs / seconds, ">= 3", detail))
    return rows


def _suite(target: Any, proxy: Any, x: np.ndarray, y: np.ndarray, eps: float) -> float:
    from tfdq.robustness import run_attack

    standing = np.arange(len(x))
    for name in SUITE:
        result = run_attack(name, target, x[standing], y[standing], eps, proxy=proxy)
        standing = standing[~result.success]
    return len(standing) / len(x)


def _pyautoattack(target: Any, x: np.ndarray, y: np.ndarray, eps: float) -> np.ndarray:
    import torch
    from pyautoattack import AutoAttack

    from tfdq.robustness.attacks.torch_bridge import as_torch_module

    # TensorFlow has the cores; PyTorch's own threads would only fight it for them.
    torch.set_num_threads(1)
    suite = AutoAttack(as_torch_module(target), eps=eps, seed=0)
    adversarial, _ = suite.run_standard_evaluation(
        torch.tensor(np.moveaxis(x, -1, 1).copy()), torch.tensor(y), batch_size=256
    )
    return np.moveaxis(adversarial.numpy(), 1, -1)


def _art_autoattack(target: Any, x: np.ndarray, y: np.ndarray, eps: float) -> np.ndarray:
    import tensorflow as tf
    from art.attacks.evasion import AutoAttack
    from art.estimators.classification import TensorFlowV2Classifier

    logits = tf.function(target.logits_tensor, reduce_retracing=True)
    classifier = TensorFlowV2Classifier(
        model=lambda points, training=False: logits(points),
        nb_classes=10,
        input_shape=x.shape[1:],
        loss_object=tf.keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        clip_values=(0.0, 1.0),
    )
    with contextlib.redirect_stderr(io.StringIO()):
        suite = AutoAttack(classifier, eps=eps, eps_step=eps / 4, batch_size=256)
        return suite.generate(x, y)


def square_on_file(count: int = 64, queries: int = 1000) -> list[Row]:
    """Measure Square on a `.tflite` file against ART's on the same file, images and queries.

    Both stretch the schedule of sizes to the number of queries, as ART always does.
    """
    from tfdq.robustness import as_target, run_attack
    from tflite_export import convert

    if not _installed("art"):
        return []
    x, y = images().x[:count], images().y[:count]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "small_resnet.tflite"
        convert(trained(4), path, calibration=images().x[:256])
        target = as_target(path)
        target.logits(x)
        ours, result = _timed(
            lambda: run_attack("square", target, x, y, EPS, queries=queries, rescale_schedule=True)
        )
        theirs, adversarial = _timed(lambda: _art_square(target, x, y, queries))
        robust = float(np.mean(target.predict(adversarial) == y))
    detail = (
        f"{theirs:.1f} s over {ours:.1f} s, robust accuracy {result.robust_accuracy:.3f} against "
        f"{robust:.3f}, {queries} queries, {count} images"
    )
    return [Row("ART Square / Square on a .tflite", theirs / ours, ">= 5", detail)]


def _art_square(target: Any, x: np.ndarray, y: np.ndarray, queries: int) -> np.ndarray:
    from art.attacks.evasion import SquareAttack
    from art.estimators.classification import BlackBoxClassifierNeuralNetwork

    classifier = BlackBoxClassifierNeuralNetwork(
        target.logits,
        input_shape=x.shape[1:],
        nb_classes=10,
        channels_first=False,
        clip_values=(0.0, 1.0),
    )
    attack = SquareAttack(
        classifier, max_iter=queries, eps=EPS, p_init=0.8, batch_size=256, verbose=False
    )
    return attack.generate(x, y)


def low_bit(count: int = 400, seed: int = 0) -> list[Row]:
    """Measure the low-bit attack against Square with 5,000 queries, on 2-bit activations.

    The "ratio" is a difference in points of robust accuracy; the straight-through figures beside
    it say why the attack is needed.
    """
    from tfdq.robustness import as_target, run_attack

    x, y = images().x[:count], images().y[:count]
    target = as_target(trained(2, seed))
    names = ("fgsm", "pgd", "apgd-dlr", "square", "low-bit")
    found = {name: run_attack(name, target, x, y, EPS) for name in names}
    ours, square = found["low-bit"], found["square"]
    detail = (
        "robust accuracy "
        + ", ".join(f"{name} {result.robust_accuracy:.3f}" for name, result in found.items())
        + f"; clean {ours.clean_accuracy:.3f}; low-bit {ours.gradients.max()} gradients and "
        f"{ours.queries.mean():.0f} queries an image, Square {square.queries.mean():.0f} queries; "
        f"{count} images, seed {seed}"
    )
    points = 100 * (ours.robust_accuracy - square.robust_accuracy)
    return [Row("low-bit - Square, points of accuracy", points, "<= 2", detail)]


def rows() -> list[Row]:
    """Measure everything."""
    return [*pgd_steps(), *standard_suite(), *square_on_file(), *low_bit()]


def main() -> int:
    """Print the ratios as they come."""
    for measure in (pgd_steps, square_on_file, low_bit, standard_suite):
        print_rows(measure())
    return 0


if __name__ == "__main__":
    sys.exit(main())
