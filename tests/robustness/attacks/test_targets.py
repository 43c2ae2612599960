"""Targets: every kind of model gives its own logits, in inference mode, traced once."""

import keras
import numpy as np
import pytest
import tensorflow as tf
import tf_keras

from tfdq.robustness.attacks import run_attack
from tfdq.robustness.attacks.losses import cross_entropy
from tfdq.robustness.targets import BlackBoxTarget, DifferentiableTarget, Target, as_target


def test_keras_model_gives_its_logits_and_its_gradient(float_model, sample):
    target = as_target(float_model)
    expected = float_model(sample.x[:30], training=False).numpy()
    np.testing.assert_allclose(target.logits(sample.x[:30]), expected, atol=1e-5)
    images = tf.constant(sample.x[:30])
    with tf.GradientTape() as tape:
        tape.watch(images)
        loss = tf.nn.sparse_softmax_cross_entropy_with_logits(
            labels=sample.y[:30], logits=float_model(images, training=False)
        )
    gradient = tape.gradient(loss, images).numpy()
    logits, losses, found = target.loss_gradient(cross_entropy, sample.x[:30], sample.y[:30])
    np.testing.assert_allclose(logits, expected, atol=1e-5)
    np.testing.assert_allclose(losses, loss.numpy(), atol=1e-5)
    np.testing.assert_allclose(found, gradient, atol=1e-5)
    assert target.num_classes == 10


def test_batches_are_cut_up_and_counted(float_model, sample):
    whole = as_target(float_model, name="whole")
    cut = as_target(float_model, name="cut", batch_size=7)
    np.testing.assert_allclose(cut.logits(sample.x), whole.logits(sample.x), atol=1e-5)
    assert cut.queries == 200
    cut.loss_gradient(cross_entropy, sample.x[:30], sample.y[:30])
    assert cut.gradients == 30
    assert cut.logits(sample.x[:0]).shape == (0, 10)


def test_no_batch_size_retraces(float_model, sample):
    traces = []

    def counted(x):
        traces.append(x.shape)
        return float_model(x, training=False)

    target = as_target(counted, differentiable=True)
    for n in (1, 5, 64, 200):
        target.logits(sample.x[:n])
        target.loss_gradient(cross_entropy, sample.x[:n], sample.y[:n])
    assert traces == [(None, 8, 8, 1)] * 2


def test_keras_target_is_kept_and_follows_the_weights(sample):
    model = tf_keras.Sequential(
        [tf_keras.layers.Input((8, 8, 1)), tf_keras.layers.Flatten(), tf_keras.layers.Dense(3)]
    )
    target = as_target(model)
    before = target.logits(sample.x[:4])
    assert as_target(model) is target
    model.set_weights([2 * w for w in model.get_weights()])
    np.testing.assert_allclose(target.logits(sample.x[:4]), 2 * before, atol=1e-5)


def test_attack_leaves_batch_norm_alone(float_model, sample):
    kept = [w.copy() for w in float_model.get_weights()]
    run_attack("pgd", float_model, sample.x[:32], sample.y[:32], 0.1, steps=3)
    for before, after in zip(kept, float_model.get_weights(), strict=True):
        np.testing.assert_array_equal(before, after)


@pytest.mark.parametrize("ending", ["dense", "activation", "softmax"])
@pytest.mark.parametrize("package", ["tf_keras", "keras"])
def test_a_final_softmax_is_taken_off(ending, package, sample):
    keras = pytest.importorskip(package)
    layers = keras.layers
    tails = {
        "dense": [layers.Dense(10, activation="softmax")],
        "activation": [layers.Dense(10), layers.Activation("softmax")],
        "softmax": [layers.Dense(10), layers.Softmax()],
    }
    model = keras.Sequential([layers.Input((8, 8, 1)), layers.Flatten(), *tails[ending]])
    kernel, bias = model.get_weights()
    expected = sample.x[:20].reshape(20, -1) @ kernel + bias
    np.testing.assert_allclose(as_target(model).logits(sample.x[:20]), expected, atol=1e-5)


