"""Scalars for TensorBoard, written without TensorBoard."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import tensorflow as tf

_SCALAR = tf.compat.v1.SummaryMetadata(
    plugin_data=tf.compat.v1.SummaryMetadata.PluginData(plugin_name="scalars"),
    # DATA_CLASS_SCALAR, which TensorFlow does not export by name.
    data_class=1,
)


class EventLog:
    """A folder of event files, as TensorBoard reads them.

    ``tf.summary.scalar`` and Keras' callback need the package tensorboard for the few bytes of
    metadata that are put together here.

    Args:
        folder: where the files go; made with the first scalar.
    """

    def __init__(self, folder: Path) -> None:
        self._writer = tf.summary.create_file_writer(str(folder))

    def write(self, step: int, scalars: Mapping[str, float]) -> None:
        """Write scalars of one step, so that they are on disk when this returns."""
        with self._writer.as_default():
            for name, value in scalars.items():
                tf.summary.write(name, tf.constant(value, tf.float32), step, _SCALAR)
        self._writer.flush()
