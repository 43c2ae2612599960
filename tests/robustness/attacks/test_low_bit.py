"""The smooth surrogate against NumPy and the network itself; the low-bit attack against Square."""

import numpy as np
import pytest
import tensorflow as tf
import tf_keras

import tfdq
from tfdq.robustness.attacks import attack_spec, run_attack, smooth_surrogate
from tfdq.robustness.targets import as_target

EPS = 0.1


@pytest.fixture(scope="module")
def two_bit(float_model, digits):
    """The digits' network with 2-bit activations, after a little training."""
    model = tfdq.quantize_model(
        float_model, 2e-3, on="folded", activation_bits=2, input_range=(0.0, 1.0)
    )
    loss = tf_keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(tf_keras.optimizers.Adam(3e-3), loss)
    model.fit(digits.x_train, digits.y_train, batch_size=64, epochs=6, verbose=0)
    return model


@pytest.fixture(scope="module")
def one_activation():
    """x -> 2-bit ReLU6(x), so that its slope is that of the staircase."""
    image = tf_keras.layers.Input((6,))
    dense = tf_keras.layers.Dense(6, name="dense")
    float_model = tf_keras.Model(image, tf_keras.layers.ReLU(6.0)(dense(image)))
    dense.set_weights([np.eye(6, dtype=np.float32), np.zeros(6, np.float32)])
    return tfdq.quantize_model(
        float_model,
        0.0,
        activation_bits=2,
        activation_range="relu6",
        input_range=(-10.0, 10.0),
    )


def test_exact_surrogate_has_the_values_of_the_network(two_bit, sample):
    expected = two_bit.predict(sample.x, verbose=0)
    surrogate = smooth_surrogate(two_bit)
    np.testing.assert_allclose(surrogate.logits(sample.x), expected, atol=1e-5)


def test_operations_behind_and_before_the_network_are_kept(two_bit, sample):
    """A TensorFlow operation on Keras tensors keeps its numbers in the call, not in the layer."""
    whole = tf_keras.Model(two_bit.input, 3.0 - two_bit.output * 50.0)
    image = tf_keras.Input((8, 8, 1))
    nested = tf_keras.Model(image, two_bit(tf.maximum(image, 0.25)) / 4.0)
    expected = two_bit.predict(sample.x, verbose=0)
    surrogate = smooth_surrogate(whole)
    np.testing.assert_allclose(surrogate.logits(sample.x), 3.0 - 50.0 * expected, atol=1e-3)
    brighter = two_bit.predict(np.maximum(sample.x, 0.25), verbose=0)
    np.testing.assert_allclose(smooth_surrogate(nested).logits(sample.x), brighter / 4, atol=1e-5)
    result = run_attack("low-bit", nested, sample.x, sample.y, EPS, steps=5, queries=20)
    assert result.robust_accuracy < result.clean_accuracy


def test_slope_is_that_of_a_sum_of_sigmoids(one_activation):
    tau, step = 0.3, 2.0
    surrogate = smooth_surrogate(one_activation, temperature=tau)
    x = tf.constant(np.linspace(-3, 9, 60, dtype=np.float32).reshape(10, 6))
    with tf.GradientTape() as tape:
        tape.watch(x)
        total = tf.reduce_sum(surrogate.logits_tensor(x))
    found = tape.gradient(total, x).numpy()
    # The slope is taken where the input's 8-bit rounding has moved the point to.
    grid = one_activation.layers[1].output_grid()
    z = np.round(x.numpy() / grid.scale) * grid.scale
    u = (z[..., None] / step - np.array([0.5, 1.5, 2.5])) / tau
    sigmoid = 1 / (1 + np.exp(-u))
    expected = (sigmoid * (1 - sigmoid)).sum(axis=-1) / tau
    np.testing.assert_allclose(found, expected, atol=0.02)
    straight = tf.constant(x)
    with tf.GradientTape() as tape:
        tape.watch(straight)
        total = tf.reduce_sum(one_activation(straight, training=False))
    outside = (z < 0) | (z > 6)
    assert (tape.gradient(total, straight).numpy()[outside] == 0).all()
    assert (found[outside] > 0).any()


def test_smooth_values_become_exact_as_the_temperature_falls(one_activation):
    x = np.linspace(-3, 9, 61, dtype=np.float32)[:60].reshape(10, 6)
    exact = one_activation.predict(x, verbose=0)
    edge = np.abs((x / 2) % 1 - 0.5) < 0.1
    cold = smooth_surrogate(one_activation, values="smooth", temperature=0.005).logits(x)
    warm = smooth_surrogate(one_activation, values="smooth", temperature=1.0).logits(x)
    np.testing.assert_allclose(cold[~edge], exact[~edge], atol=1e-3)
    assert np.abs(warm - exact).max() > 0.5


