"""`hpcmass env check`: whether a Python environment is what it was built to be, here or on compute nodes."""

from __future__ import annotations

import os
import secrets
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from hpcmass.config import Layout, Site, Target, load_site
from hpcmass.errors import ConfigError, LaunchError, NotFound, SlurmError
from hpcmass.files import make_dir, read_json
from hpcmass.launch.command import module_command
from hpcmass.launch.software import PACKAGES, parse_facts
from hpcmass.slurm.client import Slurm
from hpcmass.slurm.jobs import JobState
from hpcmass.slurm.script import ScriptSpec, render_script
from hpcmass.slurm.submission import submit_script
from hpcmass.workflow.env_compare import CheckLine, compare
from hpcmass.workflow.env_loaded import loaded_env
from hpcmass.workflow.env_pack import packed_of

STAMP = "hpcmass-env.json"
PROGRAM = "hpcmass.launch.software"


def check_environment(
    environment: Path | None,
    *,
    site_file: Path | str | None = None,
    target: str | None = None,
    out: Path | None = None,
    slurm: Slurm | None = None,
    wait_s: float = 1800.0,
    tell: Callable[[str], None] = lambda _line: None,
) -> list[CheckLine]:
    """Check an environment here, or with a target on one of its nodes, as a job.

    Here the modules and setup lines of a target are loaded as in a job: of the given target, else of the site's
    that it was built for or its default, else those that it was built with.

    Args:
        environment: Its folder; None: the one that runs this.
        site_file: The site; None: that of HPCMASS_SITE.
        target: The target's name; None: here.
        out: Where the job's script and output are kept, on a file system that all nodes see.
        slurm: The Slurm to use.
        wait_s: Seconds that the job may wait for its turn.
        tell: Told what happens.

    Raises:
        NotFound, ConfigError: There is no such environment or target, or its modules cannot be loaded.
        SlurmError: The job could not be submitted, or did not run.
        LaunchError: The interpreter does not start here.
    """
    python = Path(sys.executable) if environment is None else environment.absolute() / "bin" / "python"
    if not python.exists():
        raise NotFound(
            "there is no bin/python", where=environment, hint="make an environment: hpcmass env build"
        )
    stamp = read_stamp(Path(sys.prefix) if environment is None else environment.absolute())
    site = load_site(site_file)
    loaded = _target_here(site, target, stamp, given=bool(site_file or os.environ.get("HPCMASS_SITE")))
    env = None if loaded is None else loaded_env(loaded)
    if target is None:
        here = facts_here(python, env)
        return [*compare(stamp or here, here, stamped=stamp is not None)]
    built = stamp or facts_here(python, env)
    asked = site.targets[target]
    if asked.kind == "local":
        there = facts_here(python, env)
    else:
        folder = out or Path.cwd() / "env-check"
        there = _facts_there(python, asked, target, folder, slurm or Slurm(), wait_s, tell)
    gpus = min(asked.gpus, 1)
    return [*compare(built, there, stamped=stamp is not None, login=True, gpus=gpus, vendor=asked.gpu_vendor)]


def _target_here(
    site: Site, name: str | None, stamp: Mapping[str, Any] | None, *, given: bool
) -> Target | None:
    """Whose modules and setup lines are loaded on this machine; None: those that are loaded already.

    Raises:
        ConfigError: The site has no target of that name.
    """
    if name is None and not given:
        if stamp is None:
            return None
        lines = {key: stamp[key] for key in ("modules", "setup", "env") if key in stamp}
        return Target(kind="slurm", cores=1, **lines)
    if name is None:
        built_for = stamp.get("target") if stamp is not None and stamp.get("site") == site.name else None
        name = built_for if built_for in site.targets else site.default_target
    if name not in site.targets:
        known = ", ".join(site.targets)
        raise ConfigError(
            f"site '{site.name}' has no target '{name}'", where="--target", hint=f"its targets: {known}"
        )
    return site.targets[name]


def read_stamp(prefix: Path) -> dict[str, Any] | None:
    """What `hpcmass env build` left in an environment, or None."""
    file = prefix / STAMP
    if not file.is_file():
        return None
    stamp: dict[str, Any] = read_json(file)
    return stamp


def facts_here(python: Path, env: Mapping[str, str] | None = None) -> dict[str, Any]:
    """The facts of an environment on this machine.

    Raises:
        LaunchError: Its interpreter does not come to its end.
    """
    words = software_command(python)
    done = subprocess.run(
        words,
        capture_output=True,
        text=True,
        check=False,
        stdin=subprocess.DEVNULL,
        env=dict(env) if env else None,
    )
    facts = parse_facts(done.stdout)
    if facts is None:
        last = (done.stderr.strip().splitlines() or [f"it ended with {done.returncode}"])[-1]
        raise LaunchError(f"the environment's Python does not come to its end: {last}", where=python)
    return facts


def software_command(python: Path) -> list[str]:
    """The words that print an environment's facts, with this hpcmass where it has none of its own."""
    return [str(python), *module_command(PROGRAM)[1:], *PACKAGES]


def _facts_there(
    python: Path,
    target: Target,
    name: str,
    out: Path,
    slurm: Slurm,
    wait_s: float,
    tell: Callable[[str], None],
) -> dict[str, Any]:
    folder = make_dir(out.absolute() / f"{time.strftime('%Y%m%d-%H%M%S')}-{name}-{secrets.token_hex(2)}")
    # Without a GPU many sites refuse a job on their GPU nodes, or never start it.
    layout = Layout(1, 1, 1, 1, min(target.gpus, 1), None, 600)
    spec = ScriptSpec(
        name=f"env-check-{name}",
        target=target,
        layout=layout,
        command=tuple(software_command(python)),
        out=folder,
        signal_s=0,
        title="check of a Python environment",
        packed=packed_of(target),
    )
    job_id = submit_script(render_script(spec), folder, slurm=slurm)
    tell(f"{name}: job {job_id}")
    text = _wait(job_id, folder, slurm, name, wait_s, tell)
    facts = parse_facts(text)
    if facts is None:
        lines = text.strip().splitlines() or ["it left no output"]
        raise SlurmError(f"the job came to no end on target '{name}': {lines[-1]}", where=folder, job_id=job_id)
    return facts


def _wait(
    job_id: str, folder: Path, slurm: Slurm, name: str, wait_s: float, tell: Callable[[str], None]
) -> str:
    """The job's output when it has ended.

    Raises:
        SlurmError: It did not start in time, and is cancelled.
    """
    pause, unknown, since, told = 0.5, 0, time.monotonic(), ""
    try:
        while True:
            info = slurm.jobs([job_id])[job_id]
            unknown = unknown + 1 if info.state is JobState.UNKNOWN else 0
            text = "".join(file.read_text(errors="replace") for file in folder.glob("out-*.log"))
            if parse_facts(text) is not None or info.state.ended or unknown > 20:
                return text
            if info.state is JobState.PENDING:
                if info.reason not in ("", "None", told):
                    told = info.reason
                    tell(f"{name}: waiting: {told}")
                if time.monotonic() - since > wait_s:
                    slurm.cancel([job_id])
                    why = f" ({info.reason})" if info.reason else ""
                    raise SlurmError(
                        f"the job on target '{name}' did not start in {wait_s:.0f} s{why}, and was cancelled",
                        where=folder,
                        job_id=job_id,
                        hint="--wait takes longer; 'hpcmass site check' holds the target against its limits",
                    )
            time.sleep(pause)
            pause = min(pause * 1.5, 5.0)
    except KeyboardInterrupt:
        slurm.cancel([job_id])
        raise
