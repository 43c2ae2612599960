"""The leaderboard: one row for each card of the zoo, in a page between two comments."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from tfdq.robustness.attacks import available_attacks
from tfdq.zoo.cards import Card, Robust, Share, worst_case
from tfdq.zoo.measures import TWIN_PGD_STEPS

BEGIN, END = "<!-- leaderboard -->", "<!-- /leaderboard -->"
_COLUMNS = (
    "file",
    "data",
    "bits",
    "KiB",
    "time over float",
    "clean",
    "worst case",
    "attack budget",
    "certified at 1/255",
    "audit",
)


def table(cards: Iterable[Card]) -> str:
    """Return the leaderboard in Markdown, best worst case first, by data set and strength.

    Args:
        cards: of the files.
    """
    lines = ["| " + " | ".join(_COLUMNS) + " |", "|---|---|---|---:|---:|---:|---:|---|---:|---|"]
    lines += ["| " + " | ".join(_row(card)) + " |" for card in sorted(cards, key=_rank)]
    return "\n".join(lines)


def update(text: str, cards: Iterable[Card], where: Path) -> str:
    """Return a page with the leaderboard of cards between its two comments.

    Args:
        text: of the page.
        cards: of the files.
        where: the page, for the error.

    Raises:
        ValueError: the page lacks the comments.
    """
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(
            f"{str(where)!r} has no place for the leaderboard: put a line {BEGIN} and a line "
            f"{END} into it"
        )
    return f"{before}{BEGIN}\n{table(cards)}\n{END}{after}"


def _rank(card: Card) -> tuple[str, float, float, str]:
    worst = worst_case(card.robust)
    strength = 0.0 if worst is None else worst.eps
    accuracy = 0.0 if worst is None or not _of_a_suite(worst) else worst.accuracy
    return card.settings.data.name, strength, -accuracy, card.name


def _row(card: Card) -> list[str]:
    quantization, worst = card.settings.quantization, worst_case(card.robust)
    certified = next((found for found in card.certified if found.eps == 1), None)
    ratio = card.speed_over_float
    return [
        f"`{card.name}`",
        card.settings.data.name,
        f"{quantization.weight_bits} / {quantization.activation_bits}",
        f"{card.bytes / 1024:.0f}",
        "not measured" if ratio is None else f"{1 / ratio:.2f}",
        _share(card.clean),
        _worst(worst),
        "none" if worst is None else _budget(card, worst),
        "not certified" if certified is None else f"{_share(certified)}, {certified.images} images",
        _verdict(card),
    ]


def _share(share: Share) -> str:
    low, high = 100 * share.low, 100 * share.high
    return f"{100 * share.accuracy:.1f} [{low:.1f}, {high:.1f}]"


def _worst(worst: Robust | None) -> str:
    if worst is None:
        return "not attacked"
    return _share(worst) if _of_a_suite(worst) else "no suite"


def _of_a_suite(figure: Robust) -> bool:
    return len(figure.attacks) > 1


def _budget(card: Card, worst: Robust) -> str:
    """Return strength, attacks, what they may spend and the number of images."""
    evaluation = card.settings.evaluation
    by_twin = worst.gradients == "integer twin"
    spent = {
        "square": f" ({evaluation.square_queries:,} queries)",
        "apgd-t": f" ({evaluation.target_classes} classes)",
        "pgd": f" ({TWIN_PGD_STEPS if by_twin else evaluation.pgd_steps} steps)",
    }
    known = available_attacks()
    attacks = [
        (known[name].title if name in known else name) + spent.get(name, "")
        for name in worst.attacks
    ]
    return f"{worst.eps:g}/255: {', '.join(attacks)}; {worst.images:,} images"


def _verdict(card: Card) -> str:
    if card.audit is None:
        return "none"
    if card.audit.passed:
        return f"passed, {card.audit.examples} images"
    return f"failed: {', '.join(card.audit.failed)}"
