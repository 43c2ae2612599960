"""Norms, reports and certificates of quantized models, from training to the file."""

import numpy as np
import pytest
import tf_keras
from sklearn.datasets import load_digits

import tfdq
import tflite_export
from tfdq import certificates
from tfdq.certificates.layer_maps import effective_kernel
from tfdq.penalties import OrthogonalityRegularizer, get_regularizer
from tflite_export.files.write import write
from tflite_export.runtime.interpreter import Interpreter
from tflite_export.twin.integer_twin import graph_of

layers = tf_keras.layers


@pytest.fixture(scope="module")
def digits() -> tuple[np.ndarray, np.ndarray]:
    bunch = load_digits()
    return (bunch.images[..., None] / 16.0).astype(np.float32), bunch.target


@pytest.fixture(scope="module")
def float_model(digits) -> tf_keras.Model:
    tf_keras.utils.set_random_seed(0)
    inputs = tf_keras.Input((8, 8, 1))
    x = layers.Conv2D(6, 3, padding="same", use_bias=False, name="stem")(inputs)
    x = layers.BatchNormalization(momentum=0.8, name="norm")(x)
    x = layers.ReLU()(x)
    y = layers.DepthwiseConv2D(3, padding="same", name="depthwise")(x)
    y = layers.BatchNormalization(momentum=0.8)(y)
    x = layers.ReLU()(layers.Add()([x, y]))
    x = layers.Conv2D(8, 3, strides=2, padding="same", activation="relu", name="down")(x)
    x = layers.GlobalAveragePooling2D()(x)
    model = tf_keras.Model(inputs, layers.Dense(10, name="logits")(x))
    loss = tf_keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(tf_keras.optimizers.Adam(5e-3), loss, ["accuracy"])
    model.fit(*digits, epochs=4, batch_size=64, verbose=0)
    return model


@pytest.fixture(scope="module")
def qat(float_model, digits) -> tf_keras.Model:
    model = tfdq.quantize_model(float_model, 2e-3, activation_bits=4, input_range=(0.0, 1.0))
    loss = tf_keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(tf_keras.optimizers.Adam(1e-3), loss, ["accuracy"])
    model.fit(*digits, epochs=1, batch_size=64, verbose=0)
    # Rounds the biases as the files have them.
    tflite_export.convert(model, calibration=digits[0][:128], golden=0)
    return model


def kernel_layers(model: tf_keras.Model) -> dict:
    return {
        wrapper.layer.name.removeprefix("quant_"): wrapper
        for wrapper in model.layers
        if getattr(wrapper, "kernel_quantizer", None) is not None
    }


def test_norm_of_a_wrapped_layer_is_that_of_its_linear_part(qat) -> None:
    """Fake-quantized kernel and BatchNorm, against the layer itself applied to a basis."""
    found = kernel_layers(qat)
    assert set(found) == {"stem", "depthwise", "down", "logits"}
    for name, wrapper in found.items():
        shape = wrapper.input_shape[1:]
        size = int(np.prod(shape))
        basis = np.concatenate([np.zeros((1, size)), np.eye(size)]).reshape(-1, *shape)
        inner = wrapper.layer
        activation, inner.fused_activation = inner.fused_activation, "linear"
        inner.use_kernel(wrapper.kernel_quantizer(inner.trained_kernel, False, {}))
        images = inner.call(basis.astype(np.float32), training=False).numpy()
        inner.use_kernel(None)
        inner.fused_activation = activation
        matrix = (images[1:] - images[0]).reshape(size, -1).astype(np.float64)
        norm = certificates.conv_norm(wrapper)
        assert norm.sigma == pytest.approx(np.linalg.norm(matrix, 2), rel=1e-4), name
        assert norm.upper >= norm.sigma


def test_float_and_fake_quantized_kernels_differ_by_their_rounding(qat) -> None:
    for wrapper in kernel_layers(qat).values():
        real = effective_kernel(wrapper, "float")
        rounded = effective_kernel(wrapper, "fake_quantized")
        integers, scale = wrapper.quantized_kernel()
        assert not np.array_equal(real, rounded)
        assert np.max(np.abs(integers)) <= 127
        multiplier = np.abs(wrapper.layer.folded()[0]).max()
        assert np.max(np.abs(real - rounded)) <= 0.51 * np.max(scale) * multiplier


