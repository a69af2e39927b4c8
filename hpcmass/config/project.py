"""The project folder: where data, runs, studies and the catalogue of a piece of work lie."""

from __future__ import annotations

import os
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from hpcmass.config.document import read_document
from hpcmass.config.explain import explain
from hpcmass.errors import AlreadyExists, NotFound
from hpcmass.files import check_name, make_dir, publish

FILE = "hpcmass.toml"


class Paths(BaseModel):
    """`[paths]`: the parts, relative to the project folder or absolute (scratch, a shared catalogue)."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    data: str = "data"
    runs: str = "runs"
    studies: str = "studies"
    catalogue: str = "catalogue"
    deployments: str = "deployments"


class Stage(BaseModel):
    """`[stages.NAME]`: what every promotion to an alias requires."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    require: list[str] = []


class ProjectFile(BaseModel):
    """The content of `hpcmass.toml`."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    name: str
    site: str | None = None
    paths: Paths = Paths()
    stages: dict[str, Stage] = {}


class Project:
    """A project folder.

    Attributes:
        root: The folder that holds `hpcmass.toml`, absolute.
        file: Its validated content.
    """

    def __init__(self, root: Path) -> None:
        """Open the project at `root`.

        Raises:
            NotFound: There is no `hpcmass.toml` in it.
            ConfigError: The file is wrong.
        """
        self.root = root.resolve()
        if not (self.root / FILE).is_file():
            raise NotFound(
                "is not an hpcmass project", where=self.root, hint="make one with: hpcmass init FOLDER"
            )
        document = read_document(self.root / FILE)
        try:
            self.file = ProjectFile.model_validate(document.values)
        except ValidationError as error:
            raise explain(error, ProjectFile, document.where) from None
        check_name(self.file.name, "project name")

    @classmethod
    def find(cls, start: Path | None = None) -> Project:
        """The project of `HPCMASS_PROJECT`, or of the nearest parent of `start` (the working folder).

        Raises:
            NotFound: No parent holds `hpcmass.toml`.
        """
        if start is None and (named := os.environ.get("HPCMASS_PROJECT")):
            return cls(Path(named))
        here = (start or Path.cwd()).resolve()
        for folder in (here, *here.parents):
            if (folder / FILE).is_file():
                return cls(folder)
        raise NotFound(
            "no hpcmass project here or in any parent folder",
            where=here,
            hint="make one with: hpcmass init FOLDER, or name one with --project FOLDER",
        )

    @classmethod
    def create(cls, root: Path, name: str | None = None) -> Project:
        """Make a project folder.

        Raises:
            AlreadyExists: There is a project already.
        """
        root = root.resolve()
        name = check_name(name or root.name, "project name")
        if (root / FILE).exists():
            raise AlreadyExists("is an hpcmass project already", where=root)
        for part in ("data", "runs", "studies", "catalogue"):
            make_dir(root / part)
        publish(
            root / FILE,
            f'name = "{name}"\n\n# [paths] moves parts elsewhere, for example runs = "/scratch/me/runs"\n',
        )
        return cls(root)

    @property
    def name(self) -> str:
        """The project's name."""
        return self.file.name

    @property
    def data(self) -> Path:
        """Where datasets lie."""
        return self.root / self.file.paths.data

    @property
    def runs(self) -> Path:
        """Where runs lie."""
        return self.root / self.file.paths.runs

    @property
    def studies(self) -> Path:
        """Where studies lie."""
        return self.root / self.file.paths.studies

    @property
    def catalogue(self) -> Path:
        """Where the catalogue lies."""
        return self.root / self.file.paths.catalogue

    @property
    def deployments(self) -> Path:
        """Where deployments lie."""
        return self.root / self.file.paths.deployments

    @property
    def site_file(self) -> Path | None:
        """The site file that the project names, if any."""
        return self.root / self.file.site if self.file.site else None

    def requirements(self, alias: str) -> list[str]:
        """What a promotion to an alias requires always."""
        stage = self.file.stages.get(alias)
        return [] if stage is None else list(stage.require)

    def data_path(self, path: str) -> Path:
        """A dataset's folder as a job file names it: relative to the project folder, or absolute."""
        return self.root / path

    def run_path(self, name: str) -> Path:
        """The folder of a run by its name."""
        return self.runs / check_name(name, "run name")

    def study_path(self, name: str) -> Path:
        """The folder of a study by its name."""
        return self.studies / check_name(name, "study name")
