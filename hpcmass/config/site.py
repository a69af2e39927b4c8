"""The site file: where to run. Targets by name; nothing of a job stands here."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field, model_validator

from hpcmass.config.resources import Target


class Site(BaseModel):
    """A whole site file.

    Attributes:
        name: The site's name.
        default_target: The target taken when a job names none.
        targets: Kinds of node by name.
        verified: Whether somebody ran `hpcmass site probe` there; False in what was drafted from documents.
        max_array_size: The largest job array, where the site says so.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    name: str
    default_target: str
    verified: bool = True
    max_array_size: int | None = Field(None, ge=1)
    targets: dict[str, Target] = Field(min_length=1)

    @model_validator(mode="after")
    def _default_exists(self) -> Site:
        if "auto" in self.targets:
            raise ValueError("a target may not be called 'auto': that is what a job says to have one chosen")
        if self.default_target not in self.targets:
            known = ", ".join(sorted(self.targets))
            raise ValueError(f"default_target {self.default_target!r} is none of the targets: {known}")
        return self

    @classmethod
    def local(cls) -> Site:
        """This machine, without a scheduler: what is used where no site file is given."""
        return cls(name="local", default_target="cpu", targets={"cpu": Target()})
