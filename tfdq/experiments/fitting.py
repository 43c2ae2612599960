"""Fit images to a model: their size, channels, the order of the classes, the input range."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from tflite_export.ir.limits import Limits

if TYPE_CHECKING:
    from tfdq.data import Dataset
    from tfdq.robustness.input_ranges import InputRange, RangeTrials

Resize = Literal["stretch", "shorter-side"]
Channels = Literal["rgb", "bgr"]


@dataclass(frozen=True)
class Images:
    """What was told of images.

    Attributes:
        data: name or path of the data set.
        data_dir: where TFDS data sets are prepared.
        image_size: (height, width), or with channels, that a folder's images get; None: what a
            ``.tflite`` file takes, if there is one.
        limit: test images to use; None for all.
        seed: of every choice.
        resize: how a folder's images are resized.
        channels: their order for the model.
        labels: file with the names of the outputs, or None.
    """

    data: str
    data_dir: Path | None
    image_size: tuple[int, ...] | None
    limit: int | None
    seed: int
    resize: Resize
    channels: Channels
    labels: Path | None

    def load(self, models: Mapping[Path, Any], *helpers: tuple[Path | None, Any]) -> Dataset:
        """Return the data set, as the models take it.

        Args:
            models: those that are run or attacked.
            helpers: others that must take the same images.

        Raises:
            ValueError: the images, or the names or number of the classes, do not fit a model.
        """
        from tfdq.data import load

        dataset = load(
            self.data,
            self.data_dir,
            image_size=self.image_size or self._size_taken(models),
            resize=self.resize,
            channels=self.channels,
        )
        check_models(dataset, *models.items(), *helpers)
        dataset = self._in_order(dataset, models)
        if self.limit is not None and self.limit < len(dataset.y_test):
            dataset = dataset.subset(test=self.limit, seed=self.seed)
        return dataset

    def _size_taken(self, models: Mapping[Path, Any]) -> tuple[int, ...] | None:
        """Return height, width and channels that the first .tflite file takes, for a folder."""
        if not Path(self.data).expanduser().is_dir():
            return None
        for model in models.values():
            if hasattr(model, "input_tensors"):
                shape = tuple(model.input_tensors[0].shape[1:])
                if len(shape) == 3 and shape[2] in (1, 3) and min(shape) > 0:
                    return shape
        return None

    def _in_order(self, dataset: Dataset, models: Mapping[Path, Any]) -> Dataset:
        """Return the data set with its classes numbered as the outputs are."""
        from tfdq.data.label_files import labels_in_model_file, read_labels

        if self.labels is not None:
            return dataset.in_order(read_labels(self.labels), str(self.labels))
        for path, model in models.items():
            names = getattr(model, "labels", None)
            if path.suffix == ".tflite":
                names = names or labels_in_model_file(path)
            if names and dataset.class_names:
                return dataset.in_order(names, str(path))
        return dataset


def check_models(dataset: Dataset, *models: tuple[Path | None, Any]) -> None:
    """Check that models take the images of a data set, and have one output for each class.

    Args:
        dataset: the images.
        models: each with its path; (None, None) where none was given.

    Raises:
        ValueError: one does not fit.
    """
    for path, model in models:
        if model is not None:
            check_fit(model, str(path), dataset)


def check_fit(model: Any, name: str, dataset: Dataset) -> None:
    """Check that a model takes the images of a data set, and has one output for each class.

    Args:
        model: a Keras model of one input, a ``tflite_export.IntegerTwin`` or an ``Interpreter``.
        name: what it is called in the error.
        dataset: the images.

    Raises:
        ValueError: it does not fit; says what does.
    """
    if hasattr(model, "input_tensors"):
        from tflite_export.ir.decision import without_decision

        scores = without_decision(model.graph)
        shape, outputs = (scores.tensors[i[0]].shape for i in (scores.inputs, scores.outputs))
    else:
        shape, outputs = model.input_shape, model.output_shape
    if isinstance(shape, (list, dict)) or isinstance(outputs, (list, dict)):
        raise ValueError(f"{name!r} has several inputs or outputs; use it from Python")
    wanted, given = tuple(shape[1:]), dataset.input_shape
    if len(wanted) > 1 and wanted == tuple(outputs[1:]):
        raise ValueError(
            f"{name!r} gives results of its input's shape, {wanted}, as an autoencoder does: it "
            "has no classes to attack"
        )
    sizes = zip(wanted, given, strict=False)
    if len(wanted) != len(given) or any(side not in (None, -1, real) for side, real in sizes):
        size = ""
        if len(wanted) == 3 and wanted[2] in (1, 3):
            channels = "" if wanted[2] == given[2] else f"x{wanted[2]}"
            height, width = (
                real if side in (None, -1) else side
                for side, real in zip(wanted[:2], given[:2], strict=True)
            )
            size = f"; --image-size {height}x{width}{channels} changes the images of a folder"
        if wanted == tuple(outputs[1:]):
            size += (
                "; its output has the shape of its input, as that of an autoencoder, which has no "
                "classes to attack"
            )
        raise ValueError(
            f"{name!r} takes images {wanted}, but those of {dataset.name} are {given}{size}"
        )
    # One output stands for two classes.
    if outputs[-1] != dataset.classes and (outputs[-1], dataset.classes) != (1, 2):
        raise ValueError(
            f"{name!r} has {outputs[-1]} outputs, but {dataset.name} has {dataset.classes} classes"
        )


def fitted(
    path: Path | None,
    opened: Any,
    dataset: Dataset,
    given: str | None,
    seed: int,
    limits: Limits,
    tell: Callable[[str], None],
) -> Any:
    """Return what is attacked, taking images in [0, 1]: the file with its twin, or the model.

    Args:
        path: of the model; None where none was given, and is returned.
        opened: the model, or the interpreter of a ``.tflite`` file.
        dataset: images to try ranges on.
        given: the value of --input-range.
        seed: of the choice of those images.
        limits: what the file may cost.
        tell: called with what ranges were tried, and which was taken.

    Raises:
        ValueError: no better than chance with the range that was given, or with any usual one.
    """
    if path is None:
        return None
    from tfdq.robustness import as_target

    is_file = path.suffix == ".tflite"
    if not is_file and given is None:
        return opened
    target = as_target(path, name=str(path), limits=limits) if is_file else as_target(opened)
    if takes_unit_range(opened, given):
        return target
    from tfdq.robustness.input_ranges import RescaledTarget

    return RescaledTarget(target, *input_range_of(path, opened, target, dataset, given, seed, tell))


def takes_unit_range(opened: Any, given: str | None) -> bool:
    """Return whether images in [0, 1] are what a model takes, as nothing else was declared.

    Of a ``.tflite`` file that holds only if `tflite_export` made it.
    """
    from tflite_export.files.metadata import MODEL_NAME

    made_here = not hasattr(opened, "input_tensors") or MODEL_NAME in opened.graph.metadata
    return given is None and made_here


def input_range_of(
    path: Path,
    opened: Any,
    target: Any,
    dataset: Dataset,
    given: str | None,
    seed: int,
    tell: Callable[[str], None],
) -> tuple[InputRange, RangeTrials]:
    """Return the range that a model takes, with the trials.

    Arguments and errors as for `fitted`; ``target`` is the model in its own units.
    """
    from tfdq.experiments.images import scaled
    from tfdq.robustness.input_ranges import USUAL, find_input_range, parse_input_range

    grid = input_grid(opened.graph) if hasattr(opened, "input_tensors") else None
    ranges = USUAL if given is None else (parse_input_range(given, grid),)
    x = scaled(dataset.x_test)
    trials = find_input_range(target, x, dataset.y_test, grid=grid, ranges=ranges, seed=seed)
    if trials.at_chance:
        raise ValueError(
            f"{str(path)!r}: {trials}; always answering the commonest class gives "
            f"{100 * trials.chance:.1f} %. Do the labels stand for the outputs (--labels FILE), is "
            "the range of the input (--input-range LOW,HIGH) or the order of the channels "
            "(--channels bgr) another one?"
        )
    tell(f"{path}: {trials}; taken: {trials.chosen.name}")
    return trials.chosen, trials


def input_grid(graph: Any) -> tuple[float, float] | None:
    """Return the smallest and largest value of the input of an integer graph, if it has a grid."""
    import numpy as np

    from tflite_export.ir.affine import dequantize
    from tflite_export.ir.graph import INTEGER_RANGES
    from tflite_export.runtime.input_check import grid_of

    tensor = grid_of(graph, graph.inputs[0])
    if tensor.quantization is None:
        return None
    low, high = dequantize(np.array(INTEGER_RANGES[tensor.dtype]), tensor)
    return float(low), float(high)
