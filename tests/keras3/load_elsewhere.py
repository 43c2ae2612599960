"""Load a model on this process's backend, compare its integers, and save it anew.

Arguments: the file, the images and the expected outputs (``.npy``), the file to write.
"""

import importlib.util
import os
import sys

# Whichever comes first, Keras then knows the classes; also where their modules need the one that
# imports tfdq.
BELOW = "tflite_export.lowering.assemble"
FIRST = ["tfdq", "keras"] if os.environ["KERAS_BACKEND"] == "jax" else ["keras", BELOW]
for name in FIRST:
    # To ask whether it is there changes nothing.
    assert importlib.util.find_spec(name)
    importlib.import_module(name)
    assert name != FIRST[0] or FIRST[1] not in sys.modules

import keras  # noqa: E402
import numpy as np  # noqa: E402

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
