"""The network of a run, untrained: float or quantization-aware, with its penalty."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import tf_keras

import tfdq
from tfdq.data import Dataset, load
from tfdq.experiments.fitting import check_fit
from tfdq.experiments.settings import DataSettings, ModelSettings, RunSettings
from tfdq.models import create
from tfdq.penalties import get_regularizer
from tfdq.robustness.result_store import digest


def load_images(settings: DataSettings) -> Dataset:
    """Return the images of a run, the training part cut down and padded as it says.

    Raises:
        FileNotFoundError: the data set is not there; says what to run.
        ValueError: more images are asked for than there are, or they do not fit.
    """
    dataset = load(settings.name, settings.dir, image_size=settings.image_size)
    if settings.train_images is not None and settings.train_images != len(dataset.y_train):
        dataset = dataset.subset(train=settings.train_images, seed=0)
    dataset = dataset if settings.pad is None else dataset.padded(settings.pad)
    if settings.digest not in (None, digest(dataset.x_train, dataset.y_train)):
        raise ValueError(
            f"the training images of {settings.name} are others than data.digest says: the recipe "
            "was written for others; leave data.digest out to train on these"
        )
    return dataset


def build(
    settings: RunSettings, dataset: Dataset, synchronized: bool = False, trust: bool = False
) -> tf_keras.Model:
    """Return the untrained network of a run.

    Its parts are initialized from Keras' seed and computed in Keras' dtype policy.

    Args:
        settings: of the run.
        dataset: for the shape of the images and the number of classes.
        synchronized: let BatchNormalization take its statistics over all replicas.
        trust: run code that the file of ``model.start`` holds.

    Raises:
        FileNotFoundError: the model to start from is not there.
        ValueError: the model has no such option, the images do not fit it, or the file to start
            from is another than it was.
    """
    model = float_model(settings.model, dataset, trust)
    if synchronized:
        model = tf_keras.models.clone_model(model, clone_function=_synchronized)
    penalty = settings.penalty
    if settings.quantized:
        return quantized(model, settings)
    if penalty.beta == 0:
        return model
    return _penalized(
        model, get_regularizer(penalty.name, penalty.beta, penalty.on, penalty.target)
    )


def quantized(model: tf_keras.Model, settings: RunSettings) -> tf_keras.Model:
    """Return the quantization-aware form of a float model that takes images in [0, 1].

    Raises:
        ValueError: the model cannot be quantized, or a layer that is named is not there.
    """
    penalty = settings.penalty
    return tfdq.quantize_model(
        model,
        penalty.beta,
        regularizer=penalty.name,
        on=penalty.on,
        target=penalty.target,
        input_range=(0.0, 1.0),
        **dict(settings.quantization),
    )


def float_model(settings: ModelSettings, dataset: Dataset, trust: bool = False) -> tf_keras.Model:
    """Return a new model, or the one to start from.

    Args:
        settings: which network.
        dataset: for the shape of the images and the number of classes.
        trust: run code that the file of ``start`` holds.

    Raises:
        FileNotFoundError: the model to start from is not there.
        ValueError: the model has no such option, the images do not fit it, or the file to start
            from is another than it was.
    """
    start = settings.start
    if start is None:
        return create(settings.name, dataset.input_shape, dataset.classes, **settings.options)
    if settings.start_digest not in (None, file_digest(start)):
        raise ValueError(
            f"{str(start)!r} is another model than model.start_digest says; leave that out to "
            "start from this one"
        )
    model = tfdq.load_model(start, compile=False, safe_mode=not trust)
    check_fit(model, str(start), dataset)
    return model


def with_start_digest(settings: RunSettings) -> RunSettings:
    """Return settings that say which model to start from is meant, by its content.

    Raises:
        FileNotFoundError: it is not there.
    """
    model = settings.model
    if model.start is None or model.start_digest is not None:
        return settings
    named = model.model_copy(update={"start_digest": file_digest(model.start)})
    return settings.model_copy(update={"model": named})


def file_digest(path: Path) -> str | None:
    """Return the SHA-256 of a file in hexadecimal digits; None for a folder.

    Raises:
        FileNotFoundError: there is nothing.
    """
    if not path.exists():
        raise FileNotFoundError(f"no model at {str(path)!r}; give a .keras or .h5 file")
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else None


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
    return digest(*(np.asarray(weight) for weight in model.get_weights()))
