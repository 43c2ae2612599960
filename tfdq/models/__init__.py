"""Image classifiers of the paper's experiments, as float tf_keras models that end in logits.

The builders use only layers that `tfdq.quantize_model` quantizes, so every model here quantizes,
trains and exports. They are loaded on first use; importing this package does not import TensorFlow.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tfdq._first_use import loaded_on_first_use

if TYPE_CHECKING:
    from tfdq.models.catalogue import create, names
    from tfdq.models.mobilenet import mobilenet_v2
    from tfdq.models.resnet import resnet20
    from tfdq.models.small import small_cnn
    from tfdq.models.vgg import vgg16
    from tfdq.models.wrn import wide_resnet

__all__ = ["create", "mobilenet_v2", "names", "resnet20", "small_cnn", "vgg16", "wide_resnet"]

_HOME = {
    "create": "tfdq.models.catalogue",
    "names": "tfdq.models.catalogue",
    "small_cnn": "tfdq.models.small",
    "resnet20": "tfdq.models.resnet",
    "vgg16": "tfdq.models.vgg",
    "mobilenet_v2": "tfdq.models.mobilenet",
    "wide_resnet": "tfdq.models.wrn",
}

__getattr__, __dir__ = loaded_on_first_use(__name__, _HOME)
