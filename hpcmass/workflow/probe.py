"""`hpcmass site probe`: a short job on each target that finds out what the documents do not say."""

from __future__ import annotations

import secrets
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from hpcmass.config import Layout, Resources, Site, Target, layout_of, load_site, parse_duration
from hpcmass.errors import ConfigError, HpcmassError, SlurmError
from hpcmass.files import make_dir, publish, read_json
from hpcmass.launch.command import module_command
from hpcmass.launch.cores import usable_cores
from hpcmass.slurm.client import Slurm
from hpcmass.slurm.jobs import JobState
from hpcmass.slurm.reasons import plain_reason
from hpcmass.slurm.script import ScriptSpec, render_script
from hpcmass.slurm.submission import submit_script
from hpcmass.workflow.env_pack import packed_of
from hpcmass.workflow.probe_program import Settings, write_settings

PROGRAM = "hpcmass.workflow.probe_program"
_TIME_S = 15 * 60
# Other jobs may wait for these to pass, but it takes a person, not a turn.
_FOR_A_PERSON = ("PartitionDown", "PartitionInactive")


@dataclass
class Probe:
    """The probe of one target.

    Attributes:
        folder: Script, output and report.
        job_id: Slurm's, or None where none was submitted.
        report: What the job wrote, perhaps not to its end; see `docs/sites.md`.
        why: What kept it from running, or from its end; None when it is complete.
    """

    target: str
    folder: Path
    job_id: str | None = None
    report: dict[str, Any] = field(default_factory=dict)
    why: str | None = None
    reason: str = ""  # Slurm's, of the pending job, as last told
    since: float = 0.0  # when it began to wait
    layout: Layout | None = None

    @property
    def complete(self) -> bool:
        """Whether every part was tried."""
        return bool(self.report.get("complete"))

    @property
    def chosen(self) -> dict[str, Any] | None:
        """Launcher and PMI that gave N ranks of size N, of two or more."""
        found: dict[str, Any] | None = self.report.get("chosen")
        return found


def probe_site(
    file: Path | str | None,
    out: Path,
    *,
    targets: Sequence[str] = (),
    ranks_per_node: int | None = None,
    wait_s: float = 1800.0,
    slurm: Slurm | None = None,
    tell: Callable[[str], None] = lambda _line: None,
) -> tuple[Site, list[Probe]]:
    """Probe targets of a site, all at once.

    Args:
        file: The site file.
        out: Where scripts, outputs and reports are kept, on a file system that all nodes see.
        targets: Their names; default: all.
        ranks_per_node: Default: one a GPU, else two.
        wait_s: How long a job may wait for its turn before it is cancelled.
        slurm: The Slurm to use.
        tell: Told what happens, in single lines.

    Raises:
        ConfigError, NotFound: The site file is wrong, or has no such target.
    """
    site = load_site(file)
    for name in targets:
        if name not in site.targets:
            known = ", ".join(site.targets)
            raise ConfigError(
                f"site '{site.name}' has no target '{name}'", where="--target", hint=f"its targets: {known}"
            )
    slurm = slurm or Slurm()
    probes = []
    for name in targets or site.targets:
        probe = Probe(name, out.absolute() / f"{time.strftime('%Y%m%d-%H%M%S')}-{name}-{secrets.token_hex(2)}")
        probes.append(probe)
        try:
            _begin(probe, site, ranks_per_node, slurm, tell)
        except HpcmassError as error:
            place = f"{error.where}: " if error.where else ""
            probe.why = f"{place}{error.message}" + (f" ({error.hint})" if error.hint else "")
            tell(f"{name}: cannot be probed: {probe.why}")
    try:
        _follow([probe for probe in probes if probe.job_id], slurm, wait_s, tell)
    except BaseException:
        waiting = [probe.job_id for probe in probes if probe.job_id and not probe.complete]
        if waiting:
            slurm.cancel(waiting)
        raise
    return site, probes


def _begin(probe: Probe, site: Site, per_node: int | None, slurm: Slurm, tell: Callable[[str], None]) -> None:
    target = site.targets[probe.target]
    layout = probe_layout(target, per_node, probe.target)
    make_dir(probe.folder)
    settings = Settings(
        site=site.name,
        target=probe.target,
        report=str(probe.folder / "report.json"),
        work=str(probe.folder / "ranks"),
        nodes=layout.nodes,
        ranks=layout.ranks,
        per_node=layout.ranks_per_node,
        threads=layout.threads_per_rank,
        gpus_per_node=layout.gpus_per_node,
        options=target.model_dump(mode="json", exclude_unset=True),
        folders={"shared folder": str(probe.folder), "node-local folder": target.scratch or "${TMPDIR}"},
    )
    write_settings(settings, probe.folder / "settings.json")
    command = (*module_command(PROGRAM), str(probe.folder / "settings.json"))
    if target.kind == "local":
        tell(f"{probe.target}: probing this machine")
        with open(probe.folder / "out-local.log", "wb") as log:
            env_words = ["env", f"TMPDIR={_tmpdir()}"]
            subprocess.run(
                [*env_words, *command], stdout=log, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL
            )
        _finish(probe, "the program ended early")
        return
    spec = ScriptSpec(
        name=f"probe-{probe.target}",
        target=target,
        layout=layout,
        command=command,
        out=probe.folder,
        signal_s=0,
        env={} if target.scratch or "TMPDIR" in target.env else {"TMPDIR": "/tmp"},
        title=f"probe of target {probe.target}",
        packed=packed_of(target),
    )
    text = render_script(spec)
    publish(probe.folder / "job.sbatch", text)
    probe.job_id = submit_script(text, probe.folder, slurm=slurm)
    probe.since = time.monotonic()
    tell(f"{probe.target}: job {probe.job_id} on {layout.nodes} node{'s' * (layout.nodes > 1)}")


