"""Networks that the tests of this folder share."""

import tf_keras

from tfdq.quantization import ConvexCombination

L = tf_keras.layers


def every_layer() -> tf_keras.Model:
    """Return a model with every layer that quantizes, each followed as it may be."""
    inputs = L.Input((8, 8, 1), name="image")
    x = L.Rescaling(2.0, -1.0, name="rescale")(inputs)
    x = L.Conv2D(8, 3, padding="same", use_bias=False, name="stem")(x)
    x = L.BatchNormalization(momentum=0.8, name="stem_norm")(x)
    x = shortcut = L.ReLU(name="stem_relu")(x)
    x = L.Conv2D(8, 3, padding="same", activation="relu", name="inline")(x)
    x = L.Conv2D(8, 3, padding="same", name="linear")(x)
    x = L.BatchNormalization(momentum=0.8, name="linear_norm")(x)
    x = L.Add(name="add")([x, shortcut])
    x = L.Activation("relu", name="add_relu")(x)
    x = L.SeparableConv2D(12, 3, depth_multiplier=2, name="separable")(x)
    x = L.BatchNormalization(momentum=0.8, name="separable_norm")(x)
    x = L.ReLU(6.0, name="separable_relu")(x)
    y = L.DepthwiseConv2D(3, padding="same", depth_multiplier=1, name="depthwise")(x)
    y = L.BatchNormalization(momentum=0.8, name="depthwise_norm")(y)
    y = L.ReLU(name="depthwise_relu")(y)
    x = L.Concatenate(name="concat")([x, y])
    x = L.ZeroPadding2D(name="pad")(x)
    x = L.MaxPooling2D(name="max")(x)
    x = L.Dropout(0.1, name="dropout")(x)
    x = L.BatchNormalization(momentum=0.8, name="pre_norm")(x)
    x = L.ReLU(name="pre_relu")(x)
    y = L.Conv2D(24, 1, name="branch")(x)
    x = ConvexCombination(name="combine")([x, y])
    block = L.Input(x.shape[1:])
    nested = tf_keras.Model(block, L.AveragePooling2D(name="average")(block), name="nested")
    x = L.Flatten(name="flatten")(nested(x))
    x = L.Reshape((2, 2, 24), name="reshape")(x)
    x = L.GlobalAveragePooling2D(name="global")(x)
    x = L.Dense(16, name="hidden")(x)
    x = L.BatchNormalization(momentum=0.8, name="hidden_norm")(x)
    x = L.Activation("relu", name="hidden_relu")(x)
    x = L.Dense(10, name="logits")(x)
    return tf_keras.Model(inputs, L.Softmax(name="softmax")(x), name="every_layer")
