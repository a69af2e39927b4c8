"""What workers find around them: their environment, and the folder of Parsl's files."""

from __future__ import annotations

import contextlib
import os
import shutil
import sysconfig
import tempfile
from collections.abc import Iterator
from pathlib import Path

from hpcmass.config import Target
from hpcmass.files import make_dir, storage_errors
from hpcmass.launch import usable_cores
from hpcmass.workflow.parsl_site import shell_safe
from hpcmass.workflow.pilot import SHARE
from hpcmass.workflow.watchdog import TAG


def worker_environment(target: Target, parallel: int, threads: int | None, tag: str) -> dict[str, str]:
    """What workers and all that they start find in their environment beside the driver's own."""
    share = threads or max(1, (target.cores or usable_cores()) // parallel)
    names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS")
    # Parsl names its processes with setproctitle, which would write over the tag.
    environment = {TAG: tag, "SPT_NOENV": "1", SHARE: f"{1 / parallel:.6g}"}
    environment |= {name: str(share) for name in names}
    home = Path(__file__).resolve().parents[2]
    if home != Path(sysconfig.get_path("purelib")).resolve():
        # hpcmass runs from a checkout: the workers are to find the same one.
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, [str(home), os.environ.get("PYTHONPATH")]))
    return environment


def slurm_environment(target: Target) -> dict[str, str]:
    """The same for workers on nodes, where the pilot adds the threads and a tag of its own."""
    environment = worker_environment(target, 1, 1, "")
    threads = [name for name in environment if name.endswith("_NUM_THREADS")]
    return {name: value for name, value in environment.items() if name not in (TAG, SHARE, *threads)}


@contextlib.contextmanager
def parsl_dir(folder: Path, *, local: bool) -> Iterator[Path]:
    """`folder/parsl`, or a temporary folder where a shell would read that path as something else."""
    if local and not shell_safe(folder):
        temporary = Path(tempfile.mkdtemp(prefix="hpcmass-parsl-"))
        try:
            yield temporary
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
        return
    with storage_errors(folder, "make the folder"):
        make_dir(folder / "parsl")
    yield folder / "parsl"
