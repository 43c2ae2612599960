"""Image classifiers of the experiments, as float models of either Keras that end in logits.

They are models of tf_keras, or of Keras 3 with `keras=3`. The builders use only layers that
`tfdq.quantize_model` quantizes, so every model here quantizes, trains and exports. They are loaded
on first use; importing this package does not import TensorFlow.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tfdq._first_use import loaded_on_first_use

if TYPE_CHECKING:
    from tfdq.models.catalogue import create, names
    from tfdq.models.mlperf_tiny import resnet8
    from tfdq.models.mobilenet import mobilenet_v2
    from tfdq.models.resnet import resnet20, resnet32
    from tfdq.models.resnet_four_stages import preact_resnet18, resnet18
    from tfdq.models.small import small_cnn
    from tfdq.models.vgg import vgg16
    from tfdq.models.wrn import wide_resnet

__all__ = [
    "create",
    "mobilenet_v2",
    "names",
    "preact_resnet18",
    "resnet8",
    "resnet18",
    "resnet20",
    "resnet32",
    "small_cnn",
    "vgg16",
    "wide_resnet",
]

_HOME = {
    "create": "tfdq.models.catalogue",
    "names": "tfdq.models.catalogue",
    "small_cnn": "tfdq.models.small",
    "resnet8": "tfdq.models.mlperf_tiny",
    "resnet20": "tfdq.models.resnet",
    "resnet32": "tfdq.models.resnet",
    "resnet18": "tfdq.models.resnet_four_stages",
    "preact_resnet18": "tfdq.models.resnet_four_stages",
    "vgg16": "tfdq.models.vgg",
    "mobilenet_v2": "tfdq.models.mobilenet",
    "wide_resnet": "tfdq.models.wrn",
}

__getattr__, __dir__ = loaded_on_first_use(__name__, _HOME)
