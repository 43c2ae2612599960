"""The functions that take a model of either Keras, and give back a model of the same."""

from __future__ import annotations

import sys
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

from tfdq._extras import explained
from tfdq.penalties.singular_values import SingularValue
from tfdq.settings.quantization import ActivationRange, KernelRange, LayerBits, Placement
from tfdq.which_keras import is_keras3_model, is_tf_keras_model


def quantize_model(
    model: Any,
    lipschitz_beta: float = 2e-3,
    *,
    on: Placement = "deployed",
    target: SingularValue | None = None,
    regularizer: Any = "orthogonal",
    beta_schedule: Any = None,
    weight_bits: int = 8,
    activation_bits: int = 8,
    first_last_bits: int | None = None,
    layer_bits: Mapping[str, LayerBits] | None = None,
    activation_range: ActivationRange = "moving_average",
    kernel_range: KernelRange = "max",
    input_range: tuple[float, float] | None = None,
    batch_norm_momentum: float | None = None,
    skip: Collection[str] = (),
    input_shape: Sequence[int] | None = None,
) -> Any:
    r"""Return a quantization-aware copy of a model, with the Lipschitz penalty inside.

    A Keras 3 model gives a Keras 3 model, on the backend that runs (TensorFlow, JAX or PyTorch):
    ``tfdq.keras3.quantize_model``. A tf_keras model gives a tf_keras model, made through tfmot:
    ``tfdq.quantization.quantize_model``. Compile and fit the result as any model of its Keras.
    Every convolution and dense layer has its kernel quantized, its BatchNormalization and ReLU
    taken in, and its output rounded once, where the integer runtime rounds. Gradients pass the
    rounding straight through. The penalty

    .. math:: \frac{\beta}{2} \sum_l \lVert W_l^T W_l - \tau^2 I \rVert_F^2

    appears in ``model.losses``, one scalar for each layer, so ``fit`` adds it to the loss.

    Outputs behind a ReLU have ``activation_bits``. What is not behind a ReLU (the image, a sum or
    a convolution without a ReLU, an average, the logits) has 8 bits, on a range observed while
    training. What the model calls with ``training=False`` stays in inference mode in ``fit``, and
    what is not trainable stays frozen. Regularizers, constraints, the names and the structure of
    the outputs are kept. What cannot be kept is refused by name.

    Args:
        model: a built Functional or Sequential model of Keras 3 or tf_keras, trained or not. It is
            not changed; its weights are copied. Nested models are flattened.
        lipschitz_beta: weight of the penalty, >= 0; 0 is vanilla quantization with the same
            quantizers.
        on: the kernel the penalty acts on: ``"deployed"`` (BatchNorm folded in, quantized),
            ``"folded"`` (BatchNorm folded in), ``"kernel"`` (the trained one). The paper's penalty
            is ``on="kernel", target=1``.
        target: the singular value that the penalty aims at, > 0; ``"1/k"``: 1 over the square root
            of the number of taps, so that a ``k x k`` convolution at stride 1, not only its
            reshaped kernel, does not expand. By default 1 for ``"conv_orthogonal"``, which
            controls the convolution itself, and ``"1/k"`` for the others.
        regularizer: which penalty: ``"orthogonal"`` (the paper's), ``"srip"``, ``"spectral"``,
            ``"conv_orthogonal"`` (see ``tfdq.penalties``), or an object of a registered class of
            regularizers of the model's own Keras, with its own weight, place (attribute ``on``)
            and target in the stead of ``lipschitz_beta``, ``on`` and ``target``.
        beta_schedule: weight of the penalty by the training step, from 0, in the stead of the
            constant; a schedule of the model's own Keras, such as ``PolynomialDecay(0.0, 1000,
            2e-3)`` for a linear warm-up. For a Keras 3 model also a registered function of the
            step. The step is counted, saved and restored with the model.
        weight_bits: bits of the kernels, 2..8; symmetric, one scale for each output channel (for
            the tensor in a Dense without BatchNormalization).
        activation_bits: bits behind a ReLU, 1..8.
        first_last_bits: bits, 2..8, of the layers that take the input and of the classifier, or
            None for the same as all others.
        layer_bits: bits of single layers: name -> bits, or (weight bits, activation bits).
        activation_range: ``"moving_average"``: the range of what is behind a ReLU follows the
            training batches, and ReLU stays what it is; ``"relu6"``: every ReLU becomes ReLU6 and
            its range is [0, 6] (the paper), of which a non-expansive network uses few levels;
            ``"learned"``: its step trains (LSQ), from where the first batch sets it. The last is
            for Keras 3 models.
        kernel_range: ``"max"``: the step of a kernel follows its largest magnitude;
            ``"learned"``: it trains (LSQ), from where the kernel sets it, in Keras 3 models.
        input_range: lowest and highest input value, such as (0, 1) for images divided by 255;
            None: the extremes seen in training.
        batch_norm_momentum: momentum of the moving statistics of every BatchNormalization that is
            quantized, in [0, 1); None: each keeps its own, but with a penalty on the folded or
            deployed kernel none is above 0.9. Such a penalty moves all layers, and the network
            that ships computes with the moving statistics, which must keep up: 0.9 does, Keras'
            default of 0.99 lags.
        skip: names of layers to leave in float, called with all their arguments. Such a model
            trains but does not export.
        input_shape: shape of an input without the batch, such as ``(96, 96, 3)``, for a Keras 3
            model of one input with axes of unknown size (``keras.Input((None, None, 3))``). None:
            the model has sizes.

    Returns:
        A new, uncompiled model of the same Keras, with the same inputs and outputs. Its layers
        have the names of the model's in Keras 3, ``quant_<name>`` in tf_keras.

    Raises:
        TypeError: ``model`` is not a Keras model, or ``beta_schedule`` not a schedule.
        ValueError: a setting is out of range, a weight is not finite, the model is not built, is
            subclassed, is quantized already, or has layers that cannot be quantized, or something
            that would be lost (all of them are listed).

    Warns:
        LaggingStatisticsWarning: ``batch_norm_momentum`` is above 0.9 and a penalty on the folded
            or deployed kernel meets BatchNorms that are trained.

    Sources: Lin, Gan, Han, *Defensive Quantization*, ICLR 2019; for learned steps Esser et al.,
    *Learned Step Size Quantization*, ICLR 2020.

    Example:
        >>> qat = tfdq.quantize_model(model, lipschitz_beta=2e-3, activation_bits=4)
        >>> qat.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
        >>> qat.fit(x_train, y_train)
    """
    quantize: Callable[..., Any]
    if is_keras3_model(model):
        quantize = partial(_keras3().quantize_model, input_shape=input_shape)
    elif input_shape is not None:
        raise ValueError(
            f"input_shape={tuple(input_shape)} is for Keras 3 models; build this one for inputs of "
            "one size, or give tfdq.to_keras3(model)"
        )
    else:
        quantize = _tf_keras().quantize_model
    return quantize(
        model,
        lipschitz_beta,
        on=on,
        target=target,
        regularizer=regularizer,
        beta_schedule=beta_schedule,
        weight_bits=weight_bits,
        activation_bits=activation_bits,
        first_last_bits=first_last_bits,
        layer_bits=layer_bits,
        activation_range=activation_range,
        kernel_range=kernel_range,
        input_range=input_range,
        batch_norm_momentum=batch_norm_momentum,
        skip=skip,
    )


