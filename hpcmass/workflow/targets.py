"""Which of a site's targets a job is meant for."""

from __future__ import annotations

from hpcmass.config import Job, Site, Target
from hpcmass.errors import ConfigError


def target_of(job: Job, site: Site) -> Target:
    """The target that a job asks for.

    Raises:
        ConfigError: The site has no target of that name.
    """
    name = job.resources.target or site.default_target
    if name == "auto" and site.targets[site.default_target].kind == "local":
        name = site.default_target  # Without a scheduler there is nothing to choose between.
    if name == "auto":
        raise ConfigError(
            "a target is chosen when a job is submitted, not when it runs",
            where="resources.target",
            hint="hpcmass submit JOB, or name a target",
        )
    if name not in site.targets:
        raise ConfigError(
            f"site '{site.name}' has no target '{name}'",
            where="resources.target",
            hint=f"its targets: {', '.join(sorted(site.targets))}",
        )
    return site.targets[name]
