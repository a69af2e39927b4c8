"""`hpcmass catalogue doctor`, `fsck` and `gc`."""

from __future__ import annotations

import re
from typing import Any

import click

from hpcmass.cli.console import dump, size, table, visible
from hpcmass.cli.options import project_option

_UNITS = {"": 1, "k": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}
_TIMES = {"": 1.0, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0, "w": 604800.0}
_SIGNS = {"good": "ok  ", "note": "note", "bad": "BAD ", "unknown": "?   "}


def _amount(_context: click.Context, _parameter: click.Parameter, text: str | None) -> int | None:
    """A number with a unit of 1000, such as `500G`."""
    if text is None:
        return None
    match = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)([kMGT]?)B?", text.strip())
    if not match:
        raise click.BadParameter(f"{text!r}: say a number, with k, M, G or T behind it")
    return int(float(match[1]) * _UNITS[match[2]])


def _duration(_context: click.Context, _parameter: click.Parameter, text: str | None) -> float | None:
    """Seconds, of a number with s, m, h, d or w behind it."""
    if text is None:
        return None
    match = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)([smhdw]?)", text.strip())
    if not match:
        raise click.BadParameter(f"{text!r}: say a number, with s, m, h, d or w behind it")
    return float(match[1]) * _TIMES[match[2]]


def _best(
    _context: click.Context, _parameter: click.Parameter, given: tuple[str, ...]
) -> tuple[tuple[str, int, bool], ...]:
    """`accuracy:5`, `-loss:3` (less is better)."""
    found = []
    for text in given:
        metric, _, count = text.rpartition(":")
        if not metric.removeprefix("-") or not count.isdecimal() or not int(count):
            raise click.BadParameter(f"{text!r}: say METRIC:NUMBER, a '-' before it where less is better")
        found.append((metric.removeprefix("-"), int(count), metric.startswith("-")))
    return tuple(found)


@click.command("doctor")
@click.option("--node", metavar="NODE", help="Have the second process on this node, by srun.")
@click.option("--ssh", metavar="HOST", help="Have the second process on this host, by ssh.")
@click.option("--json", "as_json", is_flag=True, help="For programs.")
@project_option
@click.pass_context
def doctor(
    context: click.Context, node: str | None, ssh: str | None, as_json: bool, project_root: str | None
) -> None:
    """Try what the file system under the catalogue really does, and look at room, quota and modes.

    What it found about hard links is kept, and heeded by every later writer. Exit code 1: something is wrong.
    """
    from hpcmass.catalogue.doctor import diagnose
    from hpcmass.catalogue.peer import Peer
    from hpcmass.workflow.registry import open_catalogue

    if node and ssh:
        raise click.UsageError("--node and --ssh: one of them")
    peer = Peer()
    if node:
        peer = Peer(["srun", "--nodes=1", "--ntasks=1", "--overlap", "--quiet", f"--nodelist={node}"])
    elif ssh:
        peer = Peer(["ssh", "-oBatchMode=yes", "--", ssh], shell=True)
    found = diagnose(open_catalogue(project_root).path, peer)
    if as_json:
        dump(
            {
                "folder": str(found.folder),
                "links": found.links,
                "ok": found.ok,
                "probes": [vars(one) for one in found.probes],
            }
        )
    else:
        click.echo(f"{found.folder}")
        for one in found.probes:
            click.echo(f"{_SIGNS[one.state]} {one.name}: {one.found}")
            if one.advice:
                click.echo(f"       {one.advice}")
        wrong = sum(one.state == "bad" for one in found.probes)
        click.echo(f"{wrong} wrong" if wrong else "nothing is wrong")
    context.exit(0 if found.ok else 1)


@click.command("fsck")
@click.option("--repair", is_flag=True, help="Repair what is found, or set it aside; nothing is deleted.")
@click.option("--quick", is_flag=True, help="Hold contents against their sizes only, not their checksums.")
@click.option("--json", "as_json", is_flag=True, help="For programs.")
@project_option
@click.pass_context
def fsck(context: click.Context, repair: bool, quick: bool, as_json: bool, project_root: str | None) -> None:
    """Read all of the catalogue and name what is damaged or left over; safe while others register.

    Exit code 1: something is damaged, or still is.
    """
    from hpcmass.catalogue.fsck import scan
    from hpcmass.catalogue.mending import repair as mend
    from hpcmass.workflow.registry import open_catalogue

    path = open_catalogue(project_root).path
    report = mend(path, quick=quick) if repair else scan(path, quick=quick)
    if as_json:
        dump(
            {
                **{
                    key: getattr(report, key)
                    for key in ("versions", "contents", "bytes", "ok", "done", "aside")
                },
                "findings": [
                    {"kind": one.kind, "damage": one.is_damage, "told": one.told()} for one in report.findings
                ],
                "left": [
                    {"kind": one.kind, "damage": one.is_damage, "told": one.told()} for one in report.left
                ],
            }
        )
    else:
        for one in report.findings:
            click.echo(f"{'DAMAGE' if one.is_damage else 'left  '} {visible(one.told())}")
        for line in report.done:
            click.echo(f"done   {line}")
        for one in report.left if repair else []:
            click.echo(f"{'STILL  ' if one.is_damage else 'left   '}{visible(one.told())}")
        if report.aside:
            click.echo(f"set aside in {report.aside}; look at it, and remove it when it is of no use")
        damage = sum(one.is_damage for one in report.left)
        what = "sizes" if quick else "checksums"
        told = f"{report.versions} versions, {report.contents} files, {size(report.bytes)}: "
        click.echo(told + (f"{damage} damaged" if damage else f"all fit their {what}"))
        if damage and not repair:
            click.echo("--repair mends what it can, and sets the rest aside")
    context.exit(0 if report.ok else 1)


