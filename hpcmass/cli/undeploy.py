"""`hpcmass undeploy`."""

from hpcmass.cli.deploy_life import undeploy as command

__all__ = ["command"]
