"""Interval bounds in TensorFlow: enclosure, closed forms, gradients, and what training gains."""

import numpy as np
import pytest
import tensorflow as tf
import tf_keras
from sklearn.datasets import load_digits

import tfdq
from tfdq.certificates.box_propagation import propagate_box, worst_logits
from tfdq.certificates.interval_certificate import interval_certificate
from tfdq.certificates.interval_training import IntervalTraining
from tfdq.penalties.schedules import Ramp
from tfdq.quantization import ConvexCombination
from tfdq.quantization.graph import read_graph
from tfdq.robustness import attack
from tflite_export.files.write import write
from tflite_export.ir.graph import IntegerGraph
from tflite_export.runtime.interpreter import Interpreter
from tflite_export.twin.integer_twin import IntegerTwin, graph_of

layers = tf_keras.layers


def network(last: str = "logits") -> tf_keras.Model:
    """Return a network with every kind of layer that has an interval rule."""
    inputs = tf_keras.Input((8, 8, 1))
    x = layers.Rescaling(-2.0, 1.0)(inputs)
    x = layers.Conv2D(6, 3, padding="same", name="stem")(x)
    x = layers.BatchNormalization(name="norm")(x)
    x = layers.ReLU(6.0)(x)
    y = layers.Conv2D(6, 3, padding="same", activation="relu")(x)
    x = ConvexCombination()([x, y])
    y = layers.DepthwiseConv2D(3, padding="same")(x)
    x = layers.Add()([x, y])
    x = layers.MaxPooling2D(2)(x)
    y = layers.Conv2D(4, 1, strides=1, activation="relu")(x)
    x = layers.Concatenate()([x, y])
    x = layers.AveragePooling2D(2)(x)
    x = layers.Dropout(0.5)(layers.Flatten()(x))
    x = layers.Dense(12)(x)
    x = layers.BatchNormalization()(x)
    x = layers.Activation("relu")(x)
    if last == "pool":
        x = layers.Reshape((1, 1, 12))(x)
        return tf_keras.Model(inputs, layers.GlobalAveragePooling2D()(x))
    x = layers.Dense(10, activation="softmax" if last == "fused" else None)(x)
    return tf_keras.Model(inputs, layers.Softmax()(x) if last == "layer" else x)


def randomized(model: tf_keras.Model) -> tf_keras.Model:
    rng = np.random.default_rng(0)
    for layer in model.layers:
        if isinstance(layer, layers.BatchNormalization):
            shape = layer.gamma.shape
            layer.set_weights(
                [
                    rng.uniform(-2, 2, shape),
                    *rng.standard_normal((2, *shape)),
                    rng.uniform(0.5, 2, shape),
                ]
            )
    return model


def digits() -> tuple[np.ndarray, np.ndarray]:
    bunch = load_digits()
    return (bunch.images[..., None] / 16.0).astype(np.float32), bunch.target


def ball(x: np.ndarray, eps: float, count: int, seed: int) -> np.ndarray:
    """Return points of the ball's corners and inside."""
    rng = np.random.default_rng(seed)
    corners = rng.choice([-1.0, 1.0], (count, *x.shape))
    scale = rng.choice([1.0, 0.5], (count, *[1] * x.ndim))
    return (x + eps * corners * scale).astype(np.float32)


@pytest.mark.parametrize("quantized", [False, True])
def test_bounds_enclose_every_layer(quantized: bool) -> None:
    model = randomized(network())
    x, _ = digits()
    if quantized:
        model = tfdq.quantize_model(model, 0.0, activation_bits=4)
        tfdq.calibrate(model, x[:256])
    graph = read_graph(model)
    boxes = propagate_box(graph, tf.constant(x[:4] - 0.02), tf.constant(x[:4] + 0.02))
    assert len(boxes) == len(graph.nodes)
    points = ball(x[:4], 0.02, 40, 0)
    outputs = [node.layer.get_output_at(-1) for node in graph.nodes]
    every = tf_keras.Model(model.input, [n.layer.output for n in graph.nodes])
    assert len(outputs) == len(graph.nodes)
    for values in (every(batch, training=False) for batch in points):
        for node, value in zip(graph.nodes, values, strict=True):
            low, high = boxes[node.index]
            slack = 1e-4 * (1 + np.abs(value))
            assert np.all(value >= low - slack), node.layer.name
            assert np.all(value <= high + slack), node.layer.name


