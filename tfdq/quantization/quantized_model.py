"""The model that quantize_model returns: its penalties are evaluated together."""

from __future__ import annotations

import tensorflow as tf
import tf_keras

from tfdq.quantization.wrapper import penalties_together


@tf_keras.saving.register_keras_serializable(package="tfdq")
class QuantizedModel(tf_keras.Model):
    """A Functional model whose ``losses`` take one pass over all kernels of a shape.

    In all else it is the Functional model of its layers; ``losses`` has the same scalars in the
    same order, one for each penalty.

    Example:
        >>> model = QuantizedModel(inputs, outputs)
    """

    @property
    def losses(self) -> list[tf.Tensor]:
        """The penalties of all layers, and what else ``add_loss`` was given."""
        with penalties_together(self):
            return super().losses


# In an .h5 file a model goes by the bare name of its class.
tf_keras.saving.get_custom_objects()["QuantizedModel"] = QuantizedModel
