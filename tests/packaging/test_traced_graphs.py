"""Between files of tests the graphs that training traced go, and those in use stay."""

import gc

import numpy as np
import tensorflow as tf
import tf_keras

from tests import traced_graphs


def operations() -> int:
    tf_keras.backend.clear_session()
    gc.collect()
    return sum(type(item) is tf.Operation for item in gc.get_objects())


def train() -> None:
    model = tf_keras.Sequential([tf_keras.layers.Dense(1)])
    model.compile("sgd", "mse")
    model.fit(np.ones((4, 2)), np.ones(4), verbose=0)


def test_what_is_in_use_stays_and_the_rest_goes() -> None:
    used = tf.function(lambda x: tf.nn.relu(x) + 1)
    np.testing.assert_array_equal(used(tf.constant([-1.0, 2.0])), [1, 3])
    traced_graphs.release()
    before = operations()
    train()
    # TensorFlow keeps the step's graph; where it no longer does, the module has had its day.
    left = operations() - before
    assert left > 100
    assert traced_graphs.release() >= 1
    # Some operations hold their own results in C++ as well.
    assert operations() - before < left / 2
    np.testing.assert_array_equal(used(tf.constant([-1.0, 2.0])), [1, 3])
    np.testing.assert_array_equal(used(tf.constant([[0.5]])), [[1.5]])
