"""What one run is: data, model, quantization, penalty, training, evaluation; checked, hashed."""

from __future__ import annotations

import hashlib
import json
import math
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from tfdq.penalties.direction_rate import DIRECTION_RATE
from tfdq.penalties.singular_values import default_target

MODELS = ("small_cnn", "resnet20", "vgg16", "mobilenet_v2", "wide_resnet")


def _finite(value: float) -> float:
    if not math.isfinite(value):
        raise ValueError(f"must be finite, got {value}")
    return value


Finite = Annotated[float, AfterValidator(_finite)]
Share = Annotated[Finite, Field(gt=0, le=1)]


class Section(BaseModel):
    """A group of settings; unknown keys are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())


class DataSettings(Section):
    """Which images.

    Attributes:
        name: a name or path of ``tfdq.data.load``.
        dir: where TFDS data sets are prepared; no part of what a run is.
        train_images: number of training images, drawn with the classes in proportion; None: all.
        pad: side in pixels that the images are padded to with black, or None.
    """

    name: str = "fashion_mnist"
    dir: Path | None = None
    train_images: int | None = Field(default=None, ge=1)
    pad: int | None = Field(default=None, ge=1)


class ModelSettings(Section):
    """Which network.

    Attributes:
        name: a name of ``tfdq.models.create``, ``wrn-DEPTH-WIDTH`` included.
        options: further arguments of its builder, such as ``width``.
    """

    name: str = "small_cnn"
    options: dict[str, Any] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _known(self) -> ModelSettings:
        if self.name not in MODELS and not _is_wide_resnet(self.name):
            raise ValueError(
                f"there is no model {self.name!r}: choose one of {', '.join(MODELS)}, or "
                "wrn-DEPTH-WIDTH"
            )
        return self


def _is_wide_resnet(name: str) -> bool:
    parts = name.split("-")
    return len(parts) == 3 and parts[0] == "wrn" and all(part.isdigit() for part in parts[1:])


class QuantizationSettings(Section):
    """How many bits.

    Attributes:
        activation_bits: bits behind a ReLU, 1..8; 0: a float network.
        weight_bits: bits of the kernels, 2..8.
        first_last_bits: bits of the first and the last layers, 2..8; None: those of the others.
        activation_range: ``"moving_average"``, observed, or ``"relu6"``, the paper's [0, 6].
    """

    activation_bits: int = Field(default=4, ge=0, le=8)
    weight_bits: int = Field(default=8, ge=2, le=8)
    first_last_bits: int | None = Field(default=None, ge=2, le=8)
    activation_range: Literal["relu6", "moving_average"] = "moving_average"


class PenaltySettings(Section):
    """The Lipschitz penalty.

    Attributes:
        name: which one, of ``tfdq.penalties.get_regularizer``.
        on: the kernel it acts on: ``"kernel"`` (the paper's), ``"folded"`` or ``"deployed"``.
        beta: its weight; 0: none.
        target: singular value to aim at, or ``"1/k"``; by default that of ``tfdq.quantize_model``.
        ramp: epochs (begin, end) between which the weight rises from 0 to beta; None: beta always.
    """

    name: Literal["orthogonal", "srip", "spectral", "conv_orthogonal"] = "orthogonal"
    on: Literal["kernel", "folded", "deployed"] = "deployed"
    beta: Finite = Field(default=2e-3, ge=0)
    target: Literal["1/k"] | Annotated[Finite, Field(gt=0)] = "1/k"
    ramp: tuple[Finite, Finite] | None = None

    @model_validator(mode="before")
    @classmethod
    def _target_of_the_penalty(cls, given: Any) -> Any:
        if isinstance(given, dict) and "target" not in given:
            return {**given, "target": default_target(given.get("name", "orthogonal"))}
        return given

    @model_validator(mode="after")
    def _ordered(self) -> PenaltySettings:
        if self.ramp is not None and not 0 <= self.ramp[0] < self.ramp[1]:
            raise ValueError(f"ramp must be [begin, end] with 0 <= begin < end, got {self.ramp}")
        return self


class AdversarialSettings(Section):
    """Adversarial training.

    Attributes:
        attack: ``"none"``, ``"fgsm"``, ``"r+fgsm"`` or ``"pgd"``.
        eps: its strength in 1/255.
        ratio: share of each batch that is perturbed.
        steps: of ``"pgd"``.
    """

    attack: Literal["none", "fgsm", "r+fgsm", "pgd"] = "none"
    eps: Finite = Field(default=8.0, gt=0, le=255)
    ratio: Share = 0.5
    steps: int = Field(default=7, ge=1)


class TrainSettings(Section):
    """How the network is trained.

    Attributes:
        epochs: passes over the training images.
        batch_size: images in a step, over all devices together.
        optimizer: ``"adam"`` or ``"sgd"`` (Nesterov momentum).
        learning_rate: of the first step after the warm-up.
        momentum: of ``"sgd"``.
        weight_decay: decoupled from the gradient, in each step times the learning rate.
        schedule: ``"cosine"`` to 0, ``"steps"`` (times 0.2 after 30, 60 and 80 % of the epochs, as
            for the Wide ResNets) or ``"constant"``.
        warmup_epochs: epochs in which the rate rises from 0 along a line.
        augment: ``"none"``, ``"pad_crop"`` or ``"pad_crop_flip"`` (the paper's).
        precision: ``"float32"``, or, for float networks only, ``"float16"`` or ``"bfloat16"`` for
            mixed precision, in which variables and penalties stay in float32.
        checkpoint_steps: steps between checkpoints besides those after every epoch; no part of
            what a run is.
    """

    epochs: int = Field(default=8, ge=1)
    batch_size: int = Field(default=64, ge=1)
    optimizer: Literal["adam", "sgd"] = "adam"
    learning_rate: Finite = Field(default=3e-3, gt=0)
    momentum: Finite = Field(default=0.9, ge=0, lt=1)
    weight_decay: Finite = Field(default=0.0, ge=0)
    schedule: Literal["cosine", "steps", "constant"] = "cosine"
    warmup_epochs: Finite = Field(default=0.0, ge=0)
    augment: Literal["none", "pad_crop", "pad_crop_flip"] = "none"
    precision: Literal["float32", "float16", "bfloat16"] = "float32"
    checkpoint_steps: int = Field(default=500, ge=1)

    @model_validator(mode="after")
    def _warm_in_time(self) -> TrainSettings:
        if self.warmup_epochs >= self.epochs:
            raise ValueError(
                f"warmup_epochs must be below epochs ({self.epochs}), got {self.warmup_epochs}"
            )
        return self


class EvaluationSettings(Section):
    """What is measured on the trained network, always on test images.

    Attributes:
        epsilons: strengths of the attacks in 1/255, L_inf.
        attacks: attacks that each stand alone, as the paper's tables have them.
        pgd_steps: of ``"pgd"`` and ``"bim"`` among them.
        images: test images for these and for the clean accuracy.
        held_out: measure on as many other test images, of the half that is not drawn from without
            it: for settings that were chosen by what the first ones said.
        suite: the suite of white-box attacks whose worst case is reported beside Square's:
            ``"record"`` (APGD-CE, APGD-T, FAB, and the attack on low-bit networks), ``"standard"``
            (without that one), ``"quick"`` (without FAB, which takes half of the time) or
            ``"none"``.
        target_classes: classes that APGD-T and FAB aim at, most likely first; AutoAttack's 9.
        suite_images: test images for the suite, and for Square; at most ``images``.
        suite_epsilons: strengths for the suite in 1/255; None: the largest of ``epsilons``.
        square_queries: forward passes that Square spends on an image.
        audit_images: test images for the audit of gradient masking; 0: no audit.
        audit_queries: forward passes of the audit's black-box checks on an image.
        squeezing: feature squeezing in front of the network, in the order it acts:
            ``"bit_depth_N"``, ``"median_N"``; none by default.
        amplification: strengths in 1/255 at which the error amplification is measured.
        export: export the network to an integer file, verify it, and run the single attacks on it,
            on up to 1,000 images.
        tflite_images: test images for the suite and Square on that file; at most ``suite_images``.
    """

    epsilons: tuple[Finite, ...] = (8.0,)
    attacks: tuple[str, ...] = ("fgsm", "r+fgsm", "pgd")
    pgd_steps: int = Field(default=20, ge=1)
    images: int = Field(default=1000, ge=1)
    held_out: bool = False
    suite: Literal["record", "standard", "quick", "none"] = "record"
    target_classes: int = Field(default=9, ge=1)
    suite_images: int = Field(default=200, ge=0)
    suite_epsilons: tuple[Finite, ...] | None = None
    square_queries: int = Field(default=5000, ge=1)
    audit_images: int = Field(default=0, ge=0)
    audit_queries: int = Field(default=1000, ge=1)
    squeezing: tuple[str, ...] = ()
    amplification: tuple[Finite, ...] = ()
    export: bool = True
    tflite_images: int = Field(default=0, ge=0)

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

    def attack_options(self, attack: str) -> dict[str, Any]:
        """Return the options that these settings give an attack.

        Args:
            attack: its name.
        """
        if attack in ("pgd", "bim"):
            return {"steps": self.pgd_steps}
        if attack == "square":
            return {"queries": self.square_queries}
        if attack in ("apgd-t", "fab"):
            return {"target_classes": self.target_classes}
        return {}

    @property
    def suite_strengths(self) -> tuple[float, ...]:
        """Strengths for the suite in 1/255."""
        return self.suite_epsilons or (max(self.epsilons),)


def suite_attacks(name: str) -> tuple[str, ...]:
    """Return the white-box attacks of a suite, in the order they run."""
    # What breaks most comes early: the later ones cost most where an image stands.
    suites = {
        "standard": ("apgd-ce", "apgd-t", "fab"),
        "quick": ("apgd-ce", "low-bit", "apgd-t"),
        "record": ("apgd-ce", "low-bit", "apgd-t", "fab"),
    }
    return suites.get(name, ())


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


class RunSettings(Section):
    """Everything about one run but its seed."""

    data: DataSettings = DataSettings()
    model: ModelSettings = ModelSettings()
    quantization: QuantizationSettings = QuantizationSettings()
    penalty: PenaltySettings = PenaltySettings()
    adversarial: AdversarialSettings = AdversarialSettings()
    training: TrainSettings = TrainSettings()
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
        elif self.adversarial.attack != "pgd":
            del kept["adversarial"]["steps"]
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
