"""A quantized model's losses are its wrappers' penalties, evaluated in one pass over each shape."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
import tf_keras

import tfdq
from tests.exhaustive import only
from tfdq.models import resnet20
from tfdq.penalties import PenaltySchedule, get_regularizer
from tfdq.penalties.names import REGULARIZERS
from tfdq.penalties.regularizers import PLACEMENTS, KernelRegularizer, kernel_matrix
from tfdq.quantization import QuantizedModel, QuantizeWrapper
from tfdq.robustness import AdversarialTraining

L = tf_keras.layers
LOSS = tf_keras.losses.SparseCategoricalCrossentropy(from_logits=True)
PRODUCTS = ("MatMul", "BatchMatMulV2")
GROUPS = 5
# The last one is a SavedModel, which takes Keras long; tests/quantization/test_saving.py has one.
FILES = ["model.keras", "model.h5", "model"]


def network() -> tf_keras.Model:
    """Kernels of five kinds: three of one shape, two depthwise, two dense, two single ones."""
    tf_keras.utils.set_random_seed(4)
    inputs = L.Input((8, 8, 1))
    x = L.Conv2D(6, 3, padding="same", name="stem")(inputs)
    for index in range(3):
        x = L.Conv2D(6, 3, padding="same", use_bias=False, name=f"conv{index}")(x)
        x = L.BatchNormalization(momentum=0.9, name=f"norm{index}")(x)
        x = L.ReLU(name=f"relu{index}")(x)
    for index in range(2):
        x = L.DepthwiseConv2D(3, padding="same", name=f"depthwise{index}")(x)
    x = L.GlobalAveragePooling2D()(x)
    for index in range(2):
        x = L.Dense(6, name=f"dense{index}")(x)
    return tf_keras.Model(inputs, L.Dense(10, name="logits")(x))


def quantized(regularizer="orthogonal", **arguments) -> tf_keras.Model:
    settings = {"activation_bits": 4, "input_range": (0.0, 1.0), **arguments}
    model = tfdq.quantize_model(network(), regularizer=regularizer, **settings)
    random = np.random.default_rng(0)
    for weight in model.weights:
        if "moving_variance" in weight.name or "gamma" in weight.name:
            weight.assign(random.uniform(0.5, 1.5, weight.shape))
    return model


def separate(model: tf_keras.Model) -> tf_keras.Model:
    """The Functional model of the same layers, which evaluates each penalty by itself."""
    return tf_keras.Model(model.inputs, model.outputs, name=model.name)


def batch() -> tuple[tf.Tensor, tf.Tensor]:
    random = tf.random.Generator.from_seed(0)
    labels = random.uniform((16,), maxval=10, dtype=tf.int32)
    return random.uniform((16, 8, 8, 1)), labels


def products(function) -> int:
    """Count the matrix products of a function's graph."""
    graph = tf.function(function).get_concrete_function().graph
    return sum(operation.type in PRODUCTS for operation in graph.get_operations())


def gradients(model: tf_keras.Model) -> list[tf.Tensor]:
    with tf.GradientTape() as tape:
        total = tf.add_n(model.losses)
    return tape.gradient(total, model.trainable_variables, unconnected_gradients="zero")


@pytest.mark.parametrize("on", PLACEMENTS)
@pytest.mark.parametrize("name", REGULARIZERS)
def test_losses_and_gradients(name: str, on: str) -> None:
    fused = quantized(get_regularizer(name, 0.1, on, target=0.2))
    single = separate(quantized(get_regularizer(name, 0.1, on, target=0.2)))
    assert type(fused) is QuantizedModel
    assert type(single) is not QuantizedModel
    for _ in range(2):
        np.testing.assert_allclose(fused.losses, single.losses, rtol=1e-5)
    assert len(fused.losses) == len(single.losses) == 9
    for one, other in zip(gradients(fused), gradients(single), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-6)


def test_weights_may_differ() -> None:
    model = quantized(lipschitz_beta=0.1)
    before = np.array(model.losses)
    wrappers = [layer for layer in model.layers if getattr(layer, "is_penalized", False)]
    factors = np.arange(1.0, 1.0 + len(wrappers))
    for factor, wrapper in zip(factors, wrappers, strict=True):
        wrapper.layer.penalty.weight().assign(0.1 * factor)
    np.testing.assert_allclose(model.losses, factors * before, rtol=1e-5)