def test_report_of_the_model_and_of_its_integers_agree(qat, digits) -> None:
    x, _ = digits
    trained = certificates.lipschitz_report(qat, x[:4], search_steps=2)
    deployed = certificates.lipschitz_report(graph_of(qat))
    assert deployed.kernel == "integer"
    assert deployed.upper == pytest.approx(trained.upper, rel=1e-3)
    assert trained.lower <= trained.upper
    norms = {row.name: row.sigma for row in deployed.rows if row.reshaped is not None}
    for name, wrapper in kernel_layers(qat).items():
        matches = [value for label, value in norms.items() if name in label]
        assert matches, (name, norms)
        assert min(abs(m - certificates.conv_norm(wrapper).sigma) for m in matches) < 1e-4


def test_a_model_of_another_tool_is_refused() -> None:
    import tensorflow_model_optimization as tfmot

    plain = tf_keras.Sequential([tf_keras.Input((4,)), layers.Dense(3)])
    other = tfmot.quantization.keras.quantize_model(plain)
    for kernel in ("fake_quantized", "float"):
        with pytest.raises(ValueError, match="another tool"):
            certificates.conv_norm(other.layers[-1], kernel)


def test_certify_chooses_by_norm_and_kind(float_model, qat, digits) -> None:
    x, y = digits[0][:20], digits[1][:20]
    assert certificates.certify(float_model, x, y).method == "lipschitz"
    assert certificates.certify(qat, x, y, norm="linf").method == "interval"
    content = write(graph_of(qat))
    by_file = certificates.certify(content, x, y, norm="linf")
    np.testing.assert_array_equal(
        by_file.radius, certificates.certify(qat, x, y, norm="linf").radius
    )
    l2 = certificates.certify(float_model, x, y)
    linf = certificates.certify(float_model, x, y, norm="linf")
    np.testing.assert_allclose(linf.radius, l2.radius / 8)
    assert l2.clean_accuracy == np.mean(float_model.predict(x, verbose=0).argmax(axis=1) == y)


def test_float_certificate_holds_and_quantized_one_is_vacuous(float_model, qat, digits) -> None:
    x, y = digits[0][:40], digits[1][:40]
    found = certificates.certify(float_model, x, y)
    assert not found.vacuous
    quantized = certificates.certify(qat, x, y)
    assert quantized.vacuous
    assert "rounding alone" in quantized.note
    rng = np.random.default_rng(0)
    predicted = float_model.predict(x, verbose=0).argmax(axis=1)
    for _ in range(5):
        noise = rng.standard_normal(x.shape)
        noise /= np.linalg.norm(noise.reshape(len(x), -1), axis=1).reshape(-1, 1, 1, 1)
        moved = x + noise * found.radius.reshape(-1, 1, 1, 1)
        again = float_model.predict(moved.astype(np.float32), verbose=0).argmax(axis=1)
        np.testing.assert_array_equal(again, predicted)


def test_smoothing_a_file(qat, digits) -> None:
    x, y = digits[0][:3], digits[1][:3]
    settings = certificates.SmoothingSettings(0.1, 20, 200, batch_size=110)
    content = write(graph_of(qat))
    by_file = certificates.certify(content, x, y, method="smoothing", smoothing=settings)
    graph = certificates.certify(graph_of(qat), x, y, method="smoothing", smoothing=settings)
    function = Interpreter(content).predict
    direct = certificates.certify(function, x, y, method="smoothing", smoothing=settings)
    assert by_file.details["votes"] == graph.details["votes"] == direct.details["votes"]
    assert by_file.radius.max() > 0
    keras = certificates.certify(qat, x, y, method="smoothing", smoothing=settings)
    np.testing.assert_allclose(keras.details["votes"], by_file.details["votes"], atol=10)


def norms_by_direction_and_gamma(model: tf_keras.Model, before: dict) -> dict:
    """Return each deployed kernel's norm, were the variances and the lengths those of before.

    Args:
        model: trained; its weights are put back.
        before: name -> kernel and moving variance (None without BatchNorm).
    """
    kept, found = model.get_weights(), {}
    for key, wrapper in kernel_layers(model).items():
        layer, (kernel, variance) = wrapper.layer, before[key]
        if variance is not None:
            axes = tuple(range(kernel.ndim - 1 - layer.depthwise))
            trained = layer.trained_kernel.numpy()
            lengths = [np.sqrt(np.sum(k**2, axes, keepdims=True)) for k in (kernel, trained)]
            layer.trained_kernel.assign(trained * lengths[0] / lengths[1])
            layer.batch_norm.moving_variance.assign(variance)
        found[key] = certificates.kernel_norm(wrapper)
    model.set_weights(kept)
    return found


