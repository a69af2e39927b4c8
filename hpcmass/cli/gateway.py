"""`hpcmass gateway`."""

from hpcmass.cli.deploy_life import gateway as command

__all__ = ["command"]
