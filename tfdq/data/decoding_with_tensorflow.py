"""Decode image files with TensorFlow."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import tensorflow as tf

from tfdq.data.image_headers import DamagedImageError


def decoded(
    files: Sequence[Path], image_size: tuple[int, ...] | None, resize: str
) -> Iterator[np.ndarray]:
    """Return images in the order of the files, uint8 `(height, width, 1 or 3)`.

    Args:
        files: PNG, JPEG, BMP and GIF files; of several images in one the first is taken.
        image_size: `(height, width)` to resize to, bilinear with antialiasing; None: none is.
        resize: `"stretch"`, or `"shorter-side"`: the middle is cut out.

    Raises:
        DamagedImageError: The next file is none that can be decoded.
    """

    def read(name: tf.Tensor) -> tf.Tensor:
        image = tf.io.decode_image(tf.io.read_file(name), expand_animations=False)
        # 2 and 4 channels are grey and colour with transparency.
        channels = tf.shape(image)[-1]
        image = image[..., : channels - (1 - channels % 2)]
        if image_size is not None:
            height, width = image_size
            covering = image_size
            if resize == "shorter-side":
                given = tf.cast(tf.shape(image)[:2], tf.float64)
                factor = tf.reduce_max(tf.constant([height, width], tf.float64) / given)
                sides = tf.cast(tf.round(given * factor), tf.int32)
                covering = tf.maximum(sides, [height, width])
            image = tf.image.resize(image, covering, antialias=True)
            top, left = (tf.shape(image)[0] - height) // 2, (tf.shape(image)[1] - width) // 2
            image = image[top : top + height, left : left + width]
            image = tf.cast(tf.clip_by_value(tf.round(image), 0.0, 255.0), tf.uint8)
        return image

    names = [str(file) for file in files]
    images = tf.data.Dataset.from_tensor_slices(names).map(read, tf.data.AUTOTUNE)
    try:
        yield from images.as_numpy_iterator()
    except tf.errors.InvalidArgumentError as error:
        raise DamagedImageError(error.message) from error
