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


def _blocks(layers, image):
    """Expanded depthwise blocks, as of MobileNet."""
    x = layers.Conv2D(8, 3, 2, padding="same", activation="relu6")(image)
    y = layers.ZeroPadding2D(1)(layers.Conv2D(16, 1, activation="relu6")(x))
    y = layers.DepthwiseConv2D(3, 2, activation="relu6")(y)
    y = layers.Add()([layers.MaxPooling2D()(x), layers.Conv2D(8, 1)(y)])
    return layers.Dense(4)(layers.GlobalAveragePooling2D()(y))


def _branches(layers, image):
    """Branches side by side, a difference and a product of two, a gate."""
    x = layers.Conv2D(6, 3, activation="relu")(image)
    y, z = layers.Conv2D(6, 1)(x), layers.Conv2D(6, 3, padding="same")(x)
    both = [layers.Subtract()([y, z]), layers.Multiply()([y, z]), x]
    x = layers.Concatenate()(both)
    x = layers.AveragePooling2D(2, padding="same")(layers.ReLU()(x))
    return layers.Dense(3)(layers.Dense(16, activation="relu")(layers.Flatten()(x)))


def _dense(layers, image):
    """Dense layers alone."""
    x = layers.Dense(20, activation="relu")(layers.Flatten()(image))
    return layers.Dense(7)(layers.Dense(20, activation="relu6")(x))


NETS = {"blocks": _blocks, "branches": _branches, "dense": _dense}
"""Further nets on the same images, by name."""


def named(name):
    """A float model of `NETS` with biases that are not 0, or `net`'s ("residual")."""
    import tf_keras

    if name == "residual":
        return net()
    tf_keras.utils.set_random_seed(3)
    image = tf_keras.layers.Input((8, 8, 3))
    model = tf_keras.Model(image, NETS[name](tf_keras.layers, image))
    rng = np.random.default_rng(4)
    for layer in model.layers:
        layer.set_weights(
            [w if w.ndim > 1 else rng.normal(0, 0.2, w.shape) for w in layer.get_weights()]
        )
    return model


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
