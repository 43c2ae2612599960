"""The embedded data set: the 8x8 handwritten digits that ship inside scikit-learn."""

from __future__ import annotations

import numpy as np

from tfdq.data.dataset import Dataset, draw_stratified

_TEST_IMAGES = 360
_SPLIT_SEED = 0


def load_digits() -> Dataset:
    """Return scikit-learn's 1,797 digits: 1,437 training and 360 test images, 8x8x1.

    The source counts the inked pixels of 4x4 cells, `v` in `0..16`. They are scaled to bytes by
    `p = round(255 v / 16)`, half rounded up, in integers: `(510 v + 16) // 32`. The 17 levels
    stay distinct and `v = round(16 p / 255)` gives them back. The split is drawn with a fixed
    seed, the classes in proportion, and is the same in every process. Test images are by writers
    who also appear in the training part.
    """
    # Imported here: scikit-learn takes a second to load.
    from sklearn import datasets

    bunch = datasets.load_digits()
    counts = bunch.images.astype(np.int64)[..., np.newaxis]
    images = ((510 * counts + 16) // 32).astype(np.uint8)
    labels = bunch.target.astype(np.int64)
    test = draw_stratified(labels, _TEST_IMAGES, _SPLIT_SEED)
    is_test = np.zeros(len(labels), bool)
    is_test[test] = True
    return Dataset(
        x_train=images[~is_test],
        y_train=labels[~is_test],
        x_test=images[is_test],
        y_test=labels[is_test],
        classes=10,
        name="digits",
        source="scikit-learn load_digits (UCI optdigits test set), 0..16 scaled to 0..255; "
        f"stratified split, seed {_SPLIT_SEED}",
        class_names=tuple("0123456789"),
    )
