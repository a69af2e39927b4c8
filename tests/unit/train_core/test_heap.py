"""Freed memory that stays: pages are not faulted in anew at every step."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest

SCRIPT = """
import resource, sys
import torch
from hpcmass.train import heap

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(10):
        block = torch.empty(48 << 20, dtype=torch.uint8)  # above what glibc ever keeps
        block[::4096] = 1
        del block
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

with heap.kept(sys.argv[1] == "keep"):
    faults()
    within = faults()
print(within, faults())
"""


def counted(keep: bool, **env: str) -> tuple[int, int]:
    """Page faults of ten uses of 48 MiB, within `kept` and after it."""
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, "keep" if keep else "no"], env={**os.environ, **env},
        check=True, capture_output=True, text=True,
    )  # fmt: skip
    within, after = done.stdout.split()
    return int(within), int(after)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc's allocator")
def test_pages_stay_within_and_go_afterwards() -> None:
    within, after = counted(keep=True)
    assert within < 100
    # 10 times 48 MiB, in pages of 4 KiB or (where the system makes large ones by itself) of 2 MiB.
    assert after >= 10 * 20


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc's allocator")
def test_nothing_is_changed_unless_wanted() -> None:
    assert counted(keep=False)[0] >= 10 * 20
    assert counted(keep=True, MALLOC_TRIM_THRESHOLD_="131072")[0] >= 10 * 20
