"""What a Keras 3 model is that trains another one."""

from __future__ import annotations

from typing import Any

import keras


class Trainer(keras.Model):
    """A Keras model that trains another, quantized or in float.

    It seals the other model before each way to infer, as `tfdq.keras3.QuantizedModel` does itself.
    (Keras changes the bases of Functional models, so the two share no base class.)

    Attributes:
        model: the model being trained; `save` writes it, and not the trainer.
    """

    model: keras.Model

    def seal(self) -> None:
        """Bring the model to where it can infer: see `tfdq.keras3.QuantizedModel`."""
        # On JAX the variables are out of date while `fit` runs.
        getattr(self, "jax_state_sync", lambda: None)()
        getattr(self.model, "seal", lambda: None)()

    def predict(self, *args: Any, **kwargs: Any) -> Any:
        """Return outputs; see ``keras.Model.predict``."""
        self.seal()
        return super().predict(*args, **kwargs)

    def evaluate(self, *args: Any, **kwargs: Any) -> Any:
        """Return loss and metrics; see ``keras.Model.evaluate``.

        Accuracy under attacks is for ``tfdq.robustness.evaluate``.
        """
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
        """Save the model that was trained (so a ModelCheckpoint keeps that, too)."""
        self.model.save(*args, **kwargs)
