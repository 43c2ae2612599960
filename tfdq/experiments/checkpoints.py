"""Go on from the newest checkpoint of a training that can be read."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import tensorflow as tf


class DamagedCheckpointWarning(UserWarning):
    """A checkpoint could not be read; the training goes on from an older one."""


def checkpoints_in(folder: Path) -> list[Path]:
    """Return the checkpoints of a folder, newest first, as TensorFlow names them.

    Read off the files themselves: TensorFlow's own list of them, the file ``checkpoint``, may be
    the one that is damaged.
    """
    found = {
        path.with_suffix(""): int(path.stem.partition("-")[2])
        for path in folder.glob("ckpt-*.index")
        if path.stem.partition("-")[2].isdigit()
    }
    return sorted(found, key=lambda path: found[path], reverse=True)


def restore_newest(checkpoint: tf.train.Checkpoint, folder: Path) -> Path | None:
    """Restore the newest checkpoint that can be read.

    Args:
        checkpoint: what is restored.
        folder: that its checkpoints are in.

    Returns:
        The checkpoint; None if there is none at all.

    Raises:
        ValueError: there are checkpoints, and none can be read.

    Warns:
        DamagedCheckpointWarning: it is not the newest there is.
    """

    def read(path: Path) -> None:
        checkpoint.restore(str(path)).assert_existing_objects_matched()

    return newest_readable(checkpoints_in(folder), read, folder)


def newest_readable(
    paths: Sequence[Path], read: Callable[[Path], None], folder: Path
) -> Path | None:
    """Read the newest of some checkpoints that can be read.

    Args:
        paths: of the checkpoints, newest first.
        read: reads one, and raises an exception if it is damaged.
        folder: that they are in.

    Returns, raises and warns as `restore_newest`.
    """
    failures = []
    for path in paths:
        try:
            read(path)
        except Exception as error:
            # Every reader has one for each place of the damage: its own, IndexError, protobuf's.
            # What cannot be restored is named, whatever the kind.
            reason = " ".join(str(error).split()) or type(error).__name__
            failures.append(f"{str(path)!r} ({reason[:200]})")
            continue
        if failures:
            warnings.warn(
                f"damaged: {', '.join(failures)}; going on from {str(path)!r}",
                DamagedCheckpointWarning,
                stacklevel=2,
            )
        return path
    if failures:
        raise ValueError(
            f"no checkpoint can be read: {', '.join(failures)}; remove {str(folder)!r}, and the "
            "same command trains again from the start"
        )
    return None
