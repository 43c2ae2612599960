"""The network of a run, untrained: float or quantization-aware, with its penalty."""

from __future__ import annotations

from typing import Any

import numpy as np
import tf_keras

import tfdq
from tfdq.data import Dataset, load
from tfdq.experiments.settings import DataSettings, RunSettings
from tfdq.models import create
from tfdq.penalties import get_regularizer


def load_images(settings: DataSettings) -> Dataset:
    """Return the images of a run, the training part cut down and padded as it says.

    Raises:
        FileNotFoundError: the data set is not there; says what to run.
        ValueError: more images are asked for than there are, or they do not fit.
    """
    dataset = load(settings.name, settings.dir)
    if settings.train_images is not None and settings.train_images != len(dataset.y_train):
        dataset = dataset.subset(train=settings.train_images, seed=0)
    return dataset if settings.pad is None else dataset.padded(settings.pad)


def build(settings: RunSettings, dataset: Dataset, synchronized: bool = False) -> tf_keras.Model:
    """Return the untrained network of a run.

    Its parts are initialized from Keras' seed and computed in Keras' dtype policy.

    Args:
        settings: of the run.
        dataset: for the shape of the images and the number of classes.
        synchronized: let BatchNormalization take its statistics over all replicas.

    Raises:
        ValueError: the model has no such option, or the images do not fit it.
    """
    model = create(
        settings.model.name, dataset.input_shape, dataset.classes, **settings.model.options
    )
    if synchronized:
        model = tf_keras.models.clone_model(model, clone_function=_synchronized)
    penalty = settings.penalty
    if settings.quantized:
        return tfdq.quantize_model(
            model,
            penalty.beta,
            regularizer=penalty.name,
            on=penalty.on,
            target=penalty.target,
            input_range=(0.0, 1.0),
            **dict(settings.quantization),
        )
    if penalty.beta == 0:
        return model
    return _penalized(
        model, get_regularizer(penalty.name, penalty.beta, penalty.on, penalty.target)
    )


def _synchronized(layer: tf_keras.layers.Layer) -> tf_keras.layers.Layer:
    """Return a copy of a layer; of a BatchNormalization, one over all replicas."""
    config = layer.get_config()
    if isinstance(layer, tf_keras.layers.BatchNormalization):
        config["synchronized"] = True
    return type(layer).from_config(config)


def _penalized(model: tf_keras.Model, regularizer: Any) -> tf_keras.Model:
    """Return a float model whose kernels carry the penalty, each a copy of its own."""

    def with_penalty(layer: tf_keras.layers.Layer) -> tf_keras.layers.Layer:
        config = layer.get_config()
        if "kernel_regularizer" in config:
            config["kernel_regularizer"] = type(regularizer).from_config(regularizer.get_config())
        return type(layer).from_config(config)

    return tf_keras.models.clone_model(model, clone_function=with_penalty)


def weights_digest(model: tf_keras.Model) -> str:
    """Return a SHA-256 over all weights of a model, 24 hexadecimal digits."""
    from tfdq.robustness.result_store import digest

    return digest(*(np.asarray(weight) for weight in model.get_weights()))
