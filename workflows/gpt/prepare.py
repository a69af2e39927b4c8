"""Writes a text as blocks of characters, to be sharded: an array `text` of one byte a character.

    python workflows/gpt/prepare.py text.npz [--text FILE] [--context 128] [--characters 100000]

Without --text it is the reference manual of the Python language, which every Python carries for `help()`
(`pydoc_data.topics`, PSF licence). FILE may be any text, gzipped too, such as /usr/share/dictd/gcide.dict.dz of
Debian's package dict-gcide.
"""

from __future__ import annotations

import argparse
import gzip
import os
import unicodedata
from pathlib import Path

import numpy as np

from hpcmass.errors import DataError, NotFound

VOCABULARY = 128  # ASCII


def read_text(file: Path | None) -> str:
    """The text, in ASCII; paragraphs that were there before (the manual quotes itself) are left out.

    Raises:
        NotFound: There is no such file.
    """
    if file is None:
        from pydoc_data.topics import topics

        text = "\n\n".join(topics[name] for name in sorted(topics))
    elif not file.is_file():
        raise NotFound("there is no such text", where=file)
    else:
        raw = file.read_bytes()
        text = (gzip.decompress(raw) if raw[:2] == b"\x1f\x8b" else raw).decode("utf-8", errors="replace")
    text = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode("ascii")
    return "\n\n".join(dict.fromkeys(part.strip("\n") for part in text.split("\n\n") if part.strip()))


def blocks_of(text: str, context: int) -> np.ndarray:
    """Blocks (n, context + 1) uint8; each begins with the last character of the one before.

    Raises:
        DataError: The text is too short for ten blocks.
    """
    codes = np.frombuffer(text.encode("ascii"), np.uint8)
    n = (len(codes) - 1) // context
    if n < 10:
        raise DataError(f"the text has {len(codes)} characters, ten blocks need {10 * context + 1}")
    return np.lib.stride_tricks.sliding_window_view(codes, context + 1)[::context][:n].copy()


def write_blocks(
    out: Path, text: Path | None = None, context: int = 128, characters: int | None = None
) -> Path:
    """Write the blocks of a text, or of its first characters."""
    part = out.with_name(f".{os.getpid()}-{out.name}")  # Whoever is killed here leaves no half a file.
    np.savez(part, text=blocks_of(read_text(text)[:characters], context))
    part.replace(out)
    return out


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--text", type=Path, metavar="FILE")
    parser.add_argument("--context", type=int, default=128, help="characters that the model sees [%(default)s]")
    parser.add_argument("--characters", type=int, metavar="N", help="only the first N")
    arguments = parser.parse_args()
    print(write_blocks(arguments.out, arguments.text, arguments.context, arguments.characters))
