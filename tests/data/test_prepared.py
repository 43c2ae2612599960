"""TFDS data sets: from shards this file writes in their format, and from a prepared folder."""

import io
import json
import os

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from tfdq import data


def encode(image, encoding):
    stream = io.BytesIO()
    grey = image.shape[-1] == 1
    Image.fromarray(image[..., 0] if grey else image).save(stream, encoding)
    return stream.getvalue()


def write_prepared(root, name, version, splits, classes=10, encoding="PNG", shards=2):
    """Write a prepared TFDS folder with TensorFlow's record writer and hand-made metadata."""
    folder = root / name / version
    folder.mkdir(parents=True)
    infos = []
    for split, (images, labels) in splits.items():
        parts = np.array_split(np.arange(len(labels)), shards)
        for i, part in enumerate(parts):
            path = folder / f"{name}-{split}.tfrecord-{i:05d}-of-{shards:05d}"
            with tf.io.TFRecordWriter(str(path)) as writer:
                for j in part:
                    features = {
                        "image": tf.train.Feature(
                            bytes_list=tf.train.BytesList(value=[encode(images[j], encoding)])
                        ),
                        "label": tf.train.Feature(int64_list=tf.train.Int64List(value=[labels[j]])),
                    }
                    example = tf.train.Example(features=tf.train.Features(feature=features))
                    writer.write(example.SerializeToString())
        infos.append(
            {
                "name": split,
                "filepathTemplate": "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}",
                "numBytes": "1",
                "shardLengths": [str(len(part)) for part in parts],
            }
        )
    (folder / "dataset_info.json").write_text(
        json.dumps({"name": name, "version": version, "fileFormat": "tfrecord", "splits": infos})
    )
    package = "tensorflow_datasets.core.features"
    dimensions = [str(n) for n in images.shape[1:]]
    image = {
        "pythonClassName": f"{package}.image_feature.Image",
        "image": {"dtype": "uint8", "shape": {"dimensions": dimensions}},
    }
    label = {
        "pythonClassName": f"{package}.class_label_feature.ClassLabel",
        "classLabel": {"numClasses": str(classes)},
    }
    (folder / "features.json").write_text(
        json.dumps(
            {
                "pythonClassName": f"{package}.features_dict.FeaturesDict",
                "featuresDict": {"features": {"image": image, "label": label}},
            }
        )
    )
    (folder / "label.labels.txt").write_text("\n".join(f"class{i}" for i in range(classes)))


def draw(count, shape=(32, 32, 3), classes=10, seed=0):
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (count, *shape), dtype=np.uint8), rng.integers(0, classes, count)


def test_svhn_with_and_without_extra(tmp_path):
    splits = {"train": draw(7), "test": draw(5, seed=1), "extra": draw(9, seed=2)}
    write_prepared(tmp_path, "svhn_cropped", "3.1.0", splits)
    svhn = data.load("svhn_cropped", data_dir=tmp_path)
    np.testing.assert_array_equal(svhn.x_train, splits["train"][0])
    np.testing.assert_array_equal(svhn.y_test, splits["test"][1])
    assert (svhn.name, svhn.classes, svhn.class_names[9]) == ("svhn_cropped", 10, "class9")
    assert svhn.source == "TFDS svhn_cropped/3.1.0"
    more = data.load("svhn_cropped+extra", data_dir=str(tmp_path))
    np.testing.assert_array_equal(more.x_train[:7], svhn.x_train)
    np.testing.assert_array_equal(more.x_train[7:], splits["extra"][0])
    np.testing.assert_array_equal(more.y_train[7:], splits["extra"][1])
    np.testing.assert_array_equal(more.x_test, svhn.x_test)


@pytest.mark.parametrize(
    ("name", "shape", "classes"),
    [("cifar100", (32, 32, 3), 100), ("mnist", (28, 28, 1), 10)],
)
def test_other_names(tmp_path, name, shape, classes):
    images, labels = draw(6, shape, classes)
    part = images, labels
    write_prepared(tmp_path, name, "3.0.2", {"train": part, "test": part}, classes)
    loaded = data.load(name, tmp_path)
    np.testing.assert_array_equal(loaded.x_train, images)
    assert loaded.classes == classes


