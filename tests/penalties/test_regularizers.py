"""Every penalty against NumPy, against finite differences, and through a training loop."""

import math
import warnings

import numpy as np
import pytest
import tensorflow as tf
import tf_keras

from tests.needs import require
from tfdq.certificates.linear_maps import ConvolutionMap
from tfdq.penalties.convolution_regularizers import ConvolutionOrthogonalityRegularizer
from tfdq.penalties.names import REGULARIZERS, get_regularizer
from tfdq.penalties.regularizers import OrthogonalityRegularizer
from tfdq.penalties.spectral_regularizers import SpectralRegularizer, SRIPRegularizer

SHAPES = [(3, 3, 4, 6), (3, 3, 1, 12), (2, 3, 2, 2), (1, 1, 5, 3), (7, 4), (4, 7)]
BETA = 0.3


def random_kernel(shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32) * 0.5


def matrices(kernel: np.ndarray, depthwise: bool) -> list[np.ndarray]:
    kernel = kernel.astype(np.float64)
    if depthwise:
        return [kernel[:, :, c].reshape(-1, kernel.shape[3]) for c in range(kernel.shape[2])]
    return [kernel.reshape(-1, kernel.shape[-1])]


def resolved(target, shape: tuple[int, ...]) -> float:
    if target == "1/k":
        return 1 / math.sqrt(shape[0] * shape[1]) if len(shape) == 4 else 1.0
    return target


def orthogonal_reference(kernel, depthwise, target) -> float:
    total = 0.0
    for matrix in matrices(kernel, depthwise):
        values = np.linalg.svd(matrix, compute_uv=False)
        total += 0.5 * np.sum((values**2 - target**2) ** 2)
    return total


def spectral_reference(kernel, depthwise, target) -> float:
    excess = [np.linalg.norm(m, 2) - target for m in matrices(kernel, depthwise)]
    return sum(0.5 * max(e, 0.0) ** 2 for e in excess)


def srip_reference(kernel, depthwise, target) -> float:
    return sum(
        np.max(np.abs(np.linalg.svd(m, compute_uv=False) ** 2 - target**2))
        for m in matrices(kernel, depthwise)
    )


def convolution_reference(kernel, depthwise, target, strides=(1, 1)) -> float:
    """Write the circular convolution out on a torus, and compare its Gram with the identity."""
    if kernel.ndim == 2:
        return orthogonal_reference(kernel, depthwise, target)
    if depthwise:
        parts = [kernel[:, :, c : c + 1] for c in range(kernel.shape[2])]
        return sum(convolution_reference(p, False, target, strides) for p in parts)
    taps = kernel.shape[:2]
    blocks = [2 * math.ceil(k / s) - 1 for k, s in zip(taps, strides, strict=True)]
    size = [b * s for b, s in zip(blocks, strides, strict=True)]
    channels, filters = kernel.shape[2:]
    matrix = np.zeros((*blocks, filters, *size, channels))
    for i, j, a, b in np.ndindex(*blocks, *taps):
        row, column = (i * strides[0] + a) % size[0], (j * strides[1] + b) % size[1]
        matrix[i, j, :, row, column, :] += kernel[a, b].astype(np.float64).T
    flat = matrix.reshape(blocks[0] * blocks[1] * filters, -1)
    touched = flat[:, np.any(flat != 0, axis=0)]
    values = np.linalg.svd(touched, compute_uv=False)
    return 0.5 * np.sum((values**2 - target**2) ** 2) / (blocks[0] * blocks[1])


FAMILY = [
    (OrthogonalityRegularizer, orthogonal_reference, {}),
    (SpectralRegularizer, spectral_reference, {"iterations": 300}),
    (SRIPRegularizer, srip_reference, {"iterations": 300}),
    (ConvolutionOrthogonalityRegularizer, convolution_reference, {}),
]


@pytest.mark.parametrize("target", [1.0, "1/k", 0.4])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("penalty", "reference", "extra"), FAMILY)
def test_value_agrees_with_numpy(penalty, reference, extra, shape, target) -> None:
    kernel = random_kernel(shape)
    value = penalty(BETA, target=target, **extra)(tf.constant(kernel))
    expected = BETA * reference(kernel, False, resolved(target, shape))
    assert float(value) == pytest.approx(expected, rel=2e-4, abs=1e-6)


