"""The features of a model in front of its classifier, for tests that read them out."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

from tfdq.robustness.gradients.choice import gradients_of
from tfdq.robustness.gradients.interface import Gradients
from tfdq.robustness.targets import Target


def features_of(model: Any, target: Target) -> Gradients:
    """Return what the last kernel layer of a model takes, as a function of the images.

    Args:
        model: The model; for anything but a tf_keras graph of layers the logits are the features.
        target: The same model as a target.

    Returns:
        From images (n, ...) to features (n, ...) in inference mode, with gradients.
    """
    return gradients_of(_function(model, target), variables=target.variables)


def _function(model: Any, target: Target) -> Callable[[Any], Any]:
    tf_keras = sys.modules.get("tf_keras")
    if tf_keras is None or not isinstance(model, tf_keras.Model):
        return target.logits_tensor
    from tfdq.quantization import read_graph
    from tfdq.robustness.layer_outputs import LayerOutputs

    try:
        nodes = read_graph(model).nodes
        kernels = [n for n in nodes if hasattr(getattr(n.layer, "layer", n.layer), "kernel")]
        if not kernels or kernels[-1].inputs[0] == 0:
            return target.logits_tensor
        outputs = LayerOutputs(model, [kernels[-1].inputs[0]])
    except ValueError:  # not a graph of layers, several inputs, raw TensorFlow operations
        return target.logits_tensor
    return lambda x: outputs(x)[0]