def test_low_bit_is_as_strong_as_square_with_few_gradients(two_bit, sample):
    square = run_attack("square", two_bit, sample.x, sample.y, EPS, queries=2500)
    low_bit = run_attack("low-bit", two_bit, sample.x, sample.y, EPS)
    straight = run_attack("apgd-ce", two_bit, sample.x, sample.y, EPS)
    assert low_bit.robust_accuracy <= square.robust_accuracy + 0.02
    assert low_bit.robust_accuracy <= straight.robust_accuracy
    assert low_bit.gradients.max() <= 606
    assert low_bit.queries.max() <= 2001 + 6 + 2


def test_surrogate_serves_other_attacks_and_other_targets(two_bit, sample):
    x, y = sample.x[:60], sample.y[:60]
    surrogate = smooth_surrogate(two_bit)
    own = run_attack("apgd-dlr", two_bit, x, y, EPS, surrogate=surrogate, steps=20)
    # The surrogate's logits are the model's: only the two verdicts and no step cost a query.
    assert own.queries.max() == 2
    box = as_target(as_target(two_bit).logits, name="box")
    stolen = run_attack("apgd-dlr", box, x, y, EPS, surrogate=surrogate, steps=20)
    assert stolen.queries.max() == 2 + 21
    np.testing.assert_array_equal(own.success, stolen.success)
    through = run_attack(
        "low-bit",
        box,
        x,
        y,
        EPS,
        surrogate=two_bit,
        steps=20,
        restarts=1,
        target_classes=0,
        queries=50,
    )
    assert through.robust_accuracy <= own.robust_accuracy + 0.05


def test_deployed_file_is_attacked(two_bit, sample, tmp_path):
    tflite_export = pytest.importorskip("tflite_export")
    path = tmp_path / "digits.tflite"
    tflite_export.convert(two_bit, path, calibration=sample.x, min_agreement=0.9)
    x, y = sample.x[:60], sample.y[:60]
    twin = tflite_export.IntegerTwin(two_bit)
    file = run_attack("square", path, x, y, EPS, queries=300)
    assert file.settings["target"] == "digits.tflite"
    same = run_attack("square", twin, x, y, EPS, queries=300)
    assert np.mean(file.success == same.success) >= 0.95
    with pytest.raises(ValueError, match="quantize_model"):
        run_attack("low-bit", path, x, y, EPS)
    options = {"steps": 20, "restarts": 1, "target_classes": 0, "queries": 100}
    transferred = run_attack("low-bit", path, x, y, EPS, surrogate=two_bit, **options)
    direct = run_attack("low-bit", two_bit, x, y, EPS, **options)
    assert transferred.robust_accuracy == pytest.approx(direct.robust_accuracy, abs=0.05)
    white = run_attack("pgd", twin, x, y, EPS)
    assert white.gradients.sum() > 0
    assert white.robust_accuracy < white.clean_accuracy
    # By default the file's gradients are its twin's.
    own = run_attack("pgd", path, x, y, EPS)
    assert own.settings["surrogate"] is None
    np.testing.assert_array_equal(own.success, white.success)


def test_surrogate_is_traced_once_and_follows_the_ranges(two_bit, sample):
    target = as_target(two_bit)
    options = {"steps": 2, "restarts": 1, "target_classes": 0, "queries": 0}
    run_attack("low-bit", two_bit, sample.x[:8], sample.y[:8], EPS, **options)
    kept = dict(target.companions)
    run_attack("low-bit", two_bit, sample.x[:8], sample.y[:8], EPS, **options)
    assert target.companions == kept


def test_an_image_that_stands_costs_what_the_attack_says(two_bit, sample):
    spec, target = attack_spec("low-bit"), as_target(two_bit)
    assert spec.missing(target, classes=2) == ""
    options = {"steps": 3, "restarts": 2, "target_classes": 2, "queries": 20}
    right = target.predict(sample.x) == sample.y
    result = run_attack("low-bit", target, sample.x[right][:6], sample.y[right][:6], 0.0, **options)
    assert not result.success.any()
    cost = spec.cost(options, classes=10)
    assert (result.gradients == cost.gradients).all()
    assert (result.queries - 2 <= cost.queries).all()
    # Of the search only its start: in a ball of radius 0 no square changes an image.
    assert (result.queries - 2 == cost.queries - 20).all()
    assert spec.cost(options, classes=3).gradients == 2 * 4


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": 0}, "need steps >= 1"),
        ({"p_init": 0.0}, "p_init must lie in"),
        ({"temperature": 0.0}, "need temperature > 0"),
    ],
)
def test_bad_options(options, message, two_bit, sample):
    with pytest.raises(ValueError, match=message):
        run_attack("low-bit", two_bit, sample.x[:4], sample.y[:4], EPS, **options)


def test_float_models_are_refused(float_model, sample):
    with pytest.raises(
        ValueError, match=r"low-bit looks inside a quantized model .*tfdq\.from_keras3"
    ):
        run_attack("low-bit", float_model, sample.x[:4], sample.y[:4], EPS)
    with pytest.raises(ValueError, match="not made by"):
        smooth_surrogate(float_model)
    with pytest.raises(ValueError, match="values must be"):
        smooth_surrogate(float_model, values="soft")
