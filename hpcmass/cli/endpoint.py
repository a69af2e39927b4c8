"""`hpcmass endpoint`."""

from hpcmass.cli.deploy_life import endpoint as command

__all__ = ["command"]
