"""The newest checkpoint of a run as its commit file tells it; for readers that must not load torch."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

from hpcmass.errors import CorruptError, NotFound, StorageError
from hpcmass.files import read_json

_NAME = re.compile(r"step-(\d+)\.json")


@dataclass(frozen=True)
class NewestCommit:
    """A committed checkpoint.

    Attributes:
        step: Optimiser steps done.
        checkpoint_s: Seconds that writing it took; 0 where that was not written down.
        step_s: Seconds of a slow step by then.
    """

    step: int
    checkpoint_s: float = 0.0
    step_s: float = 0.0


def newest_commit(checkpoints: Path) -> NewestCommit | None:
    """The newest checkpoint whose commit file can be read, or None. Its weights are not looked at."""
    try:
        names = sorted((name for name in os.listdir(checkpoints) if _NAME.fullmatch(name)), reverse=True)
    except OSError:
        return None
    for name in names:
        try:
            raw = read_json(checkpoints / name)
            return NewestCommit(
                int(raw["step"]), float(raw.get("checkpoint_s", 0.0)), float(raw.get("step_s", 0.0))
            )
        except (NotFound, CorruptError, StorageError, KeyError, TypeError, ValueError, AttributeError):
            continue
    return None