@pytest.mark.parametrize("last", ["logits", "layer", "fused", "pool"])
def test_worst_logits_are_worse_than_all_found(last: str) -> None:
    model = randomized(network(last))
    x, _ = digits()
    graph = read_graph(model)
    labels = np.array([3, 1, 4, 1])
    boxes = propagate_box(graph, tf.constant(x[:4] - 0.01), tf.constant(x[:4] + 0.01))
    worst = worst_logits(graph, boxes, tf.constant(labels)).numpy()
    worst -= worst[np.arange(4), labels][:, None]
    for batch in ball(x[:4], 0.01, 60, 1):
        logits = model(batch, training=False).numpy()
        if last in ("layer", "fused"):
            logits = np.log(np.maximum(logits, 1e-30))
        logits -= logits[np.arange(4), labels][:, None]
        assert np.all(logits <= worst + 1e-3)


def test_worst_case_of_a_linear_classifier_is_its_closed_form() -> None:
    inputs = tf_keras.Input((5,))
    model = tf_keras.Model(inputs, layers.Dense(3)(inputs))
    weights = model.get_weights()[0].astype(np.float64)
    x = np.random.default_rng(0).uniform(0.3, 0.7, (6, 5)).astype(np.float32)
    y = np.arange(6) % 3
    graph = read_graph(model)
    boxes = propagate_box(graph, tf.constant(x - 0.1), tf.constant(x + 0.1))
    worst = worst_logits(graph, boxes, tf.constant(y)).numpy()
    for row, image, label in zip(worst, x, y, strict=True):
        difference = weights - weights[:, [label]]
        expected = image @ difference + 0.1 * np.abs(difference).sum(axis=0)
        np.testing.assert_allclose(row, expected, atol=1e-5)


def test_loss_is_its_formula() -> None:
    inputs = tf_keras.Input((5,))
    dense = layers.Dense(3, kernel_regularizer=tf_keras.regularizers.L2(0.01))
    model = tf_keras.Model(inputs, dense(inputs))
    training = IntervalTraining(model, 0.1, 0.3)
    cross_entropy = tf_keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    training.compile(tf_keras.optimizers.SGD(0.0), cross_entropy, ["accuracy"])
    x = np.random.default_rng(0).uniform(0.3, 0.7, (8, 5)).astype(np.float32)
    y = np.arange(8) % 3
    weights, bias = model.get_weights()
    logits = x @ weights + bias
    worst = np.array(
        [
            row - row[label] + 0.1 * np.abs(weights - weights[:, [label]]).sum(axis=0)
            for row, label in zip(logits, y, strict=True)
        ]
    )
    expected = 0.3 * cross_entropy(y, logits) + 0.7 * cross_entropy(y, worst)
    expected += 0.01 * np.sum(weights**2)
    found = training.evaluate(x, y, batch_size=8, verbose=0, return_dict=True)
    assert found["loss"] == pytest.approx(float(expected), rel=1e-5)
    assert found["certified_accuracy"] == np.mean(worst.argmax(axis=1) == y)
    assert found["accuracy"] == np.mean(logits.argmax(axis=1) == y)
    one_hot = IntervalTraining(model, 0.1, 0.3)
    one_hot.compile("sgd", tf_keras.losses.CategoricalCrossentropy(from_logits=True))
    again = one_hot.evaluate(x, np.eye(3)[y], batch_size=8, verbose=0, return_dict=True)
    assert again["loss"] == pytest.approx(found["loss"], rel=1e-5)


