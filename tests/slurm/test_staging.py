"""Shards on the disks of two nodes: read once from the shared file system, and not at all by the next job."""

from __future__ import annotations

import ctypes
import os
import struct
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

from hpcmass.devcluster import Cluster
from hpcmass.runs import RunFolder, State

pytestmark = pytest.mark.slurm
IN_OPEN = 0x20


class Opens:
    """How often files of a folder are opened, by anybody: what the kernel says (inotify)."""

    def __init__(self, folder: Path) -> None:
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._handle = self._libc.inotify_init1(os.O_NONBLOCK)
        assert self._handle >= 0
        assert self._libc.inotify_add_watch(self._handle, os.fsencode(folder), IN_OPEN) >= 0

    def count(self) -> Counter[str]:
        """Since the last call, by name."""
        found: Counter[str] = Counter()
        while True:
            try:
                data = os.read(self._handle, 1 << 16)
            except BlockingIOError:
                return found
            while data:
                _, _, _, length = struct.unpack_from("iIII", data)
                name = data[16 : 16 + length].rstrip(b"\0").decode()
                if name.endswith(".h5"):
                    found[name] += 1
                data = data[16 + length :]


def train(cluster: Cluster, project: Path, name: str, *sets: str) -> RunFolder:
    words = [sys.executable, "-m", "hpcmass", "submit", str(project / "job.toml"), "--project", str(project)]
    words += ["--site", str(cluster.site_file), "--target", "cpu", "--run", name]
    for one in ("resources.ranks=2", "resources.nodes=2", "resources.threads_per_rank=1", *sets):
        words += ["--set", one]
    done = subprocess.run(words, env=cluster.env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    run, end = RunFolder(project / "runs" / name), time.monotonic() + 600
    while run.status().state in (State.CREATED, State.RUNNING):
        assert time.monotonic() < end, run.status()
        time.sleep(0.2)
    assert run.status().state is State.COMPLETED, run.status()
    return run


def staged(cluster: Cluster) -> dict[str, set[str]]:
    """The shards' files on each node's own disk."""
    top = f"hpcmass-shards-{os.getuid()}"
    nodes = [folder for folder in (cluster.folder / "tmp").iterdir() if (folder / top).is_dir()]
    return {node.name: {file.parent.name for file in (node / top).rglob("*.h5")} for node in nodes}


@pytest.mark.usefixtures("slurm_env")
def test_each_shard_is_read_once_and_the_next_job_reads_none(cluster: Cluster, project: Path) -> None:
    splits = [project / "data" / "tiny" / split for split in ("train", "valid")]
    watches = [Opens(folder) for folder in splits]
    plain = train(cluster, project, "plain")
    opened = watches[0].count()
    assert len(opened) == 3
    assert min(opened.values()) >= 2, "each rank reads its part"
    for watch in watches:
        watch.count()
    first = train(cluster, project, "first", "data.stage=true")
    assert [sorted(watch.count().values()) for watch in watches] == [[1, 1, 1], [1, 1, 1]]
    held = staged(cluster)
    assert len(held) == 2
    assert {len(shards) for shards in held.values()} == {6}
    again = train(cluster, project, "again", "data.stage=true")
    where = {node for run in (first, again) for node in _hosts(run)}
    if where <= set(held):  # Slurm may give other nodes, which then have to be brought theirs
        assert [watch.count() for watch in watches] == [Counter(), Counter()]
    losses = [[(r["step"], r["loss"]) for r in run.records("train")] for run in (plain, first, again)]
    assert losses[0] == losses[1] == losses[2]


def _hosts(run: RunFolder) -> set[str]:
    from hpcmass.files import read_json

    return {place["host"] for place in read_json(run.path / "ranks" / "attempt-1.json")["ranks"]}
