"""Site files and the Slurm that they describe: check one, draft one."""

from __future__ import annotations

import getpass
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

from hpcmass.config import Site, load_site
from hpcmass.config.document import Document, read_document
from hpcmass.errors import AlreadyExists, HpcmassError, SlurmError
from hpcmass.files import publish
from hpcmass.launch import find_mpiexec
from hpcmass.slurm.client import Slurm
from hpcmass.slurm.site_check import check_site
from hpcmass.slurm.site_draft import draft_site
from hpcmass.slurm.site_facts import (
    ASSOC_FIELDS,
    Association,
    SlurmFacts,
    parse_associations,
    parse_pmi,
    parse_reservations,
)
from hpcmass.slurm.site_finding import Finding
from hpcmass.workflow.env_pack import packed_of

T = TypeVar("T")


@dataclass(frozen=True)
class SiteReport:
    """What `site check` found.

    Attributes:
        site: The site as read.
        findings: Differences from what Slurm says.
        unknown: What could not be held against anything, and why.
        asked: Whether a Slurm answered at all.
        where: `file:line` of each finding's key, or of the table that lacks it.
    """

    site: Site
    findings: tuple[Finding, ...]
    unknown: tuple[str, ...]
    asked: bool
    where: tuple[str, ...] = ()

    @property
    def wrong(self) -> int:
        """Findings that are errors."""
        return sum(finding.wrong for finding in self.findings)

    @property
    def has_slurm(self) -> bool:
        """Whether any target is Slurm's."""
        return any(target.kind == "slurm" for target in self.site.targets.values())


def check_site_file(file: Path | str | None, slurm: Slurm | None = None) -> SiteReport:
    """Validate a site file, and hold it against the Slurm of this machine where there is one.

    Raises:
        NotFound, ConfigError: The file is not there, or is no site file.
    """
    site = load_site(file)
    if not SiteReport(site, (), (), False).has_slurm:
        return SiteReport(site, (), ("no target is of kind 'slurm': there is nothing to ask Slurm",), False)
    facts = gather(slurm or Slurm(patience_s=5.0))
    asked = bool(facts.partitions) or facts.config is not None
    findings = tuple(check_site(site, facts))
    findings += tuple(_environments(site))
    used = file or os.environ.get("HPCMASS_SITE")
    document = read_document(Path(used)) if used else None
    where = tuple(_place(document, each) if document else site.name for each in findings)
    return SiteReport(site, findings, _shortened(facts.unknown), asked, where)


def _environments(site: Site) -> Iterator[Finding]:
    """Packed environments that are not there, not whole, or of another hpcmass."""
    for name, target in site.targets.items():
        try:
            packed_of(target)
        except HpcmassError as error:
            yield Finding(name, "environment", str(target.environment), error.message, True, error.hint or "")


def _place(document: Document, finding: Finding) -> str:
    table = ("targets", finding.target) if finding.target else ()
    return document.where((*table, *finding.key.split(".")))


def _shortened(unknown: Sequence[str]) -> tuple[str, ...]:
    """What has one reason in one sentence."""
    reasons: dict[str, list[str]] = {}
    for line in unknown:
        what, _, why = line.partition(": ")
        reasons.setdefault(why, []).append(what)
    return tuple(f"{'; '.join(whats)}: {why}" for why, whats in reasons.items())


def gather(slurm: Slurm) -> SlurmFacts:
    """Ask Slurm for all that a site file says; what it does not answer is named in `unknown`."""
    unknown: list[str] = []

    def ask(what: str, call: Callable[[], T]) -> T | None:
        try:
            return call()
        except SlurmError as error:
            unknown.append(f"{what}: {error.message}")
            return None

    config = ask("MaxArraySize and the rest of the configuration", slurm.config)
    if config is None and unknown[-1].endswith("on this machine"):
        everything = "partitions, nodes, limits, MaxArraySize, QOS, accounts and PMI"
        reason = "Slurm's commands are not on this machine (go to a login node)"
        return SlurmFacts(unknown=(f"{everything}: {reason}",))
    facts = SlurmFacts(
        partitions=tuple(ask("partitions", slurm.partitions) or ()),
        nodes=tuple(ask("nodes (cores, memory, Gres, features)", slurm.nodes) or ()),
        config=config,
        pmi=ask("PMI", lambda: parse_pmi(slurm.run(["srun", "--mpi=list"]))),
        reservations=ask(
            "reservations",
            lambda: parse_reservations(slurm.run(["scontrol", "show", "reservation", "--oneliner"])),
        ),
    )
    if config is not None and not slurm.has_accounting():
        unknown.append("QOS limits and accounts: this Slurm has no accounting (slurmdbd)")
    elif config is not None:
        associations, account = _user(slurm, ask, config.get("ClusterName", ""))
        facts = replace(
            facts,
            qos=_tuple(ask("QOS limits", slurm.qos)),
            associations=associations,
            default_account=account,
        )
    return replace(facts, unknown=tuple(unknown))


def _tuple(found: list[T] | None) -> tuple[T, ...] | None:
    return None if found is None else tuple(found)


def _user(
    slurm: Slurm, ask: Callable[[str, Callable[[], str]], str | None], cluster: str
) -> tuple[tuple[Association, ...] | None, str]:
    """The user's accounts on this cluster; one slurmdbd may serve several, with other accounts on each."""
    user = getpass.getuser()
    here = [f"cluster={cluster}"] if cluster else []
    words = ["sacctmgr", "--noheader", "--parsable2", "show"]
    rows = ask(
        "accounts",
        lambda: slurm.run([*words, "assoc", f"user={user}", *here, f"format={','.join(ASSOC_FIELDS)}"]),
    )
    default = ask("default account", lambda: slurm.run([*words, "user", user, "format=DefaultAccount"]))
    return None if rows is None else parse_associations(rows), (default or "").strip()


def init_site(file: Path | None, slurm: Slurm | None = None) -> str:
    """Draft a site file from what Slurm says.

    Args:
        file: Where to write it, if anywhere; never over a file that is there.
        slurm: The Slurm to ask.

    Returns:
        Its text.

    Raises:
        SlurmError: Slurm does not answer, or has no partition that can be used.
        AlreadyExists: The file is there.
    """
    if file is not None and os.path.lexists(file):
        raise AlreadyExists("is there already", where=file, hint="name another file, or move it away")
    slurm = slurm or Slurm(patience_s=5.0)
    slurm.partitions()  # The reason why a draft cannot be made, in Slurm's words.
    facts = gather(slurm)
    if not any(facts.nodes_in(partition) for partition in facts.partitions):
        raise SlurmError("Slurm shows no partition with nodes to this user: there is nothing to draft")
    by = f"for {getpass.getuser()} on {time.strftime('%Y-%m-%d')}"
    mpiexec = find_mpiexec()
    beside = mpiexec is not None and Path(mpiexec.path).parent == Path(sys.executable).parent
    text = draft_site(facts, by=by, has_mpiexec=beside)
    if file is not None:
        publish(file, text)
    return text
