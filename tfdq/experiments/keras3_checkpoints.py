"""Checkpoints of a training on Keras 3: arrays in one file, whatever the backend."""

from __future__ import annotations

import os
import secrets
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from tfdq.experiments.checkpoints import newest_readable

_KEPT = 2


def to_bfloat16(values: np.ndarray) -> np.ndarray:
    """Return the bits of the nearest bfloat16 numbers, uint16, ties to even.

    Args:
        values: finite, float32.
    """
    bits = values.astype(np.float32).view(np.uint32)
    rounded: np.ndarray = ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)
    return rounded


def from_bfloat16(bits: np.ndarray) -> np.ndarray:
    """Return the numbers that `to_bfloat16` returned the bits of, float32."""
    return (bits.astype(np.uint32) << 16).view(np.float32)


class ArrayCheckpoints:
    """The newest two checkpoints of a training, each an uncompressed ``.npz`` file.

    Args:
        folder: of the checkpoints; made with the first.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def files(self) -> list[Path]:
        """Return the checkpoints, newest first."""
        found = {
            path: int(path.stem.partition("-")[2])
            for path in self.folder.glob("ckpt-*.npz")
            if path.stem.partition("-")[2].isdigit()
        }
        return sorted(found, key=lambda path: found[path], reverse=True)

    def save(self, step: int, arrays: Mapping[str, np.ndarray]) -> None:
        """Write a checkpoint, so that it is there as a whole or not at all.

        Args:
            step: number of steps that it stands after.
            arrays: its content.

        Raises:
            OSError: it can't be written; the earlier ones are untouched.
        """
        path = self.folder / f"ckpt-{step}.npz"
        temporary = self.folder / f".{path.name}.{secrets.token_hex(8)}"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with temporary.open("xb") as file:
                np.savez(file, allow_pickle=False, **arrays)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        except OSError as error:
            temporary.unlink(missing_ok=True)
            raise OSError(
                error.errno,
                f"cannot write to {str(self.folder)!r} ({error.strerror}); what was finished is "
                "kept: make room, then start again",
            ) from error
        for old in self.files()[_KEPT:]:
            old.unlink(missing_ok=True)

    def newest(self) -> dict[str, np.ndarray] | None:
        """Return the content of the newest checkpoint that can be read; None if there is none.

        Raises:
            ValueError: there are checkpoints, and none can be read.

        Warns:
            DamagedCheckpointWarning: it is not the newest there is.
        """
        found: dict[str, np.ndarray] = {}

        def read(path: Path) -> None:
            with np.load(path, allow_pickle=False) as content:
                found.clear()
                # Each array has a checksum, which is compared here.
                found.update({name: content[name] for name in content.files})

        return found if newest_readable(self.files(), read, self.folder) is not None else None
