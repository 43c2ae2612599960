"""Small networks of the forms that people deploy, each as its authors write it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
from keras.src.applications.convnext import LayerScale

from benchmarks.squeezing_networks import efficientnet_like, mobilenet_v3_like

L = keras.layers


def _conv(x: Any, filters: int, size: int = 3, strides: int = 1, activation: str = "relu") -> Any:
    x = L.Conv2D(filters, size, strides, padding="same", use_bias=False)(x)
    return L.Activation(activation)(L.BatchNormalization()(x))


def _unet(enlarge: Callable[[Any, int], Any]) -> keras.Model:
    """Ronneberger et al. 2015 (arXiv 1505.04597), of two levels."""
    image = x = keras.Input((16, 16, 3), name="image")
    skipped = []
    for filters in (4, 8):
        x = _conv(x, filters)
        skipped.append(x)
        x = L.MaxPooling2D()(x)
    x = _conv(x, 8)
    for filters, skip in zip((8, 4), reversed(skipped), strict=True):
        x = _conv(L.Concatenate()([enlarge(x, filters), skip]), filters)
    return keras.Model(image, L.Conv2D(3, 1, activation="softmax", name="classes")(x))


def unet_transposed() -> keras.Model:
    """A U-Net whose decoder has transposed convolutions."""
    return _unet(lambda x, filters: L.Conv2DTranspose(filters, 2, strides=2, padding="same")(x))


def unet_upsampling() -> keras.Model:
    """A U-Net whose decoder repeats pixels."""
    return _unet(lambda x, filters: _conv(L.UpSampling2D()(x), filters, 2))


def detector() -> keras.Model:
    """A detection head of two sizes, after YOLOv3 (Redmon and Farhadi 2018, arXiv 1804.02767)."""
    classes, anchors = 3, 2

    def block(x: Any, filters: int, strides: int = 1) -> Any:
        x = L.Conv2D(filters, 3, strides, padding="same", use_bias=False)(x)
        return L.LeakyReLU(0.1)(L.BatchNormalization()(x))

    def boxes(x: Any) -> Any:
        x = L.Conv2D(anchors * (5 + classes), 1)(x)
        return L.Reshape((-1, 5 + classes))(x)

    image = keras.Input((16, 16, 3), name="image")
    fine = block(block(image, 4, 2), 8, 2)
    coarse = block(fine, 8, 2)
    neck = L.UpSampling2D()(block(coarse, 4))
    found = [boxes(block(L.Concatenate()([neck, fine]), 8)), boxes(coarse)]
    return keras.Model(image, L.Concatenate(axis=1, name="boxes")(found))


def ds_cnn() -> keras.Model:
    """Keywords from a spectrogram, as in MLPerf Tiny (Zhang et al. 2017, arXiv 1711.07128)."""
    image = keras.Input((25, 10, 1), name="spectrogram")
    x = L.Conv2D(8, (10, 4), strides=(2, 2), padding="same")(image)
    x = L.Dropout(0.2)(L.Activation("relu")(L.BatchNormalization()(x)))
    for _ in range(2):
        x = L.DepthwiseConv2D(3, padding="same")(x)
        x = L.Activation("relu")(L.BatchNormalization()(x))
        x = _conv(x, 8, 1)
    x = L.AveragePooling2D((13, 5))(x)
    return keras.Model(image, L.Dense(6, activation="softmax")(L.Flatten()(x)))


def keyword_spotter() -> keras.Model:
    """Keywords from the sound itself, by 1-D convolutions, after M5 (Dai et al. 2016)."""
    sound = x = keras.Input((256, 1), name="sound")
    for filters, size, strides in ((4, 16, 4), (8, 3, 1), (8, 3, 1)):
        x = L.Conv1D(filters, size, strides=strides, padding="causal", use_bias=False)(x)
        x = L.MaxPooling1D(2)(L.ReLU()(L.BatchNormalization()(x)))
    return keras.Model(sound, L.Dense(6)(L.GlobalAveragePooling1D()(x)))


def autoencoder() -> keras.Model:
    """An image through eight numbers, and back."""
    image = keras.Input((8, 8, 1), name="image")
    x = L.Conv2D(4, 3, strides=2, padding="same", activation="relu")(image)
    code = L.Dense(8, name="code")(L.Flatten()(x))
    x = L.Reshape((4, 4, 4))(L.Dense(64, activation="relu")(code))
    x = L.Conv2DTranspose(4, 3, strides=2, padding="same", activation="relu")(x)
    return keras.Model(image, L.Conv2D(1, 3, padding="same", activation="sigmoid")(x))


def _face(side: int = 16) -> keras.Model:
    image = x = keras.Input((side, side, 3), name="face")
    for filters in (4, 8):
        x = L.PReLU(shared_axes=[1, 2])(_conv(x, filters, strides=2, activation="linear"))
    x = L.Dense(16, use_bias=False)(L.Flatten()(x))
    x = L.BatchNormalization(scale=False)(x)
    return keras.Model(image, L.UnitNormalization(name="unit")(x), name="embedding")


def face_embedding() -> keras.Model:
    """A face as a vector of length 1, after ArcFace (Deng et al. 2018, arXiv 1801.07698)."""
    return _face()


def siamese() -> keras.Model:
    """Whether two faces are of one person: one encoder for both, and the difference."""
    encoder = _face(8)
    pair = [keras.Input((8, 8, 3), name=name) for name in ("left", "right")]
    left, right = (encoder(face) for face in pair)
    apart = L.Subtract()([left, right])
    alike = L.Multiply()([apart, apart])
    return keras.Model(pair, L.Dense(1, activation="sigmoid", name="alike")(alike))


def convnext_like() -> keras.Model:
    """Two stages of ConvNeXt (Liu et al. 2022, arXiv 2201.03545)."""

    def block(x: Any) -> Any:
        filters = x.shape[-1]
        y = L.DepthwiseConv2D(7, padding="same")(x)
        y = L.LayerNormalization(epsilon=1e-6)(y)
        y = L.Dense(filters)(L.Activation("gelu")(L.Dense(4 * filters)(y)))
        return L.Add()([x, LayerScale(0.1, filters)(y)])

    image = keras.Input((32, 32, 3), name="image")
    x = L.LayerNormalization(epsilon=1e-6)(L.Conv2D(8, 4, strides=4)(image))
    x = L.LayerNormalization(epsilon=1e-6)(block(x))
    x = block(L.Conv2D(12, 2, strides=2)(x))
    x = L.LayerNormalization(epsilon=1e-6)(L.GlobalAveragePooling2D()(x))
    return keras.Model(image, L.Dense(10)(x))


def _with_heads(heads: Callable[[Any], Any]) -> keras.Model:
    image = keras.Input((8, 8, 3), name="image")
    x = _conv(_conv(image, 4), 8, strides=2)
    return keras.Model(image, heads(L.GlobalAveragePooling2D()(x)))


def binary_head() -> keras.Model:
    """One logit behind a sigmoid."""
    return _with_heads(L.Dense(1, activation="sigmoid", name="probability"))


def multi_label_head() -> keras.Model:
    """Five labels, each by itself."""
    return _with_heads(L.Dense(5, activation="sigmoid", name="labels"))


def multi_task_heads() -> keras.Model:
    """A class, an angle and two flags, in a dictionary."""
    return _with_heads(
        lambda x: {
            "class": L.Dense(4, activation="softmax", name="class")(x),
            "angle": L.Dense(1, activation="tanh", name="angle")(x),
            "flags": L.Dense(2, activation="sigmoid", name="flags")(x),
        }
    )


def frozen_base() -> keras.Model:
    """Transfer learning as in Keras' guide: augmentation, a frozen Xception, a new head."""
    base = keras.applications.Xception(
        include_top=False, weights=None, input_shape=(71, 71, 3), name="base"
    )
    base.trainable = False
    image = keras.Input((71, 71, 3), name="image")
    x = L.RandomRotation(0.1)(L.RandomFlip("horizontal")(image))
    x = base(L.Rescaling(1.0 / 127.5, offset=-1.0)(x), training=False)
    return keras.Model(image, L.Dense(1)(L.Dropout(0.2)(L.GlobalAveragePooling2D()(x))))


NETWORKS: dict[str, Callable[[], keras.Model]] = {
    make.__name__: make
    for make in (
        *(unet_transposed, unet_upsampling, detector, ds_cnn, keyword_spotter, autoencoder),
        *(face_embedding, siamese, mobilenet_v3_like, efficientnet_like, convnext_like),
        *(binary_head, multi_label_head, multi_task_heads, frozen_base),
    )
}
"""The networks, by name."""
