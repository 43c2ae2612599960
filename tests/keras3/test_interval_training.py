"""Interval training of quantized Keras 3 models: one step, enclosure, the file's own intervals."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import pytest

from tests.tflite_export.trained import digits
from tfdq.certificates import IntervalTraining, certify
from tfdq.certificates.interval_certificate import input_box
from tfdq.certificates.intervals import propagate
from tfdq.certificates.keras3_boxes import propagate_box, worst_logits
from tfdq.certificates.keras3_interval_training import Keras3IntervalTraining
from tfdq.keras3 import calibrate, quantize_model
from tfdq.keras3.graph import read_graph
from tfdq.keras3.layer_kinds import QuantizedLayer
from tfdq.penalties import Ramp
from tflite_export.twin.integer_twin import graph_of

L = keras.layers
backends = pytest.mark.backends
LOSS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def numpy(tensor: Any) -> np.ndarray:
    return np.asarray(keras.ops.convert_to_numpy(tensor))


# One step.


class PlainNetwork:
    """Two quantized dense layers in float64, with ReLU6 between them, on weights near given ones.

    Rounding is frozen: what it moved each value by at the given weights is added to the values of
    other weights, so that differences of losses are those of straight-through gradients.

    Args:
        weights: kernel, bias, kernel, bias.
        logits: range of the logits before the step.
    """

    def __init__(self, weights: list[np.ndarray], logits: tuple[float, float]) -> None:
        self.weights, self.logits = weights, logits
        self.frozen: list[np.ndarray] = []
        self.recording = True

    def rounded(self, values: np.ndarray, step: float) -> np.ndarray:
        if self.recording:
            self.frozen.append(np.rint(values / step) * step - values)
        else:
            self.frozen = [*self.frozen[1:], self.frozen[0]]
        return values + self.frozen[-1]

    def kernels(self) -> tuple[np.ndarray, np.ndarray]:
        steps = [np.abs(w).max() / 127 for w in self.given[::2]]
        first, second = (self.rounded(self.weights[2 * i], steps[i]) for i in (0, 1))
        return first, second

    @staticmethod
    def pixels(x: np.ndarray) -> np.ndarray:
        return np.clip(np.rint(x * 255), 0, 255) / 255

    def hidden(self, values: np.ndarray) -> np.ndarray:
        inside = (values > 0) & (values < 6)
        return np.where(inside, self.rounded(values, 6 / 255), np.clip(values, 0, 6))

    def outputs(self, x: np.ndarray) -> np.ndarray:
        first, second = self.kernels()
        found = self.hidden(self.pixels(x) @ first + self.weights[1]) @ second + self.weights[3]
        if self.recording:
            # The moving average of the extremes, decay 0.99.
            low, high = (
                end + 0.01 * (seen - end)
                for end, seen in zip(
                    self.logits, (min(found.min(), 0), max(found.max(), 0)), strict=True
                )
            )
            self.logit_step = (high - low) / 255
        return self.rounded(found, self.logit_step)

    def worst(self, low: np.ndarray, high: np.ndarray, y: np.ndarray) -> np.ndarray:
        first, second = self.kernels()
        low, high = self.pixels(low), self.pixels(high)
        middle, spread = (low + high) / 2 @ first, (high - low) / 2 @ np.abs(first)
        low, high = (self.hidden(middle + s * spread + self.weights[1]) for s in (-1, 1))
        rows = []
        for label, a, b in zip(y, low, high, strict=True):
            difference = second - second[:, [label]]
            up, down = np.maximum(difference, 0), np.minimum(difference, 0)
            rows.append(b @ up + a @ down + self.weights[3] - self.weights[3][label])
        return np.array(rows)

    def begin(self) -> None:
        """Freeze the rounding at the present weights."""
        self.given = [w.copy() for w in self.weights]
        self.frozen, self.recording = [], True


def cross_entropy(logits: np.ndarray, y: np.ndarray) -> np.ndarray:
    return np.logaddexp.reduce(logits, axis=1) - logits[np.arange(len(y)), y]


def attacked(
    network: PlainNetwork, x: np.ndarray, y: np.ndarray, eps: float, steps: int
) -> np.ndarray:
    """PGD from the images themselves."""
    images = x.copy()
    for _ in range(steps):
        network.begin()
        logits = network.outputs(images)
        first, second = (network.weights[i] + network.frozen[i // 2] for i in (0, 2))
        share = np.exp(logits - np.logaddexp.reduce(logits, axis=1)[:, None])
        share[np.arange(len(y)), y] -= 1
        before = network.pixels(images) @ first + network.weights[1]
        slope = (share @ second.T * ((before > 0) & (before < 6))) @ first.T
        images = np.clip(images + 2.5 / steps * eps * np.sign(slope), x - eps, x + eps)
    return images


@backends
@pytest.mark.parametrize(
    ("box", "nominal"), [(1.0, "clean"), (0.25, "clean"), (1.0, "attacked"), (0.25, "attacked")]
)
def test_one_step_is_that_of_a_plain_float64_reference(
    box: float, nominal: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """IBP, SABR, MTL-IBP and both: the step by finite differences of the written-out loss."""
    eps, kappa, steps = 0.1, 0.3, 2
    keras.utils.set_random_seed(1)
    images = keras.Input((5,))
    hidden = L.Dense(6, activation="relu", name="hidden")(images)
    model = quantize_model(
        keras.Model(images, L.Dense(3, name="logits")(hidden)),
        0.0,
        activation_range="relu6",
        input_range=(0.0, 1.0),
    )
    logits = model.get_layer("logits").range
    for variable, value in ((logits.low, -4.0), (logits.high, 5.0), (logits.seen, 1.0)):
        variable.assign(value)
    training = IntervalTraining(model, eps, kappa, box=box, nominal=nominal, attack_steps=steps)
    assert type(training) is Keras3IntervalTraining
    monkeypatch.setattr(training, "_noise", keras.ops.zeros_like)
    training.compile(keras.optimizers.SGD(1.0), LOSS)
    x = np.random.default_rng(0).uniform(0.3, 0.7, (8, 5)).astype(np.float32)
    y = np.arange(8) % 3
    variables = [v for name in ("hidden", "logits") for v in model.get_layer(name).weights[:2]]
    before = [numpy(v).astype(np.float64) for v in variables]
    network = PlainNetwork([w.copy() for w in before], (-4.0, 5.0))
    uses = box < 1 or nominal == "attacked"
    moved = attacked(network, x.astype(np.float64), y, eps, steps) if uses else x
    centre = np.clip(moved, x - eps * (1 - box), x + eps * (1 - box))

    def total() -> float:
        own = network.outputs(x if nominal == "clean" else moved)
        bound = network.worst(centre - eps * box, centre + eps * box, y)
        return float(np.mean(kappa * cross_entropy(own, y) + (1 - kappa) * cross_entropy(bound, y)))

    network.begin()
    expected = total()
    network.recording = False
    found = training.train_on_batch(x, y, return_dict=True)
    assert float(found["loss"]) == pytest.approx(expected, rel=1e-4)
    for index, (old, variable) in enumerate(zip(before, variables, strict=True)):
        slope = np.zeros_like(old)
        for place in np.ndindex(*old.shape):
            ends = []
            for sign in (1, -1):
                network.weights[index][place] = old[place] + sign * 1e-6
                ends.append(total())
            network.weights[index][place] = old[place]
            slope[place] = (ends[0] - ends[1]) / 2e-6
        # The largest weight is the end of its range, where the gradient may be that of clipping.
        inner = np.abs(old) < np.abs(old).max() if old.ndim == 2 else np.ones_like(old, bool)
        np.testing.assert_allclose(
            (old - numpy(variable))[inner], slope[inner], rtol=5e-3, atol=1e-4
        )


# Bounds.


def network() -> keras.Model:
    """Return a network with every kind of layer that has an interval rule."""
    image = keras.Input((8, 8, 1))
    x = L.Rescaling(-2.0, 1.0)(image)
    x = L.Conv2D(6, 3, padding="same", use_bias=False, name="stem")(x)
    x = L.ReLU(6.0)(L.BatchNormalization()(x))
    y = L.Conv2D(6, 3, padding="same", activation="relu")(x)
    x = L.Subtract()([L.Average()([x, y]), L.DepthwiseConv2D(3, padding="same")(x)])
    x = L.LeakyReLU(0.25)(L.BatchNormalization()(x))
    x = L.Cropping2D(1)(L.ZeroPadding2D(1)(L.UpSampling2D(2)(L.MaxPooling2D(2)(x))))
    y = L.Conv2D(6, 1, activation="sigmoid")(x)
    z = L.Activation("tanh")(L.Conv2DTranspose(3, 2, strides=2)(L.MaxPooling2D(2)(x)))
    x = L.Concatenate()([L.Maximum()([x, y]), L.Minimum()([x, y]), z])
    x = L.AveragePooling2D(2)(x)
    x = L.Dropout(0.5)(L.Flatten()(L.Permute((2, 1, 3))(x)))
    x = L.ReLU()(L.BatchNormalization()(L.Dense(12, use_bias=False)(x)))
    return keras.Model(image, L.Dense(10)(x))


def small(last: str) -> keras.Model:
    """Return a network that ends in a pool, or in a softmax."""
    image = keras.Input((8, 8, 1))
    x = L.Conv2D(10, 4, strides=4, activation="relu")(image)
    if last == "pool":
        return keras.Model(image, L.GlobalAveragePooling2D()(x))
    return keras.Model(image, L.Dense(10, activation="softmax")(L.Flatten()(x)))


def quantized(model: keras.Model, bits: int) -> Any:
    """Return a quantized network, its BatchNorms with factors of both signs, its ranges seen."""
    rng = np.random.default_rng(0)
    for layer in model.layers:
        if isinstance(layer, L.BatchNormalization):
            (channels,) = layer.gamma.shape
            gamma = rng.uniform(0.5, 2, channels) * rng.choice([-1, 1], channels)
            moments = [*rng.standard_normal((2, channels)), rng.uniform(0.5, 2, channels)]
            layer.set_weights([gamma, *moments])
    found = quantize_model(model, 0.0, activation_bits=bits, input_range=(0.0, 1.0))
    calibrate(found, digits()[0][:256])
    return found


@pytest.fixture(scope="module")
def many_kinds() -> Any:
    keras.utils.set_random_seed(0)
    return quantized(network(), 4)


def boxes_of(model: Any, low: np.ndarray, high: np.ndarray) -> Any:
    graph = read_graph(model)
    return graph, propagate_box(graph, *(keras.ops.convert_to_tensor(e) for e in (low, high)))


def ball(x: np.ndarray, eps: float, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    corners = rng.choice([-1.0, 1.0, 0.5, 0.0], (*x.shape,))
    return np.clip(x + eps * corners, 0, 1).astype(np.float32)


def test_bounds_enclose_every_layer_and_a_point_is_its_own_bound(many_kinds: Any) -> None:
    x = digits()[0][:4]
    eps = np.float32(3 / 255)
    graph, boxes = boxes_of(many_kinds, np.clip(x - eps, 0, 1), np.clip(x + eps, 0, 1))
    kinds = {type(node.layer) for node in graph.nodes if node.inputs}
    assert len(kinds) >= 18
    widths = []
    for seed in range(6):
        point = ball(x, 3 / 255, seed)
        _, values = boxes_of(many_kinds, point, point)
        for node in graph.nodes:
            if not node.inputs:
                continue
            (low, step), (high, _) = boxes[node.index]
            (q, own), (other, _) = values[node.index]
            np.testing.assert_array_equal(numpy(q), numpy(other))
            assert numpy(step) == numpy(own)
            assert (numpy(low) <= numpy(q)).all(), node.layer.name
            assert (numpy(q) <= numpy(high)).all(), node.layer.name
            widths.append(numpy(high - low).max())
    assert max(widths) > 0


def test_bounds_are_those_of_the_files_integers_but_for_rounding() -> None:
    """At 8 bits: at 4 a step inside, rounded the other way, is 17 steps of the 8-bit logits."""
    model = quantized(network(), 8)
    # Pixels on the input's grid: half a step off, the last bits of x +- eps decide the rounding.
    x = np.rint(digits()[0][:8] * 255) / np.float32(255)
    graph = graph_of(model)
    low, high = input_box(graph, x, 2 / 255)
    own = propagate(graph, low, high)
    tensor = graph.tensors[graph.outputs[0]]
    eps = np.float32(2 / 255)
    nodes, boxes = boxes_of(model, np.clip(x - eps, 0, 1), np.clip(x + eps, 0, 1))
    ends = boxes[nodes.outputs[0]]
    output = graph.outputs[0]
    for side, (q, step) in zip(own.values[output], ends, strict=True):
        assert numpy(step) == pytest.approx(float(tensor.scale), rel=1e-6)
        apart = np.abs(numpy(q) - (side.astype(int) - tensor.zero_point))
        assert apart.max() <= 3
        assert apart.mean() < 0.5
    assert np.subtract(*own.values[output][::-1], dtype=int).mean() > 10


@pytest.mark.parametrize("last", ["logits", "pool", "softmax"])
def test_worst_logits_are_reached_by_no_image(last: str, many_kinds: Any) -> None:
    model = many_kinds if last == "logits" else quantized(small(last), 8)
    x, y = (part[:4] for part in digits())
    graph, boxes = boxes_of(model, np.clip(x - 0.01, 0, 1), np.clip(x + 0.01, 0, 1))
    worst = numpy(worst_logits(graph, boxes, keras.ops.convert_to_tensor(y)))
    worst = worst - worst[np.arange(4), y][:, None]
    model.seal()
    for seed in range(10):
        found = numpy(model(ball(x, 0.01, seed), training=False)).astype(np.float64)
        # Rounded at the end, by half a step each, where the bounds are not.
        slack = 0.02
        if last == "softmax":
            found, slack = np.log(np.maximum(found, 1e-3)), 1.0
        elif last == "logits":
            slack = 1.5 * float(model.layers[-1].range.grid().scale)
        margin = found - found[np.arange(4), y][:, None]
        assert (margin <= worst + slack).all()


def test_every_kind_of_layer_has_a_rule_or_is_refused_by_name() -> None:
    """No kind falls back on another one's rule without saying so."""
    ruled = {
        kind.__name__
        for kind in descendants(QuantizedLayer)
        if not kind.__abstractmethods__
        and (kind.rising or kind.interval is not QuantizedLayer.interval)
    }
    assert not ruled & {
        *("QuantizedMultiply", "QuantizedPReLU", "QuantizedGated", "QuantizedSoftmax"),
        *("QuantizedUnit", "QuantizedChannelMean"),
    }
    image = keras.Input((8, 8, 1))
    x = L.Conv2D(4, 3)(image)
    x = L.PReLU(shared_axes=[1, 2], name="bent")(x)
    model = keras.Model(image, L.Dense(3)(L.Flatten()(L.Multiply(name="gate")([x, x]))))
    with pytest.raises(ValueError, match=r"no interval rule for 'bent' .*, 'gate' .*: replace"):
        IntervalTraining(quantize_model(model), 0.1)
    with pytest.raises(ValueError, match="layers in float have no interval rule: 'conv2d"):
        IntervalTraining(keras.Model(image, x), 0.1)


