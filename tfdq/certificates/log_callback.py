"""A Keras callback that logs a network's norms to TensorBoard while it trains."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import tensorflow as tf
import tf_keras

from tfdq.certificates.layer_maps import KernelChoice, check_kernel_choice
from tfdq.certificates.layer_report import LipschitzReport
from tfdq.certificates.linear_maps import Array
from tfdq.certificates.network import lipschitz_report

_BINS = 30


def _metadata(plugin: str) -> Any:
    """Return what tells TensorBoard which of its plugins shows a value."""
    kind = tf.compat.v1.SummaryMetadata
    return kind(plugin_data=kind.PluginData(plugin_name=plugin))


def _write_scalar(tag: str, value: float) -> None:
    """Write what ``tf.summary.scalar`` writes; that one needs TensorBoard to be installed."""
    tensor = tf.constant(value, tf.float32)
    tf.summary.write(f"lipschitz/{tag}", tensor, metadata=_metadata("scalars"))


def _write_histogram(tag: str, values: Array) -> None:
    """Write what ``tf.summary.histogram`` writes: left edge, right edge and count of each bin."""
    counts, edges = np.histogram(values, bins=_BINS)
    tensor = tf.constant(np.stack([edges[:-1], edges[1:], counts], axis=1), tf.float64)
    tf.summary.write(f"lipschitz/{tag}", tensor, metadata=_metadata("histograms"))


class LipschitzLogger(tf_keras.callbacks.Callback):
    """Write every layer's norm, the network's and the spectra to TensorBoard.

    Scalars ``lipschitz/<layer>/norm``, ``.../reshaped`` and ``lipschitz/network/estimate`` (the
    norms composed along the graph, measured and not proven, which is fast) and
    ``lipschitz/network/lower`` where ``x`` is given; histograms ``lipschitz/<layer>/spectrum``.
    The last report is kept in the attribute ``last``.

    Args:
        log_dir: directory of the TensorBoard run.
        every: epochs between reports, >= 1.
        x: a few images from which the lower bound is searched; None: no search.
        kernel: of quantized layers, ``"fake_quantized"`` or ``"float"``.
        spectra: also log the singular values (slow for large layers).

    Raises:
        ValueError: ``every`` is below 1 or ``kernel`` unknown.
    """

    def __init__(
        self,
        log_dir: str | os.PathLike[str],
        every: int = 1,
        x: Any = None,
        kernel: KernelChoice = "fake_quantized",
        spectra: bool = False,
    ) -> None:
        super().__init__()
        if every < 1:
            raise ValueError(f"every must be >= 1, got {every}")
        check_kernel_choice(kernel)
        self.log_dir, self.every, self.x = os.fspath(log_dir), every, x
        self.kernel: KernelChoice = kernel
        self.spectra = spectra
        self.last: LipschitzReport | None = None
        self._writer: Any = None

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        """Open the event file."""
        self._writer = tf.summary.create_file_writer(self.log_dir)

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Measure the model and write."""
        if (epoch + 1) % self.every:
            return
        found = lipschitz_report(
            self.model,
            self.x,
            self.kernel,
            tolerance=1e-4,
            certify=False,
            spectra=self.spectra,
            search_steps=2,
        )
        self.last = found
        with self._writer.as_default(step=epoch):
            _write_scalar("network/estimate", found.estimate)
            if found.lower is not None:
                _write_scalar("network/lower", found.lower)
            for row in found.rows:
                if row.reshaped is not None:
                    _write_scalar(f"{row.name}/norm", row.sigma)
                    _write_scalar(f"{row.name}/reshaped", row.reshaped)
            for name, values in found.spectra.items():
                _write_histogram(f"{name}/spectrum", values)
        self._writer.flush()

    def on_train_end(self, logs: dict[str, Any] | None = None) -> None:
        """Close the event file."""
        self._writer.close()
