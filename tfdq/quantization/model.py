"""Quantize a Keras model defensively: the main entry point."""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Iterator, Mapping
from typing import Any

import tensorflow as tf
import tf_keras

from tfdq.calibration_images import calibration_batches
from tfdq.mistakes import WrongTypeError
from tfdq.penalties.singular_values import SingularValue
from tfdq.quantization.batch_statistics import estimating_statistics
from tfdq.quantization.graph import read_graph
from tfdq.quantization.quantizers import ObservedRangeQuantizer, observing
from tfdq.quantization.rewrite import DefensiveLayoutTransform, unwrap_annotations
from tfdq.quantization.settings import Settings
from tfdq.quantization.wrapper import InputQuantizer, PortableQuantizeWrapper, QuantizeWrapper
from tfdq.settings.quantization import ActivationRange, KernelRange, LayerBits, Placement
from tfdq.which_keras import is_keras3_model


def quantize_model(
    model: tf_keras.Model,
    lipschitz_beta: float = 2e-3,
    *,
    on: Placement = "deployed",
    target: SingularValue | None = None,
    regularizer: str | tf_keras.regularizers.Regularizer = "orthogonal",
    beta_schedule: tf_keras.optimizers.schedules.LearningRateSchedule | None = None,
    weight_bits: int = 8,
    activation_bits: int = 8,
    first_last_bits: int | None = None,
    layer_bits: Mapping[str, LayerBits] | None = None,
    activation_range: ActivationRange = "moving_average",
    kernel_range: KernelRange = "max",
    input_range: tuple[float, float] | None = None,
    batch_norm_momentum: float | None = None,
    skip: Collection[str] = (),
) -> tf_keras.Model:
    r"""Return a quantization-aware copy of a model, with the Lipschitz penalty inside.

    Compile and fit it as any Keras model. Every convolution and dense layer has its kernel
    fake-quantized, its BatchNorm and ReLU taken in, and its output fake-quantized once, where the
    integer runtime rounds. Gradients pass the rounding straight through. The penalty

    .. math:: \frac{\beta}{2} \sum_l \lVert W_l^T W_l - \tau^2 I \rVert_F^2

    appears in ``model.losses``, one scalar for each layer, so ``fit`` adds it to the loss. Kernels
    of one shape are evaluated in one pass.

    Outputs behind a ReLU have ``activation_bits``. What is not behind a ReLU (the image, a sum or
    a convolution without a ReLU, an average, the logits) has 8 bits, on a range observed while
    training. Behind a squeezer (``tfdq.robustness.squeeze``) the input has the squeezer's bits.

    What the model calls with ``training=False`` stays in inference mode in ``fit``, and what is not
    trainable stays frozen; ranges are observed there, too. Regularizers, constraints, the names
    and the structure of the outputs are kept. What cannot be kept is refused by name.

    Args:
        model: a built Functional or Sequential model of tf_keras, trained or not, in float32. It is
            not changed; its weights are copied. Nested models are flattened. Layers annotated with
            tfmot's ``quantize_annotate_layer`` keep the ``QuantizeConfig`` they were given. A
            model of Keras 3 is converted by ``tfdq.from_keras3``.
        lipschitz_beta: weight of the penalty, >= 0; 0 is vanilla quantization with the same
            quantizers.
        on: the kernel the penalty acts on: ``"deployed"`` (BatchNorm folded in, fake-quantized),
            ``"folded"`` (BatchNorm folded in), ``"kernel"`` (the trained one). The paper's penalty
            is ``on="kernel", target=1``.
        target: the singular value that the penalty aims at, > 0; ``"1/k"``: 1 over the square root
            of the number of taps, so that a ``k x k`` convolution at stride 1, not only its
            reshaped kernel, does not expand. By default 1 for ``"conv_orthogonal"``, which
            controls the convolution itself, and ``"1/k"`` for the others.
        regularizer: which penalty: ``"orthogonal"`` (the paper's), ``"srip"``, ``"spectral"``,
            ``"conv_orthogonal"`` (see ``tfdq.penalties``), or a registered Keras ``Regularizer``
            with its own weight, place and target in the stead of ``lipschitz_beta``, ``on`` and
            ``target``.
        beta_schedule: weight of the penalty by the training step, from 0, in the stead of the
            constant; a Keras schedule, such as ``PolynomialDecay(0.0, 1000, 2e-3)`` for a linear
            warm-up. The step is counted, saved and restored with the model.
        weight_bits: bits of the kernels, 2..8; symmetric, one scale for each output channel (for
            the tensor in a Dense).
        activation_bits: bits behind a ReLU, 1..8.
        first_last_bits: bits, 2..8, of the layers that take the input and of the classifier, or
            None for the same as all others.
        layer_bits: bits of single layers: name -> bits, or (weight bits, activation bits).
        activation_range: ``"moving_average"``: the range of what is behind a ReLU follows the
            training batches, and ReLU stays what it is; ``"relu6"``: every ReLU becomes ReLU6 and
            its range is [0, 6] (the paper), of which a non-expansive network uses few levels.
        kernel_range: ``"max"``: the step of a kernel follows its largest magnitude. Learned steps
            are for Keras 3 models.
        input_range: lowest and highest input value, such as (0, 1) for images divided by 255;
            None: the range of the bit-depth squeezer in front, if there is one, else the extremes
            seen in training.
        batch_norm_momentum: momentum of the moving statistics of every BatchNormalization that is
            quantized, in [0, 1); None: each keeps its own, but with a penalty on the folded or
            deployed kernel none is above 0.9. Such a penalty moves all layers, and the network
            that ships computes with the moving statistics, which must keep up: 0.9 does, Keras'
            default of 0.99 lags.
        skip: names of layers to leave in float, called with all their arguments. Such a model
            trains but does not export.

    Returns:
        A new, uncompiled tf_keras model, a ``QuantizedModel``, with the same inputs and outputs;
        its layers are named ``quant_<name>``.

    Raises:
        TypeError: ``model`` is not a Keras model, or ``beta_schedule`` not a schedule.
        ValueError: a setting is out of range, a weight is not finite, the model is not built, is
            subclassed, is quantized already, or has layers that are not float32, cannot be
            quantized, or have something that would be lost (all of them are listed).

    Warns:
        LaggingStatisticsWarning: ``batch_norm_momentum`` is above 0.9 and a penalty on the folded
            or deployed kernel meets BatchNorms that are trained.

    Source: Lin, Gan, Han, *Defensive Quantization*, ICLR 2019.

    Example:
        >>> qat = tfdq.quantize_model(model, lipschitz_beta=2e-3, activation_bits=4)
        >>> qat.compile("adam", tf_keras.losses.SparseCategoricalCrossentropy(from_logits=True))
        >>> qat.fit(x_train, y_train)
    """
    settings = Settings(
        lipschitz_beta=lipschitz_beta,
        on=on,
        target=target,
        regularizer=regularizer,
        beta_schedule=beta_schedule,
        weight_bits=weight_bits,
        activation_bits=activation_bits,
        first_last_bits=first_last_bits,
        layer_bits={} if layer_bits is None else layer_bits,
        activation_range=activation_range,
        kernel_range=kernel_range,
        input_range=input_range,
        batch_norm_momentum=batch_norm_momentum,
        skip=frozenset([skip] if isinstance(skip, str) else skip),
    )
    check_float_model(model)
    graph, _ = unwrap_annotations(read_graph(model))
    wanted = {node.layer.name for node in graph.nodes if node.inputs} - settings.skip
    quantized, _ = DefensiveLayoutTransform(settings).apply(model, {name: {} for name in wanted})
    return quantized


