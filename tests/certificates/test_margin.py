"""Lipschitz-margin certificates: closed forms, attacks inside the radius, rounding counted."""

import itertools

import numpy as np
import pytest
import tf_keras

from tests.certificates.integer_networks import NETWORKS, GraphBuilder
from tfdq.certificates.integer_network import integer_network, integer_report
from tfdq.certificates.layer_report import LayerRow
from tfdq.certificates.margin import lipschitz_certificate, rounding_distances
from tflite_export.files.write import write
from tflite_export.ir.affine import quantize
from tflite_export.ir.graph import IntegerGraph
from tflite_export.runtime.reference import run

layers = tf_keras.layers


def linear_classifier(classes: int = 3, softmax: str = "") -> tf_keras.Model:
    inputs = tf_keras.Input((6,))
    x = layers.Dense(classes, activation="softmax" if softmax == "fused" else None)(inputs)
    return tf_keras.Model(inputs, layers.Softmax()(x) if softmax == "layer" else x)


def small_network() -> tf_keras.Model:
    inputs = tf_keras.Input((6, 6, 1))
    x = layers.Conv2D(4, 3, strides=2, padding="same", activation="relu")(inputs)
    x = layers.Conv2D(4, 3, padding="same")(x)
    x = layers.BatchNormalization()(x)
    x = layers.ReLU()(x)
    return tf_keras.Model(inputs, layers.Dense(3)(layers.Flatten()(x)))


@pytest.mark.parametrize("softmax", ["", "fused", "layer"])
def test_radius_of_a_linear_classifier_is_the_distance_to_its_boundary(softmax: str) -> None:
    model = linear_classifier(3, softmax)
    x = np.random.default_rng(0).standard_normal((50, 6)).astype(np.float32)
    weights, bias = (w.astype(np.float64) for w in model.get_weights())
    logits = x @ weights + bias
    y = logits.argmax(axis=1)
    expected = []
    for row, label in zip(logits, y, strict=True):
        gaps = [
            (row[label] - row[j]) / np.linalg.norm(weights[:, label] - weights[:, j])
            for j in range(3)
            if j != label
        ]
        expected.append(min(gaps))
    found = lipschitz_certificate(model, x, y)
    np.testing.assert_allclose(found.radius, expected, rtol=1e-3, atol=1e-5)
    assert found.clean_accuracy == 1.0
    assert not found.vacuous


def attack(model: tf_keras.Model, x: np.ndarray, label: int, radius: float) -> bool:
    """Search a ball for another class along the gradients of all logit differences."""
    import tensorflow as tf

    for other in range(3):
        point = tf.constant(x)
        for _ in range(20):
            with tf.GradientTape() as tape:
                tape.watch(point)
                logits = model(point)[0]
                gap = logits[label] - logits[other]
            step = tape.gradient(gap, point)
            size = tf.norm(step)
            if other == label or float(size) == 0.0:
                break
            moved = point - 0.3 * radius * step / size - x
            point = x + moved * tf.minimum(1.0, radius / tf.norm(moved))
        if int(np.argmax(model(point)[0])) != label:
            return True
    return False


def test_no_attack_succeeds_inside_a_radius_and_longer_radii_are_caught() -> None:
    model = small_network()
    x = np.random.default_rng(1).standard_normal((6, 6, 6, 1)).astype(np.float32)
    y = model(x).numpy().argmax(axis=1)
    found = lipschitz_certificate(model, x, y)
    assert np.all(found.radius > 0)
    for image, label, radius in zip(x, y, found.radius, strict=True):
        assert not attack(model, image[None], label, radius * (1 - 1e-6))
    # A linear network's radius is exact, so a tenth more has a counterexample.
    linear = linear_classifier()
    points = np.random.default_rng(2).standard_normal((10, 6)).astype(np.float32)
    labels = linear(points).numpy().argmax(axis=1)
    exact = lipschitz_certificate(linear, points, labels).radius
    for point, label, radius in zip(points, labels, exact, strict=True):
        assert not attack(linear, point[None], label, radius * 0.999)
        assert attack(linear, point[None], label, radius / 0.9)


def test_general_rule_is_margin_over_sqrt_two() -> None:
    """Without a dense layer at the end, the radius is margin / (sqrt(2) L)."""
    inputs = tf_keras.Input((4, 4, 1))
    x = layers.Conv2D(3, 3, padding="same", use_bias=False)(inputs)
    model = tf_keras.Model(inputs, layers.GlobalAveragePooling2D()(x))
    images = np.random.default_rng(0).standard_normal((5, 4, 4, 1)).astype(np.float32)
    logits = np.sort(model(images).numpy().astype(np.float64), axis=1)
    y = model(images).numpy().argmax(axis=1)
    found = lipschitz_certificate(model, images, y)
    expected = (logits[:, -1] - logits[:, -2]) / (np.sqrt(2) * found.details["network_constant"])
    np.testing.assert_allclose(found.radius, expected, rtol=1e-4)


def every_input(graph: IntegerGraph, seed: int, count: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (count, *graph.tensors[graph.inputs[0]].shape[1:])) / 255


