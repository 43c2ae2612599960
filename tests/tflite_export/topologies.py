"""Small networks of every kind that is exported, float tf_keras models on small images."""

import tf_keras

from tfdq import models
from tfdq.quantization import ConvexCombination

L = tf_keras.layers


def _conv(x, filters, size=3, strides=1, relu=True, **options):
    x = L.Conv2D(filters, size, strides, padding="same", use_bias=False, **options)(x)
    x = L.BatchNormalization()(x)
    return L.ReLU(6.0)(x) if relu else x


def vgg():
    """VGG-16's thirteen convolutions and five pools, narrow."""
    image = x = L.Input((32, 32, 1))
    for width, count in ((6, 2), (8, 2), (12, 3), (16, 3), (16, 3)):
        for _ in range(count):
            x = _conv(x, width)
        x = L.MaxPooling2D()(x)
    x = L.Flatten()(x)
    x = L.Dense(16, activation="relu")(x)
    x = L.Dropout(0.2)(x)
    return tf_keras.Model(image, L.Dense(10)(x), name="vgg")


def _inverted_residual(x, expansion, filters, strides):
    channels = x.shape[-1]
    y = _conv(x, expansion * channels, 1) if expansion > 1 else x
    y = L.DepthwiseConv2D(3, strides, padding="same", use_bias=False)(y)
    y = L.ReLU(6.0)(L.BatchNormalization()(y))
    y = _conv(y, filters, 1, relu=False)
    return L.Add()([x, y]) if strides == 1 and channels == filters else y


def inverted():
    """MobileNetV2's blocks, five of its seventeen: the whole of it trains too slowly for a test."""
    image = L.Input((16, 16, 1))
    x = _conv(image, 8)
    for expansion, filters, strides in ((1, 8, 1), (4, 12, 2), (4, 12, 1), (4, 16, 2), (4, 16, 1)):
        x = _inverted_residual(x, expansion, filters, strides)
    x = L.GlobalAveragePooling2D()(_conv(x, 48, 1))
    return tf_keras.Model(image, L.Dense(10)(x), name="inverted")


def convex():
    """Pre-activation residuals with convex combinations, strided shortcuts."""
    image = L.Input((16, 16, 1))
    x = L.Conv2D(8, 3, padding="same")(image)
    for width, strides in ((8, 1), (16, 2)):
        start = L.ReLU(6.0)(L.BatchNormalization()(x))
        y = _conv(start, width, 3, strides)
        y = L.Conv2D(width, 3, padding="same")(y)
        short = x if strides == 1 else L.Conv2D(width, 1, strides)(start)
        x = ConvexCombination()([short, y])
    x = L.ReLU(6.0)(L.BatchNormalization()(x))
    x = L.GlobalAveragePooling2D()(x)
    return tf_keras.Model(image, L.Dense(10)(x), name="convex")


def separable():
    """Separable and depthwise convolutions, explicit padding, depth multiplier, dilation."""
    image = x = L.Input((16, 16, 1))
    x = L.Rescaling(2.0, -1.0)(x)
    x = _conv(x, 8, dilation_rate=2)
    x = L.ZeroPadding2D(((0, 1), (0, 1)))(x)
    x = L.DepthwiseConv2D(3, 2, depth_multiplier=2, use_bias=False)(x)
    x = L.ReLU(6.0)(L.BatchNormalization()(x))
    x = L.SeparableConv2D(16, 3, padding="same", activation="relu")(x)
    x = L.SeparableConv2D(12, 5, strides=2, use_bias=False)(x)
    x = L.ReLU()(L.BatchNormalization()(x))
    x = L.GlobalMaxPooling2D()(x)
    return tf_keras.Model(image, L.Dense(10)(x), name="separable")


def dense():
    """Only dense layers, with and without BatchNorm, a convolution-free network."""
    image = L.Input((8, 8, 1))
    x = L.Flatten()(image)
    x = L.Dense(40, use_bias=False)(x)
    x = L.ReLU(6.0)(L.BatchNormalization()(x))
    x = L.Dense(24, activation="relu")(x)
    x = L.ReLU(6.0)(L.BatchNormalization()(L.Dense(24)(x)))
    return tf_keras.Model(image, L.Dense(10)(x), name="dense")


def concat():
    """Concatenation of unlike branches, every pooling, a sum behind a ReLU."""
    image = L.Input((16, 16, 1))
    x = _conv(image, 8)
    left = L.MaxPooling2D(2)(_conv(x, 8))
    middle = L.AveragePooling2D(3, 2, padding="same")(x)
    right = L.AveragePooling2D(2)(_conv(x, 4, relu=False))
    x = L.Concatenate()([left, middle, right])
    x = L.ReLU(6.0)(L.Add()([_conv(x, 8, 1, relu=False), _conv(x, 8, relu=False)]))
    x = L.Reshape((64, 8))(x)
    x = L.Reshape((8, 8, 8))(x)
    x = L.MaxPooling2D(3, 2, padding="same")(x)
    x = L.Flatten()(x)
    return tf_keras.Model(image, L.Dense(10)(x), name="concat")


def softmax():
    """A classifier that ends in probabilities."""
    image = L.Input((8, 8, 1))
    x = _conv(image, 8, strides=2)
    x = L.Flatten()(x)
    return tf_keras.Model(image, L.Dense(10, activation="softmax")(x), name="softmax")


BUILDERS = {
    "vgg": vgg,
    "resnet20": lambda: models.resnet20((8, 8, 1), 10),
    "wide_resnet": lambda: models.create("wrn-10-1", (16, 16, 1), 10),
    "inverted": inverted,
    "convex": convex,
    "separable": separable,
    "dense": dense,
    "concat": concat,
    "softmax": softmax,
    "small": lambda: models.small_cnn((8, 8, 1), 10),
}
