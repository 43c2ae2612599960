"""Files of another maker: full-integer conversions by TensorFlow's own converter."""

import numpy as np

ENDS = {"int8": "int8", "uint8": "uint8", "float32": "float32", "int16": "int16"}
"""The type of input and output of each kind of conversion; int16: of all activations."""


def net(seed=0):
    """A float tf_keras model: convolutions, a residual sum, a dense layer; images of 8 x 8 x 3."""
    import tf_keras

    layers = tf_keras.layers
    tf_keras.utils.set_random_seed(seed)
    image = layers.Input((8, 8, 3))
    x = layers.Conv2D(6, 3, padding="same", activation="relu")(image)
    y = layers.DepthwiseConv2D(3, padding="same", activation="relu6")(x)
    x = layers.Add()([x, layers.Conv2D(6, 1)(y)])
    x = layers.MaxPooling2D()(layers.ReLU()(x))
    return tf_keras.Model(image, layers.Dense(5)(layers.Flatten()(x)))


def images(model, count=32, seed=1):
    """Random images for a model, float32 in [0, 1]."""
    shape = (count, *model.input_shape[1:])
    return np.random.default_rng(seed).random(shape).astype(np.float32)


def converted(model, kind):
    """The bytes of a file of integers, calibrated on random images.

    Args:
        model: a float tf_keras model with one input.
        kind: of the conversion, a key of `ENDS`.
    """
    import tensorflow as tf

    converter = tf.lite.TFLiteConverter.from_keras_model(model)
    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    converter.representative_dataset = lambda: ([image[None]] for image in images(model))
    wide = tf.lite.OpsSet.EXPERIMENTAL_TFLITE_BUILTINS_ACTIVATIONS_INT16_WEIGHTS_INT8
    sets = [wide] if kind == "int16" else [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
    converter.target_spec.supported_ops = sets
    ends = getattr(tf, ENDS[kind])
    converter.inference_input_type = converter.inference_output_type = ends
    return converter.convert()
