"""The quantized model: a Keras model that seals its deployed constants where it infers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from tfdq.description import Description
from tfdq.keras3.layer_kinds import InputQuantizer, QuantizedLayer
from tfdq.keras3.layer_kinds.base import Estimates, estimates, register
from tfdq.keras3.resized import resized
from tfdq.keras3.sealing import ordered, seal, steps_of
from tflite_export.lowering.lower import Lowered


@register
class QuantizedModel(keras.Model):
    """A Functional Keras model of quantized layers.

    Its layers compute at inference what the exported file does, from constants made of the weights.
    ``predict``, ``evaluate``, validation in ``fit``, ``predict_on_batch``, ``test_on_batch``,
    ``save``, ``save_weights`` and the export make these anew. A call ``model(x)`` does not: after
    training, or after weights were assigned, call `seal` first; outputs of a model that was trained
    on and not sealed are NaN.
    """

    def __init__(self, inputs: Any, outputs: Any, name: str | None = None, **kwargs: Any) -> None:
        super().__init__(inputs, outputs, name=name, **kwargs)
        for layer in self.layers:
            if isinstance(layer, QuantizedLayer):
                layer.share(self.get_layer)

    def seal(self) -> Lowered:
        """Make the deployed constants anew from the weights as they are now.

        Returns:
            The integer network that they belong to.

        Raises:
            ValueError: a range has seen no data.
        """
        # On JAX the variables are out of date while `fit` runs.
        getattr(self, "jax_state_sync", lambda: None)()
        splits = self._splits()
        lowered = seal(self)
        if self._splits() != splits:
            self.predict_function = self.test_function = None
        return lowered

    def _splits(self) -> list[int]:
        return [getattr(layer, "splits", 1) for layer in self.layers]

    def _can_be_sealed(self) -> bool:
        quantized = [layer for layer in self.layers if isinstance(layer, QuantizedLayer)]
        ranges = [getattr(layer, "range", None) for layer in quantized]
        return all(found is None or found.has_step for found in ranges)

    def predict(self, *args: Any, **kwargs: Any) -> Any:
        """Return outputs; see ``keras.Model.predict``."""
        self.seal()
        return super().predict(*args, **kwargs)

    def evaluate(self, *args: Any, **kwargs: Any) -> Any:
        """Return loss and metrics; see ``keras.Model.evaluate``."""
        self.seal()
        return super().evaluate(*args, **kwargs)

    def predict_on_batch(self, *args: Any, **kwargs: Any) -> Any:
        """Return the outputs of a batch; see ``keras.Model.predict_on_batch``."""
        self.seal()
        return super().predict_on_batch(*args, **kwargs)

    def test_on_batch(self, *args: Any, **kwargs: Any) -> Any:
        """Return loss and metrics of a batch; see ``keras.Model.test_on_batch``."""
        self.seal()
        return super().test_on_batch(*args, **kwargs)

    def save(self, *args: Any, **kwargs: Any) -> None:
        """Write the model to a file; see ``keras.Model.save``."""
        if self._can_be_sealed():
            self.seal()
        super().save(*args, **kwargs)

    def save_weights(self, *args: Any, **kwargs: Any) -> None:
        """Write the weights to a file; see ``keras.Model.save_weights``."""
        if self._can_be_sealed():
            self.seal()
        super().save_weights(*args, **kwargs)

    def as_trained(self, input_shape: Sequence[int] | None = None) -> TrainedKeras3Model:
        """Return the model as the export takes it (`tfdq.description.TrainedModel`).

        Args:
            input_shape: of an input, without the batch; None: that of the model.

        Raises:
            ValueError: layers of it are in float, or do not take an input of that shape.
        """
        in_float = ordered(self).in_float
        if in_float:
            raise ValueError(
                f"{self.name!r} has layers in float, {', '.join(map(repr, in_float))}, and does "
                "not export; quantize the float model without skip, or without these layers"
            )
        return TrainedKeras3Model(self if input_shape is None else resized(self, input_shape))


class TrainedKeras3Model:
    """A quantized model as a `tfdq.description.TrainedModel`.

    Args:
        model: the model; every range must have seen data.
    """

    def __init__(self, model: QuantizedModel) -> None:
        self.model = model
        self._lowered = model.seal()
        self._steps = steps_of(self._lowered)

    @property
    def description(self) -> Description:
        """The model as it is now."""
        return self._lowered.description

    def outputs(self, inputs: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Return the model's outputs at inference, in the order of its outputs."""
        return self._call(inputs)

    def outputs_with_statistics_of(self, inputs: Sequence[np.ndarray]) -> list[np.ndarray] | None:
        """Return outputs with a batch's own statistics, see `tfdq.description.TrainedModel`."""
        found: Estimates = {}
        token = estimates.set(found)
        try:
            results = self._call(inputs)
        finally:
            estimates.reset(token)
        return results if found else None

    def _call(self, inputs: Sequence[np.ndarray]) -> list[np.ndarray]:
        given = dict(zip(map(id, self.model.inputs), inputs, strict=True))
        structure = keras.tree.map_structure(
            lambda tensor: ops.convert_to_tensor(given[id(tensor)]), self.model._inputs_struct
        )
        results = keras.tree.flatten(self.model(structure, training=False))
        return [ops.convert_to_numpy(result) for result in results]

    def infer(self, value: int, sources: Sequence[np.ndarray]) -> np.ndarray:
        """Return what the layer of a value makes of its sources at inference."""
        order = ordered(self.model)
        layer = order.layers[value]
        if isinstance(layer, InputQuantizer):
            flow: Any = ops.convert_to_tensor(np.asarray(sources[0]))
        else:
            call = self.description.calls[value - len(order.inputs)]
            pairs = [
                self._integers(reals, self._steps[source])
                for reals, source in zip(sources, call.sources, strict=True)
            ]
            flow = pairs if layer.merges else pairs[0]
        q, step = layer.infer(flow)
        return ops.convert_to_numpy(q) * ops.convert_to_numpy(step)

    @staticmethod
    def _integers(reals: np.ndarray, step: np.float32) -> tuple[Any, Any]:
        return ops.convert_to_tensor(np.rint(reals / step)), ops.convert_to_tensor(step)

    def shift_offsets(self, stored: Mapping[str, np.ndarray]) -> float:
        """Return 0: the model computes with the stored offsets already."""
        return 0.0