def descendants(kind: type) -> list[Any]:
    return [found for sub in kind.__subclasses__() for found in (sub, *descendants(sub))]


# Training.


def test_box_nominal_and_loss_are_checked(many_kinds: Any) -> None:
    for options, message in (
        ({"box": 1.5}, "box"),
        ({"nominal": "noisy"}, "nominal"),
        ({"attack_steps": 0}, "attack_steps"),
        ({"kappa": 1.5}, "kappa"),
        ({"bounds": (1.0, 0.0)}, "bounds"),
    ):
        with pytest.raises(ValueError, match=message):
            IntervalTraining(many_kinds, 0.1, **options)
    with pytest.raises(ValueError, match="eps"):
        IntervalTraining(many_kinds, -0.1)
    with pytest.raises(ValueError, match="needs a loss"):
        IntervalTraining(many_kinds, 0.1).compile("adam")

    with pytest.raises(ValueError, match=r"loss_weights=\[2.0\]: the one loss has none; scale"):
        IntervalTraining(many_kinds, 0.1).compile("adam", LOSS, loss_weights=[2.0])


def dense_on_a_convolution() -> Any:
    keras.utils.set_random_seed(0)
    image = keras.Input((8, 8, 1))
    z = L.Conv2D(8, 3, strides=2, padding="same", activation="relu")(image)
    z = L.Dense(10)(L.Flatten()(z))
    return quantize_model(keras.Model(image, z), 0.0, activation_bits=4, input_range=(0.0, 1.0))


