"""Load a model on this process's backend, compare its integers, and save it anew.

Arguments: the file, the images and the expected outputs (``.npy``), the file to write.
"""

import sys

import keras
import numpy as np

import tfdq.keras3  # noqa: F401 (registers the classes)

source, images, expected, target = sys.argv[1:]
heavy = {"tensorflow", "tf_keras", "tensorflow_model_optimization"} & set(sys.modules)
assert keras.backend.backend() == "tensorflow" or not heavy, heavy
model = keras.saving.load_model(source)
x, wanted = np.load(images), np.load(expected)
# The constants that were saved, as they are; then made anew.
for outputs in (model(x, training=False), model.predict(x, verbose=0)):
    np.testing.assert_array_equal(keras.ops.convert_to_numpy(outputs), wanted)
assert keras.backend.backend() == "tensorflow" or "tensorflow" not in sys.modules
model.save(target)