@pytest.mark.parametrize("ending", ["logit", "dense", "activation", "function"])
def test_one_output_stands_for_two_classes(ending, sample):
    layers = tf_keras.layers
    tails = {
        "logit": [layers.Dense(1)],
        "dense": [layers.Dense(1, activation="sigmoid")],
        "activation": [layers.Dense(1), layers.Activation("sigmoid")],
        "function": [layers.Dense(1, activation="sigmoid")],
    }
    model = tf_keras.Sequential([layers.Input((8, 8, 1)), layers.Flatten(), *tails[ending]])
    kernel, bias = model.get_weights()
    score = sample.x.reshape(len(sample.x), -1) @ kernel + bias - 0.1
    model.set_weights([kernel, bias - 0.1])
    if ending == "function":
        target = as_target(
            lambda x: model(x, training=False), differentiable=True, outputs="probabilities"
        )
    else:
        target = as_target(model)
    found = target.logits(sample.x)
    np.testing.assert_allclose(found[:, 1] - found[:, 0], score[:, 0], atol=1e-5)
    np.testing.assert_array_equal(target.predict(sample.x), score[:, 0] > 0)
    assert target.num_classes == 2
    # The ball's farthest point against each label is known for a linear score.
    labels = target.predict(sample.x)
    reach = 0.02 * np.abs(kernel).sum()
    result = run_attack("fgsm", target, sample.x, labels, 0.02, clip=(-1, 2))
    np.testing.assert_array_equal(result.success, np.abs(score[:, 0]) < reach)


def test_one_probability_is_not_taken_for_a_logit(sample):
    target = as_target(lambda x: x.mean((1, 2)), differentiable=False)
    with pytest.raises(ValueError, match="probabilities"):
        target.logits(sample.x)
    # A few images alone do not tell: logits lie in [0, 1] as well.
    assert target.logits(sample.x[:4]).shape == (4, 2)


def test_keras_3_model_is_attacked(sample):
    keras = pytest.importorskip("keras")
    layers = keras.layers
    model = keras.Sequential([layers.Input((8, 8, 1)), layers.Flatten(), layers.Dense(10)])
    target = as_target(model)
    assert target.differentiable
    predicted = target.predict(sample.x)
    result = run_attack("pgd", model, sample.x, predicted, 0.2, steps=5)
    assert result.clean_accuracy == 1.0
    assert result.robust_accuracy < 0.5


def test_probabilities_are_named(float_model, sample):
    def softmax(x):
        return tf.nn.softmax(float_model(x, training=False)).numpy()

    with pytest.raises(ValueError, match=r"softmax.* returns probabilities where logits"):
        as_target(softmax).logits(sample.x)
    declared = as_target(softmax, outputs="probabilities")
    scores = as_target(float_model).logits(sample.x)
    np.testing.assert_allclose(
        declared.logits(sample.x), tf.nn.log_softmax(scores).numpy(), atol=1e-3, rtol=1e-3
    )


def test_quantized_probabilities_are_seen_too(sample):
    def int8_softmax(x):
        scores = np.tile(np.array([[0.5, 0.25, 0.125, 0.125]]), (len(x), 1))
        return np.round(scores * 256) / 256

    with pytest.raises(ValueError, match="probabilities"):
        as_target(int8_softmax).logits(sample.x[:8])


def test_black_box_has_no_gradients(float_model, sample):
    target = as_target(lambda x: float_model(x, training=False).numpy(), name="box")
    assert isinstance(target, BlackBoxTarget)
    with pytest.raises(ValueError, match="box gives no gradients"):
        target.loss_gradient(cross_entropy, sample.x, sample.y)
    with pytest.raises(ValueError, match="pgd needs gradients"):
        run_attack("pgd", target, sample.x, sample.y, 0.1)