def test_a_loss_by_name_or_as_a_function_is_the_same() -> None:
    x, y = (part[:16] for part in digits())
    crossentropy = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    found = []
    for loss in (crossentropy, lambda a, b: keras.ops.mean(crossentropy(a, b))):
        training = IntervalTraining(dense_on_a_convolution(), 0.01)
        training.compile("adam", loss)
        found.append(float(training.train_on_batch(x, y, return_dict=True)["loss"]))
    assert found[0] == pytest.approx(found[1], rel=1e-5)
    training.compile("adam", "sparse_categorical_crossentropy")
    assert np.isfinite(training.train_on_batch(x, y, return_dict=True)["loss"])


@backends
def test_fit_follows_the_schedules() -> None:
    x, y = digits()
    eps, kappa = Ramp(0.0, 12 / 255, 0, 2), Ramp(1.0, 0.5, 0, 2)
    training = IntervalTraining(dense_on_a_convolution(), eps, kappa)
    training.compile(keras.optimizers.Adam(1e-2), LOSS, metrics=["accuracy"])
    history = training.fit(
        x[:256], y[:256], 64, epochs=2, verbose=0, validation_data=(x[1400:1464], y[1400:1464])
    ).history
    assert {"loss", "accuracy", "interval_loss", "certified_accuracy"} <= set(history)
    np.testing.assert_allclose(
        [numpy(training.present_eps), numpy(training.present_kappa)],
        [eps(1.75), kappa(1.75)],
        rtol=1e-6,
    )
    assert history["val_certified_accuracy"][-1] <= history["val_accuracy"][-1] + 0.02


def test_training_makes_the_files_certificate_hold() -> None:
    """More images are proven at 10/255 than without bounds."""
    x, y = digits()
    shares = []
    for eps, kappa in ((Ramp(0.0, 12 / 255, 1, 4), Ramp(1.0, 0.5, 1, 4)), (0.0, 1.0)):
        model = dense_on_a_convolution()
        training = IntervalTraining(model, eps, kappa)
        training.compile(keras.optimizers.Adam(1e-2), LOSS)
        training.fit(x[:1024], y[:1024], 64, epochs=6, verbose=0)
        found = certify(model, x[1400:1500], y[1400:1500], "linf", "interval", max_steps=10)
        shares.append(found.certified_accuracy(10 / 255))
        assert found.clean_accuracy > 0.8
    assert shares[0] > shares[1] + 0.05
