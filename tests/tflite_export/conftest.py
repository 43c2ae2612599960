"""One small model, trained, exported and saved, that many tests share."""

import pytest

from tests.tflite_export.trained import digits, trained_float


@pytest.fixture(scope="session")
def small_model():
    """(QAT model of 4 bits fitted on digits, its export, test images, their labels)."""
    import tf_keras

    import tfdq
    import tflite_export

    tf_keras.utils.set_random_seed(2)
    images, labels = digits()
    qat = tfdq.quantize_model(trained_float("small"), 2e-3, weight_bits=4, activation_bits=4)
    loss = tf_keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    qat.compile(tf_keras.optimizers.Adam(1e-3), loss)
    qat.fit(images[:1400], labels[:1400], 64, 4, verbose=0)
    exported = tflite_export.convert(
        qat,
        calibration=images[1400:],
        labels=[f"digit {n}" for n in range(10)],
        facts={"clean_accuracy": 0.9},
    )
    return qat, exported, images[1400:], labels[1400:]


@pytest.fixture(scope="session")
def small_file(small_model, tmp_path_factory):
    """The export of `small_model` as a file."""
    return small_model[1].save(tmp_path_factory.mktemp("small") / "small.tflite")
