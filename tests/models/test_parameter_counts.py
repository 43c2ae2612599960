"""Parameter counts against the published ones, closed forms and Keras' own implementation."""

import keras
import numpy as np
import pytest

from tfdq import models


def trainable(model) -> int:
    return sum(int(np.prod(w.shape)) for w in model.trainable_weights)


# Zagoruyko and Komodakis 2016, tables 4 and 5, in millions (CIFAR-10).
PUBLISHED_WIDE_RESNETS = {
    (40, 2): 2.2,
    (40, 4): 8.9,
    (16, 8): 11.0,
    (16, 10): 17.1,
}


@pytest.mark.parametrize(("size", "millions"), PUBLISHED_WIDE_RESNETS.items())
def test_wide_resnet_has_the_published_size(size, millions):
    assert round(trainable(models.wide_resnet(*size)) / 1e6, 1) == millions


def wide_resnet_parameters(depth: int, width: int, classes: int) -> int:
    """Count kernel by kernel, from the paper's table 1."""
    blocks, total, cin = (depth - 4) // 6, 3 * 16 * 9, 16
    for group in range(3):
        cout = 16 * width * 2**group
        for _ in range(blocks):
            total += 2 * cin + 9 * cin * cout + 2 * cout + 9 * cout * cout
            if cin != cout:
                total += cin * cout
            cin = cout
    return total + 2 * cin + cin * classes + classes


@pytest.mark.parametrize(("depth", "width", "classes"), [(10, 1, 10), (16, 2, 100), (28, 10, 10)])
def test_wide_resnet_parameters_add_up(depth, width, classes):
    model = models.wide_resnet(depth, width, classes=classes)
    assert trainable(model) == wide_resnet_parameters(depth, width, classes)


def test_wide_resnet_28_10_has_36_5_million_parameters():
    assert round(wide_resnet_parameters(28, 10, 10) / 1e6, 1) == 36.5


def test_resnet20_is_the_published_size_plus_two_projections():
    # 269,722 with the parameter-free shortcuts of He et al. 2016 (0.27 M in their table 6); two
    # 1x1 projections with batch normalization, 16 -> 32 and 32 -> 64, come on top.
    projections = (16 * 32 + 2 * 32) + (32 * 64 + 2 * 64)
    size = trainable(models.resnet20())
    assert size == 269_722 + projections
    assert round(size / 1e6, 2) == 0.27


def test_resnet32_is_the_published_size_plus_two_projections():
    # He et al. 2016, table 6: 0.46 M, 464,154 of them with parameter-free shortcuts.
    projections = (16 * 32 + 2 * 32) + (32 * 64 + 2 * 64)
    size = trainable(models.resnet32())
    assert size == 464_154 + projections
    assert round(size / 1e6, 2) == 0.47


def test_resnet18_for_32x32_has_11_17_million_parameters():
    """Kernel by kernel; RobustBench's networks of this kind have as many."""
    block = [
        9 * cin * cout + 9 * cout * cout + 4 * cout + (cin * cout + 2 * cout) * (cin != cout)
        for cin, cout in ((64, 64), (64, 64), (64, 128), (128, 128), (128, 256), (256, 256),
                          (256, 512), (512, 512))
    ]  # fmt: skip
    size = trainable(models.resnet18(keras=3))
    assert size == 3 * 9 * 64 + 2 * 64 + sum(block) + 512 * 10 + 10 == 11_173_962
    # No normalization in its three projections, nor behind the stem; one of 512 in front of the
    # pool, and each block's first has its inputs' channels.
    moved = 2 * (128 + 256 + 512) + 2 * 64 - 2 * 512 + 2 * (64 + 128 + 256)
    assert trainable(models.preact_resnet18(keras=3)) == size - moved == 11_172_170


def test_wrn_16_4_has_2_75_million_parameters():
    assert trainable(models.create("wrn-16-4", (32, 32, 3), 10, keras=3)) == 2_748_890


def test_resnet8_is_mlperf_tinys():
    """All weights, those of batch normalization that are not trained included: 78,666."""
    model = models.resnet8(keras=3)
    assert model.count_params() == 78_666


def test_vgg16_has_the_published_size():
    kernels = sum(
        9 * cin * cout
        for cin, cout in [
            (3, 64), (64, 64), (64, 128), (128, 128), (128, 256), (256, 256), (256, 256),
            (256, 512), (512, 512), (512, 512), (512, 512), (512, 512), (512, 512),
        ]
    )  # fmt: skip
    channels = 2 * 64 + 2 * 128 + 3 * 256 + 6 * 512
    model = models.vgg16()
    assert trainable(model) == kernels + 2 * channels + 512 * 10 + 10
    assert round(trainable(model) / 1e6, 1) == 14.7
    assert round(trainable(models.vgg16(hidden=(512,))) / 1e6, 1) == 15.0


@pytest.mark.parametrize(("classes", "alpha"), [(1000, 1.0), (10, 0.35), (10, 1.4)])
def test_mobilenet_v2_has_the_size_of_keras_applications(classes, alpha):
    peer = keras.applications.MobileNetV2(
        (96, 96, 3), weights=None, classes=classes, alpha=alpha, classifier_activation=None
    )
    assert trainable(models.mobilenet_v2(classes=classes, alpha=alpha)) == sum(
        int(np.prod(w.shape)) for w in peer.trainable_weights
    )


def test_small_cnn_parameters_add_up():
    kernels = 9 * 16 + 2 * 9 * 16 * 16
    assert trainable(models.small_cnn()) == kernels + 3 * 2 * 16 + (4 * 4 * 16) * 10 + 10
