"""What one run is: data, model, quantization, penalty, training, evaluation; checked, hashed."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from tfdq.penalties.direction_rate import DIRECTION_RATE
from tfdq.penalties.singular_values import default_target
from tfdq.settings.quantization import (
    FirstLastBitsField,
    KernelRangeField,
    LayerBitsField,
    LearnableRangeField,
    MomentumField,
    PenaltyNameField,
    PenaltyWeightField,
    PlacementField,
    SkipField,
    TargetField,
    WeightBitsField,
    whole,
)
from tfdq.settings.section import Finite, Section, Share

MODELS = (
    "small_cnn",
    "resnet8",
    "resnet20",
    "resnet32",
    "resnet18",
    "preact_resnet18",
    "vgg16",
    "mobilenet_v2",
    "wide_resnet",
)


class DataSettings(Section):
    """Which images."""

    name: str = Field(
        default="digits",
        description="digits, fashion_mnist, mnist, cifar10, cifar100, svhn_cropped, gtsrb, a "
        "FILE.npz with x_train, y_train, x_test, y_test, or a folder of images.",
    )
    dir: Path | None = Field(
        default=None,
        description="Where TFDS data sets are prepared; of gtsrb, mnist and fashion_mnist: the "
        "folder of their files.",
    )
    image_size: tuple[int, ...] | None = Field(
        default=None,
        min_length=2,
        max_length=3,
        description="Resize the images of a folder or of gtsrb: 32 or 32x48; 32x48x3: in colour, "
        "x1: grey.",
    )
    train_images: int | None = Field(
        default=None,
        ge=1,
        description="Training images to use, the classes in proportion; default: all.",
    )
    pad: int | None = Field(
        default=None, ge=1, description="Side in pixels that images are padded to with black."
    )
    digest: str | None = Field(
        default=None,
        description="Of the training images, which must be these; `tfdq train` writes it.",
    )


class ModelSettings(Section):
    """Which network."""

    name: str = Field(
        default="small_cnn", description=f"{', '.join(MODELS)} or wrn-DEPTH-WIDTH (wrn-10-1)."
    )
    options: dict[str, Any] = Field(
        default_factory=dict, description="Further arguments of its builder, such as width=8."
    )
    start: Path | None = Field(
        default=None,
        description="A float model to go on from, in place of a new one; Keras 3, too.",
    )
    start_digest: str | None = Field(
        default=None, description="SHA-256 of its file, which must be this; `tfdq train` writes it."
    )

    @model_validator(mode="after")
    def _known(self) -> ModelSettings:
        if self.name not in MODELS and not _is_wide_resnet(self.name):
            raise ValueError(
                f"there is no model {self.name!r}: choose one of {', '.join(MODELS)}, or "
                "wrn-DEPTH-WIDTH"
            )
        if self.start is not None and self.options:
            raise ValueError("model.options are for a new model; leave them or model.start out")
        return self

    @property
    def network(self) -> str:
        """What the network is called: the name of its builder, or of the file to start from."""
        return self.name if self.start is None else self.start.name


def _is_wide_resnet(name: str) -> bool:
    parts = name.split("-")
    return len(parts) == 3 and parts[0] == "wrn" and all(part.isdigit() for part in parts[1:])


class QuantizationSettings(Section):
    """How many bits."""

    activation_bits: Annotated[
        int, whole(0, 8), Field(description="Bits behind a ReLU, 1..8; 0: a float network.")
    ] = 4
    weight_bits: WeightBitsField = 8
    first_last_bits: FirstLastBitsField = None
    layer_bits: LayerBitsField = Field(default_factory=dict)
    activation_range: LearnableRangeField = "moving_average"
    kernel_range: KernelRangeField = "max"
    batch_norm_momentum: MomentumField = None
    skip: SkipField = frozenset()


def _two_epochs(value: Any) -> Any:
    if not isinstance(value, (list, tuple)) or len(value) != 2:
        raise ValueError(f"must be two epochs, begin and end, such as 1,3, got {value!r}")
    return value


class PenaltySettings(Section):
    """The Lipschitz penalty."""

    name: PenaltyNameField = "orthogonal"
    on: PlacementField = "deployed"
    beta: PenaltyWeightField = 2e-3
    target: TargetField = None
    ramp: Annotated[tuple[Finite, Finite], BeforeValidator(_two_epochs)] | None = Field(
        default=None,
        description="Epochs between which the weight rises from 0; default: it is constant.",
    )

    @model_validator(mode="before")
    @classmethod
    def _target_of_the_penalty(cls, given: Any) -> Any:
        if isinstance(given, dict) and given.get("target") is None:
            return {**given, "target": default_target(given.get("name", "orthogonal"))}
        return given

    @model_validator(mode="after")
    def _ordered(self) -> PenaltySettings:
        if self.ramp is not None and not 0 <= self.ramp[0] < self.ramp[1]:
            raise ValueError(f"ramp must be [begin, end] with 0 <= begin < end, got {self.ramp}")
        return self


class AdversarialSettings(Section):
    """Adversarial training."""

    attack: Literal["none", "fgsm", "r+fgsm", "pgd", "n-fgsm", "free"] = Field(
        default="none", description="Attack to train against; n-fgsm and free on Keras 3."
    )
    eps: Finite = Field(default=8.0, gt=0, le=255, description="Its strength in 1/255.")
    ratio: Share = Field(
        default=0.5,
        description="Share of each batch that is perturbed; free, trades and mart take all of it.",
    )
    steps: int = Field(default=7, ge=1, description="Of pgd, or passes of free over each batch.")
    objective: Literal["adversarial", "trades", "mart"] = Field(
        default="adversarial",
        description="What is minimized: the loss of the perturbed images, or that of TRADES or "
        "MART, on Keras 3.",
    )
    trade_off: Annotated[Finite, Field(gt=0)] | None = Field(
        default=None, description="Weight of what trades or mart adds; by default 6 and 5."
    )
    warmup_epochs: Finite = Field(
        default=0.0, ge=0, description="Epochs in which the strength rises from 0, on Keras 3."
    )
    patience: int | None = Field(
        default=None,
        ge=1,
        description="Stop when the PGD accuracy of held-out training images has not risen for so "
        "many epochs, and keep the best; on Keras 3. By default training runs to its end.",
    )

    @property
    def whole_batch(self) -> bool:
        """Whether every image of a batch is perturbed, whatever `ratio` says."""
        return self.attack == "free" or self.objective != "adversarial"


class TrainingSettings(Section):
    """How the network is trained."""

    backend: Literal["tf_keras", "tensorflow", "jax", "torch"] = Field(
        default="tf_keras",
        description="tf_keras, or the backend of Keras 3: tensorflow, jax or torch.",
    )
    epochs: int = Field(default=20, ge=1, description="Passes over the images.")
    batch_size: int = Field(
        default=64, ge=1, description="Images in a step, over all devices together."
    )
    optimizer: Literal["adam", "sgd"] = Field(
        default="adam", description="adam, or sgd with Nesterov momentum."
    )
    learning_rate: Finite = Field(
        default=3e-3, gt=0, description="Of the first step after the warm-up."
    )
    momentum: Finite = Field(default=0.9, ge=0, lt=1, description="Of sgd.")
    weight_decay: Finite = Field(
        default=0.0,
        ge=0,
        description="Share of each weight taken off in a step, times the learning rate.",
    )
    schedule: Literal["cosine", "steps", "one-cycle", "constant"] = Field(
        default="cosine",
        description="How the learning rate falls: along a cosine to 0, or times 0.2 after 30, 60 "
        "and 80 % of the epochs (Zagoruyko and Komodakis 2016, section 3); one-cycle: along a line "
        "up to it in the first half, down to 0 in the second.",
    )
    warmup_epochs: Finite = Field(
        default=0.0, ge=0, description="Epochs in which the rate rises from 0 along a line."
    )
    augment: Literal["none", "pad_crop", "pad_crop_flip"] = Field(
        default="none", description="Of training images; pad_crop_flip is the paper's."
    )
    cutout: int = Field(
        default=0,
        ge=0,
        description="Side in pixels of a black square around a random pixel of each training "
        "image; 0: none.",
    )
    label_smoothing: Finite = Field(
        default=0.0,
        ge=0,
        lt=1,
        description="Share of each label that is spread evenly over all classes, on Keras 3.",
    )
    average: Finite = Field(
        default=0.0,
        ge=0,
        lt=1,
        description="Momentum of an exponential moving average of the weights, which is kept in "
        "their place, with BatchNorm and ranges estimated anew; 0: none. On Keras 3.",
    )
    precision: Literal["float32", "float16", "bfloat16"] = Field(
        default="float32",
        description="The shorter ones, for float networks only: mixed precision, in which "
        "variables and penalties stay in float32.",
    )
    checkpoint_steps: int = Field(
        default=500,
        ge=1,
        description="Steps between checkpoints besides those after every epoch; no part of what a "
        "run is.",
    )
    checkpoint_precision: Literal["float32", "bfloat16"] = Field(
        default="float32",
        description="Of the optimizer's momentum and averages in checkpoints. bfloat16 halves "
        "them, and a resumed run is no longer the same bit for bit; on Keras 3.",
    )

    @model_validator(mode="after")
    def _warm_in_time(self) -> TrainingSettings:
        if self.warmup_epochs >= self.epochs:
            raise ValueError(
                f"warmup_epochs must be below epochs ({self.epochs}), got {self.warmup_epochs}"
            )
        if self.warmup_epochs > 0 and self.schedule == "one-cycle":
            raise ValueError(
                f"schedule one-cycle rises by itself: leave out warmup_epochs = "
                f"{self.warmup_epochs}, or take another schedule"
            )
        return self


class EvaluationSettings(Section):
    """What is measured on the trained network, always on test images."""

    epsilons: tuple[Finite, ...] = Field(
        default=(8.0,), description="Strengths of the attacks in 1/255, L_inf."
    )
    attacks: tuple[str, ...] = Field(
        default=("fgsm", "r+fgsm", "pgd"),
        description="Attacks that each stand alone, as the paper's tables have them.",
    )
    pgd_steps: int = Field(default=20, ge=1, description="Of pgd and bim among them.")
    images: int = Field(
        default=1000, ge=1, description="Test images for these and for the clean accuracy."
    )
    held_out: bool = Field(
        default=False,
        description="Measure on as many other test images, of the half that is not drawn from "
        "without it: for settings that were chosen by what the first ones said.",
    )
    suite: Literal["record", "standard", "quick", "none"] = Field(
        default="record",
        description="White-box attacks whose worst case is reported beside Square's: record "
        "(APGD-CE, APGD-T, FAB, and the attack on low-bit networks), standard (without that one), "
        "quick (without FAB, which takes half of the time) or none.",
    )
    target_classes: int = Field(
        default=9,
        ge=1,
        description="Classes that APGD-T and FAB aim at, most likely first; AutoAttack's 9.",
    )
    suite_images: int = Field(
        default=200,
        ge=0,
        description="Test images for the suite, and for Square; at most `images`.",
    )
    suite_epsilons: tuple[Finite, ...] | None = Field(
        default=None,
        description="Strengths for the suite in 1/255; default: the largest of `epsilons`.",
    )
    square_queries: int = Field(
        default=5000, ge=1, description="Forward passes that Square spends on an image."
    )
    audit_images: int = Field(
        default=0, ge=0, description="Test images for the audit of gradient masking; 0: no audit."
    )
    audit_queries: int = Field(
        default=1000,
        ge=1,
        description="Forward passes of the audit's black-box checks on an image.",
    )
    squeezing: tuple[str, ...] = Field(
        default=(),
        description="Feature squeezing in front of the network, in the order it acts: "
        "bit_depth_N, median_N.",
    )
    amplification: tuple[Finite, ...] = Field(
        default=(), description="Strengths in 1/255 at which the error amplification is measured."
    )
    export: bool = Field(
        default=True,
        description="Export the network to an integer file, verify it, and run the single attacks "
        "on it, on up to 1,000 images.",
    )
    tflite_images: int = Field(
        default=0,
        ge=0,
        description="Test images for the suite and Square on that file; at most `suite_images`.",
    )

    @model_validator(mode="after")
    def _sensible(self) -> EvaluationSettings:
        for name in ("epsilons", "suite_epsilons", "amplification"):
            bad = [e for e in getattr(self, name) or () if not 0 < e <= 255]
            if bad:
                raise ValueError(f"{name} are in 1/255, above 0 and up to 255, got {bad}")
        if not self.epsilons or not self.attacks:
            raise ValueError("epsilons and attacks must each hold at least one")
        if self.suite_images > self.images:
            raise ValueError(
                f"suite_images ({self.suite_images}) must not exceed images ({self.images})"
            )
        if self.tflite_images > self.suite_images:
            raise ValueError(
                f"tflite_images ({self.tflite_images}) must not exceed suite_images "
                f"({self.suite_images})"
            )
        if 0 < self.audit_images < 8:
            raise ValueError(f"audit_images must be 0 or at least 8, got {self.audit_images}")
        for text in self.squeezing:
            parse_squeezer(text)
        return self

    @property
    def suite_strengths(self) -> tuple[float, ...]:
        """Strengths for the suite in 1/255."""
        return self.suite_epsilons or (max(self.epsilons),)


def parse_squeezer(text: str) -> tuple[str, int]:
    """Return what ``"bit_depth_4"`` or ``"median_2"`` asks for: the kind and its number.

    Raises:
        ValueError: it asks for neither.
    """
    kind, _, number = text.rpartition("_")
    allowed = {"bit_depth": range(1, 9), "median": range(2, 8)}
    if kind not in allowed or not number.isdigit() or int(number) not in allowed[kind]:
        raise ValueError(
            f"squeezing takes bit_depth_1 to bit_depth_8 and median_2 to median_7, got {text!r}"
        )
    return kind, int(number)


# What was trained without them keeps its name.
_CAME_LATER = (
    ("data", "image_size"),
    ("data", "digest"),
    ("model", "start"),
    ("model", "start_digest"),
    ("quantization", "layer_bits"),
    ("quantization", "batch_norm_momentum"),
    ("quantization", "skip"),
    ("quantization", "kernel_range"),
    ("adversarial", "objective"),
    ("adversarial", "trade_off"),
    ("adversarial", "warmup_epochs"),
    ("adversarial", "patience"),
    ("training", "backend"),
    ("training", "average"),
    ("training", "cutout"),
    ("training", "label_smoothing"),
)


class RunSettings(Section):
    """Everything about one run but its seed."""

    data: DataSettings = DataSettings()
    model: ModelSettings = ModelSettings()
    quantization: QuantizationSettings = QuantizationSettings()
    penalty: PenaltySettings = PenaltySettings()
    adversarial: AdversarialSettings = AdversarialSettings()
    training: TrainingSettings = TrainingSettings()
    evaluation: EvaluationSettings = EvaluationSettings()

    @model_validator(mode="after")
    def _ramp_has_a_penalty(self) -> RunSettings:
        if self.penalty.ramp is not None and self.penalty.beta == 0:
            raise ValueError("penalty.ramp needs a penalty: set penalty.beta above 0")
        return self

    @model_validator(mode="after")
    def _quantized_networks_compute_in_float32(self) -> RunSettings:
        if self.quantized and self.training.precision != "float32":
            raise ValueError(
                f"training.precision {self.training.precision!r} is for float networks "
                "(quantization.activation_bits = 0): a quantized network computes in float32, "
                "else its integer file computes something else; leave training.precision out"
            )
        return self

    @model_validator(mode="after")
    def _fits_its_backend(self) -> RunSettings:
        adversarial, training = self.adversarial, self.training
        if self.training.backend == "tf_keras":
            given = {
                "quantization.activation_range": self.quantization.activation_range == "learned",
                "quantization.kernel_range": self.quantization.kernel_range == "learned",
                "adversarial.attack": adversarial.attack in ("n-fgsm", "free"),
                "adversarial.objective": adversarial.objective != "adversarial",
                "adversarial.warmup_epochs": adversarial.warmup_epochs > 0,
                "adversarial.patience": adversarial.patience is not None,
                "training.average": training.average > 0,
                "training.checkpoint_precision": training.checkpoint_precision != "float32",
                "training.label_smoothing": training.label_smoothing > 0,
            }
            core = "Keras 3: set training.backend to tensorflow, jax or torch"
        else:
            ramp = self.penalty.ramp
            given = {
                "penalty.ramp": ramp is not None and ramp[0] > 0,
                "penalty.beta": not self.quantized and self.penalty.beta > 0,
                "evaluation.squeezing": bool(self.evaluation.squeezing),
            }
            core = "tf_keras: leave training.backend out"
        for place, wanted in given.items():
            if wanted:
                section, _, name = place.partition(".")
                value = getattr(getattr(self, section), name)
                form = " of a float network" if place == "penalty.beta" else ""
                raise ValueError(f"{place} = {value!r}{form} is for {core}")
        return self

    @model_validator(mode="after")
    def _adversarial_settings_go_together(self) -> RunSettings:
        given = self.adversarial
        if given.objective != "adversarial" and given.attack in ("none", "free", "fgsm"):
            raise ValueError(
                f"adversarial.objective {given.objective!r} takes the attacks r+fgsm, n-fgsm and "
                f"pgd, got adversarial.attack {given.attack!r}"
            )
        if given.trade_off is not None and given.objective == "adversarial":
            raise ValueError(
                "adversarial.trade_off is the weight of what trades or mart adds: set "
                "adversarial.objective to one of them, or leave it out"
            )
        if given.patience is not None and given.attack == "none":
            raise ValueError("adversarial.patience watches adversarial training: set an attack")
        if given.patience is not None and self.training.average:
            raise ValueError(
                "adversarial.patience keeps the weights of one epoch, training.average their "
                "average: leave one of them out"
            )
        return self

    @model_validator(mode="after")
    def _float_layers_stay_here(self) -> RunSettings:
        if self.quantization.skip and self.evaluation.export:
            raise ValueError(
                "a network with layers in float (quantization.skip) does not export: set "
                "evaluation.export = false"
            )
        return self

    def changed(self, changes: Mapping[str, Any]) -> RunSettings:
        """Return settings of which some are others.

        Args:
            changes: dotted setting -> value.

        Raises:
            ValueError: a value is out of range.
        """
        content = self.model_dump()
        for place, value in changes.items():
            section, _, name = place.partition(".")
            content[section][name] = value
        return RunSettings.model_validate(content)

    @property
    def quantized(self) -> bool:
        """Whether the network is quantization-aware."""
        return self.quantization.activation_bits > 0

    @property
    def penalty_is_folded(self) -> bool:
        """Whether a penalty acts on kernels with BatchNorm folded in."""
        return self.quantized and self.penalty.beta > 0 and self.penalty.on != "kernel"

    def trained(self) -> dict[str, Any]:
        """Return the settings that the trained weights depend on, without those that do nothing."""
        kept = self.model_dump(mode="json", exclude={"evaluation"})
        del kept["data"]["dir"], kept["training"]["checkpoint_steps"]
        del kept["training"]["checkpoint_precision"]
        without = RunSettings().model_dump(mode="json")
        for section, name in _CAME_LATER:
            if kept[section][name] == without[section][name]:
                del kept[section][name]
        if self.model.start is not None:
            kept["model"] = {"start": self.model.start_digest or str(self.model.start)}
        if not self.quantized:
            kept["quantization"] = {"activation_bits": 0}
        if self.penalty.beta == 0:
            kept["penalty"] = {"beta": 0.0}
        elif self.penalty_is_folded:
            # Not a setting: tells these trainings from those whose penalty moved kernels' lengths
            # or turned kernels faster.
            kept["penalty"]["direction_rate"] = DIRECTION_RATE
        if self.adversarial.attack == "none":
            kept["adversarial"] = {"attack": "none"}
        elif self.adversarial.attack not in ("pgd", "free"):
            del kept["adversarial"]["steps"]
        if self.adversarial.attack == "free":
            # Not a setting: tells these trainings from those whose rate fell too early.
            kept["adversarial"]["rate_by"] = "updates"
        if self.adversarial.whole_batch:
            kept["adversarial"].pop("ratio", None)
        if self.training.optimizer == "adam":
            del kept["training"]["momentum"]
        return kept

    def training_key(self, seed: int) -> str:
        """Return the name under which a trained network is found again, 12 hexadecimal digits."""
        return _digest({**self.trained(), "seed": seed})

    def evaluation_key(self) -> str:
        """Return the same for what is measured on it."""
        kept = self.evaluation.model_dump(mode="json")
        if not self.quantized:
            kept["export"], kept["tflite_images"] = False, 0
        if not self.evaluation.held_out:
            # The setting came later: what was measured without it keeps its name.
            del kept["held_out"]
        return _digest(kept)


def _digest(content: Any) -> str:
    text = json.dumps(content, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]
