"""The network of a run, untrained: float or quantization-aware, with its penalty."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np

import tfdq
from tfdq.data import Dataset, load
from tfdq.data.steps import steps_per_epoch
from tfdq.experiments.fitting import check_fit
from tfdq.experiments.process import TF_KERAS
from tfdq.experiments.settings import DataSettings, ModelSettings, PenaltySettings, RunSettings
from tfdq.models import create
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
) -> Any:
    """Return the untrained network of a run, of the Keras that it names.

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
    keras3 = settings.training.backend != TF_KERAS
    model = float_model(settings.model, dataset, trust, keras3)
    if synchronized:
        import tf_keras

        model = tf_keras.models.clone_model(model, clone_function=_synchronized)
    penalty = settings.penalty
    if settings.quantized:
        return quantized(model, settings, steps_per_epoch(dataset, settings.training.batch_size))
    if penalty.beta == 0:
        return model
    return _penalized(model, penalty)


def quantized(model: Any, settings: RunSettings, steps: int = 1) -> Any:
    """Return the quantization-aware form of a float model that takes images in [0, 1].

    Args:
        model: of either Keras.
        settings: of the run.
        steps: in an epoch, by which a ramp of the penalty counts on Keras 3.

    Raises:
        ValueError: the model cannot be quantized, or a layer that is named is not there.
    """
    penalty = settings.penalty
    schedule = None
    if penalty.ramp is not None and settings.training.backend != TF_KERAS:
        import keras

        schedule = keras.optimizers.schedules.PolynomialDecay(
            0.0, max(1, round(penalty.ramp[1] * steps)), penalty.beta
        )
    return tfdq.quantize_model(
        model,
        penalty.beta,
        regularizer=penalty.name,
        on=penalty.on,
        target=penalty.target,
        beta_schedule=schedule,
        input_range=(0.0, 1.0),
        **dict(settings.quantization),
    )


def float_model(
    settings: ModelSettings, dataset: Dataset, trust: bool = False, keras3: bool = False
) -> Any:
    """Return a new model, or the one to start from.

    Args:
        settings: which network.
        dataset: for the shape of the images and the number of classes.
        trust: run code that the file of ``start`` holds.
        keras3: return a model of Keras 3, not one of tf_keras.

    Raises:
        FileNotFoundError: the model to start from is not there.
        ValueError: the model has no such option, the images do not fit it, or the file to start
            from is another than it was, or not of Keras 3 with ``keras3``.
    """
    start = settings.start
    if start is None:
        shape, classes = dataset.input_shape, dataset.classes
        return create(settings.name, shape, classes, keras=3 if keras3 else 2, **settings.options)
    if settings.start_digest not in (None, file_digest(start)):
        raise ValueError(
            f"{str(start)!r} is another model than model.start_digest says; leave that out to "
            "start from this one"
        )
    if keras3:
        model = load_keras3(start)
    else:
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


def load_keras3(path: Path) -> Any:
    """Return the model of a ``.keras`` file of Keras 3, quantized or float, not compiled.

    Raises:
        FileNotFoundError: there is nothing at the path.
        ValueError: it is no such file, or holds more than a model of layers.
    """
    from tfdq.model_files.keras3 import is_keras3_file, read_keras3

    if path.exists() and not is_keras3_file(path):
        raise ValueError(
            f"{str(path)!r} is no .keras file of Keras 3, which training.backend asks for: convert "
            "the model with tfdq.to_keras3 and save it, or leave training.backend out"
        )
    return read_keras3(path)


def _synchronized(layer: Any) -> Any:
    """Return a copy of a layer; of a BatchNormalization, one over all replicas."""
    import tf_keras

    config = layer.get_config()
    if isinstance(layer, tf_keras.layers.BatchNormalization):
        config["synchronized"] = True
    return type(layer).from_config(config)


def _penalized(model: Any, penalty: PenaltySettings) -> Any:
    """Return a float model of tf_keras whose kernels carry the penalty, each a copy of its own."""
    import tf_keras

    from tfdq.penalties import get_regularizer

    regularizer = get_regularizer(penalty.name, penalty.beta, penalty.on, penalty.target)

    def with_penalty(layer: Any) -> Any:
        config = layer.get_config()
        if "kernel_regularizer" in config:
            config["kernel_regularizer"] = type(regularizer).from_config(regularizer.get_config())
        return type(layer).from_config(config)

    return tf_keras.models.clone_model(model, clone_function=with_penalty)


def weights_digest(model: Any) -> str:
    """Return a SHA-256 over all weights of a model, 24 hexadecimal digits."""
    return digest(*(np.asarray(weight) for weight in model.get_weights()))