def calibrate(model: Any, images: Any, batch_size: int = 128, *, batch_norm: bool = False) -> Any:
    """Set the observed ranges of a quantization-aware model from images, without training.

    Weights stay, and BatchNorm statistics unless asked for.

    Args:
        model: made by `quantize_model`, of either Keras.
        images: array ``(n, ...)`` in the range the model takes; a list of such images or of
            batches of them; or a ``tf.data.Dataset`` of batches. Labels, as the second of a pair,
            are ignored. For a model of several inputs one array for each: a list, or a dictionary
            by name.
        batch_size: images in a batch, where ``images`` is no dataset.
        batch_norm: replace the statistics of each BatchNormalization that follows training by the
            mean and the variance over all images, before ranges are set.

    Returns:
        The same model.

    Raises:
        TypeError: the model is not quantized, or ``images`` is of a kind that holds no images.
        ValueError: the model has no observed ranges, or no BatchNormalization to estimate; there
            are no images, or they do not fit the model's inputs, or are not finite.
    """
    side = _keras3() if is_keras3_model(model) else _tf_keras()
    return side.calibrate(model, images, batch_size, batch_norm=batch_norm)


def load_model(path: str | Path, *, safe_mode: bool = True, **options: Any) -> Any:
    """Load a saved model, quantization-aware or float.

    A file is checked before Keras reads it (``tfdq.model_files.containers``). A quantized model
    of Keras 3 is loaded as one; a float one is converted to tf_keras (load it with
    ``keras.saving.load_model`` to keep it one); all others are models of tf_keras.

    Args:
        path: a ``.keras`` or ``.h5`` file, or (with ``safe_mode=False``) a SavedModel folder.
        safe_mode: refuse files that could run code or reach other files. False: run what is in
            the file, for files whose origin you trust. A file of Keras 3 is read in safe mode
            either way.
        **options: more arguments of ``tf_keras.models.load_model`` (``compile``,
            ``custom_objects``); a ``.keras`` file of Keras 3 takes none and is not compiled.

    Raises:
        FileNotFoundError: there is nothing at ``path``.
        UnsafeModelError: (a ValueError) the file is not merely a model of layers.
        ValueError: it is not a model that Keras can read.
    """
    from tfdq.model_files.keras3 import holds_quantized_keras3, read_keras3

    if not holds_quantized_keras3(path):
        reads = "what is no quantized model of Keras 3 (keras.saving.load_model reads a float one)"
        return _tf_keras(reads).load_model(path, safe_mode=safe_mode, **options)
    from tfdq.keras3 import QuantizedModel

    model = read_keras3(path)
    assert isinstance(model, QuantizedModel)
    return model


def is_quantized(model: Any) -> bool:
    """Return whether a model is quantization-aware, as `quantize_model` makes it.

    Args:
        model: a Keras model, of Keras 3 or a built Functional or Sequential one of tf_keras.
    """
    if is_keras3_model(model):
        # Only a process that has loaded the class can have made one.
        module = sys.modules.get("tfdq.keras3.quantized_model")
        return module is not None and isinstance(model, module.QuantizedModel)
    if not is_tf_keras_model(model):
        return False
    from tfdq.quantization.model import is_quantized as of_tf_keras

    return of_tf_keras(model)


def _keras3() -> Any:
    return import_module("tfdq.keras3")


def _tf_keras(what: str = "what is no model of Keras 3") -> Any:
    try:
        return import_module("tfdq.quantization")
    except ModuleNotFoundError as error:
        raise explained(error, what) from error