@pytest.mark.parametrize(("penalty", "reference", "extra"), FAMILY)
def test_depthwise_value_is_summed_over_channels(penalty, reference, extra) -> None:
    kernel = random_kernel((3, 3, 5, 2))
    value = penalty(BETA, depthwise=True, **extra)(tf.constant(kernel))
    assert float(value) == pytest.approx(BETA * reference(kernel, True, 1.0), rel=2e-4)


@pytest.mark.parametrize("shape", [(3, 3, 2, 3), (5, 3)])
@pytest.mark.parametrize(("penalty", "reference", "extra"), FAMILY)
def test_gradient_agrees_with_finite_differences(penalty, reference, extra, shape) -> None:
    kernel = random_kernel(shape, seed=3) * 2
    variable = tf.Variable(kernel)
    regularizer = penalty(BETA, **extra)
    with tf.GradientTape() as tape:
        value = regularizer(variable)
    gradient = tape.gradient(value, variable).numpy().ravel()
    step, flat = 1e-6, kernel.astype(np.float64).ravel()
    for index in range(0, flat.size, 7):
        around = []
        for sign in (1, -1):
            moved = flat.copy()
            moved[index] += sign * step
            around.append(reference(moved.reshape(shape), False, 1.0))
        expected = BETA * (around[0] - around[1]) / (2 * step)
        assert gradient[index] == pytest.approx(expected, rel=2e-3, abs=1e-4)


@pytest.mark.parametrize("strides", [(2, 2), (1, 2), (3, 3), (4, 4)])
@pytest.mark.parametrize("shape", [(3, 3, 2, 5), (3, 3, 1, 12), (5, 4, 2, 3)])
def test_convolution_penalty_takes_strides(strides, shape) -> None:
    kernel = random_kernel(shape, seed=5)
    value = ConvolutionOrthogonalityRegularizer(BETA, strides=strides)(tf.constant(kernel))
    expected = BETA * convolution_reference(kernel, False, 1.0, strides)
    assert float(value) == pytest.approx(expected, rel=2e-4)


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("shape", [(3, 3, 4, 6), (3, 3, 6, 4), (5, 5, 2, 3)])
def test_convolution_penalty_agrees_with_deel_lip(shape, stride) -> None:
    peer = require("deel.lip.regularizers", "peers")
    kernel = random_kernel(shape)
    theirs = peer.Lorth2D(shape, stride).compute_lorth(tf.constant(kernel))
    ours = ConvolutionOrthogonalityRegularizer(2.0, strides=(stride, stride))(tf.constant(kernel))
    assert float(ours) == pytest.approx(float(theirs), rel=1e-4)


def test_descent_on_the_convolution_penalty_gives_an_isometry() -> None:
    """The minimum is what the theory says: every singular value of the convolution is 1."""
    # A square kernel has local minima (Achour et al.); more inputs than outputs has none here.
    kernel = tf.Variable(random_kernel((3, 3, 6, 3), seed=1) * 0.3)
    regularizer = ConvolutionOrthogonalityRegularizer(1.0)
    optimizer = tf_keras.optimizers.Adam(0.02)

    @tf.function
    def step() -> tf.Tensor:
        with tf.GradientTape() as tape:
            value = regularizer(kernel)
        optimizer.apply_gradients([(tape.gradient(value, kernel), kernel)])
        return value

    for _ in range(600):
        value = step()
    transform = np.fft.fft2(kernel.numpy(), (6, 6), axes=(0, 1))
    values = np.linalg.svd(transform, compute_uv=False)
    assert float(value) < 1e-3
    np.testing.assert_allclose(values, 1.0, atol=0.05)


def test_reshaped_orthogonality_does_not_make_a_convolution_an_isometry() -> None:
    matrix, _ = np.linalg.qr(np.random.default_rng(0).standard_normal((36, 4)))
    kernel = matrix.reshape(3, 3, 4, 4).astype(np.float32)
    assert float(OrthogonalityRegularizer(1.0)(kernel)) < 1e-9
    assert float(ConvolutionOrthogonalityRegularizer(1.0)(kernel)) > 0.1
    convolution = ConvolutionMap(kernel.astype(np.float64), (8, 8, 4), padding=((1, 1), (1, 1)))
    assert np.linalg.norm(convolution.matrix(), 2) > 1.3


@pytest.mark.parametrize("penalty", [SpectralRegularizer, SRIPRegularizer])
def test_vectors_persist_between_steps(penalty) -> None:
    kernel = tf.constant(random_kernel((3, 3, 4, 6)))
    regularizer = penalty(1.0, iterations=1)
    reference = {SpectralRegularizer: spectral_reference, SRIPRegularizer: srip_reference}
    exact = reference[penalty](kernel.numpy(), False, 1.0)
    call = tf.function(regularizer)
    values = [float(call(kernel)) for _ in range(200)]
    assert values[0] < 0.999 * exact
    assert values[-1] == pytest.approx(exact, rel=1e-4)


