"""Feature squeezing in the integer file, against SciPy's filter and the trained squeezers."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import median_filter

from tests.tflite_export.trained import digits
from tfdq.description import Requantize
from tfdq.grid import Grid
from tflite_export.files.validate import check_graph
from tflite_export.files.write import write
from tflite_export.lowering.assemble import Assembler
from tflite_export.lowering.squeezing import median, median_networks, regrid
from tflite_export.ops.spec import KERNEL_SETS
from tflite_export.runtime.interpreter import Interpreter
from tflite_export.runtime.reference import run

GRID = Grid(1 / 255, -128)


def _median_graph(size, shape):
    assembler = Assembler("median")
    source = assembler.value("image", (-1, *shape), GRID)
    graph = assembler.graph
    graph.inputs, graph.outputs = (source,), (median(assembler, source, size, "median"),)
    check_graph(graph)
    return graph


@pytest.mark.parametrize("size", range(2, 8))
def test_network_finds_the_median_of_zeros_and_ones(size):
    """Knuth's 0-1 principle: a network that is right on all zeros and ones is right on all."""
    count = size * size
    numbers = np.arange(2**count) if count <= 16 else None
    if numbers is None:
        bits = np.random.default_rng(size).integers(0, 2, (20000, count)).astype(np.int8)
        bits[: count + 1] = np.tri(count + 1, count, -1)
    else:
        bits = ((numbers[:, None] >> np.arange(count)) & 1).astype(np.int8)
    column, ranks, window, middle = median_networks(size)
    choose = {"MINIMUM": np.minimum, "MAXIMUM": np.maximum}

    def step(kind, left, right):
        return choose[kind](left, right)

    leaves = []
    for first in range(0, count, size):
        part = bits[:, first : first + size].T
        leaves.extend(column.evaluate(ranks, lambda row, part=part: part[row], step))
    (found,) = window.evaluate([middle], lambda leaf: leaves[leaf], step)
    np.testing.assert_array_equal(found, bits.sum(1) >= count - count // 2)


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_median_equals_scipy_in_every_kernel_set(data):
    size = data.draw(st.integers(2, 5), "size")
    sides = st.integers(size, 9)
    shape = (data.draw(sides, "height"), data.draw(sides, "width"), data.draw(st.integers(1, 3)))
    seed = data.draw(st.integers(0, 2**31), "seed")
    levels = data.draw(st.sampled_from([2, 5, 256]), "levels")
    drawn = np.random.default_rng(seed).integers(0, levels, (2, *shape))
    images = (drawn - 128).astype(np.int8)
    expected = median_filter(images, size=(1, size, size, 1), mode="reflect")
    graph = _median_graph(size, shape)
    for kernels in KERNEL_SETS:
        np.testing.assert_array_equal(run(graph, [images], kernels)[graph.outputs[0]], expected)


@pytest.mark.parametrize("size", [2, 3, 5])
@pytest.mark.parametrize("kernels", ["default", "builtin", "reference"])
def test_median_equals_scipy_in_the_runtime(size, kernels):
    images = np.random.default_rng(size).integers(-128, 128, (7, 9, 6, 3)).astype(np.int8)
    expected = median_filter(images, size=(1, size, size, 1), mode="reflect")
    graph = _median_graph(size, images.shape[1:])
    (found,) = Interpreter(write(graph), kernels=kernels).invoke([images])
    np.testing.assert_array_equal(found, expected)


def test_twin_has_the_gradient_of_the_picked_pixel():
    import tensorflow as tf

    from tflite_export.twin.integer_twin import IntegerTwin

    image = np.random.default_rng(0).permutation(9).reshape(1, 3, 3, 1).astype(np.float32) / 9
    twin = IntegerTwin(_median_graph(3, (3, 3, 1)))
    x = tf.constant(image)
    with tf.GradientTape() as tape:
        tape.watch(x)
        middle = twin(x)[0, 1, 1, 0]
    picked = np.abs(image - np.median(image)) < 1e-6
    np.testing.assert_allclose(tape.gradient(middle, x).numpy(), picked, atol=1e-3)


def test_twin_shares_the_gradient_among_pixels_that_tie():
    import tensorflow as tf

    from tflite_export.twin.integer_twin import IntegerTwin

    levels = np.array([3, 1, 5, 3, 3, 9, 0, 3, 8]).reshape(1, 3, 3, 1)
    twin = IntegerTwin(_median_graph(3, (3, 3, 1)))
    x = tf.constant(levels / 15, tf.float32)
    with tf.GradientTape() as tape:
        tape.watch(x)
        middle = twin(x)[0, 1, 1, 0]
    gradient = tape.gradient(middle, x).numpy()
    assert gradient.sum() == pytest.approx(1.0, abs=1e-3)
    assert gradient[levels == 3].min() > 0.05
    np.testing.assert_allclose(gradient[levels != 3], 0.0, atol=2e-3)


def _network(name="image"):
    import tf_keras

    layers = tf_keras.layers
    image = tf_keras.Input((8, 8, 1), name=name)
    x = layers.Conv2D(6, 3, padding="same", use_bias=False)(image)
    x = layers.ReLU()(layers.BatchNormalization()(x))
    x = layers.Flatten()(layers.MaxPooling2D()(x))
    return tf_keras.Model(image, layers.Dense(10)(x))


def _fit(model):
    import tf_keras

    images, labels = digits()
    loss = tf_keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(tf_keras.optimizers.Adam(3e-3), loss)
    model.fit(images[:1400], labels[:1400], 64, 3, verbose=0)
    return model


def _squeezers(*numbers):
    """Squeezers of a list: the bits of a bit depth, or "m" and the side of a median."""
    from tfdq.robustness import BitDepthSqueeze, MedianSqueeze

    return [
        MedianSqueeze(int(text[1:])) if text[0] == "m" else BitDepthSqueeze(int(text))
        for text in numbers
    ]


@pytest.fixture(scope="module")
def plain():
    """A quantization-aware model trained without squeezers."""
    import tf_keras

    import tfdq

    tf_keras.utils.set_random_seed(0)
    return _fit(
        tfdq.quantize_model(
            _network(), on="kernel", target=1.0, activation_bits=4, input_range=(0.0, 1.0)
        )
    )


def _all_equal(model, exported):
    """The trained model, the twin and the runtime give the same integers on every image."""
    from tflite_export import IntegerTwin, verify

    images = digits()[0][1400:]
    noise = np.random.default_rng(1).random((200, 8, 8, 1), np.float32)
    for x in (images, noise):
        report = verify(model, exported, x)
        assert report.exact
        assert [c.identical for c in report.outputs if c.left == "model"][:2] == [1.0, 1.0]
        assert report.worst_layer().identical == 1.0
    content = exported.content
    for kernels in ("builtin", "reference"):
        twin = IntegerTwin(exported, kernels=kernels)
        runtime = Interpreter(content, kernels=kernels)
        expected = np.asarray(runtime.integers(images))
        np.testing.assert_array_equal(twin.integers(images).numpy(), expected)


@pytest.mark.parametrize("numbers", [("1",), ("3",), ("m3",), ("4", "m2"), ("m2", "5")])
def test_in_front_of_a_trained_network(plain, numbers):
    from tfdq.robustness import squeeze
    from tflite_export import convert

    model = squeeze(plain, _squeezers(*numbers))
    exported = convert(model, calibration=digits()[0][1400:])
    _all_equal(model, exported)
    images = digits()[0][1400:1500]
    found = Interpreter(exported.content).integers(images)
    assert (found != Interpreter(convert(plain).content).integers(images)).any()


@pytest.mark.parametrize("numbers", [("4", "m3"), ("m2", "2")])
def test_trained_with_squeezers(numbers):
    import tf_keras

    import tfdq
    from tfdq.robustness import squeeze
    from tflite_export import convert
    from tflite_export.files.proof import integer_only

    tf_keras.utils.set_random_seed(1)
    model = _fit(tfdq.quantize_model(squeeze(_network(), _squeezers(*numbers)), activation_bits=4))
    exported = convert(model, calibration=digits()[0][1400:])
    _all_equal(model, exported)
    assert integer_only(exported.content)
    bits = {entry["operator"]: entry["activation_bits"] for entry in exported.quantization}
    assert bits["DEPTHWISE_CONV_2D"] == int(numbers["m" in numbers[0]])


@pytest.mark.parametrize("interface", ["uint8", "float32"])
def test_other_inputs(plain, interface):
    from tfdq.robustness import squeeze
    from tflite_export import convert, verify

    model = squeeze(plain, _squeezers("4", "m2"))
    exported = convert(model, input_type=interface, calibration=digits()[0][1400:])
    assert verify(model, exported, digits()[0][:300]).exact


@pytest.mark.parametrize("bits", range(1, 9))
@pytest.mark.parametrize("shape", [(16, 16, 1), (7,)])
def test_bit_depth_of_every_integer_in_the_runtime(bits, shape):
    """`rint(q * (2**bits - 1) / 255)`: a tie would need `2 q (2**bits - 1) = 255 (2 k + 1)`."""
    steps = 2**bits - 1
    assembler = Assembler("levels")
    source = assembler.value("image", (-1, *shape), GRID)
    target = Grid(1 / steps, -128, -128, -128 + steps)
    levels = np.arange(256) * steps
    wanted = (levels + 127) // 255  # in whole numbers; no tie, so how they round is no matter

    reals = np.arange(256, dtype=np.float32) * np.float32(GRID.scale)
    table = Requantize(0, (np.rint(reals * steps) / steps).astype(np.float32))
    result = regrid(assembler, source, target, "levels", table)
    graph = assembler.graph
    graph.inputs, graph.outputs = (source,), (result,)
    if bits == 8:
        assert not graph.operators
        return
    check_graph(graph)
    images = np.arange(-128, 128, dtype=np.int8)
    feed = np.broadcast_to(images.reshape(256, *(1 for _ in shape)), (256, *shape)).copy()
    for kernels in ("default", "builtin", "reference"):
        (found,) = Interpreter(write(graph), kernels=kernels).invoke([feed])
        if bits == 7 and kernels != "default":
            continue  # 1 / 255 * 127 = 0.498; rounded twice it is 1
        steps_found = found.reshape(256, -1).astype(int) - graph.tensors[result].zero_point
        np.testing.assert_array_equal(
            steps_found, np.repeat(wanted[:, None], steps_found.shape[1], 1)
        )


def test_what_has_no_integer_form_is_refused(plain):
    import tf_keras

    import tfdq
    from tfdq.robustness import BitDepthSqueeze, squeeze
    from tflite_export import convert

    with pytest.raises(ValueError, match="no level at 0"):
        tfdq.quantize_model(squeeze(_network(), [BitDepthSqueeze(4, (-1.0, 1.0))]))
    with pytest.raises(ValueError, match="no level at 0"):
        convert(squeeze(plain, [BitDepthSqueeze(4, (-1.0, 1.0))]))
    image = tf_keras.Input((8, 8, 1))
    by_hand = tf_keras.Model(image, plain(BitDepthSqueeze(4)(image)))
    with pytest.raises(ValueError, match="images that are not quantized"):
        convert(by_hand)
    assembler = Assembler("tie")
    source = assembler.value("image", (-1, 8), Grid(1 / 254, -128))

    reals = np.arange(256, dtype=np.float32) / np.float32(254)
    upward = Requantize(0, np.floor(reals + 0.5).astype(np.float32))
    with pytest.raises(ValueError, match="1 of 256 would differ"):
        regrid(assembler, source, Grid(1.0, -128, -128, -127), "tie", upward)
    short = Requantize(0, upward.values[:255])
    with pytest.raises(ValueError, match="table of 255 values"):
        regrid(assembler, source, Grid(1.0, -128, -128, -127), "tie", short)