def test_predict_method_is_used():
    class Runtime:
        name = "runtime"

        def predict(self, x):
            return -x

    target = as_target(Runtime())
    assert isinstance(target, Target)
    assert target.name == "runtime"
    np.testing.assert_array_equal(target.logits(np.ones((2, 3))), -np.ones((2, 3)))


def test_gradients_that_are_not_finite_are_zero():
    """The slope of sqrt at 0 is infinite, and 0 * inf is NaN: no attack may return NaN for it."""
    target = as_target(lambda x: tf.concat([tf.sqrt(x), x - 0.5], 1), differentiable=True)
    x = np.array([[0.0, 0.25]], np.float32)
    _, _, gradient = target.loss_gradient(cross_entropy, x, np.array([0]))
    assert np.isfinite(gradient).all()
    assert gradient[0, 0] == 0
    assert gradient[0, 1] != 0
    y = target.predict(x)
    assert np.isfinite(run_attack("pgd", target, x, y, 0.1, random_start=False).x_adv).all()


@pytest.mark.parametrize(
    ("scores", "message"),
    [
        (lambda n: np.full((n, 3), np.nan), "NaN"),
        (lambda n: np.ones(n), "shape"),
        (lambda n: np.ones((n, 0)), r"\[n, 1\] for two"),
        (lambda n: np.ones((n + 1, 3)), "not one each"),
    ],
)
def test_bad_outputs_are_named(scores, message):
    with pytest.raises(ValueError, match=message):
        as_target(lambda x: scores(len(x))).logits(np.zeros((4, 2)))


def test_what_cannot_be_attacked(tmp_path, float_model):
    with pytest.raises(TypeError, match="cannot attack a int"):
        as_target(3)
    with pytest.raises(TypeError, match=r"only \.tflite"):
        as_target(str(tmp_path / "model.onnx"))
    with pytest.raises(FileNotFoundError, match="missing"):
        as_target(tmp_path / "missing.tflite")
    with pytest.raises(ValueError, match="batch_size"):
        as_target(float_model, batch_size=0)
    with pytest.raises(ValueError, match="outputs must be"):
        as_target(float_model, outputs="scores")
    two = tf_keras.Model(float_model.input, [float_model.output, float_model.output])
    with pytest.raises(ValueError, match="2 outputs"):
        as_target(two)


def test_a_tf_keras_model_is_refused_where_keras_runs_elsewhere(monkeypatch):
    model = tf_keras.Sequential([tf_keras.layers.Input((3,)), tf_keras.layers.Dense(2)], name="net")
    monkeypatch.setattr("keras.backend.backend", lambda: "jax")
    with pytest.raises(ValueError, match=r"net is a tf_keras model.*KERAS_BACKEND=tensorflow"):
        as_target(model)


def test_differentiable_callable_is_asked_for(float_model):
    target = as_target(lambda x: float_model(x), differentiable=True)
    assert isinstance(target, DifferentiableTarget)


@pytest.mark.parametrize("core", [keras, tf_keras], ids=["keras", "tf_keras"])
def test_the_loss_is_that_of_what_the_model_gives(core, sample):
    """Of a sigmoid in the last layer, too: what Keras keeps of its argument is not looked for."""
    layers = core.layers
    model = core.Sequential(
        [layers.Input((8, 8, 1)), layers.Flatten(), layers.Dense(10, activation="sigmoid")]
    )
    target = as_target(model)
    logits, losses, _ = target.loss_gradient(cross_entropy, sample.x[:9], sample.y[:9])
    wide = logits.astype(np.float64)
    expected = np.log(np.exp(wide).sum(axis=1)) - wide[np.arange(9), sample.y[:9]]
    np.testing.assert_allclose(losses, expected, rtol=1e-5)
    np.testing.assert_allclose(logits, model.predict(sample.x[:9], verbose=0), rtol=1e-5)