def test_one_product_for_each_shape() -> None:
    model = quantized()
    assert products(lambda: model.losses) == GROUPS
    assert products(lambda: separate(model).losses) == len(model.losses) == 9


@pytest.mark.exhaustive
def test_products_of_a_step_of_resnet20() -> None:
    """Its 22 kernels have 9 shapes: a step takes two products for each, one of the gradient."""
    images, labels = tf.zeros((2, 32, 32, 3)), tf.zeros((2,), tf.int32)

    def step(model: tf_keras.Model):
        model.compile("sgd", LOSS)
        return lambda: model.train_step((images, labels))

    model = tfdq.quantize_model(resnet20(), activation_bits=4)
    kernels = [layer.layer.trained_kernel for layer in model.layers if _is_penalized(layer)]
    shapes = {tuple(kernel.shape) for kernel in kernels}
    assert (len(kernels), len(shapes)) == (22, 9)
    without = products(step(tfdq.quantize_model(resnet20(), 0.0, activation_bits=4)))
    assert products(lambda: model.losses) == len(shapes)
    assert products(step(model)) - without == 2 * len(shapes)
    assert products(step(separate(model))) - without == 2 * len(kernels)


def _is_penalized(layer: tf_keras.layers.Layer) -> bool:
    return isinstance(layer, QuantizeWrapper) and layer.is_penalized


def test_training_is_that_of_the_separate_model() -> None:
    weights = []
    for prepare in (lambda model: model, separate):
        model = prepare(quantized(lipschitz_beta=0.05))
        model.compile(tf_keras.optimizers.SGD(0.1), LOSS)
        model.fit(*batch(), batch_size=8, epochs=3, shuffle=False, verbose=0)
        weights.append(model.get_weights())
    for one, other in zip(*weights, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-3, atol=1e-5)


def test_adversarial_training_takes_the_fused_losses() -> None:
    model = quantized()
    for trained in (model, separate(model)):
        trainer = AdversarialTraining(trained, eps=0.1)
        assert products(lambda trainer=trainer: trainer.losses) == GROUPS
        np.testing.assert_allclose(trainer.losses, model.losses, rtol=1e-6)


def test_inside_another_model_as_before() -> None:
    model = quantized()
    inputs = L.Input((8, 8, 1))
    outer = tf_keras.Model(inputs, model(inputs))
    np.testing.assert_allclose(outer.losses, model.losses, rtol=1e-5)


def test_other_losses_are_kept() -> None:
    model = quantized(skip={"dense0"})
    count = len(model.losses)
    plain = network()
    plain.get_layer("dense0").kernel_regularizer = tf_keras.regularizers.L2(0.5)
    plain = tf_keras.models.clone_model(plain)
    regularized = tfdq.quantize_model(plain, skip={"dense0"}, activation_bits=4)
    assert len(regularized.losses) == count + 1
    regularized.add_loss(lambda: tf.constant(7.0))
    assert [float(v) for v in regularized.losses].count(7.0) == 1
    np.testing.assert_allclose(regularized.losses, separate_with(regularized), rtol=1e-5)


def separate_with(model: tf_keras.Model) -> list[float]:
    """What Keras says of a model's losses."""
    return [float(v) for v in tf_keras.layers.Layer.losses.fget(model)]


@pytest.mark.parametrize("name", ["orthogonal", "spectral"])
def test_step_schedule(name: str) -> None:
    schedule = tf_keras.optimizers.schedules.PolynomialDecay(0.0, 4, 0.1)
    models = [quantized(name, beta_schedule=schedule) for _ in range(2)]
    models[1] = separate(models[1])
    losses: list[list[np.ndarray]] = [[], []]
    for model, seen in zip(models, losses, strict=True):
        model.compile(tf_keras.optimizers.SGD(0.0), LOSS)
        for _ in range(3):
            model.train_on_batch(*batch())
            seen.append(np.array(model.losses))
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-5)
    assert losses[0][2].sum() > 1.5 * losses[0][1].sum() > 0 == losses[0][0].sum()


def test_epoch_schedule() -> None:
    model = quantized(lipschitz_beta=0.1)
    before = np.array(model.losses)
    model.compile(tf_keras.optimizers.SGD(0.0), LOSS)
    model.fit(*batch(), epochs=2, verbose=0, callbacks=[PenaltySchedule(lambda e: 0.2 * (1 + e))])
    np.testing.assert_allclose(np.array(model.losses)[0], 4 * before[0], rtol=1e-5)


