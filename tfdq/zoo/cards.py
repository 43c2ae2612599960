"""Cards of integer files: what is known of each, in fields that can be checked again."""

from __future__ import annotations

import difflib
import hashlib
import shutil
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError, model_validator

from tfdq.experiments.settings import RunSettings
from tfdq.settings.section import Section

LARGEST_BYTES = 1 << 20
CARD_FORMAT: Literal["tfdq model card 2"] = "tfdq model card 2"
_WITHOUT_MODEL_INFO = "tfdq model card 1"


class Share(Section):
    """A share of test images with its 95 % Wilson interval."""

    accuracy: float = Field(ge=0, le=1)
    low: float = Field(ge=0, le=1)
    high: float = Field(ge=0, le=1)
    images: int = Field(ge=1)


class Robust(Share):
    """Accuracy of the file under attacks; an upper bound on its true robust accuracy.

    Attributes:
        eps: strength in 1/255, L_inf.
        attacks: an image counts only if it stands all of them.
        gradients: where they came from: the network that was exported, or the file's integer twin.
    """

    eps: float = Field(gt=0)
    attacks: tuple[str, ...]
    gradients: Literal["trained network", "integer twin"]


def worst_case(robust: Sequence[Robust]) -> Robust | None:
    """Return the figure of the most attacks, the lowest of those; None if there is none."""
    return min(robust, key=lambda figure: (-len(figure.attacks), figure.accuracy), default=None)


class Certified(Share):
    """Accuracy that is proven for the file's integers.

    Attributes:
        eps: in 1/255, L_inf.
    """

    eps: float = Field(gt=0)


class Audit(Section):
    """The audit of gradient masking of the network that was exported.

    Attributes:
        passed: its verdict.
        failed: why it did not pass: failed checks, a constant model, no check run.
        examples: images that it used.
    """

    passed: bool
    failed: tuple[str, ...]
    examples: int


class ModelInfo(Section):
    """The fields of RobustBench's ``model_info`` JSON that mean the same here, in its formats.

    ``autoattack_acc``, ``reported`` and ``corruptions_acc`` are not among them: a card's worst case
    is that of other attacks than the standard AutoAttack, on an integer file.

    Attributes:
        dataset: name of the data set.
        architecture: name of the network.
        additional_data: whether other images than the data set's were trained on; None: not known,
            as the run went on from a model.
        number_forward_passes: of one prediction.
        eps: L_inf strength of the worst case, such as ``"8/255"``; None if there is none.
        clean_acc: accuracy on clean images in %, two decimals.

    Source: Croce et al., *RobustBench*, NeurIPS 2021 Datasets and Benchmarks, ``model_info``.
    """

    dataset: str
    architecture: str
    additional_data: bool | None
    number_forward_passes: Literal[1]
    eps: str | None = Field(pattern="^[0-9.]+/255$")
    clean_acc: str = Field(pattern=r"^[0-9]+\.[0-9]{2}$")

    @classmethod
    def of(cls, settings: RunSettings, clean: Share, robust: Sequence[Robust]) -> ModelInfo:
        """Return the fields of a card.

        Args:
            settings: of the run.
            clean: accuracy on clean images.
            robust: accuracy under attacks.
        """
        worst = worst_case(robust)
        start = settings.model.start
        more = settings.data.name.endswith("+extra")
        return cls(
            dataset=settings.data.name,
            architecture=settings.model.network,
            additional_data=None if start is not None else more,
            number_forward_passes=1,
            eps=None if worst is None else f"{worst.eps:g}/255",
            clean_acc=f"{100 * clean.accuracy:.2f}",
        )


class _InfoSource(Section):
    """The fields of a card that its `model_info` follows from."""

    settings: RunSettings
    clean: Share
    robust: tuple[Robust, ...]


