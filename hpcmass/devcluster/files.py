"""Writing the cluster's folder."""

from __future__ import annotations

import os
import secrets
from pathlib import Path

from hpcmass.devcluster import render
from hpcmass.devcluster.nodes import NODES
from hpcmass.devcluster.settings import Settings
from hpcmass.errors import StorageError
from hpcmass.files import make_dir, replace, storage_errors

SITE_FILE = "devcluster.toml"


def make_folder(folder: Path) -> None:
    """Make the cluster's folder, or take one that is the user's own.

    Raises:
        StorageError: It is another user's, or cannot be made.
    """
    make_dir(folder)
    with storage_errors(folder, "use the folder"):
        if folder.stat().st_uid != os.getuid():
            raise StorageError(
                "the cluster's folder is another user's",
                where=folder,
                hint="name one of your own: hpcmass slurm up --folder FOLDER",
            )
        folder.chmod(0o755)
        for name in ("etc", "state", "spool", "log", "run", "dev", "tmp", "database-tmp"):
            (folder / name).mkdir(exist_ok=True)
        for node in NODES:
            (folder / "spool" / node.name).mkdir(exist_ok=True)
            (folder / "tmp" / node.name).mkdir(exist_ok=True)
            (folder / "tmp" / node.name).chmod(0o1777)


def write_files(s: Settings) -> None:
    """Write everything that the daemons read but slurmdbd.conf, and the site file."""
    etc = s.folder / "etc"
    replace(s.slurm_conf, render.slurm_conf(s))
    replace(etc / "gres.conf", render.gres_conf(s))
    replace(etc / "task-prolog", render.task_prolog(s))
    replace(etc / "cgroup.conf", render.cgroup_conf(s))
    replace(etc / "plugstack.conf", "")
    replace(s.folder / SITE_FILE, render.site_toml())
    with storage_errors(s.folder, "write the cluster's files"):
        (etc / "task-prolog").chmod(0o755)
        for name in render.device_files():
            link = s.folder / "dev" / name
            if not link.is_symlink():
                link.symlink_to("/dev/null")
        key = etc / "munge.key"
        if not key.exists():
            key.touch(0o600)
            key.write_bytes(secrets.token_bytes(1024))
        if s.network:
            # Written in place: running nodes have these very files mounted.
            (etc / "hosts").write_text(render.hosts(s, Path("/etc/hosts").read_text()))
            (etc / "resolv.conf").write_text(render.resolv_conf())
