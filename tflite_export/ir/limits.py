"""What one file may cost: the limits that keep a small file from taking hours or all memory.

Each limit has a floor and grows with the file, so that networks pass whose cost is in proportion to
their weights, and a file of a few hundred bytes can't ask for more than the floor.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields


@dataclass(frozen=True)
class _Default:
    """A limit for a file: ``max(floor, per_byte * size)``; what it counts, in words."""

    floor: int
    per_byte: float
    unit: str


DEFAULTS = {
    "operators": _Default(1 << 9, 2.0**-10, "operators"),
    "unpacked": _Default(1 << 24, 16, "bytes once unpacked, shared parts counted each time"),
    "activations": _Default(1 << 24, 16, "bytes of activations a sample"),
    "windows": _Default(1 << 24, 16, "bytes of windows a sample in one operator"),
    "operations": _Default(1 << 26, 1 << 10, "operations a sample"),
    "golden": _Default(1 << 25, 64, "bytes of golden vectors once unpacked"),
    "golden_operations": _Default(1 << 27, 1 << 13, "operations on all golden vectors"),
    "norm_operations": _Default(1 << 36, 1 << 18, "operations to bound the norms of all layers"),
    "norm_bytes": _Default(1 << 28, 1 << 7, "bytes to bound the norm of one layer"),
}
"""The limit of each kind where `Limits` has None."""

OPTION_HELP = "raise what a .tflite file may cost, if you trust it: " + ", ".join(DEFAULTS)
"""What the commands say of the flag ``--cost-limit``."""


@dataclass(frozen=True)
class Limits:
    """The most that one file may cost; None is the default, which grows with the file's size.

    Attributes:
        operators: operators of the graph; four times as many tensors.
        unpacked: bytes of tables, names, lists, constants and metadata, each counted as often as
            the file refers to it.
        activations: bytes of all activations of one sample, padding included.
        windows: bytes of the windows that the largest convolution or pooling gathers on one sample.
        operations: multiply-accumulates, comparisons and other steps on one sample.
        golden: bytes of the golden vectors, unpacked.
        golden_operations: steps on all golden vectors, for the self-test and for ``verify``.
        norm_operations: multiply-accumulates that bound the norms of all layers, for Lipschitz
            certificates of ``tfdq``, and that measure them, for its Lipschitz report.
        norm_bytes: memory that the norm of one layer takes, for the same.

    Example:
        >>> Interpreter("model.tflite", limits=Limits(operations=10**10))      # doctest: +SKIP
    """

    operators: int | None = None
    unpacked: int | None = None
    activations: int | None = None
    windows: int | None = None
    operations: int | None = None
    golden: int | None = None
    golden_operations: int | None = None
    norm_operations: int | None = None
    norm_bytes: int | None = None

    def __post_init__(self) -> None:
        """Check the numbers.

        Raises:
            ValueError: one of them is not a positive whole number.
        """
        for entry in fields(self):
            value = getattr(self, entry.name)
            if value is not None and (not isinstance(value, int) or value < 1):
                raise ValueError(
                    f"limit {entry.name} is {value!r}, expected a whole number of at least 1"
                )

    def allowed(self, name: str, size: int) -> int:
        """The most of ``name`` that a file of ``size`` bytes may take."""
        given = getattr(self, name)
        default = DEFAULTS[name]
        return int(given) if given is not None else max(default.floor, int(default.per_byte * size))

    def require(self, name: str, value: int, size: int) -> None:
        """Refuse a file that takes more than is allowed.

        Args:
            name: of the limit.
            value: what the file takes.
            size: bytes of the file.

        Raises:
            ValueError: it is more than `allowed`; says how to raise the limit.
        """
        most = self.allowed(name, size)
        if value > most:
            raise ValueError(
                f"it takes {value:,} {DEFAULTS[name].unit}; the limit for a file of {size:,} bytes "
                f"is {most:,}. If you trust it, raise the limit: limits=Limits({name}={value}), or "
                f"--cost-limit {name}={value} on the command line"
            )

    def options(self) -> list[str]:
        """The words of a command line that say the same: what `parse` takes, after each flag."""
        given = ((name, getattr(self, name)) for name in DEFAULTS)
        return [
            word
            for name, value in given
            if value is not None
            for word in ("--cost-limit", f"{name}={value}")
        ]

    @classmethod
    def parse(cls, texts: Sequence[str]) -> Limits:
        """The limits given as ``NAME=NUMBER`` on a command line.

        Args:
            texts: for example ``["operations=1e10"]``.

        Raises:
            ValueError: for an unknown name or what is no positive number.
        """
        values: dict[str, int] = {}
        for text in texts:
            name, _, number = text.partition("=")
            try:
                if name not in DEFAULTS:
                    raise ValueError(name)
                values[name] = int(float(number))
            except (ValueError, OverflowError):
                raise ValueError(
                    f"limit {text!r} is not NAME=NUMBER with a name of {', '.join(DEFAULTS)}"
                ) from None
        return cls(**values)


DEFAULT = Limits()
"""Every limit at its default."""

UNLIMITED = Limits(**dict.fromkeys(DEFAULTS, 1 << 62))
"""No limits: for files that this process has made itself."""


class Meter:
    """Adds up what reading a file unpacks.

    Args:
        limits: of which ``unpacked`` counts.
        size: bytes of the file.
    """

    def __init__(self, limits: Limits, size: int) -> None:
        """Start at nothing."""
        self._limits = limits
        self._size = size
        self._most = limits.allowed("unpacked", size)
        self._spent = 0

    def spend(self, size: int) -> None:
        """Count ``size`` bytes more.

        Raises:
            ValueError: that is more than the file may unpack to.
        """
        self._spent += size
        if self._spent > self._most:
            self._limits.require("unpacked", self._spent, self._size)
