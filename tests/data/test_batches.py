"""The pipeline: what is in a batch, its order, augmentation, resuming, and slices for workers."""

import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from scipy import stats

from tfdq.data import Dataset, load, pipeline, steps_per_epoch


@pytest.fixture(scope="module")
def numbered() -> Dataset:
    """103 training images that carry their number in every pixel (0..102) and in the label."""
    numbers = np.arange(103)
    x = np.broadcast_to(numbers[:, None, None, None], (103, 6, 5, 2)).astype(np.uint8)
    return Dataset(x, numbers, x[:41], numbers[:41], 103, "numbered", "made up")


def collect(batches):
    x, y = zip(*batches.as_numpy_iterator(), strict=True)
    return np.concatenate(x), np.concatenate(y)


def test_training_batches(numbered):
    batches = pipeline(numbered, 16, epochs=2)
    assert steps_per_epoch(numbered, 16) == 6
    assert batches.cardinality() == 12
    x, y = collect(batches)
    assert x.dtype == np.float32
    assert y.dtype == np.int64
    # Every image is its own, scaled exactly, and no epoch holds one twice.
    pixels = (y.astype(np.float32) / np.float32(255))[:, None, None, None]
    np.testing.assert_array_equal(x, np.broadcast_to(pixels, x.shape))
    first, second = y[:96], y[96:]
    assert len(set(first)) == len(set(second)) == 96
    assert not np.array_equal(first, second)
    assert set(first) != set(second), "the seven images left out should not always be the same"


def test_test_batches_are_everything_in_order(numbered):
    batches = pipeline(numbered, 16, split="test")
    assert batches.cardinality() == steps_per_epoch(numbered, 16, "test") == 3
    x, y = collect(batches)
    np.testing.assert_array_equal(y, np.arange(41))
    np.testing.assert_array_equal(np.round(x * 255), numbered.x_test)


def test_every_byte_is_divided_by_255_and_rounded_once():
    levels = np.arange(256, dtype=np.uint8)[:, None, None, None]
    dataset = Dataset(levels, np.arange(256), levels, np.arange(256), 256, "levels", "made up")
    x, _ = collect(pipeline(dataset, 256, split="test"))
    np.testing.assert_array_equal(x.ravel(), (np.arange(256) / 255).astype(np.float32))


def test_keeping_the_remainder_of_shuffled_epochs(numbered):
    batches = pipeline(numbered, 16, epochs=2, drop_remainder=False)
    sizes = [len(y) for _, y in batches.as_numpy_iterator()]
    assert sizes == [16] * 6 + [7] + [16] * 6 + [7]
    _, y = collect(batches)
    assert sorted(y[:103]) == sorted(y[103:]) == list(range(103))


def test_order_is_uniform():
    """Each image comes first equally often, and no pair of neighbours is favoured."""
    n = 8
    x = np.zeros((n, 1, 1, 1), np.uint8)
    dataset = Dataset(x, np.arange(n), x, np.arange(n), n, "eight", "made up")
    epochs = 4000
    _, y = collect(pipeline(dataset, n, epochs=epochs, seed=5))
    orders = y.reshape(epochs, n)
    counts = np.stack([np.bincount(orders[:, i], minlength=n) for i in range(n)])
    expected = epochs / n
    # Chi-square with (n - 1)^2 = 49 degrees of freedom: 99.9 % quantile 85.35.
    assert ((counts - expected) ** 2 / expected).sum() < 85.35
    pairs = np.bincount((orders[:, :-1] * n + orders[:, 1:]).ravel(), minlength=n * n)
    pairs = pairs.reshape(n, n)[~np.eye(n, dtype=bool)]
    assert np.abs(pairs / pairs.mean() - 1).max() < 5 / np.sqrt(pairs.mean())


@pytest.mark.parametrize("augment", ["none", "pad_crop", "pad_crop_flip"])
def test_same_seed_same_batches_and_resuming(augment):
    digits = load("digits")
    whole = list(pipeline(digits, 32, augment, seed=7).take(50).as_numpy_iterator())
    again = list(pipeline(digits, 32, augment, seed=7, start_step=43).take(7).as_numpy_iterator())
    for (x, y), (x_again, y_again) in zip(whole[43:], again, strict=True):
        np.testing.assert_array_equal(x, x_again)
        np.testing.assert_array_equal(y, y_again)
    other = next(pipeline(digits, 32, augment, seed=8).as_numpy_iterator())
    assert not np.array_equal(other[1], whole[0][1])


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize(("size", "pad"), [((8, 7), 1), ((12, 10), 2)])
def test_augmentation_is_a_crop_of_the_padded_image(size, pad, flip):
    rng = np.random.default_rng(0)
    height, width = size
    x = rng.integers(1, 256, (1, *size, 3), dtype=np.uint8)
    dataset = Dataset(np.repeat(x, 4, 0), [0, 1, 0, 1], x, [0], 2, "one", "made up")
    padded = np.pad(x[0], ((pad, pad), (pad, pad), (0, 0)))
    shifts = 2 * pad + 1
    views = {}
    for mirrored in range(2):
        for dy in range(shifts):
            for dx in range(shifts):
                crop = padded[dy : dy + height, dx : dx + width]
                view = np.ascontiguousarray(crop[:, ::-1] if mirrored else crop)
                views[view.tobytes()] = (mirrored * shifts + dy) * shifts + dx
    images, _ = collect(pipeline(dataset, 4, "pad_crop_flip" if flip else "pad_crop", epochs=1000))
    seen = [views[image.tobytes()] for image in np.round(images * 255).astype(np.uint8)]
    # Every shift (and side) equally often.
    cells = shifts**2 * (2 if flip else 1)
    counts = np.bincount(seen, minlength=cells)
    assert len(counts) == cells
    assert stats.chisquare(counts).pvalue > 0.001


