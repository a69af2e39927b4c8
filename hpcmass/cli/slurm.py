"""`hpcmass slurm up|down|status|kill-node|start-node|env`: the development cluster."""

from __future__ import annotations

import shlex
import time
from pathlib import Path
from typing import Any

import click

from hpcmass.cli.console import dump, facts, table


def _folder_option(function: Any) -> Any:
    return click.option(
        "--folder",
        metavar="FOLDER",
        help="The cluster's folder [default: HPCMASS_DEVCLUSTER, or one of yours in /tmp].",
    )(function)


def _path(folder: str | None) -> Path | None:
    return Path(folder) if folder else None


@click.group("slurm")
def command() -> None:
    """A real Slurm of six small nodes on this one machine, to learn, develop and test with.

    As root every node has its own hostname and network; as an ordinary user all share the machine's.
    """


@command.command("up")
@_folder_option
@click.option(
    "--accounting/--no-accounting", default=None, help="With slurmdbd [default: where it is installed]."
)
@click.option(
    "--namespaces/--no-namespaces", default=None, help="A host of its own a node [default: where root may]."
)
@click.option(
    "--grace", type=click.IntRange(0), metavar="SECONDS", help="What a preempted job gets [default: 0]."
)
@click.option(
    "--node-timeout",
    type=click.IntRange(3),
    metavar="SECONDS",
    help="Until a silent node is down [default: 10].",
)
def up(
    folder: str | None,
    accounting: bool | None,
    namespaces: bool | None,
    grace: int | None,
    node_timeout: int | None,
) -> None:
    """Start the cluster, or what is missing of it."""
    from hpcmass.devcluster import Cluster

    began = time.monotonic()
    cluster = Cluster.up(
        _path(folder),
        network_namespaces=namespaces,
        accounting=accounting,
        grace_s=grace,
        slurmd_timeout_s=node_timeout,
        say=lambda text: click.echo(text, err=True),
    )
    where = f" --folder {shlex.quote(folder)}" if folder else ""
    click.echo(f"the cluster is up ({time.monotonic() - began:.1f} s), in {cluster.folder}")
    if not cluster.has_accounting:
        click.echo("without accounting: sacct and sacctmgr do not answer")
    if not cluster.has_network:
        click.echo("without namespaces (they need root): every node has this machine's hostname")
    click.echo("next:")
    click.echo(f'  eval "$(hpcmass slurm env{where})"     # in each shell that is to use it')
    click.echo("  sinfo")
    click.echo("  srun -N 2 hostname")
    click.echo(f"  hpcmass slurm down{where}")


@command.command("down")
@_folder_option
def down(folder: str | None) -> None:
    """Cancel all jobs and end the cluster; its accounts and logs are kept."""
    from hpcmass.devcluster import Cluster

    cluster = Cluster.open(_path(folder))
    ran = not cluster.status().down
    cluster.down()
    click.echo("the cluster is down" if ran else "the cluster was down already")


@command.command("status")
@_folder_option
@click.option("--json", "as_json", is_flag=True, help="For programs.")
@click.pass_context
def status(ctx: click.Context, folder: str | None, as_json: bool) -> None:
    """Say which daemons and nodes live; exit code 0 if all do, 1 if some do not, 3 if none does."""
    from hpcmass.devcluster import Cluster

    cluster = Cluster.open(_path(folder))
    found = cluster.status()
    word = "up" if found.up else "down" if found.down else "partly up"
    if as_json:
        dump({"cluster": word, "folder": str(cluster.folder), **vars(found)})
    else:
        facts(
            {
                "cluster": word,
                "folder": str(cluster.folder),
                "site file": str(cluster.site_file),
                "accounting": cluster.has_accounting,
                "own hostnames": cluster.has_network,
                "jobs": found.jobs,
            }
        )
        rows = [(name, "alive" if alive else "dead", "") for name, alive in found.daemons.items()]
        rows += [(n, "alive" if alive else "dead", found.states.get(n, "")) for n, alive in found.nodes.items()]
        table(rows, ["daemon or node", "process", "Slurm says"])
    ctx.exit(0 if found.up else 3 if found.down else 1)


@command.command("kill-node")
@click.argument("node")
@_folder_option
def kill_node(node: str, folder: str | None) -> None:
    """Take the power from a node: all that runs on it dies at once. Slurm notices after its time-out."""
    from hpcmass.devcluster import Cluster

    Cluster.open(_path(folder)).kill_node(node)
    click.echo(f"{node} is dead; bring it back: hpcmass slurm start-node {node}")


@command.command("start-node")
@click.argument("node")
@_folder_option
def start_node(node: str, folder: str | None) -> None:
    """Bring a node back."""
    from hpcmass.devcluster import Cluster

    Cluster.open(_path(folder)).start_node(node)
    click.echo(f"{node} is back")


@command.command("env")
@_folder_option
def env(folder: str | None) -> None:
    """Print what to set in a shell: eval "$(hpcmass slurm env)"."""
    from hpcmass.devcluster import Cluster

    cluster = Cluster.open(_path(folder))
    click.echo(f"export SLURM_CONF={shlex.quote(cluster.env['SLURM_CONF'])}")
    click.echo(f"export HPCMASS_DEVCLUSTER={shlex.quote(str(cluster.folder))}")
    click.echo('case ":$PATH:" in *:/usr/sbin:*) ;; *) export PATH="$PATH:/usr/sbin" ;; esac')
