"""How a hop hands its run on: the same job again, or a job that follows it."""

from __future__ import annotations

import contextlib
import os
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hpcmass.config import Job, Layout, Project, Resources, Site, Target, layout_of
from hpcmass.errors import ConfigError, CorruptError, HpcmassError, NotFound, SlurmError
from hpcmass.files import read_json
from hpcmass.runs import RunFolder
from hpcmass.slurm.outlive import Fate
from hpcmass.slurm.records import SubmissionRecord, slurm_folder
from hpcmass.slurm.send import Place, new_comment, send
from hpcmass.workflow.submit import batch_script
from hpcmass.workflow.targets import target_of
from hpcmass.workflow.warden import JobEyes, say


@dataclass(frozen=True)
class Asked:
    """What the running job was asked for, out of its submission and the run's own files.

    Attributes:
        target_name, target: Of the site.
        layout: Where the ranks lie.
        submission: The job's record, or None where there is none (a script by hand).
        signal_s: How long before the time limit the script asks Slurm for SIGUSR1, or None.
    """

    site: Site
    target_name: str
    target: Target
    layout: Layout
    submission: SubmissionRecord | None = None
    signal_s: int | None = None

    @classmethod
    def of(cls, job: Job, site: Site, submission: SubmissionRecord | None, signal_s: int | None) -> Asked:
        """Put it together.

        Raises:
            ConfigError: The site has no such target, or the target cannot give what the job asks for.
        """
        name = submission.target if submission and submission.target else None
        name = name or job.resources.target or site.default_target
        resources = job.resources.model_copy(update={"target": name})
        target = target_of(job.model_copy(update={"resources": resources}), site)
        layout = _recorded(submission) or layout_of(resources, target, name=name)
        return cls(site, name, target, layout, submission, signal_s)


def _recorded(submission: SubmissionRecord | None) -> Layout | None:
    if submission is None:
        return None
    try:
        return Layout(**submission.layout)
    except TypeError:
        return None


Size = tuple[str, Target, Layout]  # and the target's name


@dataclass(frozen=True)
class Handed:
    """How the run was handed on.

    Attributes:
        next: `requeue`, `successor` or `none`.
        note: What is to be added to the hop's reason; empty where there is nothing.
        job_id: The successor's.
    """

    next: str
    note: str = ""
    job_id: str = ""