def _tmpdir() -> str:
    import tempfile

    return tempfile.gettempdir()


def probe_layout(target: Target, per_node: int | None, name: str) -> Layout:
    """Two nodes where a job may have two, and on each a rank a GPU, or two; two ranks at least, if cores allow.

    Raises:
        ConfigError: The target cannot give it.
    """
    if target.kind == "local":
        cores = target.cores or usable_cores()
        ranks = per_node or 2
        return Layout(1, ranks, ranks, max(1, cores // ranks), 0, None, _TIME_S)
    nodes, cores = min(2, target.max_nodes or 2), target.cores or 1
    each = per_node or min(target.gpus or 2, cores)
    if per_node is None and nodes * each < 2:
        each = min(2, cores)  # one rank is right under any PMI: two share the GPU
    most = parse_duration(target.max_time) if target.max_time else _TIME_S
    gpus = 1 if target.gpus >= each else 0
    resources = Resources(ranks=nodes * each, nodes=nodes, gpus_per_rank=gpus, time=f"{min(_TIME_S, most)}s")
    layout = layout_of(resources, target, name=name)
    return layout if gpus or not target.gpus else replace(layout, gpus_per_node=target.gpus)


def _follow(probes: list[Probe], slurm: Slurm, wait_s: float, tell: Callable[[str], None]) -> None:
    """Wait for the jobs; give up on those that wait for something which does not come."""
    pause = 0.5
    while probes:
        infos = slurm.jobs([str(probe.job_id) for probe in probes])
        for probe in list(probes):
            info = infos[str(probe.job_id)]
            done = _read(probe)
            if info.state.ended or done or (info.state is JobState.UNKNOWN and _gone(probe, slurm)):
                _finish(
                    probe, f"the job ended as {info.state.value}" + (f" ({info.reason})" if info.reason else "")
                )
                tell(f"{probe.target}: " + ("probed" if probe.complete else f"not to its end: {probe.why}"))
                probes.remove(probe)
            elif info.state is JobState.PENDING:
                _pending(probe, info.reason, slurm, wait_s, tell)
                if probe.why:
                    probes.remove(probe)
        if probes:
            time.sleep(pause)
            pause = min(pause * 1.5, 5.0)


def _pending(probe: Probe, reason: str, slurm: Slurm, wait_s: float, tell: Callable[[str], None]) -> None:
    waited = time.monotonic() - probe.since
    hopeless = is_hopeless(reason)
    # Slurm gives some of these reasons for a moment, before it has looked.
    if (hopeless and waited > 3) or waited > wait_s:
        slurm.cancel([str(probe.job_id)])
        probe.why = (
            f"the job would not start: {reason}"
            if hopeless
            else f"still waiting after {waited:.0f} s: {reason}"
        )
        tell(f"{probe.target}: cancelled: {probe.why}")
    elif reason != probe.reason and reason not in ("", "None"):
        probe.reason = reason
        tell(f"{probe.target}: waiting: {reason}")


def is_hopeless(reason: str) -> bool:
    """Whether a job that waits for this does not start as it stands, however long it waits."""
    return plain_reason(reason).hopeless or reason.strip(" ()") in _FOR_A_PERSON


def _gone(probe: Probe, slurm: Slurm) -> bool:
    """Whether Slurm answers and does not know the job any more."""
    try:
        out = slurm.run(["squeue", "--noheader", "--states", "all", "--me", "--format", "%i"])
    except SlurmError:
        return False
    return str(probe.job_id) not in out.split()


def _read(probe: Probe) -> bool:
    file = probe.folder / "report.json"
    if file.is_file():
        probe.report = read_json(file)
    return probe.complete


def _finish(probe: Probe, ended: str) -> None:
    if _read(probe):
        return
    logs = sorted(probe.folder.glob("out-*.log"))
    lines = logs[0].read_text(errors="replace").strip().splitlines() if logs else []
    probe.why = ended + (f": {lines[-1][:300]}" if lines else "")


def write_findings(file: Path, site: Site, probes: Sequence[Probe]) -> list[str]:
    """Put what was found into the site file: launcher and PMI of each target probed, and `verified`.

    `verified = true` only where every target of the site was probed to its end and started ranks rightly, which
    a single rank cannot show.

    Returns:
        What was written, as lines of the file.

    Raises:
        ConfigError: The file cannot be edited.
    """
    from hpcmass.workflow.site_edit import set_keys, toml

    values: dict[tuple[str, ...], str | bool | None] = {}
    for probe in probes:
        if probe.complete and probe.chosen is not None:
            values["targets", probe.target, "launcher"] = probe.chosen["launcher"]
            if site.targets[probe.target].kind == "slurm":
                values["targets", probe.target, "pmi"] = probe.chosen["pmi"]
    good = {probe.target for probe in probes if probe.complete and probe.chosen is not None}
    if good == set(site.targets):
        values["verified",] = True
    values = {key: value for key, value in values.items() if _now(site, key) != value or key == ("verified",)}
    if values:
        set_keys(file, values, f"hpcmass site probe, {time.strftime('%Y-%m-%d')}")
    return [
        f"{'.'.join(key)}" + (" removed" if value is None else f" = {toml(value)}")
        for key, value in values.items()
    ]


def _now(site: Site, key: tuple[str, ...]) -> object:
    return getattr(site.targets[key[1]], key[2]) if len(key) == 3 else None