def plain_cross_entropy(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    return np.logaddexp.reduce(logits, axis=1) - logits[np.arange(len(labels)), labels]


class PlainNetwork:
    """Two dense layers in float64: outputs, PGD from the images, worst logits of a box."""

    def __init__(self, weights: list[np.ndarray]) -> None:
        self.first, self.bias, self.second, self.last = weights

    def outputs(self, x: np.ndarray) -> np.ndarray:
        return np.maximum(x @ self.first + self.bias, 0) @ self.second + self.last

    def attacked(self, x: np.ndarray, y: np.ndarray, eps: float, steps: int) -> np.ndarray:
        images = x.copy()
        for _ in range(steps):
            logits = self.outputs(images)
            share = np.exp(logits - np.logaddexp.reduce(logits, axis=1)[:, None])
            share[np.arange(len(y)), y] -= 1
            passes = images @ self.first + self.bias > 0
            slope = (share @ self.second.T * passes) @ self.first.T
            images = np.clip(images + 2.5 / steps * eps * np.sign(slope), x - eps, x + eps)
        return images

    def worst(self, centre: np.ndarray, y: np.ndarray, reach: float) -> np.ndarray:
        middle, spread = centre @ self.first + self.bias, reach * np.abs(self.first).sum(axis=0)
        low, high = np.maximum(middle - spread, 0), np.maximum(middle + spread, 0)
        rows = []
        for label, a, b in zip(y, low, high, strict=True):
            difference = self.second - self.second[:, [label]]
            up, down = np.maximum(difference, 0), np.minimum(difference, 0)
            rows.append(b @ up + a @ down + self.last - self.last[label])
        return np.array(rows)


@pytest.mark.parametrize(
    ("box", "nominal"), [(1.0, "clean"), (0.25, "clean"), (1.0, "attacked"), (0.25, "attacked")]
)
def test_one_step_is_that_of_a_plain_float64_reference(
    box: float, nominal: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """IBP, SABR, MTL-IBP and both: the step by finite differences of the written-out loss."""
    eps, kappa, steps = 0.1, 0.3, 3
    tf_keras.utils.set_random_seed(1)
    inputs = tf_keras.Input((5,))
    hidden = layers.Dense(6, activation="relu")(inputs)
    model = tf_keras.Model(inputs, layers.Dense(3)(hidden))
    training = IntervalTraining(
        model, eps, kappa, box=box, nominal=nominal, attack_steps=steps, bounds=(-9.0, 9.0)
    )
    monkeypatch.setattr(training, "_noise", tf.zeros_like)
    loss = tf_keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    training.compile(tf_keras.optimizers.SGD(1.0), loss)
    x = np.random.default_rng(0).uniform(0.3, 0.7, (8, 5))
    y = np.arange(8) % 3
    before = [value.astype(np.float64) for value in model.get_weights()]
    attacked = PlainNetwork(before).attacked(x, y, eps, steps)
    outer = eps * (1 - box)
    centre = np.clip(attacked, x - outer, x + outer)

    def total(weights: list[np.ndarray]) -> float:
        network = PlainNetwork(weights)
        own = network.outputs(x if nominal == "clean" else attacked)
        bound = network.worst(centre, y, eps * box)
        mixed = kappa * plain_cross_entropy(own, y) + (1 - kappa) * plain_cross_entropy(bound, y)
        return float(np.mean(mixed))

    found = training.train_on_batch(x.astype(np.float32), y, return_dict=True)
    assert found["loss"] == pytest.approx(total(before), rel=1e-5)
    for index, (old, new) in enumerate(zip(before, model.get_weights(), strict=True)):
        slope = np.zeros_like(old)
        for place in np.ndindex(*old.shape):
            ends = []
            for sign in (1, -1):
                moved = [value.copy() for value in before]
                moved[index][place] += sign * 1e-6
                ends.append(total(moved))
            slope[place] = (ends[0] - ends[1]) / 2e-6
        np.testing.assert_allclose(old - new, slope, rtol=1e-3, atol=1e-5)


def test_box_and_nominal_are_checked() -> None:
    model = network()
    wrong = {"box": (0.0, 1.5), "nominal": ("noisy",), "attack_steps": (0,)}
    for name, values in wrong.items():
        for value in values:
            with pytest.raises(ValueError, match=name):
                IntervalTraining(model, 0.1, **{name: value})


def test_schedules_follow_the_epochs() -> None:
    model = network()
    training = IntervalTraining(model, Ramp(0.0, 0.2, 0, 2), Ramp(1.0, 0.5, 0, 2))
    loss = tf_keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    training.compile("adam", loss)
    seen = []
    watch = tf_keras.callbacks.LambdaCallback(
        on_train_batch_end=lambda batch, logs: seen.append(
            (float(training.present_eps), float(training.present_kappa))
        )
    )
    x, y = digits()
    training.fit(x[:64], y[:64], batch_size=32, epochs=3, verbose=0, callbacks=[watch])
    expected = [(0.0, 1.0), (0.05, 0.875), (0.1, 0.75), (0.15, 0.625), (0.2, 0.5), (0.2, 0.5)]
    np.testing.assert_allclose(seen, expected, rtol=1e-6)


def trained(intervals: bool) -> tf_keras.Model:
    """Return a 4-bit network trained on digits, with or without interval bounds."""
    x, y = digits()
    tf_keras.utils.set_random_seed(0)
    inputs = tf_keras.Input((8, 8, 1))
    z = layers.Conv2D(8, 3, padding="same", activation="relu")(inputs)
    z = layers.Conv2D(16, 3, strides=2, padding="same", activation="relu")(z)
    z = layers.Dense(10)(layers.Flatten()(z))
    float_model = tf_keras.Model(inputs, z)
    model = tfdq.quantize_model(float_model, 0.0, activation_bits=4, input_range=(0.0, 1.0))
    loss = tf_keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    eps, kappa = (Ramp(0.0, 4 / 255, 2, 8), Ramp(1.0, 0.5, 2, 8)) if intervals else (0.0, 1.0)
    training = IntervalTraining(model, eps, kappa)
    training.compile(tf_keras.optimizers.Adam(3e-3), loss, ["accuracy"])
    training.fit(x[:1400], y[:1400], epochs=12, batch_size=64, verbose=0)
    return model


@pytest.fixture(scope="module")
def trained_network() -> tf_keras.Model:
    return trained(intervals=True)


@pytest.fixture(scope="module")
def certified_network(trained_network) -> IntegerGraph:
    return graph_of(trained_network)


def test_training_makes_the_integer_certificate_bite(certified_network) -> None:
    """Certified at 1/255 for more than half of the clean accuracy; further out, more than without.

    At 1/255 the bounds hold nearly every image that is right, with or without.
    """
    x, y = (part[1400:1600] for part in digits())
    found = interval_certificate(certified_network, x, y)
    without = interval_certificate(graph_of(trained(intervals=False)), x, y)
    assert found.clean_accuracy > 0.85
    assert found.certified_accuracy(1 / 255) > 0.5 * found.clean_accuracy
    assert found.certified_accuracy(5 / 255) > without.certified_accuracy(5 / 255) + 0.1


def test_no_attack_breaks_a_certified_example(trained_network, certified_network) -> None:
    """The suite and more, on the twin and on the file, at the certified radius itself."""
    x, y = (part[1400:1480] for part in digits())
    found = interval_certificate(certified_network, x, y, max_steps=4)
    twin, file = IntegerTwin(certified_network), Interpreter(write(certified_network))
    attacked = 0
    for steps in range(1, 5):
        held = found.correct & (np.rint(found.radius * 255) >= steps)
        if not np.any(held):
            continue
        attacked += int(np.sum(held))
        for name, target, options in (
            ("apgd-ce", twin, {"steps": 20}),
            ("apgd-t", twin, {"steps": 10}),
            ("fab", twin, {"steps": 20, "target_classes": 3}),
            ("low-bit", file, {"surrogate": trained_network, "target_classes": 3}),
            ("square", file, {"queries": 5000}),
        ):
            moved = attack(name, target, x[held], y[held], steps / 255, **options)
            assert np.max(np.abs(moved - x[held])) <= steps / 255 + 1e-6
            np.testing.assert_array_equal(file.predict(moved).argmax(axis=1), y[held])
    assert attacked >= 40


def test_what_has_no_rule_is_refused() -> None:
    inputs = tf_keras.Input((4,))
    for layer, message in (
        (layers.Activation("gelu"), "gelu"),
        (layers.LayerNormalization(), "LayerNormalization"),
    ):
        with pytest.raises(ValueError, match=message):
            IntervalTraining(tf_keras.Model(inputs, layers.Dense(2)(layer(inputs))), 0.1)
    model = tf_keras.Model(inputs, layers.Dense(2)(inputs))
    with pytest.raises(ValueError, match="kappa"):
        IntervalTraining(model, 0.1, 1.5)
    with pytest.raises(ValueError, match="eps"):
        IntervalTraining(model, -0.1)
    with pytest.raises(ValueError, match="bounds"):
        IntervalTraining(model, 0.1, bounds=(1.0, 0.0))
    with pytest.raises(ValueError, match="needs a loss"):
        IntervalTraining(model, 0.1).compile("adam")
    two = tf_keras.Model(inputs, [layers.Dense(2)(inputs), layers.Dense(2)(inputs)])
    with pytest.raises(ValueError, match="one output"):
        IntervalTraining(two, 0.1)