def test_frozen_layers_keep_their_penalties() -> None:
    model = quantized()
    before = np.array(model.losses)
    model.get_layer("quant_conv1").trainable = False
    np.testing.assert_allclose(model.losses, before, rtol=1e-6)
    assert products(lambda: model.losses) == GROUPS
    model.compile(tf_keras.optimizers.SGD(0.1), LOSS)
    kernel = model.get_layer("quant_conv1").layer.kernel
    start = kernel.numpy()
    model.fit(*batch(), verbose=0)
    np.testing.assert_array_equal(kernel, start)


@tf_keras.saving.register_keras_serializable(package="tests")
class LargestEntry(KernelRegularizer):
    def deviation(self, kernel: tf.Tensor, target: float) -> tf.Tensor:
        return tf.reduce_max(kernel_matrix(kernel, self.depthwise)) - target


@pytest.mark.parametrize("regularizer", [LargestEntry(0.3), tf_keras.regularizers.L2(0.3)])
def test_regularizers_of_ones_own(regularizer) -> None:
    model = quantized(regularizer)
    np.testing.assert_allclose(model.losses, separate(model).losses, rtol=1e-6)
    first = model.get_layer("quant_stem").layer.kernel.numpy()
    largest = isinstance(regularizer, LargestEntry)
    expected = 0.3 * (first.max() - 1 if largest else np.square(first).sum())
    np.testing.assert_allclose(model.losses[0], expected, rtol=1e-4)


def check_fused(model: tf_keras.Model, expected: list[tf.Tensor]) -> None:
    assert type(model) is QuantizedModel
    assert products(lambda: model.losses) == GROUPS
    np.testing.assert_allclose(model.losses, expected, rtol=1e-5)


@pytest.mark.parametrize("file", only(FILES, "model.keras", "model.h5"))
def test_saved_and_loaded(file: str, tmp_path: Path) -> None:
    model = quantized()
    model.compile("sgd", LOSS)
    model.save(tmp_path / file)
    check_fused(tfdq.load_model(tmp_path / file, safe_mode=file != "model"), model.losses)
    check_fused(tf_keras.models.load_model(tmp_path / file), model.losses)


@pytest.mark.parametrize("file", only(FILES, "model.keras"))
def test_loaded_by_another_process(file: str, tmp_path: Path) -> None:
    """Keras makes a Functional model of the class when the first one is built."""
    quantized().save(tmp_path / file)
    code = (
        "import sys, tf_keras, tfdq.quantization; model = tf_keras.models.load_model(sys.argv[1]);"
        "print(type(model).__name__, len(model.losses))"
    )
    run = subprocess.run(
        [sys.executable, "-c", code, tmp_path / file], capture_output=True, text=True, check=False
    )
    assert run.stdout.split() == ["QuantizedModel", "9"], run.stderr


@pytest.mark.parametrize("file", only(FILES, "model.keras", "model.h5"))
def test_functional_models_load_as_before(file: str, tmp_path: Path) -> None:
    model = separate(quantized())
    model.save(tmp_path / file)
    loaded = tfdq.load_model(tmp_path / file, safe_mode=file != "model")
    assert type(loaded) is type(model)
    np.testing.assert_allclose(loaded.losses, model.losses, rtol=1e-5)


def test_clones() -> None:
    model = quantized()
    clone = tf_keras.models.clone_model(model)
    clone.set_weights(model.get_weights())
    check_fused(clone, model.losses)
    copy = QuantizedModel.from_config(model.get_config())
    copy.set_weights(model.get_weights())
    check_fused(copy, model.losses)


def test_checkpoints_know_no_class(tmp_path: Path) -> None:
    """One of a Functional model, with the vectors of its penalties, restores into it, and back."""
    schedule = tf_keras.optimizers.schedules.PolynomialDecay(0.0, 4, 0.1)
    for save, restore in ((separate, lambda m: m), (lambda m: m, separate)):
        first, second = (quantized("spectral", beta_schedule=schedule) for _ in range(2))
        for weight in first.weights:
            weight.assign_add(tf.cast(tf.ones(weight.shape), weight.dtype))
        for _ in range(5):
            _ = first.losses, second.losses
        path = tf.train.Checkpoint(model=save(first)).save(tmp_path / "checkpoint")
        tf.train.Checkpoint(model=restore(second)).restore(path).assert_consumed()
        for one, other in zip(first.weights, second.weights, strict=True):
            np.testing.assert_array_equal(one, other)
        np.testing.assert_allclose(first.losses, second.losses, rtol=1e-5)