@pytest.mark.parametrize("name", ["orthogonal", "srip", "spectral", "conv_orthogonal"])
def test_every_penalty_reaches_the_deployed_kernel(name, float_model, digits, tmp_path) -> None:
    """A strong penalty pulls the norm of every layer down, and the model is saved.

    What a penalty acts on is a kernel's direction and gamma, or the whole kernel without
    BatchNorm: by these every norm falls. A deployed norm itself may rise, as the depthwise one does
    here: the stem in front of it shrinks, and the variance that its BatchNorm divides by with it.
    """
    beta = 3.0 if name == "spectral" else 0.3
    regularizer = get_regularizer(name, beta, "deployed")
    model = tfdq.quantize_model(float_model, regularizer=regularizer, activation_bits=4)
    norms = {key: certificates.kernel_norm(w) for key, w in kernel_layers(model).items()}
    before = {
        key: (w.layer.trained_kernel.numpy(), norm and norm.moving_variance.numpy())
        for key, w in kernel_layers(model).items()
        for norm in [w.layer.batch_norm]
    }
    penalties = np.array([float(value) for value in model.losses])
    loss = tf_keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(tf_keras.optimizers.Adam(3e-3), loss)
    model.fit(*digits, epochs=3, batch_size=64, verbose=0)
    after = {key: certificates.kernel_norm(w) for key, w in kernel_layers(model).items()}
    assert max(norms.values()) > 1.5
    held = norms_by_direction_and_gamma(model, before)
    for key, norm in norms.items():
        assert held[key] < 0.9 * norm, (key, held, norms)
    for key in ("stem", "down", "logits"):  # nothing shrinks in front of these
        assert after[key] < 0.85 * norms[key], (key, after, norms)
    fallen = np.array([float(value) for value in model.losses])
    assert fallen[0] < 0.75 * penalties[0]
    assert fallen.sum() < 0.85 * penalties.sum()
    model.save(tmp_path / "model.keras")
    loaded = tfdq.load_model(tmp_path / "model.keras")
    np.testing.assert_allclose(loaded(digits[0][:8]), model(digits[0][:8]), atol=1e-5)


@pytest.mark.parametrize("on", ["kernel", "folded", "deployed"])
def test_the_penalty_sees_the_kernel_it_is_placed_on(on, qat, float_model) -> None:
    regularizer = OrthogonalityRegularizer(0.5, on=on)
    model = tfdq.quantize_model(float_model, regularizer=regularizer, weight_bits=3)
    expected = 0.0
    for wrapper in kernel_layers(model).values():
        kernel = np.asarray(wrapper.layer.trained_kernel, np.float64)
        if on != "kernel":
            kernel = effective_kernel(wrapper, "float" if on == "folded" else "fake_quantized")
        depthwise = hasattr(wrapper.layer, "depthwise_kernel")
        stack = kernel.transpose(2, 0, 1, 3) if depthwise else kernel[None]
        for part in stack.reshape(len(stack), -1, stack.shape[-1]):
            values = np.linalg.svd(part, compute_uv=False)
            expected += 0.25 * np.sum((values**2 - 1) ** 2)
    assert float(sum(model.losses)) == pytest.approx(expected, rel=1e-4)


def test_impossible_combinations_are_refused(float_model, digits) -> None:
    x, y = digits[0][:2], digits[1][:2]
    for arguments, message in (
        ({"norm": "l1"}, "norm must be"),
        ({"method": "magic"}, "method must be"),
        ({"method": "smoothing", "norm": "linf"}, "l2"),
        ({"method": "interval", "norm": "l2"}, "linf"),
        ({"method": "interval", "norm": "linf"}, "float model"),
    ):
        with pytest.raises(ValueError, match=message):
            certificates.certify(float_model, x, y, **arguments)
    with pytest.raises(ValueError, match="smoothing takes"):
        certificates.certify(3, x, y, method="smoothing")


def test_the_convolution_exact_penalty_knows_each_layers_strides(float_model) -> None:
    regularizer = get_regularizer("conv_orthogonal", 1e-3)
    model = tfdq.quantize_model(float_model, regularizer=regularizer)
    found = {name: w.layer.penalty for name, w in kernel_layers(model).items()}
    assert found["down"].strides == (2, 2)
    assert found["stem"].strides == (1, 1)
    assert found["depthwise"].depthwise
    assert not found["down"].depthwise
