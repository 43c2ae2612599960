"""What can be attacked: Keras models, the integer twin, ``.tflite`` files and functions."""

from __future__ import annotations

import abc
import os
import sys
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from tfdq.mistakes import WrongTypeError
from tfdq.robustness.gradients.interface import LossFunction
from tfdq.which_keras import is_keras3_model, is_tf_keras_model
from tflite_export.ir.graph import IntegerGraph
from tflite_export.ir.limits import DEFAULT, Limits
from tflite_export.runtime.input_check import check_inputs

if TYPE_CHECKING:
    from tfdq.robustness.gradients.interface import Gradients

Outputs = Literal["logits", "probabilities"]

DEFAULT_BATCH_SIZE = 256
_SMALLEST_PROBABILITY = 1e-12
_ENOUGH_SCORES = 16
_TARGET_ATTRIBUTE = "_tfdq_attack_target"


class Target(abc.ABC):
    """A classifier as the attacks see it: float32 images in, float32 logits out.

    Attributes:
        name: What reports call it.
        differentiable: Whether `logits_tensor` and `loss_gradient` work.
        batch_size: The most images handed to the classifier at once; larger arrays are cut up.
        queries: Images sent through a forward pass so far (gradients not included).
        gradients: Images differentiated so far.
        input_range: What images in [0, 1] are turned into for the model, as results keep it; None
            where images are given in the model's own units.
    """

    differentiable = False
    input_range: dict[str, Any] | None = None

    @property
    def variables(self) -> Sequence[Any]:
        """The Keras variables that `logits_tensor` reads."""
        return ()

    def __init__(self, name: str, batch_size: int, outputs: Outputs) -> None:
        """Sets the counters to zero; see `as_target` for the arguments."""
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        if outputs not in ("logits", "probabilities"):
            raise ValueError(f"outputs must be 'logits' or 'probabilities', got {outputs!r}")
        self.name = name
        self.batch_size = batch_size
        self.outputs = outputs
        self.queries = 0
        self.gradients = 0
        self._num_classes: int | None = None
        self._outputs_checked = False

    @property
    def num_classes(self) -> int:
        """The number of classes; known once the target has answered a first query."""
        if self._num_classes is None:
            raise ValueError(f"{self.name}: the number of classes is known after the first query")
        return self._num_classes

    @property
    def quantized(self) -> bool:
        """Whether a quantized tf_keras model, which attacks can look into, is behind it."""
        model: Any = getattr(self, "model", None)
        layers = model._flatten_layers() if is_tf_keras_model(model) else ()
        return any(hasattr(layer, "quantized_kernel") for layer in layers)

    def logits(self, x: np.ndarray) -> np.ndarray:
        """Logits of a batch of any size.

        Args:
            x: Images, [n, ...], cast to float32.

        Returns:
            float32 logits, [n, classes]. One score z for each image stands for two classes, of
            logits -z / 2 and z / 2: the second is predicted where z > 0.

        Raises:
            ValueError: The classifier returned something other than finite [n, classes] scores, or
                probabilities where logits were declared.
        """
        x = np.ascontiguousarray(x, dtype=np.float32)
        if len(x) == 0:
            return np.zeros((0, self._num_classes or 0), np.float32)
        parts = [
            self._scores(x[i : i + self.batch_size]) for i in range(0, len(x), self.batch_size)
        ]
        scores = np.concatenate(parts).astype(np.float32, copy=False)
        self.queries += len(x)
        if scores.ndim != 2 or scores.shape[1] < 1:
            raise ValueError(
                f"{self.name} returned shape {scores.shape} for {len(x)} images; a classifier with "
                "an output of shape [n, classes], or [n, 1] for two, is needed"
            )
        if not np.isfinite(scores).all():
            raise ValueError(f"{self.name} returned NaN or infinite scores")
        self._num_classes = max(scores.shape[1], 2)
        if self.outputs == "probabilities":
            if scores.shape[1] == 1:
                scores = np.concatenate([1 - scores, scores], axis=1)
            return np.log(np.maximum(scores, _SMALLEST_PROBABILITY))
        # One score alone lies in [0, 1] by chance too often to be judged on a few images.
        if not self._outputs_checked and (scores.shape[1] > 1 or len(x) >= _ENOUGH_SCORES):
            if looks_like_probabilities(scores):
                raise ValueError(probabilities_message(self.name))
            self._outputs_checked = True
        if scores.shape[1] == 1:
            return np.concatenate([-scores / 2, scores / 2], axis=1)
        return scores

    def predict(self, x: np.ndarray) -> np.ndarray:
        """Predicted classes, int64 [n]: the first of the largest logits."""
        return np.argmax(self.logits(x), axis=1)

    @abc.abstractmethod
    def _scores(self, x: np.ndarray) -> np.ndarray:
        """The raw outputs for at most `batch_size` images."""

    def logits_tensor(self, x: Any) -> Any:
        """Logits as a tensor of Keras' backend, which can differentiate them.

        Args:
            x: Images, a float32 tensor, [n, ...].

        Raises:
            ValueError: The target is a black box.
        """
        raise ValueError(no_gradients_message(self.name))

    def loss_gradient(
        self, loss: LossFunction, x: np.ndarray, y: np.ndarray, aux: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Logits, per-image losses and the gradient of each loss with respect to its image.

        Raises:
            ValueError: The target is a black box.
        """
        raise ValueError(no_gradients_message(self.name))


class BlackBoxTarget(Target):
    """A classifier known only by its answers: a ``.tflite`` file or any predict function."""

    def __init__(
        self,
        predict: Callable[[np.ndarray], Any],
        *,
        name: str,
        batch_size: int = DEFAULT_BATCH_SIZE,
        outputs: Outputs = "logits",
    ) -> None:
        """Wraps a function from float32 images to scores.

        Args:
            predict: Takes a float32 array [n, ...], returns scores [n, classes].
            name: What reports call it.
            batch_size: The most images per call.
            outputs: What the scores are.
        """
        super().__init__(name, batch_size, outputs)
        self._predict = predict

    def _scores(self, x: np.ndarray) -> np.ndarray:
        scores = np.asarray(self._predict(x))
        if scores.ndim and len(scores) != len(x):
            raise ValueError(
                f"{self.name} returned {len(scores)} rows for {len(x)} images: not one each"
            )
        return scores


class DifferentiableTarget(Target):
    """A computation on Keras' backend, compiled and always in inference mode."""

    differentiable = True

    def __init__(
        self,
        function: Callable[[Any], Any],
        *,
        name: str,
        batch_size: int = DEFAULT_BATCH_SIZE,
        outputs: Outputs = "logits",
        model: Any = None,
        values_of: Target | None = None,
        differentiated: Callable[[Any], Any] | None = None,
        logits_known: bool = False,
        values: Callable[[np.ndarray], np.ndarray] | None = None,
        variables: Callable[[], Sequence[Any]] = tuple,
    ) -> None:
        """Wraps a function from float32 images to logits.

        Args:
            function: Takes a float32 tensor [n, ...] of Keras' backend; on TensorFlow n is unknown
                while it is traced.
            name: What reports call it.
            batch_size: The most images per call.
            outputs: What the function returns; probabilities are turned into logits by a
                logarithm, through which gradients flow.
            model: The Keras model behind the function, for attacks that look inside.
            values_of: A target whose logits this one reproduces, with other gradients (BPDA): an
                attack then need not ask that target again.
            differentiated: The same function in a form that costs less to differentiate.
            logits_known: The function returns logits even where they look like probabilities.
            values: What answers queries in place of the function, from float32 images [n, ...]
                to the same scores: a runtime, where the function is its differentiable copy.
            variables: Gives the Keras variables that the function reads, asked for when they are
                needed; on JAX the value of any other is kept as it is at the first call.
        """
        super().__init__(name, batch_size, outputs)
        self.model = model
        self.values_of = values_of
        # Targets derived from this one, kept so that they are compiled once.
        self.companions: dict[Any, Any] = {}
        # A compiled twin cannot look at its images, so that is done here.
        graph = getattr(function if model is None else model, "graph", None)
        self.integers = graph if isinstance(graph, IntegerGraph) else None
        self._outputs_checked = logits_known
        self.function = function
        self._differentiated = differentiated or function
        self._values = values
        self._read = variables

    @property
    def variables(self) -> Sequence[Any]:
        """The Keras variables that the function reads."""
        return self._read()

    def logits_tensor(self, x: Any) -> Any:
        """Logits as a tensor; see `Target.logits_tensor`."""
        return self._as_logits(self.function(x))

    def _as_logits(self, scores: Any) -> Any:
        from keras import ops

        scores = ops.cast(scores, "float32")
        probabilities = self.outputs == "probabilities"
        if scores.shape[-1] == 1:
            # Halves, so that where one class' term of a loss underflows, the other's is left.
            pair = [1.0 - scores, scores] if probabilities else [-scores / 2.0, scores / 2.0]
            scores = ops.concatenate(pair, axis=-1)
        if probabilities:
            return ops.log(ops.maximum(scores, _SMALLEST_PROBABILITY))
        return scores

    @cached_property
    def _gradients(self) -> Gradients:
        from tfdq.robustness.gradients.choice import gradients_of

        return gradients_of(
            self.function,
            differentiated=lambda x: self._as_logits(self._differentiated(x)),
            variables=self.variables,
        )

    def _scores(self, x: np.ndarray) -> np.ndarray:
        if self._values is not None:
            return self._values(x)
        if self.integers is not None:
            check_inputs(x, self.integers)
        return self._gradients.values(x)

    def loss_gradient(
        self, loss: LossFunction, x: np.ndarray, y: np.ndarray, aux: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Logits, per-image losses and the gradient of each loss with respect to its image.

        Args:
            loss: `loss(logits, labels, aux)` -> [n]; compiled once for each function object, so
                pass a module-level function and vary `aux`.
            x: Images, [n, ...].
            y: Labels, [n].
            aux: One number per image for the loss (a target class, a temperature); zeros if None.

        Returns:
            float32 arrays: logits [n, classes], losses [n], gradients like `x`. Entries of the
            gradient that are NaN or infinite are set to 0: no step can follow them.
        """
        x = np.ascontiguousarray(x, dtype=np.float32)
        y = np.asarray(y, dtype=np.int32)
        aux = np.zeros(len(x), np.float32) if aux is None else np.asarray(aux, dtype=np.float32)
        size = self.batch_size
        outputs = [
            self._gradients.loss_gradient(loss, x[i : i + size], y[i : i + size], aux[i : i + size])
            for i in range(0, len(x), size)
        ]
        self.gradients += len(x)
        logits, losses, gradients = (
            parts[0] if len(parts) == 1 else np.concatenate(parts)
            for parts in zip(*outputs, strict=True)
        )
        return logits, losses, np.where(np.isfinite(gradients), gradients, np.float32(0))


def as_target(
    model: Any,
    *,
    name: str | None = None,
    batch_size: int = DEFAULT_BATCH_SIZE,
    outputs: Outputs = "logits",
    differentiable: bool | None = None,
    variables: Callable[[], Sequence[Any]] = tuple,
    limits: Limits = DEFAULT,
) -> Target:
    """Makes a `Target` of whatever can classify images.

    Args:
        model: A `Target` (returned as it is); a tf_keras or Keras 3 model (on any backend); a
            `tflite_export.IntegerTwin`; the path of a ``.tflite`` file, which LiteRT runs and its
            integer twin differentiates; an object with a ``predict`` method
            (`tflite_export.Interpreter`, scikit-learn); or a function.
        name: What reports call it; the model's own name by default.
        batch_size: The most images handed to the model at once.
        outputs: ``"probabilities"`` if the model ends in a softmax that cannot be taken off. A
            Keras model that ends in a softmax layer, or in a Dense layer with softmax activation,
            is attacked through the logits before it whichever is said; so is a file or a twin that
            ends in SOFTMAX or LOGISTIC.
        differentiable: Overrides the guess for callables: True for a function of tensors of Keras'
            backend, False for one of NumPy arrays.
        variables: Of a differentiable function, gives the Keras variables that it reads: on JAX
            the value of any other is kept as it is at the first call.
        limits: What a ``.tflite`` file may cost.

    Returns:
        The target. The one made of a Keras model is kept with the model, so that repeated attacks
        trace it once.

    Raises:
        TypeError: Nothing can be done with `model`.
        FileNotFoundError: The ``.tflite`` file does not exist.
        ValueError: A Keras model that does not take exactly one input and give one output; a
            tf_keras model while Keras runs on another backend than TensorFlow; a file that is
            damaged or costs more than its limits.
    """
    if isinstance(model, Target):
        return model
    if isinstance(model, str | os.PathLike):
        return _file_target(Path(model), name, batch_size, outputs, limits)
    if _is_keras_model(model):
        return _keras_target(model, name, batch_size, outputs)
    if name is None:
        name = str(getattr(model, "name", getattr(model, "__name__", type(model).__name__)))
    if differentiable is None:
        differentiable = _is_tensorflow_callable(model)
        if differentiable:
            _check_runs_on_tensorflow(name, "tf.Module")
    if differentiable:
        if not callable(model):
            raise WrongTypeError(
                f"differentiable=True needs a callable, got {type(model).__name__}"
            )
        return DifferentiableTarget(
            model, name=name, batch_size=batch_size, outputs=outputs, variables=variables
        )
    predict = model if not hasattr(model, "predict") else model.predict
    if not callable(predict):
        raise WrongTypeError(
            f"cannot attack a {type(model).__name__}: give a Keras model, an IntegerTwin, the path "
            "of a .tflite file, or a function from images to logits"
        )
    return BlackBoxTarget(predict, name=name, batch_size=batch_size, outputs=outputs)


def looks_like_probabilities(scores: np.ndarray) -> bool:
    """Whether every row is non-negative and sums to 1 (to half a step of 1/256 per class).

    Single scores, [n, 1], look like probabilities where all lie in 0..1.
    """
    tolerance = max(1e-3, scores.shape[1] / 512)
    sums = np.abs(scores.sum(axis=1, dtype=np.float64) - 1) <= tolerance
    whole = scores.shape[1] == 1 or bool(sums.all())
    return whole and bool((scores >= 0).all() and (scores <= 1 + 1e-6).all())


def probabilities_message(name: str) -> str:
    """The error for a model that returns probabilities where logits are expected."""
    return (
        f"{name} returns probabilities where logits are expected: a softmax flattens losses and "
        "hides gradients. Remove the softmax, or pass as_target(model, "
        "outputs='probabilities') to attack their logarithms"
    )


def no_gradients_message(name: str) -> str:
    """The error for a gradient asked of a black box."""
    return (
        f"{name} gives no gradients; use a black-box attack ('square', 'spsa'), or pass "
        "surrogate=<a differentiable model> to take the gradients from (command line: --surrogate)"
    )


def _file_target(
    path: Path, name: str | None, batch_size: int, outputs: Outputs, limits: Limits
) -> DifferentiableTarget:
    if path.suffix != ".tflite":
        raise WrongTypeError(f"cannot attack the file {path}: only .tflite files are read")
    if not path.is_file():
        raise FileNotFoundError(f"no such .tflite file: {path}")
    from tfdq.robustness.deployed import DeployedFile

    # One call of the runtime for each of ours: it plans its memory anew when the batch changes.
    file = DeployedFile(path, threads=os.cpu_count() or 1, batch_size=batch_size, limits=limits)
    return DifferentiableTarget(
        file,
        name=name or path.name,
        batch_size=batch_size,
        outputs="logits" if file.logits_known else outputs,
        logits_known=file.logits_known,
        values=file.logits,
        variables=lambda: file.variables,
    )


def _is_keras_model(model: Any) -> bool:
    return is_tf_keras_model(model) or is_keras3_model(model)


def _is_twin(model: Any) -> bool:
    # Only a process that has loaded the class can have made one.
    module = sys.modules.get("tflite_export.twin.integer_twin")
    return module is not None and isinstance(model, module.IntegerTwin)


def _is_tensorflow_callable(model: Any) -> bool:
    tensorflow = sys.modules.get("tensorflow")
    return tensorflow is not None and isinstance(model, tensorflow.Module) and callable(model)


def _check_runs_on_tensorflow(name: str, kind: str) -> None:
    import keras

    backend = keras.backend.backend()
    if backend != "tensorflow":
        raise ValueError(
            f"{name} is a {kind}, which runs on TensorFlow, and Keras, on which the "
            f"attacks run, runs on {backend}: start Python with KERAS_BACKEND=tensorflow"
        )


def _lean(model: Any) -> Callable[[Any], Any] | None:
    """A form of a quantized model that costs less to differentiate, if there is one."""
    if not is_tf_keras_model(model) or "tfdq.quantization" not in sys.modules:
        return None  # then no model can have its layers
    from tfdq.robustness.lean_gradients import lean_function

    return lean_function(model)


def _logits_of(model: Any) -> tuple[Callable[[Any], Any], bool]:
    """A function from images to logits, and whether a softmax was taken off for it."""
    if _is_twin(model):
        from tfdq.robustness.deployed import TwinScores

        scores = TwinScores(model)
        return scores, scores.logits_known
    from tfdq.robustness.logits import logits_function

    return logits_function(model)


def _keras_target(
    model: Any, name: str | None, batch_size: int, outputs: Outputs
) -> DifferentiableTarget:
    if callable(getattr(model, "seal", None)):
        # A model of `tfdq.keras3`: its deployed constants follow its weights.
        model.seal()
    key = (name, batch_size, outputs)
    kept = model.__dict__.get(_TARGET_ATTRIBUTE, {})
    if key in kept:
        return kept[key]
    if len(getattr(model, "inputs", None) or [0]) != 1 or (
        len(getattr(model, "outputs", None) or [0]) != 1
    ):
        raise ValueError(
            f"{model.name} has {len(model.inputs)} inputs and {len(model.outputs)} outputs; "
            "attacks need a classifier with one of each"
        )
    if is_tf_keras_model(model):
        _check_runs_on_tensorflow(model.name, "tf_keras model")
    function, recovered = _logits_of(model)
    target = DifferentiableTarget(
        function,
        name=name or model.name,
        batch_size=batch_size,
        outputs="logits" if recovered else outputs,
        model=model,
        differentiated=None if recovered else _lean(model),
        logits_known=recovered,
        variables=lambda: model.variables,
    )
    # Written past Keras' own __setattr__, which would try to track the target as a layer.
    model.__dict__.setdefault(_TARGET_ATTRIBUTE, {})[key] = target
    return target
