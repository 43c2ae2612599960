"""Each kind of layer: what a model with it computes is what the runtime computes of its file."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from functools import lru_cache
from typing import Any, ClassVar

import keras
import numpy as np
import pytest
from keras.src.applications.convnext import LayerScale, StochasticDepth
from keras.src.applications.inception_resnet_v2 import CustomScaleLayer

from tests.exhaustive import only
from tests.keras3.deployed import assert_deployed
from tfdq.keras3 import QuantizedModel, calibrate, quantize_model
from tflite_export.ops import OPERATORS

L = keras.layers
pytestmark = pytest.mark.backends


SETTINGS: dict[str, dict[str, Any]] = {
    "8 bits": {},
    "3 bits": {"weight_bits": 3, "activation_bits": 3},
    "2 and 1 bits, ReLU6": {
        "weight_bits": 2,
        "activation_bits": 1,
        "activation_range": "relu6",
    },
}

# Other backends compile each operation anew for each model.
RUN_ALWAYS = ["8 bits"]
if keras.backend.backend() == "tensorflow":
    RUN_ALWAYS.append("2 and 1 bits, ReLU6")


def alike_on_each_backend(test: Any) -> Any:
    """Run a test always with TensorFlow; with another backend `make exhaustive` does."""
    return test if keras.backend.backend() == "tensorflow" else pytest.mark.exhaustive(test)


@lru_cache(maxsize=1)
def _at_eight_bits(case: type[LayerContract]) -> QuantizedModel:
    contract = case()
    return calibrate(quantize_model(contract.float_model(), 0.0), contract.images())


class LayerContract(ABC):
    """What every kind of layer keeps to; a subclass says what is built of it."""

    shape: ClassVar[tuple[int, ...]] = (8, 8, 3)
    tolerance = 0.04
    """Largest distance of the 8-bit model from the float one, in the largest float output."""

    @abstractmethod
    def build(self, image: Any) -> Any:
        """Return the result of the layer on a symbolic image."""

    def images(self) -> np.ndarray:
        return np.random.default_rng(1).normal(size=(16, *self.shape)).astype(np.float32)

    def float_model(self) -> keras.Model:
        keras.utils.set_random_seed(0)
        image = keras.Input(self.shape)
        model = keras.Model(image, self.build(image))
        rng = np.random.default_rng(2)
        for layer in model.layers:
            for weight in layer.weights:
                # BatchNorms and biases that do something, of both signs where that is allowed.
                if weight.name in ("gamma", "beta", "moving_mean", "bias"):
                    weight.assign(rng.normal(size=weight.shape).astype(np.float32))
                if weight.name == "moving_variance":
                    weight.assign(rng.uniform(0.5, 2.0, weight.shape).astype(np.float32))
        return model

    def quantized(self) -> QuantizedModel:
        """Return the model at 8 bits, the same in all tests of a class."""
        return _at_eight_bits(type(self))

    @pytest.mark.parametrize("bits", only([*SETTINGS], *RUN_ALWAYS))
    def test_the_runtime_computes_the_same_integers(self, bits: str) -> None:
        model = self.quantized()
        if bits != "8 bits":
            model = quantize_model(self.float_model(), 0.0, **SETTINGS[bits])
            calibrate(model, self.images())
        assert_deployed(model, self.images(), compiled=False)

    @alike_on_each_backend
    def test_eight_bits_are_near_the_float_model(self) -> None:
        wanted = keras.ops.convert_to_numpy(self.float_model()(self.images(), training=False))
        found = keras.ops.convert_to_numpy(self.quantized()(self.images(), training=False))
        assert np.abs(found - wanted).max() <= self.tolerance * np.abs(wanted).max()

    def test_a_training_step_computes_nearly_what_is_deployed(self) -> None:
        model = self.quantized()
        deployed = keras.ops.convert_to_numpy(model(self.images(), training=False))
        if any("dropout" in layer.name or "noise" in layer.name for layer in model.layers):
            return
        trainable = {layer.name for layer in model.layers if layer.trainable}
        for layer in model.layers:
            layer.trainable = False
        trained = keras.ops.convert_to_numpy(model(self.images(), training=True))
        for layer in model.layers:
            layer.trainable = layer.name in trainable
        model.seal()
        assert np.abs(trained - deployed).max() <= 0.03 * np.abs(deployed).max()

    @alike_on_each_backend
    def test_it_is_rebuilt_from_its_config(self) -> None:
        model = self.quantized()
        copy = QuantizedModel.from_config(model.get_config())
        copy.set_weights(model.get_weights())
        np.testing.assert_array_equal(
            *(keras.ops.convert_to_numpy(m(self.images(), training=False)) for m in (model, copy))
        )


class DrawnByNumPy(LayerContract):
    """A network with the same kernels on each backend: Keras draws others from the same seed."""

    def float_model(self) -> keras.Model:
        model, rng = super().float_model(), np.random.default_rng(3)
        for weight in model.weights:
            if "kernel" in weight.name:
                fan_in = math.prod(weight.shape[:-1])
                weight.assign(rng.normal(0, fan_in**-0.5, weight.shape).astype(np.float32))
        return model


class TestConv2D(LayerContract):
    def build(self, image: Any) -> Any:
        return L.Conv2D(5, 3, strides=2, padding="same")(image)


class TestConv2DBatchNormReLU(LayerContract):
    def build(self, image: Any) -> Any:
        x = L.Conv2D(5, 3, dilation_rate=2, use_bias=False)(image)
        return L.ReLU()(L.BatchNormalization()(x))


class TestConv2DReLU6(LayerContract):
    def build(self, image: Any) -> Any:
        return L.Conv2D(5, 3, activation="relu6")(image)


class TestDepthwiseConv2D(LayerContract):
    def build(self, image: Any) -> Any:
        x = L.DepthwiseConv2D(3, depth_multiplier=2, padding="same")(image)
        return L.ReLU()(L.BatchNormalization()(x))


class TestDense(LayerContract):
    shape: ClassVar[tuple[int, ...]] = (40,)

    def build(self, image: Any) -> Any:
        return L.Dense(7)(L.Dense(20, activation="relu")(image))


class TestDenseBatchNorm(LayerContract):
    shape: ClassVar[tuple[int, ...]] = (40,)

    def build(self, image: Any) -> Any:
        return L.BatchNormalization()(L.Dense(7)(image))


class TestBatchNormReLU(LayerContract):
    def build(self, image: Any) -> Any:
        return L.ReLU()(L.BatchNormalization()(image))


class TestBatchNormWithoutScale(LayerContract):
    def build(self, image: Any) -> Any:
        return L.BatchNormalization(scale=False, center=False)(image)


class TestReLU(LayerContract):
    def build(self, image: Any) -> Any:
        return L.Activation("relu")(image)


class TestAdd(LayerContract):
    def build(self, image: Any) -> Any:
        return L.Add()([image, L.Conv2D(3, 1)(image)])


class TestAddReLU(LayerContract):
    def build(self, image: Any) -> Any:
        x = L.Conv2D(3, 1, activation="relu")(image)
        return keras.ops.relu(x + L.Conv2D(3, 3, padding="same")(x))


class TestAddOfThree(LayerContract):
    def build(self, image: Any) -> Any:
        return L.Add()([image, L.Conv2D(3, 1)(image), L.ReLU()(image)])


class TestAddOfATinyBranch(LayerContract):
    def build(self, image: Any) -> Any:
        tiny = L.Conv2D(3, 1, kernel_initializer=keras.initializers.Constant(1e-6), use_bias=False)
        return L.Add()([tiny(image), image])


class TestConcatenateOfSeveralGrids(LayerContract):
    def build(self, image: Any) -> Any:
        return L.Concatenate()([L.Conv2D(3, 1)(image), L.Conv2D(4, 1, activation="relu")(image)])


class TestConcatenateOfOneGrid(LayerContract):
    def build(self, image: Any) -> Any:
        x = L.Conv2D(3, 1, activation="relu")(image)
        return L.Concatenate()([x, L.MaxPooling2D(3, 1, padding="same")(x)])


class TestMaxPooling2D(LayerContract):
    def build(self, image: Any) -> Any:
        return L.MaxPooling2D(3, 2, padding="same")(image)


class TestGlobalMaxPooling2D(LayerContract):
    def build(self, image: Any) -> Any:
        return L.GlobalMaxPooling2D()(image)


class TestAveragePooling2D(LayerContract):
    def build(self, image: Any) -> Any:
        return L.AveragePooling2D(3, 2)(L.ReLU()(image))


class TestAveragePooling2DWithCutWindows(LayerContract):
    def build(self, image: Any) -> Any:
        return L.AveragePooling2D(3, 2, padding="same")(image)

    @alike_on_each_backend
    def test_eight_bits_are_near_the_float_model(self) -> None:
        # Keras on PyTorch repeats the edge of the image; the mean is of the pixels inside it.
        images = self.images()
        wanted = np.stack(
            [
                np.stack([images[:, r : r + 3, c : c + 3].mean((1, 2)) for c in (0, 2, 4, 6)], 1)
                for r in (0, 2, 4, 6)
            ],
            1,
        )
        found = keras.ops.convert_to_numpy(self.quantized()(images, training=False))
        assert np.abs(found - wanted).max() <= self.tolerance * np.abs(wanted).max()


class TestAveragePooling2DOfTwoStrides(LayerContract):
    def build(self, image: Any) -> Any:
        x = L.AveragePooling2D((1, 2))(L.ReLU()(image))
        return L.AveragePooling2D((3, 2), strides=(2, 1))(x)


class TestAveragePooling2DOfTheWholeImage(LayerContract):
    def build(self, image: Any) -> Any:
        return L.AveragePooling2D(8)(image)


class TestGlobalAveragePooling2D(LayerContract):
    def build(self, image: Any) -> Any:
        return L.GlobalAveragePooling2D(keepdims=True)(L.Conv2D(6, 3, activation="relu")(image))


class TestShapes(LayerContract):
    def build(self, image: Any) -> Any:
        x = L.ZeroPadding2D(((1, 0), (2, 1)))(image)
        x = L.Reshape((11, 9, 3))(L.Dropout(0.5)(x))
        return L.Dense(5)(L.Flatten()(x))


class TestSoftmax(LayerContract):
    shape: ClassVar[tuple[int, ...]] = (40,)

    def build(self, image: Any) -> Any:
        return L.Dense(10, activation="softmax")(image)


class TestUpSampling2D(LayerContract):
    def build(self, image: Any) -> Any:
        return L.Conv2D(4, 3)(L.UpSampling2D((3, 2))(L.Conv2D(5, 3, activation="relu")(image)))


class TestLeakyReLU(LayerContract):
    def build(self, image: Any) -> Any:
        return L.Conv2D(4, 3)(L.LeakyReLU(0.1)(L.Conv2D(5, 3)(image)))


class TestCropping2D(LayerContract):
    def build(self, image: Any) -> Any:
        return L.Cropping2D(((1, 2), (0, 3)))(L.Conv2D(5, 3, activation="relu")(image))


class TestLayersOfTraining(LayerContract):
    def build(self, image: Any) -> Any:
        x = L.GaussianNoise(0.1)(L.RandomFlip("horizontal")(image))
        return L.SpatialDropout2D(0.3)(L.Identity()(L.Conv2D(5, 3, activation="relu")(x)))

    def test_they_act_in_training_only(self) -> None:
        model = self.quantized()
        once, again = (
            keras.ops.convert_to_numpy(model(self.images(), training=False)) for _ in range(2)
        )
        np.testing.assert_array_equal(once, again)
        trained = keras.ops.convert_to_numpy(model(self.images(), training=True))
        dropped = (trained == 0).all(axis=(1, 2))
        assert 0.1 < dropped.mean() < 0.7
        assert not np.array_equal(trained, again)


class TestSigmoidHead(LayerContract):
    shape: ClassVar[tuple[int, ...]] = (40,)

    def build(self, image: Any) -> Any:
        return L.Dense(1, activation="sigmoid")(image)


class TestSigmoidAndTanhInside(LayerContract):
    def build(self, image: Any) -> Any:
        x = L.Conv2D(5, 3)(image)
        gates = L.Concatenate()([L.Activation("sigmoid")(x), keras.ops.tanh(x)])
        gates = gates + L.Conv2D(10, 1, activation="hard_tanh")(keras.ops.hard_tanh(gates * 2.0))
        return L.Conv2D(4, 3)(gates)


class TestRescalingAndNormalization(LayerContract):
    def build(self, image: Any) -> Any:
        x = L.Rescaling(0.5, offset=-0.25)(image)
        x = L.Normalization(mean=[0.1, -0.2, 0.3], variance=[1.0, 2.0, 0.5])(x)
        return L.Conv2D(4, 3)(L.Rescaling([1.0, 2.0, -3.0])(x))

    def test_it_is_one_operator(self) -> None:
        kinds = [operator.kind for operator in self.quantized().seal().graph.operators]
        assert kinds == ["DEPTHWISE_CONV_2D", "CONV_2D"]


class TestAdaptedNormalization(LayerContract):
    """It counts the images that it has seen: an integer beside its weights."""

    def build(self, image: Any) -> Any:
        normalization = L.Normalization()
        normalization.adapt(np.random.default_rng(0).normal(0.5, 2.0, (64, *image.shape[1:])))
        return L.Conv2D(4, 3)(normalization(image))


class TestNumbers(LayerContract):
    def build(self, image: Any) -> Any:
        x = keras.ops.relu(2.0 * image - np.array([0.1, 0.2, 0.3], np.float32))
        x = L.Conv2D(4, 3)(1.0 - x / 4.0)
        return L.Conv2D(4, 3)(-x)


class TestSilu(LayerContract):
    def build(self, image: Any) -> Any:
        return L.Conv2D(4, 3)(L.Activation("swish")(L.Conv2D(5, 3, activation="silu")(image)))


class TestHardSilu(LayerContract):
    def build(self, image: Any) -> Any:
        x = L.Conv2D(5, 3, activation="hard_silu")(image)
        return L.Dense(4, activation="hard_swish")(L.Flatten()(keras.ops.hard_silu(x)))


class TestSqueezeAndExcite(LayerContract):
    def build(self, image: Any) -> Any:
        x = L.Conv2D(6, 3, activation="silu")(image)
        gate = L.GlobalAveragePooling2D(keepdims=True)(x)
        gate = L.Conv2D(6, 1, activation="sigmoid")(L.Conv2D(3, 1, activation="relu")(gate))
        return L.Conv2D(4, 3)(L.Multiply()([x, gate]))


class TestHardSqueezeAndExcite(LayerContract):
    def build(self, image: Any) -> Any:
        x = L.Conv2D(6, 3, activation="relu")(image)
        gate = L.Conv2D(6, 1)(L.GlobalAveragePooling2D(keepdims=True)(x))
        gate = L.ReLU(6.0)(gate + 3.0) * (1.0 / 6.0)
        return L.ReLU()(L.Multiply()([x, gate])) * L.Activation("hard_sigmoid")(x)

    def test_its_gate_is_one_operator(self) -> None:
        kinds = [operator.kind for operator in self.quantized().seal().graph.operators]
        assert kinds.count("DEPTHWISE_CONV_2D") == 2
        assert kinds.count("MUL") == 2


class TestAverageAndDifference(LayerContract):
    def build(self, image: Any) -> Any:
        x, y, z = (L.Conv2D(4, 3, activation="relu")(image) for _ in range(3))
        return L.Conv2D(3, 1)(L.ReLU()(L.Subtract()([L.Average()([x, y, z]), y - z])))

    def test_a_difference_is_one_operator(self) -> None:
        kinds = [operator.kind for operator in self.quantized().seal().graph.operators]
        assert kinds.count("SUB") == 2


class TestDifferenceFromTheMean(LayerContract):
    def build(self, image: Any) -> Any:
        x = L.Conv2D(4, 3, activation="relu")(image)
        return L.Subtract()([x, L.GlobalAveragePooling2D(keepdims=True)(x)])


class TestScaledSum(LayerContract):
    def build(self, image: Any) -> Any:
        branch = L.Conv2D(3, 1, kernel_initializer=keras.initializers.Constant(1e-6))(image)
        return CustomScaleLayer(-0.3)([image, branch])


class TestMaximumAndMinimum(LayerContract):
    def build(self, image: Any) -> Any:
        x, y, z = (L.Conv2D(4, 3)(image) for _ in range(3))
        largest = L.Maximum()([x, L.ReLU()(y), z])
        return keras.ops.minimum(largest, L.MaxPooling2D(3, 1, padding="same")(largest))


class TestConcatenateOfRows(LayerContract):
    def build(self, image: Any) -> Any:
        x = L.Conv2D(4, 3, activation="relu")(image)
        x = L.Concatenate(axis=1)([x, L.Conv2D(4, 3)(image), x])
        return keras.ops.concatenate([x, x], axis=2)


class TestSeparableConv2D(LayerContract):
    def build(self, image: Any) -> Any:
        x = L.SeparableConv2D(6, 3, strides=2, depth_multiplier=2, activation="relu")(image)
        return L.BatchNormalization()(L.SeparableConv2D(5, 3, use_bias=False)(x))


class Sequences(LayerContract):
    shape: ClassVar[tuple[int, ...]] = (20, 3)

    def reshapes(self) -> int:
        kinds = [operator.kind for operator in self.quantized().seal().graph.operators]
        return kinds.count("RESHAPE")


class TestConv1D(Sequences):
    def build(self, image: Any) -> Any:
        x = L.Conv1D(6, 3, padding="causal", dilation_rate=2, use_bias=False)(image)
        x = L.Dropout(0.0)(L.ReLU()(L.BatchNormalization()(x)))
        x = L.MaxPooling1D(2)(L.SeparableConv1D(5, 3, strides=2, activation="relu")(x))
        return L.GlobalAveragePooling1D()(L.Conv1D(4, 2, padding="same")(x))

    def test_it_stays_an_image_inside(self) -> None:
        assert self.reshapes() <= 2


class TestResidualSequence(Sequences):
    def build(self, image: Any) -> Any:
        x = L.ZeroPadding1D((1, 0))(L.DepthwiseConv1D(3, depth_multiplier=2)(image))
        x = L.AveragePooling1D(2, 1)(L.Cropping1D((0, 2))(x))
        x = L.Conv1D(4, 1, activation="relu")(L.UpSampling1D(2)(x))
        return L.Add()([x, L.Conv1D(4, 3, padding="same", activation="silu")(x)])


class TestDenseOfEachStep(Sequences):
    def build(self, image: Any) -> Any:
        x = L.SpatialDropout1D(0.0)(L.Dense(6, activation="relu")(image))
        return L.Softmax()(L.Dense(4)(L.GlobalMaxPooling1D()(L.Dense(5)(x))))


class TestDenseOfEachPixel(LayerContract):
    def build(self, image: Any) -> Any:
        x = L.DepthwiseConv2D(3, dilation_rate=2)(image)
        return L.Dense(4)(L.Dense(6, activation="relu")(x))


class TestBoundedReLU(LayerContract):
    def build(self, image: Any) -> Any:
        x = L.ReLU(max_value=1.5)(L.Conv2D(5, 3)(image))
        return keras.ops.clip(L.ReLU(negative_slope=0.25)(L.Conv2D(4, 3)(x)), 0, 2)


class TestOperationsThatAreLayers(DrawnByNumPy):
    def build(self, image: Any) -> Any:
        x = keras.ops.leaky_relu(L.Conv2D(6, 3)(image), 0.125)
        x = keras.ops.max_pool(x[:, 1:, :-1], 2, 1, "same")
        x = L.Add()([keras.ops.maximum(x[..., :2], 0.0), x[:, :, :, 4:]])
        x = keras.ops.average_pool(x, 2, 1)
        mean = keras.ops.mean(x, axis=(1, 2), keepdims=True)
        rows = keras.ops.reshape(x * mean, (-1, 16, 2))
        x = keras.ops.squeeze(keras.ops.expand_dims(keras.ops.max(rows, axis=1), 1), 1)
        return keras.ops.softmax(L.Dense(5)(x))


class TestConv2DTranspose(LayerContract):
    def build(self, image: Any) -> Any:
        x = L.Conv2DTranspose(6, 3, strides=2, padding="same", use_bias=False)(image)
        x = L.ReLU()(L.BatchNormalization()(x))
        x = L.Conv2DTranspose(4, 4, strides=2, padding="same", activation="relu")(x)
        return L.Conv2D(3, 3)(x)

    def test_the_batch_is_free(self) -> None:
        kinds = [operator.kind for operator in self.quantized().seal().graph.operators]
        assert kinds.count("DEPTH_TO_SPACE") == 2
        assert "TRANSPOSE_CONV" not in kinds


@pytest.mark.parametrize("padding", ["same", "valid"])
@pytest.mark.parametrize(("window", "stride"), [(3, 1), (2, 2), (5, 2), (4, 3), (2, 3), (7, 3)])
def test_every_transposed_convolution_is_that_of_keras(
    window: int, stride: int, padding: str
) -> None:
    image = keras.Input((5, 4, 2))
    layer = L.Conv2DTranspose(3, (window, max(window - 1, 1)), strides=stride, padding=padding)
    model = keras.Model(image, layer(image))
    x = np.random.default_rng(0).normal(size=(7, 5, 4, 2)).astype(np.float32)
    quantized = calibrate(quantize_model(model, 0.0), x)
    assert_deployed(quantized, x, compiled=False)
    wanted, found = (keras.ops.convert_to_numpy(m(x, training=False)) for m in (model, quantized))
    assert np.abs(found - wanted).max() <= 0.03 * np.abs(wanted).max()


class TestPermute(LayerContract):
    def build(self, image: Any) -> Any:
        x = L.Permute((2, 3, 1))(L.Conv2D(6, 3)(image))
        return keras.ops.transpose(L.Conv2D(4, 3)(x), (0, 3, 2, 1))


class TestGroupedConv2D(LayerContract):
    def build(self, image: Any) -> Any:
        x = L.ReLU()(L.BatchNormalization()(L.Conv2D(8, 3)(image)))
        return L.Conv2D(6, 3, groups=2, dilation_rate=2)(x)

    def test_float32_sums_of_parts_are_of_each_group_alike(self) -> None:
        model = self.quantized()
        grouped = next(layer for layer in model.layers if getattr(layer, "groups", 1) > 1)
        grouped.splits = 3
        assert_deployed(model, self.images(), compiled=False)


class TestBilinear(LayerContract):
    def build(self, image: Any) -> Any:
        x = L.UpSampling2D((2, 3), interpolation="bilinear")(L.Conv2D(4, 3)(image))
        x = L.Conv2D(4, 3)(L.Resizing(7, 11)(x))
        return L.Resizing(10, 9, interpolation="nearest")(x)


class TestPReLU(DrawnByNumPy):
    def build(self, image: Any) -> Any:
        steep = keras.initializers.RandomUniform(-0.5, 1.5, seed=0)
        gentle = keras.initializers.Constant(0.25)
        x = L.PReLU(steep, shared_axes=[1, 2])(L.Conv2D(6, 3)(image))
        x = L.PReLU(gentle, shared_axes=[1, 2])(L.Conv2D(6, 3)(x))
        return L.Dense(5)(L.PReLU()(L.Dense(8)(L.Flatten()(x))))


class TestGelu(LayerContract):
    def build(self, image: Any) -> Any:
        x = L.Conv2D(5, 3, activation="gelu")(image)
        return L.Conv2D(4, 3)(keras.ops.gelu(L.Conv2D(5, 3)(x), approximate=False))


class OtherFlatten(L.Flatten):
    """Computes something else."""

    def call(self, inputs: Any) -> Any:
        return -super().call(inputs)


class TestTimeDistributed(LayerContract):
    shape: ClassVar[tuple[int, ...]] = (12,)

    def build(self, image: Any) -> Any:
        x = L.RepeatVector(5)(L.Dense(4, activation="relu")(image))
        head = L.Dense(6)
        x = L.TimeDistributed(L.ReLU())(L.TimeDistributed(head)(x))
        # The layer inside is called once more, by itself: one kernel.
        x = L.Add()([x, head(L.RepeatVector(5)(L.Dense(4)(image)))])
        return L.TimeDistributed(L.Flatten())(L.Reshape((3, 2, 5))(x))

    @pytest.mark.parametrize(
        "inside", [L.Flatten(data_format="channels_first"), OtherFlatten()], ids=["order", "own"]
    )
    def test_another_flatten_is_refused(self, inside: keras.layers.Layer) -> None:
        image = keras.Input((2, 2, 3))
        model = keras.Model(image, L.TimeDistributed(inside)(image))
        with pytest.raises(ValueError, match=r"channels_first|TimeDistributed of OtherFlatten"):
            quantize_model(model)

    def test_the_layer_inside_is_the_same(self) -> None:
        model = self.quantized()
        assert len(model.trainable_variables) == len(self.float_model().trainable_variables)


class TestUnitNormalization(LayerContract):
    def build(self, image: Any) -> Any:
        x = L.UnitNormalization()(L.Conv2D(6, 3)(image))
        x = L.Dense(20)(L.Flatten()(x))
        return keras.ops.normalize(x, axis=-1, order=2)

    def test_the_interval_of_a_known_vector_is_its_result(self) -> None:
        graph = self.quantized().seal().graph
        operator = next(op for op in graph.operators if op.kind == "L2_NORMALIZATION")
        source, output = graph.tensors[operator.inputs[0]], graph.tensors[operator.outputs[0]]
        kernel = OPERATORS[operator.kind]
        step = kernel.step(operator, [source], output, "xnnpack")
        x = np.random.default_rng(0).integers(-128, 128, (500, *source.shape[1:])).astype(np.int8)
        low, high = kernel.interval(step, [(x, x)])
        np.testing.assert_array_equal(low, high)
        np.testing.assert_array_equal(low, kernel.reference(step, [x]))

    def test_another_definition_is_refused(self) -> None:
        image = keras.Input((4,))
        model = keras.Model(image, keras.ops.normalize(image, epsilon=10.0))
        with pytest.raises(ValueError, match="epsilon=10; vectors of integers"):
            quantize_model(model)

    def test_a_vector_of_zeros_trains(self) -> None:
        image = keras.Input((4,))
        x = L.UnitNormalization()(L.Dense(2, use_bias=False, activation="relu")(image))
        model = quantize_model(keras.Model(image, L.Dense(2)(x)), 0.0)
        x = np.random.default_rng(0).normal(size=(8, 4)).astype(np.float32)
        x[0] = 0.0
        model.compile(keras.optimizers.SGD(0.1), "mse")
        model.fit(x, np.ones((8, 2), np.float32), verbose=0)
        for weight in model.trainable_variables:
            value = keras.ops.convert_to_numpy(weight)
            assert np.isfinite(value).all()
            assert np.abs(value).max() < 10


class TestElu(LayerContract):
    def build(self, image: Any) -> Any:
        x = L.ELU()(L.Conv2D(5, 3, activation="elu")(image))
        return L.Conv2D(4, 3)(keras.ops.elu(x))


class TestLayerNormalization(LayerContract):
    tolerance = 0.06

    def build(self, image: Any) -> Any:
        x = L.LayerNormalization()(L.Conv2D(6, 3)(image))
        x = L.LayerNormalization(center=False, epsilon=1e-6)(L.GlobalMaxPooling2D()(x))
        return L.Dense(5)(x)

    def test_it_is_four_operators(self) -> None:
        kinds = [operator.kind for operator in self.quantized().seal().graph.operators]
        one = ["CONV_2D", "SUB", "L2_NORMALIZATION", "DEPTHWISE_CONV_2D"]
        assert kinds[1:5] == one
        assert [kind for kind in kinds[6:-1] if kind != "RESHAPE"] == one

    def test_one_channel_is_refused(self) -> None:
        image = keras.Input((4, 4, 1))
        model = keras.Model(image, L.LayerNormalization(name="it")(image))
        with pytest.raises(ValueError, match=r"'it'.*vectors of one entry"):
            quantize_model(model)


class TestConvNeXtBlock(LayerContract):
    def build(self, image: Any) -> Any:
        norm = L.LayerNormalization(epsilon=1e-6)
        x = norm(L.Conv2D(4, 1)(image))
        y = norm(L.DepthwiseConv2D(3, padding="same")(x))
        y = L.Dense(4)(L.Dense(8, activation="gelu")(y))
        # So rarely that no step of a test drops a path.
        return L.Add()([x, StochasticDepth(1e-7)(LayerScale(0.3, 4)(y))])


class TestRMSNormalization(LayerContract):
    shape: ClassVar[tuple[int, ...]] = (6, 12)

    def build(self, image: Any) -> Any:
        return L.Dense(4)(L.RMSNormalization()(image))


class TestLayersCalledTwice(LayerContract):
    def build(self, image: Any) -> Any:
        conv, separable = L.Conv2D(3, 3, padding="same"), L.SeparableConv2D(3, 3, padding="same")
        norms = [L.BatchNormalization() for _ in range(2)]
        # One kernel with a BatchNormalization of its own for each size, as heads of detectors.
        heads = [
            L.ReLU()(norm(conv(x))) for norm, x in zip(norms, (image, image * 0.5), strict=True)
        ]
        return L.Add()([separable(separable(heads[0])), heads[1]])
