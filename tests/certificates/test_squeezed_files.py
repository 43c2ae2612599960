"""Certificates of files with feature squeezing inside, from the trained model to the attack."""

from pathlib import Path

import numpy as np
import pytest
import tf_keras
from sklearn.datasets import load_digits

import tfdq
import tflite_export
from tfdq import certificates
from tfdq.robustness import BitDepthSqueeze, MedianSqueeze, run_attack, squeeze

layers = tf_keras.layers
STEP = 0.02


@pytest.fixture(scope="module")
def digits() -> tuple[np.ndarray, np.ndarray]:
    bunch = load_digits()
    return (bunch.images[..., None] / 16.0).astype(np.float32), bunch.target.astype(np.int64)


@pytest.fixture(scope="module")
def model(digits) -> tf_keras.Model:
    """A small network that tight interval bounds suit: one convolution, few sums."""
    tf_keras.utils.set_random_seed(0)
    image = tf_keras.Input((8, 8, 1))
    x = layers.Conv2D(8, 2, strides=2, use_bias=False)(image)
    x = layers.ReLU(6.0)(layers.BatchNormalization(momentum=0.8)(x))
    float_model = tf_keras.Model(image, layers.Dense(10)(layers.Flatten()(x)))
    qat = tfdq.quantize_model(float_model, 0.0, activation_bits=6, input_range=(0.0, 1.0))
    loss = tf_keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    qat.compile(tf_keras.optimizers.Adam(3e-3), loss)
    qat.fit(*digits, epochs=8, batch_size=64, verbose=0)
    return qat


SQUEEZERS = {
    "bit depth": lambda: [BitDepthSqueeze(2)],
    "median": lambda: [MedianSqueeze(2)],
    "both": lambda: [BitDepthSqueeze(2), MedianSqueeze(3)],
}


@pytest.fixture(scope="module", params=list(SQUEEZERS))
def squeezed(request, model, digits, tmp_path_factory) -> tuple[str, Path]:
    """The name of the squeezers and the exported file."""
    path = tmp_path_factory.mktemp("squeezed") / "model.tflite"
    defended = squeeze(model, SQUEEZERS[request.param]())
    tflite_export.convert(defended, path, calibration=digits[0][:200], min_agreement=0.9)
    return request.param, path


def test_operators_of_the_squeezers_are_in_the_file(squeezed) -> None:
    name, path = squeezed
    kinds = {operator.kind for operator in tflite_export.IntegerTwin(path).graph.operators}
    if name != "bit depth":
        assert {"MIRROR_PAD", "SLICE", "MINIMUM", "MAXIMUM"} <= kinds
    else:
        assert "DEPTHWISE_CONV_2D" in kinds


def test_no_attack_reaches_an_image_within_its_radius(squeezed, digits) -> None:
    """PGD by the twin's gradients, Square and random corners, at each image's own radius."""
    _, path = squeezed
    x, y = digits[0][:150], digits[1][:150]
    found = certificates.certify(path, x, y, norm="linf", step=STEP, max_steps=4)
    assert found.method == "interval"
    file, twin = tflite_export.Interpreter(path), tflite_export.IntegerTwin(path)
    np.testing.assert_array_equal(found.correct, file.predict(x).argmax(-1) == y)
    assert found.certified_accuracy(STEP) >= 0.05
    generator = np.random.default_rng(0)
    tried = 0
    for eps in np.unique(found.radius[found.correct & (found.radius > 0)]):
        rows = np.flatnonzero(found.correct & (found.radius == eps))
        settings = {"surrogate": twin, "early_stop": True}
        pgd = run_attack("pgd", path, x[rows], y[rows], eps, steps=20, **settings)
        square = run_attack("square", path, x[rows], y[rows], eps, queries=200)
        assert not pgd.success.any()
        assert not square.success.any()
        for _ in range(20):
            corner = np.clip(x[rows] + eps * generator.choice([-1, 1], x[rows].shape), 0, 1)
            assert (file.predict(corner.astype(np.float32)).argmax(-1) == y[rows]).all()
        tried += len(rows)
    assert tried >= 8
    # The attacks do reach images beyond what is certified: above, they had a chance.
    beyond = run_attack("pgd", path, x, y, 0.3, steps=20, surrogate=twin)
    assert beyond.robust_accuracy < found.correct.mean() - 0.3


def test_images_on_the_levels_are_certified_up_to_the_rounding(model, digits, tmp_path) -> None:
    """On the levels 0, 1/3, 2/3, 1 a change below 1/6 is rounded away: the radius is known."""
    path = tmp_path / "levels.tflite"
    defended = squeeze(model, [BitDepthSqueeze(2), MedianSqueeze(2)])
    tflite_export.convert(defended, path, calibration=digits[0][:200], min_agreement=0.9)
    levels = np.rint(digits[0][:60] * 3) / np.float32(3)
    y = digits[1][:60]
    found = certificates.certify(path, levels, y, norm="linf", step=STEP, max_steps=8)
    # Two logits may be the same integer, whatever was trained: then no class leads, and no radius
    # can be proven. Everywhere else it is the known one.
    two = np.sort(tflite_export.Interpreter(path).integers(levels), axis=-1)[:, -2:]
    leads = two[:, 0] < two[:, 1]
    assert leads.mean() > 0.8
    # 8 steps of 0.02 are 0.16; 1/6 less half a step of the input's 8 bits is 0.1647.
    np.testing.assert_allclose(found.radius[leads], 8 * STEP)
    assert found.certified_accuracy(8 * STEP) == (found.correct & leads).mean() > 0.5
    plain = tmp_path / "plain.tflite"
    tflite_export.convert(model, plain, calibration=digits[0][:200], min_agreement=0.9)
    without = certificates.certify(plain, levels, y, norm="linf", step=STEP, max_steps=8)
    assert without.certified_accuracy(8 * STEP) < 0.1
