"""At 8 bits: as accurate as tfmot and the stock converter on the same trained network."""

import numpy as np
import pytest
import tensorflow as tf
import tf_keras

import tfdq
import tfdq.models
import tflite_export
from tests.tflite_export.trained import digits
from tflite_export.runtime.interpreter import Interpreter


@pytest.fixture(scope="module")
def float_model():
    tf_keras.utils.set_random_seed(7)
    images, labels = digits()
    model = tfdq.models.small_cnn((8, 8, 1), 10)
    loss = tf_keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(tf_keras.optimizers.Adam(3e-3), loss)
    model.fit(images[:1000], labels[:1000], 32, 12, verbose=0)
    return model


def _accuracy(interpreter):
    images, labels = digits()
    return float((interpreter.predict(images).argmax(-1) == labels).mean())


def test_clean_accuracy_is_the_stock_pipelines(float_model):
    import tensorflow_model_optimization as tfmot

    images, labels = digits()
    ours = tfdq.calibrate(tfdq.quantize_model(float_model, 0.0), images[:512])
    exported = tflite_export.convert(ours, calibration=images[:128])

    stock = tfmot.quantization.keras.quantize_model(float_model)
    loss = tf_keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    stock.compile(tf_keras.optimizers.SGD(0.0), loss)
    # no learning: only the ranges are observed, so both hold the same trained weights
    stock.fit(images[:512], labels[:512], 32, 3, verbose=0)
    converter = tf.lite.TFLiteConverter.from_keras_model(stock)
    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    content = converter.convert()

    mine, theirs = _accuracy(exported.interpreter()), _accuracy(Interpreter(content, trusted=True))
    assert theirs > 0.9
    assert mine >= theirs - 0.002
    assert len(exported.content) < 2 * len(content)


def test_float_operators_run_in_the_interpreter(float_model):
    content = tf.lite.TFLiteConverter.from_keras_model(float_model).convert()
    images = digits()[0][:50]
    result = Interpreter(content, trusted=True).predict(images)
    np.testing.assert_allclose(result, float_model.predict_on_batch(images), atol=1e-3)
