"""The last word of a rank that was started by `supervise`: its error, told to the supervisor as data.

N ranks that refuse the same bad input would print the same message N times; instead each leaves its error
beside its exit record and prints nothing, and whoever started them raises the first one once.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Mapping
from pathlib import Path

from hpcmass import errors
from hpcmass.errors import HpcmassError, RankFailed


def leave_word(error: HpcmassError, env: Mapping[str, str] | None = None) -> bool:
    """Leave an error for the supervisor. False where this process has none: then print it yourself."""
    env = os.environ if env is None else env
    folder, rank = env.get("HPCMASS_KEEPER"), env.get("HPCMASS_RANK")
    if not folder or not rank or not rank.isdigit():
        return False
    word = {
        "error": type(error).__name__,
        "message": error.message,
        "where": error.where,
        "hint": error.hint,
        "transient": error.transient,
        "exit_code": error.exit_code,
        "lasting": bool(error.data.get("lasting")),
        "time": time.time(),
    }
    temporary = Path(folder, f".word-{rank}.tmp")
    try:
        temporary.write_text(json.dumps(word), encoding="utf-8")
        os.replace(temporary, Path(folder, f"word-{rank}.json"))
    except OSError:
        return False
    return True


def read_words(folder: Path) -> dict[int, HpcmassError]:
    """The errors that ranks left in a folder, by rank, the earliest first."""
    found: list[tuple[float, int, HpcmassError]] = []
    for path in folder.glob("word-*.json"):
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            word = json.loads(path.read_text(encoding="utf-8"))
            rank = int(path.stem.removeprefix("word-"))
            kind = getattr(errors, word["error"], RankFailed)
            if not (isinstance(kind, type) and issubclass(kind, HpcmassError)):
                kind = RankFailed
            error = kind(
                word["message"],
                where=word["where"],
                hint=word["hint"],
                transient=word["transient"],
                rank=rank,
                lasting=bool(word.get("lasting")),
            )
            found.append((float(word["time"]), rank, error))
    return {rank: error for _, rank, error in sorted(found, key=lambda item: item[:2])}
