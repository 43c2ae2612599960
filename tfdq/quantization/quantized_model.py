"""The model that quantize_model returns: its penalties are evaluated together."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import tensorflow as tf
import tf_keras

from tfdq.quantization.wrapper import penalties_together


@tf_keras.saving.register_keras_serializable(package="tfdq")
class QuantizedModel(tf_keras.Model):
    """A Functional model whose ``losses`` take one pass over all kernels of a shape.

    In all else it is the Functional model of its layers; ``losses`` has the same scalars in the
    same order, one for each penalty. Its outputs keep the names that they have in the float model,
    so that losses and metrics by name work.

    Example:
        >>> model = QuantizedModel(inputs, outputs)
    """

    @property
    def losses(self) -> list[tf.Tensor]:
        """The penalties of all layers, and what else ``add_loss`` was given."""
        with penalties_together(self):
            return super().losses

    @tf.__internal__.tracking.no_automatic_dependency_tracking
    def name_outputs(self, names: Sequence[str]) -> None:
        """Set the names by which ``compile`` knows the outputs.

        Args:
            names: one for each output.
        """
        self.output_names = list(names)

    def get_config(self) -> dict[str, Any]:
        """Return the model's layers and the names of its outputs."""
        return {**super().get_config(), "output_names": list(self.output_names)}

    @classmethod
    def from_config(
        cls, config: dict[str, Any], custom_objects: dict[str, Any] | None = None
    ) -> QuantizedModel:
        """Return the model that ``get_config`` describes."""
        config = dict(config)
        names = config.pop("output_names", None)
        model = super().from_config(config, custom_objects)
        if names is not None:
            model.name_outputs(names)
        return model


# In an .h5 file a model goes by the bare name of its class.
tf_keras.saving.get_custom_objects()["QuantizedModel"] = QuantizedModel