@click.command("gc")
@click.option(
    "--keep-last", type=click.IntRange(1), metavar="N", help="Keep the newest N versions of each model."
)
@click.option(
    "--keep-best", multiple=True, metavar="METRIC:N", callback=_best,
    help="Keep the N best of each model by a metric; '-loss:3': less is better (repeatable).",
)  # fmt: skip
@click.option("--newer-than", metavar="TIME", callback=_duration, help="Keep what is newer, such as 90d.")
@click.option(
    "--max-bytes", metavar="SIZE", callback=_amount, help="Remove only what this quota asks for, such as 2T."
)
@click.option("--max-files", metavar="N", callback=_amount, help="Remove only what this inode quota asks for.")
@click.option("--no-history", is_flag=True, help="Versions that an alias had before may go too.")
@click.option("--grace", metavar="TIME", default="1d", show_default=True, callback=_duration,
              help="How long what goes lies in the trash; 0: delete at once.")  # fmt: skip
@click.option("--why", default="", help="The reason, kept in the record of what was removed.")
@click.option("--dry-run", is_flag=True, help="Change nothing; say what would go, and why each other stays.")
@click.option("--json", "as_json", is_flag=True, help="For programs.")
@project_option
def gc(
    keep_last: int | None, keep_best: tuple[tuple[str, int, bool], ...], newer_than: float | None,
    max_bytes: int | None, max_files: int | None, no_history: bool, grace: float, why: str, dry_run: bool,
    as_json: bool, project_root: str | None,
) -> None:  # fmt: skip
    """Remove versions that no rule keeps, and content that no version uses.

    Without a rule all versions stay. With one, a version stays where any rule holds for it; what an alias has
    or had, the ancestors of that, and the newest version of each model always stay. Safe while others register.
    """
    from hpcmass.catalogue.gc import collect
    from hpcmass.catalogue.retention import Rules
    from hpcmass.workflow.registry import open_catalogue

    rules = Rules(keep_last=keep_last, keep_best=keep_best, newer_than_s=newer_than, max_bytes=max_bytes,
                  max_files=max_files, history=not no_history)  # fmt: skip
    report = collect(open_catalogue(project_root).path, rules, why=why, grace_s=grace, dry_run=dry_run)
    if as_json:
        dump(_json(report))
        return
    shown = report.decisions if dry_run else report.gone
    if shown and (rules.any or not dry_run):
        rows = [(one.version.ref, "goes" if one.goes else "stays", size(one.frees), one.why) for one in shown]
        table(rows, ["version", "", "frees", "why"])
    _tell(report, grace)


def _json(report: Any) -> dict[str, Any]:
    facts = {key: value for key, value in vars(report).items() if key != "decisions"}
    decisions = [
        {"version": one.version.ref, "goes": one.goes, "why": one.why, "frees": one.frees}
        for one in report.decisions
    ]
    return {**facts, "versions": decisions}


def _tell(report: Any, grace: float) -> None:
    would = "would be " if report.dry_run else ""
    frees = size(sum(one.frees for one in report.gone))
    click.echo(
        f"{len(report.gone)} of {len(report.decisions)} versions {would}removed, their own content {frees}"
    )
    click.echo(f"{report.unused} files ({size(report.unused_bytes)}) that nothing uses {would}set aside")
    if report.rewritten:
        click.echo(f"{report.rewritten} packs that were mostly dead written anew")
    click.echo(f"{report.purged} files ({size(report.purged_bytes)}) {would}deleted for good")
    if grace and (report.gone or report.unused):
        click.echo(f"what goes lies in trash/ for {grace / 3600:g} h first; a later gc deletes it")
    for ref in report.brought_back:
        click.echo(f"brought back, since it came to be used: {ref}")
    for line in report.waiting:
        click.echo(f"waiting: {line}")
    for path, reason in report.refused.items():
        click.echo(f"not removed: {path}: {reason}")
    for ref in report.nowhere:
        click.echo(f"{ref} points at a version that is not there: point it at another")