def test_the_newest_version_is_taken(tmp_path):
    for version, seed in (("3.0.2", 0), ("3.0.10", 1)):
        part = draw(4, seed=seed)
        write_prepared(tmp_path, "cifar10", version, {"train": part, "test": part})
    (tmp_path / "cifar10" / "4.0.0.incompleteX").mkdir()
    loaded = data.load("cifar10", tmp_path)
    assert loaded.source == "TFDS cifar10/3.0.10"
    np.testing.assert_array_equal(loaded.x_train, draw(4, seed=1)[0])


def test_a_jpeg_copy_is_called_one(tmp_path):
    write_prepared(
        tmp_path, "cifar10", "3.0.2", {"train": draw(4), "test": draw(4)}, encoding="JPEG"
    )
    loaded = data.load("cifar10", tmp_path)
    assert loaded.name == "cifar10 (JPEG copy)"
    assert "recompressed" in loaded.source


def test_missing_data_says_what_to_run(tmp_path):
    with pytest.raises(FileNotFoundError, match=rf"tfds build cifar10 --data_dir {tmp_path}"):
        data.load("cifar10", tmp_path)
    write_prepared(tmp_path, "svhn_cropped", "3.1.0", {"train": draw(4), "test": draw(4)})
    with pytest.raises(FileNotFoundError, match="no split extra"):
        data.load("svhn_cropped+extra", tmp_path)


def test_a_failed_download_says_what_to_do(tmp_path, monkeypatch):
    import tensorflow_datasets as tfds

    def no_network(*args, **kwargs):
        raise ConnectionError("no route to host")

    monkeypatch.setattr(tfds.core.DatasetBuilder, "download_and_prepare", no_network)
    with pytest.raises(FileNotFoundError, match=r"no route to host.*tfds build cifar10"):
        data.load("cifar10", tmp_path, download=True)


def test_damaged_shards_are_noticed(tmp_path):
    write_prepared(tmp_path, "cifar10", "3.0.2", {"train": draw(6), "test": draw(6)})
    shard = tmp_path / "cifar10" / "3.0.2" / "cifar10-train.tfrecord-00001-of-00002"
    whole = shard.read_bytes()
    shard.write_bytes(whole[:-100])
    with pytest.raises(ValueError, match=r"split train in .*can't be read .*truncated"):
        data.load("cifar10", tmp_path)
    shard.write_bytes(b"")
    with pytest.raises(ValueError, match=r"split train in .*only 3 elements"):
        data.load("cifar10", tmp_path)


@pytest.mark.skipif("TFDQ_DATA_DIR" not in os.environ, reason="TFDQ_DATA_DIR is not set")
def test_a_prepared_cifar10():
    cifar = data.load("cifar10", os.environ["TFDQ_DATA_DIR"])
    assert cifar.x_train.shape == (50_000, 32, 32, 3)
    assert cifar.x_test.shape == (10_000, 32, 32, 3)
    assert np.bincount(cifar.y_train).tolist() == [5000] * 10
    assert cifar.class_names[:2] == ("airplane", "automobile")


@pytest.mark.skipif(
    not {"TFDQ_DATA_DIR", "TFDQ_EXACT_CIFAR10"} <= set(os.environ),
    reason="TFDQ_DATA_DIR and TFDQ_EXACT_CIFAR10 (an .npz of exact test images) are not both set",
)
def test_the_copy_is_near_the_exact_images():
    copy = data.load("cifar10", os.environ["TFDQ_DATA_DIR"])
    with np.load(os.environ["TFDQ_EXACT_CIFAR10"]) as exact:
        images, labels = exact["test_x"][:40], exact["test_y"][:40]
    flat = copy.x_test.reshape(len(copy.x_test), -1)
    errors = []
    for image, label in zip(images.reshape(40, -1).astype(np.float32), labels, strict=True):
        distances = np.abs(flat - image).mean(axis=1)
        nearest = int(distances.argmin())
        assert copy.y_test[nearest] == label
        errors.append(distances[nearest])
        assert np.partition(distances, 1)[1] > 2 * errors[-1]
    assert 3 < np.mean(errors) < 9  # of 255: recompressed, so no figure of it is CIFAR-10's
    assert copy.source.endswith("images recompressed as JPEG")