def test_a_zero_kernel_has_finite_penalties_and_gradients() -> None:
    for name in REGULARIZERS:
        kernel = tf.Variable(np.zeros((3, 3, 2, 3), np.float32))
        regularizer = get_regularizer(name, 1.0)
        with tf.GradientTape() as tape:
            value = regularizer(kernel)
        assert np.isfinite(float(value))
        assert np.all(np.isfinite(tape.gradient(value, kernel)))


@pytest.mark.parametrize("name", REGULARIZERS)
def test_survives_its_config_and_every_file_format(name: str, tmp_path) -> None:
    regularizer = get_regularizer(name, 0.1, "folded", target="1/k")
    copy = type(regularizer).from_config(regularizer.get_config())
    assert copy.get_config() == regularizer.get_config()
    model = tf_keras.Sequential(
        [
            tf_keras.Input((5, 5, 2)),
            tf_keras.layers.Conv2D(3, 3, kernel_regularizer=regularizer),
            tf_keras.layers.Flatten(),
            tf_keras.layers.Dense(2),
        ]
    )
    model.compile("sgd", "mse")
    x, y = np.ones((4, 5, 5, 2), np.float32), np.zeros((4, 2), np.float32)
    model.fit(x, y, verbose=0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for target in (tmp_path / "model.keras", tmp_path / "saved"):
            model.save(target)
            loaded = tf_keras.models.load_model(target)
            np.testing.assert_array_equal(loaded(x), model(x))
    # HDF5 files look a regularizer up by its bare name, registered or not.
    with (
        warnings.catch_warnings(),
        tf_keras.saving.custom_object_scope({type(regularizer).__name__: type(regularizer)}),
    ):
        warnings.simplefilter("ignore")
        model.save(tmp_path / "model.h5")
        loaded = tf_keras.models.load_model(tmp_path / "model.h5")
    np.testing.assert_array_equal(loaded(x), model(x))
    assert len(model.weights) == 4


@pytest.mark.parametrize("name", REGULARIZERS)
def test_training_with_a_penalty_holds_the_norm_down(name: str) -> None:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((64, 6, 6, 2)).astype(np.float32)
    y = (x.mean(axis=(1, 2)) > 0).argmax(axis=1)
    norms = {}
    strong = 10.0 if name == "spectral" else 1.0
    for beta in (0.0, strong):
        tf_keras.utils.set_random_seed(0)
        layer = tf_keras.layers.Conv2D(
            4,
            3,
            padding="same",
            kernel_initializer=tf_keras.initializers.RandomNormal(stddev=0.6, seed=0),
            kernel_regularizer=get_regularizer(name, beta),
        )
        model = tf_keras.Sequential(
            [tf_keras.Input((6, 6, 2)), layer, tf_keras.layers.Flatten(), tf_keras.layers.Dense(2)]
        )
        loss = tf_keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        model.compile(tf_keras.optimizers.SGD(0.02), loss)
        model.fit(x, y, epochs=20, batch_size=16, verbose=0)
        norms[beta] = np.linalg.norm(layer.kernel.numpy().reshape(-1, 4), 2)
    assert norms[0.0] > 2
    assert norms[strong] < 1.25


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"beta": -1.0}, "beta"),
        ({"beta": 1.0, "on": "weights"}, "on must be"),
        ({"beta": 1.0, "target": 0.0}, "target"),
        ({"beta": 1.0, "target": "k"}, "target"),
        ({"beta": 1.0, "target": math.inf}, "target"),
    ],
)
@pytest.mark.parametrize("penalty", REGULARIZERS.values())
def test_wrong_arguments_are_refused(penalty, arguments, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        penalty(**arguments)


def test_wrong_particular_arguments_are_refused() -> None:
    with pytest.raises(ValueError, match="iterations"):
        SpectralRegularizer(1.0, iterations=0)
    with pytest.raises(ValueError, match="strides"):
        ConvolutionOrthogonalityRegularizer(1.0, strides=2)
    with pytest.raises(ValueError, match="regularizer must be one of"):
        get_regularizer("l2")
    own = tf_keras.regularizers.L2(1e-4)
    assert get_regularizer(own) is own