@pytest.mark.parametrize("side", [1, 4, 5])
def test_cut_out_blackens_a_square_around_any_pixel(side):
    """Each image is one of height x width, one for each centre, and all of them come up."""
    white = np.full((64, 6, 5, 2), 255, np.uint8)
    dataset = Dataset(white, np.arange(64) % 2, white, np.arange(64) % 2, 2, "white", "made up")
    x, _ = collect(pipeline(dataset, 64, seed=3, epochs=30, cutout=side))
    expected = set()
    for row, column in np.ndindex(6, 5):
        image = np.pad(np.ones((6, 5, 2), np.float32), ((8, 8), (8, 8), (0, 0)))
        top, left = row + 8 - side // 2, column + 8 - side // 2
        image[top : top + side, left : left + side] = 0
        expected.add(image[8:-8, 8:-8].tobytes())
    assert {image.tobytes() for image in x} == expected
    np.testing.assert_array_equal(
        x, collect(pipeline(dataset, 64, seed=3, epochs=30, cutout=side))[0]
    )


def test_cut_out_leaves_order_and_shifts_as_they_are(numbered):
    plain, cut = (
        collect(pipeline(numbered, 16, "pad_crop", seed=1, epochs=2, cutout=side))
        for side in (0, 2)
    )
    np.testing.assert_array_equal(plain[1], cut[1])
    kept = cut[0] != 0
    np.testing.assert_array_equal(plain[0][kept], cut[0][kept])
    assert ((cut[0] == 0) & (plain[0] != 0)).any()
    parts = [
        collect(pipeline(numbered, 16, seed=1, epochs=2, cutout=2, shard=(index, 2)))[0]
        for index in (0, 1)
    ]
    whole = collect(pipeline(numbered, 16, seed=1, epochs=2, cutout=2))[0].reshape(12, 2, 8, -1)
    np.testing.assert_array_equal(whole, np.stack([p.reshape(12, 8, -1) for p in parts], axis=1))


def test_slices_of_the_workers_make_the_batch(numbered):
    for split in ("train", "test"):
        whole = pipeline(numbered, 12, "pad_crop_flip", split=split, epochs=2)
        parts = [
            pipeline(numbered, 12, "pad_crop_flip", split=split, epochs=2, shard=(i, 3))
            for i in range(3)
        ]
        for (x, y), *slices in zip(whole, *parts, strict=True):
            np.testing.assert_array_equal(x, np.concatenate([s[0] for s in slices]))
            np.testing.assert_array_equal(y, np.concatenate([s[1] for s in slices]))


def test_shapes_are_static_where_batches_are_full(numbered):
    assert pipeline(numbered, 16).element_spec[0] == tf.TensorSpec((16, 6, 5, 2), tf.float32)
    test = pipeline(numbered, 16, split="test").element_spec[0]
    assert test == tf.TensorSpec((None, 6, 5, 2), tf.float32)
    assert pipeline(numbered, 16).cardinality() == tf.data.INFINITE_CARDINALITY


TWO_DEVICES = """
    import numpy as np
    import tensorflow as tf

    cpu = tf.config.list_physical_devices("CPU")[0]
    tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
    from tfdq.data import load, pipeline

    strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
    digits = load("digits")

    def replicas(value):
        return np.concatenate([v.numpy() for v in strategy.experimental_local_results(value)])

    def sharded(context):
        index, count = context.input_pipeline_id, context.num_input_pipelines
        return pipeline(digits, 64, "pad_crop", seed=2, shard=(index, count))

    for split in ("train", "test"):
        with strategy.scope():
            batches = pipeline(digits, 64, "pad_crop", seed=2, split=split).take(6)
        spread = strategy.experimental_distribute_dataset(batches)
        for one, two in zip(batches, spread, strict=True):
            assert len(strategy.experimental_local_results(two[0])) == 2
            np.testing.assert_array_equal(one[0], replicas(two[0]))
            np.testing.assert_array_equal(one[1], replicas(two[1]))
    # One worker with two replicas is one input pipeline: the slice is the whole batch.
    spread = iter(strategy.distribute_datasets_from_function(sharded))
    batch = next(spread)
    whole = next(iter(pipeline(digits, 64, "pad_crop", seed=2)))
    first = strategy.experimental_local_results(batch[0])[0]
    np.testing.assert_array_equal(first, whole[0])
    print("equal")
"""


def test_mirrored_replicas_see_the_batch_of_one_device():
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(TWO_DEVICES)],
        cwd=root,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.stdout.strip() == "equal", done.stderr[-3000:]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"batch_size": 0}, "batch_size is 0"),
        ({"batch_size": 2.5}, "batch_size is 2.5"),
        ({"batch_size": 104}, "only 103 train images"),
        ({"augment": "mixup"}, "augment is 'mixup'"),
        ({"seed": -1}, "seed is -1"),
        ({"seed": 2**31}, "seed is 2147483648"),
        ({"split": "validation"}, "split is 'validation'"),
        ({"epochs": 0}, "epochs is 0"),
        ({"start_step": -1}, "start_step is -1"),
        ({"start_step": 7, "epochs": 1}, r"batches \(6\)"),
        ({"shard": (2, 2)}, r"shard is \(2, 2\)"),
        ({"shard": (0, 3)}, "multiple of the 3 shards"),
        ({"cutout": -1}, "cutout is -1"),
    ],
)
def test_bad_arguments_are_named(numbered, arguments, words):
    with pytest.raises(ValueError, match=words):
        pipeline(numbered, **({"batch_size": 16} | arguments))
