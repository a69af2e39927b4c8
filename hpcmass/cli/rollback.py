"""`hpcmass rollback`."""

from hpcmass.cli.deploy_life import rollback as command

__all__ = ["command"]
