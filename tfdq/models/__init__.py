"""Image classifiers of the paper's experiments, as float tf_keras models that end in logits.

The builders use only layers that `tfdq.quantize_model` quantizes, so every model here quantizes,
trains and exports. They are loaded on first use; importing this package does not import TensorFlow.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

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


def __getattr__(name: str) -> Any:
    """Import the module a public name lives in when the name is first used (PEP 562)."""
    if name in _HOME:
        value = getattr(importlib.import_module(_HOME[name]), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
