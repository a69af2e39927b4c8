"""A site as a user's own Parsl script sees it: `hpcmass.Site.load(FILE).parsl_config(run_dir=…)`."""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from hpcmass import config
from hpcmass.config import Resources, Target, load_site, site_to_toml
from hpcmass.errors import ConfigError
from hpcmass.files import make_dir, replace

if TYPE_CHECKING:
    from parsl.config import Config
    from parsl.executors import HighThroughputExecutor


class Site(config.Site):
    """A site file's content, with the way to Parsl."""

    @classmethod
    def load(cls, file: Path | str | None = None) -> Site:
        """The site of a file, else of `HPCMASS_SITE`, else this machine.

        Raises:
            NotFound: The file does not exist.
            ConfigError: It is wrong.
        """
        return cls(**dict(load_site(file)))

    def parsl_config(
        self,
        *,
        run_dir: Path | str,
        targets: Sequence[str] | None = None,
        item: Resources | None = None,
        nodes: int | None = None,
        parallel: int | None = None,
        retries: int = 1,
        encrypted: bool = True,
        poll_s: float = 10.0,
    ) -> Config:
        """The site's targets as Parsl executors, two for every target of Slurm.

        The executor `NAME` packs items: as many side by side on a node as its cores and GPUs give.
        `NAME-nodes` gives an item all nodes of a block. Blocks come and go with the work; a node or block that
        is lost costs no retry. When this process is gone, however it ended, a watchdog ends the blocks.

        Args:
            run_dir: For Parsl's logs, the blocks' scripts and outputs; on a file system that the nodes see.
            targets: Names of targets; default: all.
            item: What one packed item asks for; default: a rank on a core, and a GPU where there are some.
            nodes: Nodes of an item on `NAME-nodes`; default: all that one job may have.
            parallel: Items that will run at once, so that few items on a large node get all its cores.
            retries: How often an app that failed is run again.
            encrypted: Whether Parsl's traffic is encrypted.
            poll_s: Seconds between two looks at the blocks.

        Raises:
            ConfigError: There is no such target, or it cannot take the item.
        """
        from hpcmass.workflow import parsl_site
        from hpcmass.workflow.blocks import BlockBook
        from hpcmass.workflow.pool import GRACE_S
        from hpcmass.workflow.pool_env import slurm_environment
        from hpcmass.workflow.watchdog import Watchdog

        run_dir, driver = Path(run_dir).absolute(), uuid.uuid4().hex
        chosen = {name: self._named(name) for name in (self.targets if targets is None else targets)}
        replace(make_dir(run_dir) / "site.toml", site_to_toml(self))
        # An app trains on the target of its executor, as this site describes it.
        known = {"HPCMASS_SITE": str(run_dir / "site.toml")}
        book = BlockBook(run_dir, driver, poll_s=poll_s)
        kinds = {target.kind for target in chosen.values()}
        # It waits beside this process; that it has nothing left to do, it sees itself.
        dog = Watchdog(driver, grace_s=GRACE_S, journal=book.journal if "slurm" in kinds else None)
        book.on_first = dog.start
        if "local" in kinds:
            dog.start()
        executors: list[HighThroughputExecutor] = []
        for name, target in chosen.items():
            if target.kind == "local":
                executors.append(_local(name, target, run_dir, driver, known, parallel or 1, encrypted))
                continue
            executors += [
                parsl_site.slurm_executor(
                    shape, target, book=book, run_dir=run_dir,
                    environment={**slurm_environment(target), **known}, grace_s=GRACE_S, encrypted=encrypted,
                )
                for shape in parsl_site.both_shapes(target, name, item or Resources(), nodes, parallel)
            ]  # fmt: skip
        return parsl_site.config_of(executors, run_dir, retries=retries)

    def _named(self, name: str) -> Target:
        if name not in self.targets:
            known = ", ".join(sorted(self.targets))
            raise ConfigError(f"site '{self.name}' has no target '{name}'", hint=f"its targets: {known}")
        return self.targets[name]


def _local(
    name: str,
    target: Target,
    run_dir: Path,
    driver: str,
    site: Mapping[str, str],
    parallel: int,
    encrypted: bool,
) -> HighThroughputExecutor:
    """Workers on this machine, under Parsl's own provider."""
    from hpcmass.workflow import parsl_site, pilot
    from hpcmass.workflow.pool_env import worker_environment

    if not parsl_site.shell_safe(run_dir):
        raise ConfigError(
            "Parsl hands this path to a shell, where it is more than one word",
            where=run_dir,
            hint="letters, digits and _@%+=:,./- only; or leave local targets out",
        )
    environment = {**worker_environment(target, parallel, None, driver), **site, pilot.TARGET: name}
    return parsl_site.local_executor(
        label=name, parallel=parallel, environment=environment, encrypted=encrypted
    )