class Card(Section):
    """What is known of one file; see docs/leaderboard.md.

    Attributes:
        format: of the card.
        name: of the file, without its suffix.
        model_info: what RobustBench would say of it, in its fields.
        bytes: size of the file.
        sha256: of the file.
        settings: of the run that it comes from, and of the evaluation whose figures these are.
        seed: of that run.
        clean: accuracy of the file on test images.
        robust: its accuracy under attacks; those of the integer twin can be checked again.
        certified: its proven accuracy.
        audit: None if there was none.
        speed_over_float: time of the float32 file of the same network over that of this one, one
            image at a time on one thread of the machine named.
        machine: that measured the speed.
        command: that made the file.
        commit: of the sources, None if not known.
    """

    format: Literal["tfdq model card 2"]
    name: str
    model_info: ModelInfo
    bytes: int = Field(gt=0, le=LARGEST_BYTES)
    sha256: str = Field(pattern="^[0-9a-f]{64}$")
    settings: RunSettings
    seed: int
    clean: Share
    robust: tuple[Robust, ...]
    certified: tuple[Certified, ...] = ()
    audit: Audit | None = None
    speed_over_float: float | None = None
    machine: str | None = None
    command: str
    commit: str | None = None

    @model_validator(mode="before")
    @classmethod
    def _with_model_info(cls, content: Any) -> Any:
        """Fill in what cards of format 1, of tfdq 0.2, hold in other fields only."""
        if not isinstance(content, dict) or content.get("format") != _WITHOUT_MODEL_INFO:
            return content
        needed = _InfoSource.model_validate(
            {name: content[name] for name in _InfoSource.model_fields if name in content}
        )
        info = ModelInfo.of(needed.settings, needed.clean, needed.robust)
        return {**content, "format": CARD_FORMAT, "model_info": info.model_dump()}

    @model_validator(mode="after")
    def _fields_agree(self) -> Card:
        expected = ModelInfo.of(self.settings, self.clean, self.robust)
        if self.model_info != expected:
            raise ValueError(
                f"model_info is {self.model_info.model_dump()}, but the card's own figures give "
                f"{expected.model_dump()}; make the card again with `tfdq zoo add`"
            )
        return self


def zoo_folder() -> Path:
    """Return the folder of the files that come with the package."""
    return Path(str(files("tfdq.zoo") / "files"))


def read_cards(folder: Path | None = None) -> dict[str, Card]:
    """Return the cards by name.

    Args:
        folder: with the cards; None: those that come with the package.

    Raises:
        FileNotFoundError: there is no such folder.
        ValueError: a card is damaged or is not that of its file's name.
    """
    folder = zoo_folder() if folder is None else folder
    if not folder.is_dir():
        raise FileNotFoundError(f"there is no folder {str(folder)!r} with model cards")
    return {path.stem: _read(path) for path in sorted(folder.glob("*.json"))}


def _read(path: Path) -> Card:
    try:
        card = Card.model_validate_json(path.read_text(encoding="utf-8"))
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        place = f"{place}: " if place else ""
        raise ValueError(
            f"{path.name} is no model card: {place}{first['msg']}; make it again with "
            "`tfdq zoo add`, or take it out of the folder"
        ) from error
    if card.name != path.stem:
        raise ValueError(f"{path.name} is the card of {card.name!r}")
    return card


def find_card(name: str, folder: Path | None = None) -> tuple[Card, Path]:
    """Return a card and the path of its file.

    Raises:
        ValueError: there is none of that name; says which names are close to it.
        FileNotFoundError: the file is not beside its card.
    """
    cards = read_cards(folder)
    if name not in cards:
        near = " or ".join(difflib.get_close_matches(str(name), cards, 3, 0.4))
        known = f"it has: {', '.join(cards) or 'nothing'}"
        meant = f"did you mean {near}? The zoo has: {', '.join(cards)}" if near else known
        raise ValueError(f"the zoo has no {name!r}; {meant}")
    path = (zoo_folder() if folder is None else folder) / f"{name}.tflite"
    if not path.is_file():
        raise FileNotFoundError(f"{str(path)!r} is missing beside its card")
    return cards[name], path


def copy_file(name: str, target: Path, folder: Path | None = None) -> Path:
    """Copy a file out of the zoo, once its digest is right.

    Args:
        name: of the card.
        target: file or folder to copy to.
        folder: with the cards; None: those that come with the package.

    Raises:
        ValueError: there is none of that name, or it is not the file of its card.
    """
    card, path = find_card(name, folder)
    check_digest(card, path.read_bytes(), path)
    target = target / path.name if target.is_dir() else target
    shutil.copyfile(path, target)
    return target


def check_digest(card: Card, content: bytes, path: Path) -> None:
    """Check that a file is that of a card.

    Raises:
        ValueError: it is another one.
    """
    if hashlib.sha256(content).hexdigest() != card.sha256:
        raise ValueError(f"{str(path)!r} is not the file that its card describes: SHA-256 differs")
