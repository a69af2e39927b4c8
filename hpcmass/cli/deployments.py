"""`hpcmass deployments`."""

from hpcmass.cli.deploy_life import deployments as command

__all__ = ["command"]