@pytest.mark.parametrize("kernels", ["xnnpack", "builtin", "reference-2.14"])
@pytest.mark.parametrize("network", NETWORKS)
def test_norm_and_rounding_enclose_what_the_integers_do(network: str, kernels: str) -> None:
    """Every tensor, of pairs of inputs far and near: the distance is below L r + rounding."""
    for seed in range(3):
        graph = NETWORKS[network](seed)
        found = integer_network(graph, kernels)
        distances = rounding_distances(found.rows, found.roundings)
        first = every_input(graph, seed, 300).astype(np.float32)
        shift = np.random.default_rng(9).uniform(-1, 1, first.shape) * np.geomspace(
            1e-3, 0.5, 300
        ).reshape(-1, 1, 1, 1)
        second = np.clip(first + shift, 0, 1).astype(np.float32)
        source = graph.tensors[graph.inputs[0]]
        values = [run(graph, [quantize(x, source)], kernels) for x in (first, second)]
        moved = np.linalg.norm((first - second).reshape(300, -1), axis=1)
        for row, rounding, index in zip(found.rows, distances, found.tensors, strict=True):
            a, b = (v[index].astype(np.float64).reshape(300, -1) for v in values)
            scale = float(graph.tensors[index].scale)
            change = np.linalg.norm(a - b, axis=1) * scale
            assert np.all(change <= row.cumulative * moved + rounding * (1 + 1e-9))


def test_constants_of_an_integer_layer_are_those_of_its_real_kernel() -> None:
    builder = GraphBuilder((4, 4, 2), 3).conv(3, stride=2)
    graph = builder.graph
    kernel = graph.tensors[graph.operators[0].inputs[1]]
    real = kernel.data * kernel.quantization.scale.astype(np.float64)[:, None, None, None]
    inputs = tf_keras.Input((4, 4, 2))
    layer = layers.Conv2D(3, 3, strides=2, padding="same", use_bias=False)
    model = tf_keras.Model(inputs, layer(inputs))
    layer.set_weights([real.transpose(1, 2, 3, 0)])
    basis = np.eye(32, dtype=np.float32).reshape(32, 4, 4, 2)
    exact = np.linalg.norm(model(basis).numpy().reshape(32, -1), 2)
    row = integer_report(graph).rows[1]
    assert row.sigma == pytest.approx(exact, rel=1e-5)
    assert row.upper[0] >= row.sigma
    assert "CONV_2D" in integer_report(graph).table()


def test_no_integer_input_inside_a_radius_changes_the_class() -> None:
    """Exhaustive over a tiny network's inputs; coarse weights make the certificate bite."""
    certified = 0
    for seed in range(12):
        graph = GraphBuilder((1, 2, 1), seed).flatten().dense(2, 0.004).graph
        x = every_input(graph, seed, 8).astype(np.float32)
        source = graph.tensors[graph.inputs[0]]
        outputs = run(graph, [quantize(x, source)])[graph.outputs[0]]
        y = outputs.argmax(axis=1)
        found = lipschitz_certificate(graph, x, y)
        grid = np.array(list(itertools.product(range(256), repeat=2))).reshape(-1, 1, 2, 1) / 255
        everything = run(graph, [quantize(grid, source)])[graph.outputs[0]].argmax(axis=1)
        for image, label, radius in zip(x, y, found.radius, strict=True):
            distance = np.linalg.norm((grid - image).reshape(-1, 2), axis=1)
            assert np.all(everything[distance < radius] == label)
            certified += radius > 0
    assert certified >= 20


def test_a_vacuous_certificate_says_so() -> None:
    graph = NETWORKS["residual"](0)
    x = every_input(graph, 0, 10).astype(np.float32)
    found = lipschitz_certificate(graph, x, np.zeros(10, int))
    assert found.vacuous
    assert "Vacuous" in found.note
    assert "rounding alone" in found.summary()


def test_distances_compose_like_norms() -> None:
    rows = (
        LayerRow("in", "input", (), 1.0, (), None, 1.0),
        LayerRow("a", "conv", (0,), 2.0, (2.0,), None, 2.0),
        LayerRow("b", "add", (0, 1), 1.0, (1.0, 1.0), None, 3.0),
        LayerRow("c", "concat", (1, 2), 1.0, (1.0, 1.0), None, np.sqrt(13.0), True),
    )
    found = rounding_distances(rows, (0.5, 0.1, 0.0, 0.0))
    np.testing.assert_allclose(found, [0.5, 1.1, 1.6, np.hypot(1.1, 1.6)])


def test_a_file_is_as_good_as_its_graph() -> None:
    from tfdq.certificates.network import lipschitz_report

    graph = NETWORKS["residual"](2)
    assert lipschitz_report(write(graph)).upper == pytest.approx(
        integer_report(graph).upper, rel=1e-12
    )


def test_labels_beyond_the_classes_are_refused() -> None:
    with pytest.raises(ValueError, match="beyond"):
        lipschitz_certificate(linear_classifier(), np.zeros((1, 6)), np.array([7]))
    with pytest.raises(ValueError, match="known"):
        integer_network(NETWORKS["plain"](0), "metal")
