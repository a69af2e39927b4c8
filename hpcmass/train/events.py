"""TensorBoard events of a run, where TensorBoard is installed."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any


class Events:
    """Writes scalars into `events/`; absent TensorBoard, does nothing.

    TensorBoard is slow to import, so that happens when the first scalar is written, on rank 0 alone.
    """

    def __init__(self, folder: Path, *, purge_step: int | None = None) -> None:
        """Prepare.

        Args:
            folder: Where the event files go.
            purge_step: Steps from here on that an earlier attempt wrote do not count.
        """
        self._folder = folder
        self._purge_step = purge_step
        self._writer: Any = None
        self._available = find_spec("tensorboard") is not None

    def write(self, step: int, values: Mapping[str, float], prefix: str) -> None:
        """Write scalars under `prefix/name`."""
        if not self._available:
            return
        if self._writer is None:
            try:
                kind = import_module("torch.utils.tensorboard").SummaryWriter
            except (ImportError, AttributeError):  # an installation that does not fit torch's
                self._available = False
                return
            self._writer = kind(str(self._folder), purge_step=self._purge_step)
        for name, value in values.items():
            self._writer.add_scalar(f"{prefix}/{name}", value, step)

    def close(self) -> None:
        """Flush."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None