def check_float_model(model: Any) -> None:
    """Check that a model can be quantized at all.

    Raises:
        TypeError: it is not a tf_keras model.
        ValueError: it is not built, is subclassed, is quantized already, or has a weight that is
            not finite.
    """
    if is_keras3_model(model):
        raise WrongTypeError(
            f"{model.name!r} is a Keras 3 model: tfdq.quantize_model keeps it one; to quantize it "
            "as a tf_keras model convert it first, with tfdq.from_keras3(model)"
        )
    if not isinstance(model, tf_keras.Model):
        raise WrongTypeError(
            "model must be a Functional or Sequential model of tf_keras or Keras 3, got "
            f"{type(model).__name__}"
        )
    for node in read_graph(model).nodes:
        if _is_quantized(node.layer):
            raise ValueError(
                f"the model is quantized already (layer {node.layer.name!r}); "
                "quantize the float model it was made from"
            )
    for weight in model.weights:
        if weight.dtype.is_floating and not bool(tf.reduce_all(tf.math.is_finite(weight))):
            raise ValueError(
                f"weight {weight.name!r} has values that are NaN or infinite; "
                "train the float model to a finite state first"
            )


def is_quantized(model: tf_keras.Model) -> bool:
    """Return whether a model is quantization-aware, as ``quantize_model`` makes it.

    Raises:
        ValueError: it is not a built Functional or Sequential model.
    """
    return any(_is_quantized(node.layer) for node in read_graph(model).nodes)


def _is_quantized(layer: tf_keras.layers.Layer) -> bool:
    return isinstance(layer, (PortableQuantizeWrapper, InputQuantizer))


def calibrate(
    model: tf_keras.Model, images: Any, batch_size: int = 128, *, batch_norm: bool = False
) -> tf_keras.Model:
    """Set the observed ranges of a quantization-aware model from images, without training.

    Only the quantizers see training mode: weights stay, and BatchNorm statistics unless asked for.

    Args:
        model: made by ``quantize_model``.
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
        TypeError: ``images`` is of a kind that holds no images.
        ValueError: the model has no observed ranges, or no BatchNormalization to estimate; there
            are no images, or they do not fit the model's inputs, or are not finite.
    """
    if not any(isinstance(_quantizer(layer), ObservedRangeQuantizer) for layer in model.layers):
        raise ValueError(f"{model.name!r} has no layer whose range is observed")
    if batch_norm:
        with estimating_statistics(model) as take:
            for count in _pass(model, images, batch_size):
                take(count)
    with observing():
        deque(_pass(model, images, batch_size), maxlen=0)
    return model


def _pass(model: tf_keras.Model, images: Any, batch_size: int) -> Iterator[int]:
    """Call a model on images, a batch at a time; yields the number of images of each."""
    seen = 0
    for batch in calibration_batches(model, images, batch_size):
        model(batch if len(batch) > 1 else batch[0], training=False)
        seen += len(batch[0])
        yield len(batch[0])
    if not seen:
        raise ValueError("there are no images to calibrate on")


def _quantizer(layer: tf_keras.layers.Layer) -> Any:
    if isinstance(layer, InputQuantizer):
        return layer.quantizer
    return layer.quantize_config.output if isinstance(layer, QuantizeWrapper) else None
