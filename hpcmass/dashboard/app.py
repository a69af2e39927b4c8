"""The dashboard of a project: which address is answered by what, and its life from start to Ctrl-C."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from typing import Any

from hpcmass import __version__
from hpcmass.config import Project
from hpcmass.dashboard.access import Access, is_loopback, own_names
from hpcmass.dashboard.deployments import DeploymentsReader
from hpcmass.dashboard.models import ModelsReader
from hpcmass.dashboard.plain import UNREADABLE, said
from hpcmass.dashboard.run import RunReader
from hpcmass.dashboard.runs import RunsReader
from hpcmass.dashboard.server import Page, Question, Server
from hpcmass.dashboard.studies import StudiesReader
from hpcmass.errors import NotFound


class Dashboard:
    """Answers what the page asks for; reads only."""

    def __init__(self, project: Project) -> None:
        self.project = project
        self.runs = RunsReader(project.runs)
        self.run = RunReader()
        self.studies = StudiesReader(project.studies)
        self.deployments = DeploymentsReader(getattr(project, "deployments", project.root / "deployments"))
        self.models = ModelsReader(project, self.deployments.served)

    def answer(self, path: str, query: Question) -> Any:
        """JSON, or a page.

        Raises:
            NotFound: There is nothing at this address.
        """
        view, _, name = path.partition("/")
        if view in ("overview", "project") and not name:
            return self.overview() if view == "overview" else self._about()
        if view == "runs":
            return self.run.read(self.project.run_path(name), name) if name else self.runs.page(query)
        if view == "studies":
            return self._studies(name, query)
        if view == "models":
            return self.models.version(name) if name else self.models.page(query)
        if view == "card":
            return self.models.card(name)
        if view == "deployments":
            return self.deployments.one(name) if name else self.deployments.page()
        raise NotFound("there is nothing here")

    def overview(self) -> dict[str, Any]:
        """A little of everything; a part that cannot be read says why."""
        parts: dict[str, Callable[[], Any]] = {
            "runs": self.runs.summary,
            "studies": lambda: self.studies.page({"limit": "5"}),
            "models": lambda: self.models.page({"limit": "5"}),
            "deployments": self.deployments.page,
        }
        found = self._about()
        for name, read in parts.items():
            try:
                found[name] = read()
            except UNREADABLE as error:
                found[name] = {"error": said(error)}
        return found

    def _about(self) -> dict[str, Any]:
        return {"project": self.project.name, "root": str(self.project.root), "version": __version__}

    def _studies(self, path: str, query: Question) -> Any:
        name, _, rest = path.partition("/")
        if not name:
            return self.studies.page(query)
        if rest == "report":
            return _report(self.studies, name)
        if rest:
            return self.run.read(self.studies.trial(name, rest), f"{name}/{rest}")
        return self.studies.study(name, query)


def _report(studies: StudiesReader, name: str) -> Page:
    """The report of `hpcmass sweep report`, made as it is asked for and kept nowhere."""
    from hpcmass.sweep.report import gather, render

    html = render(gather(studies.path(name)))
    _, _, rest = html.partition('http-equiv="Content-Security-Policy" content="')
    return Page(html, rest.partition('"')[0] + "; frame-ancestors 'none'")


def serve(project: Project, host: str, port: int, ready: Callable[[str], None]) -> None:
    """Serve until Ctrl-C or SIGTERM.

    Args:
        project: Of what.
        host: Address to listen at.
        port: 0: any free one.
        ready: Called with the address, token and all, when it can be opened.

    Raises:
        HpcmassError: The address cannot be had.
    """
    access = Access(() if is_loopback(host) else (*own_names(), host))
    server = Server(host, port, access, Dashboard(project).answer)
    over = threading.Event()
    before = {one: signal.signal(one, lambda *_: over.set()) for one in (signal.SIGINT, signal.SIGTERM)}
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.2}, daemon=True)
    thread.start()
    try:
        ready(f"{server.url}#{access.token}")
        over.wait()
    finally:
        server.end()
        thread.join()
        for number, handler in before.items():
            signal.signal(number, handler)
