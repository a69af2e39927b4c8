"""`hpcmass deployments`, `endpoint`, `rollback`, `undeploy`; and `gateway`, the process behind a deployment."""

from __future__ import annotations

import click

from hpcmass.cli.options import project_option


@click.command("deployments")
@project_option
def deployments(project_root: str | None) -> None:
    """List the deployments: state, version, replicas, rate, latency, address."""
    from hpcmass.errors import HpcmassError
    from hpcmass.workflow.deploying import deployments as found
    from hpcmass.workflow.deploying import in_short

    for one in found(project_root):
        try:
            click.echo(in_short(one))
        except HpcmassError as error:  # of the others there is something to say
            click.echo(f"{one.path.name}  cannot be read: {error.message}")


@click.command("endpoint")
@click.argument("name")
@click.option("--wait", "wait_s", default=0.0, metavar="SECONDS", type=click.FloatRange(0),
              help="Wait so long until it is ready.")  # fmt: skip
@project_option
def endpoint(name: str, wait_s: float, project_root: str | None) -> None:
    """Print where the deployment NAME answers now."""
    from hpcmass.workflow.deploying import find_deployment, wait_ready

    click.echo(wait_ready(find_deployment(name, project_root), wait_s=wait_s)["url"])


@click.command("rollback")
@click.argument("name")
@click.option("--wait", "wait_s", default=120.0, show_default=True, metavar="SECONDS", type=click.FloatRange(0),
              help="Wait so long until it serves.")  # fmt: skip
@project_option
def rollback(name: str, wait_s: float, project_root: str | None) -> None:
    """End the trial of a version, or bring back the version that was served before; follow no alias."""
    from hpcmass.workflow.deploying import find_deployment, wait_ready
    from hpcmass.workflow.deploying import rollback as back

    asked = back(name, project_root)
    if wait_s:
        wait_ready(find_deployment(name, project_root), wait_s=wait_s)
    click.echo(f"{name} serves {asked.stable}")


@click.command("undeploy")
@click.argument("name")
@click.option("--wait", "wait_s", default=120.0, show_default=True, metavar="SECONDS", type=click.FloatRange(0),
              help="Wait so long until all has ended.")  # fmt: skip
@project_option
def undeploy(name: str, wait_s: float, project_root: str | None) -> None:
    """End the deployment NAME: what is under way is answered, then its processes and jobs end."""
    from hpcmass.workflow.deploying import undeploy as end

    end(name, project_root, wait_s=wait_s)
    click.echo(f"{name} has ended")


@click.command("gateway")
@click.argument("name")
@project_option
def gateway(name: str, project_root: str | None) -> None:
    """Be the gateway and the controller of the deployment NAME; hpcmass deploy starts it.

    Where another one lives, this one takes its place without a gap.
    """
    from hpcmass.workflow.deploying import run_gateway

    run_gateway(name, project_root, say=lambda text: click.echo(text))