class HandOver:
    """The ways out of one job for its run.

    Attributes:
        done: What was done, once.
        note: What is to be told of a size that was asked for and is not followed; empty where there is nothing.
    """

    def __init__(self, run: RunFolder, project: Project, job: Job, asked: Asked, eyes: JobEyes) -> None:
        self.run, self.project, self.job, self.asked, self.eyes = run, project, job, asked, eyes
        self.job_id, self.slurm = eyes.place.job_id, eyes.slurm
        self.done: Handed | None = None
        self.note = ""
        self._ignored = False
        self._lock = threading.Lock()

    @property
    def way(self) -> str:
        """`requeue` or `successor`: the same job again where the site lets it and nothing else is asked for."""
        if self._resized() is not None or not self.asked.target.requeue:
            return "successor"
        return "requeue"

    @property
    def resize_file(self) -> Path:
        """Asks for another layout from the next hop on: `{"format": 1, "resources": {"ranks": 4, …}}`.

        What cannot be had is told, renamed to `resize-bad.json`, and the run goes on as it was.
        """
        return slurm_folder(self.run.path) / "resize.json"

    def go(self) -> Handed:
        """Hand the run on, once; where Slurm refuses a requeue, by a successor.

        Of two threads that call it (the warden's at SIGTERM, the hop's own when its ranks are gone) the second
        waits for what the first has done.
        """
        with self._lock:
            if self.done is None:
                self.done = self._go()
            return self.done

    def take_back(self) -> None:
        """Cancel a successor that turned out not to be needed; nothing is handed on afterwards."""
        with self._lock:
            done = self.done
            self.done = done or Handed("none", "the run is not to go on")
            if done is not None and done.job_id:
                with contextlib.suppress(HpcmassError):
                    self.slurm.cancel([done.job_id])
                    say(f"cancelled job {done.job_id}, which was to follow")

    def _go(self) -> Handed:
        if (size := self._resized()) is not None:
            try:
                return self._succeeded(self.successor(size))
            except (ConfigError, SlurmError) as error:
                if error.transient or error.data.get("unsure"):
                    return Handed("none", f"the run could not be handed on (successor: {error.message})")
                self._set_aside(error)
            except HpcmassError as error:
                return Handed("none", f"the run could not be handed on (successor: {error.message})")
        return self._as_it_was()

    def _as_it_was(self) -> Handed:
        refused = ""
        if self.asked.target.requeue:
            try:
                self.slurm.requeue(self.job_id)
                return Handed("requeue", self.note)
            except SlurmError as error:
                if self.eyes.fate()[0] is Fate.REQUEUED:
                    return Handed("requeue", self.note)  # it was done, and the answer was lost
                refused = f"requeue: {error.message}"
                if error.transient:
                    return Handed("none", f"Slurm could not be asked to requeue the job ({error.message})")
        try:
            return self._succeeded(self.successor())
        except HpcmassError as error:
            both = "; ".join(text for text in (refused, f"successor: {error.message}") if text)
            return Handed("none", f"the run could not be handed on ({both})")

    def _succeeded(self, record: SubmissionRecord) -> Handed:
        note = "; ".join(text for text in (self.note, f"job {record.job_id} follows") if text)
        return Handed("successor", note, record.job_id)

    def successor(self, size: Size | None = None) -> SubmissionRecord:
        """Submit the job that goes on when this one has ended.

        Args:
            size: What it asks for; default: what this job was asked for.

        Raises:
            HpcmassError: Slurm refused, or the file system.
        """
        name, target, layout = size or (self.asked.target_name, self.asked.target, self.asked.layout)
        after, comment = (f"afterany:{self.job_id}",), new_comment()
        text = batch_script(
            self.run.path.absolute(),
            name=self.job.name,
            target=target,
            layout=layout,
            project_root=self.project.root.absolute(),
            comment=comment,
            after=after,
            title=f"run {self.run.path.name}, after job {self.job_id}",
        )
        (record,) = send(
            [Place(self.run.path)],
            text,
            slurm=self.slurm,
            site=self.asked.site.name,
            target=name,
            layout=layout,
            by="successor",
            after=after,
            comment=comment,
        )
        if size is not None:
            with contextlib.suppress(OSError):  # asked for once
                os.rename(self.resize_file, self.resize_file.with_name(f"resize-{record.number:04d}.json"))
        return record

    # -- another size ----------------------------------------------------------------------------------
    def _resized(self) -> Size | None:
        """What the next hop is asked to have; None where nothing is asked for, or nothing that makes sense."""
        if self._ignored:
            return None
        try:
            return self._wanted()
        except ConfigError as error:
            self._set_aside(error)
        except HpcmassError as error:  # the file system does not give it
            say(f"{error}")
        return None

    def _wanted(self) -> Size | None:
        asked = self.asked
        try:
            wanted: Any = read_json(self.resize_file)
            changes = dict(wanted["resources"])
            resources = Resources(**{**self.job.resources.model_dump(), "nodes": None, **changes})
        except NotFound:
            return None
        except (CorruptError, KeyError, TypeError, ValueError) as error:
            raise ConfigError(
                f"does not say what size to go on with ({error})", where=self.resize_file
            ) from error
        name = resources.target or asked.target_name
        if name not in asked.site.targets:
            raise ConfigError(f"the site has no target '{name}'", where=self.resize_file)
        target = asked.site.targets[name]
        if target.kind != "slurm":
            raise ConfigError(f"target '{name}' is none of Slurm's", where=self.resize_file)
        return name, target, layout_of(resources, target, name=name)

    def _set_aside(self, error: HpcmassError) -> None:
        """A size that cannot be had must not end a run."""
        self._ignored = True
        words = " ".join(error.message.split())
        self.note = f"resize.json is not followed, and kept as resize-bad.json: {words}"
        say(self.note)
        with contextlib.suppress(OSError):
            os.rename(self.resize_file, self.resize_file.with_name("resize-bad.json"))
