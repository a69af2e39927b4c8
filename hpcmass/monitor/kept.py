"""Raw samples that were asked about, kept for another training: `kept-REPLICA-HOUR.h5`.

A uniform sample of each hour. Off unless asked for, since what clients send may be private.
"""

from __future__ import annotations

import contextlib
import logging
import random
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from hpcmass.data.arrays import read_arrays, write_arrays
from hpcmass.errors import HpcmassError

log = logging.getLogger("hpcmass.monitor")
HOURS = 24 * 14
WRITE_S = 600.0
_ID_BYTES = 200


class Kept:
    """One replica's kept samples.

    Args:
        folder: The monitor's.
        replica: Whose.
        limit: Samples an hour; 0: none.
        write_s: How long they may be in memory alone.
    """

    def __init__(self, folder: Path, replica: str, limit: int, write_s: float = WRITE_S) -> None:
        self.folder, self.replica, self.limit, self.write_s = folder, replica, limit, write_s
        self._rows: list[tuple[bytes, int, dict[str, Any]]] = []
        self._seen = 0
        self._begun = self._wrote = time.time()
        self._random = random.Random()
        self._changed = False

    def see(self, identity: str | None, picked: list[int], inputs: Mapping[str, Any]) -> None:
        """Maybe keep samples of a request: (rows, ...) by name, which are nobody else's."""
        key = (identity or "").encode()[:_ID_BYTES]
        for number, row in enumerate(picked):
            self._seen += 1
            one = (key, row, {name: value[number] for name, value in inputs.items()})
            if len(self._rows) < self.limit:
                self._rows.append(one)
            elif (at := int(self._random.random() * self._seen)) < self.limit:
                self._rows[at] = one
            self._changed = True

    def turn(self, now: float) -> None:
        """Write now and then, and begin anew after an hour."""
        if not self.limit or now - self._wrote < self.write_s:
            return
        self.write()
        if now - self._begun >= 3600.0:
            self._rows, self._seen, self._begun = [], 0, now
            for path in sorted(self.folder.glob(f"kept-{self.replica}-*.h5"))[:-HOURS]:
                with contextlib.suppress(FileNotFoundError):
                    path.unlink()

    def write(self) -> None:
        """Replace this hour's file.

        Raises:
            StorageError: The file system refused.
        """
        self._wrote = time.time()
        rows = list(self._rows)
        if not rows or not self._changed:
            return
        self._changed = False
        arrays: dict[str, Any] = {}
        for name in rows[0][2]:
            if len({one[2][name].shape for one in rows}) > 1:
                log.warning("input %r differs in length, so its samples are not kept", name)
                self.limit = 0
                return
            arrays[f"in:{name}"] = np.stack([one[2][name] for one in rows])
        arrays["id"] = np.array([one[0] for one in rows], f"S{_ID_BYTES}")
        arrays["row"] = np.array([one[1] for one in rows], np.int64)
        arrays["time"] = np.full(len(rows), self._begun)
        write_arrays(self.folder / f"kept-{self.replica}-{int(self._begun):011d}.h5", arrays)


def read_kept(folder: Path, since: float = 0.0) -> list[dict[str, Any]]:
    """Kept samples, a dict of arrays a file, oldest first.

    Args:
        folder: The monitor's.
        since: Files begun before are left out.
    """
    found = []
    for path in sorted(folder.glob("kept-*.h5"), key=lambda one: one.stem.rpartition("-")[2]):
        stamp = path.stem.rpartition("-")[2]
        if stamp.isdigit() and int(stamp) >= since:
            with contextlib.suppress(HpcmassError):
                found.append(read_arrays(path))
    return found
