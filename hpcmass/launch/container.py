"""From a target's container to the words in front of a rank's command. Pure.

The keeper of a rank stays outside, with the host's Python: it writes the rank's log and notes its end. Then
come these words, and then the rank's own command, whose `python` is the image's.
"""

from __future__ import annotations

import os
import posixpath
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from hpcmass.errors import ConfigError, LaunchError

if TYPE_CHECKING:  # pydantic is not there for launch.child
    from hpcmass.config.resources import Target

OUTSIDE = "HPCMASS_OUTSIDE"
_GPU_OPTION = {"nvidia": "--nv", "amd": "--rocm"}
# Where a host's Python and MPI find their own files: in the image they would find the wrong ones, or none.
_OF_THE_HOST = (
    "PYTHONHOME",
    "PYTHONPATH",
    "VIRTUAL_ENV",
    "OPAL_PREFIX",
    "PMIX_PREFIX",
    "PRTE_PREFIX",
)
_INSIDE = ("APPTAINER_CONTAINER", "SINGULARITY_CONTAINER")


@dataclass(frozen=True)
class ContainerSpec:
    """How one command is run in an image.

    Attributes:
        image: Path of a SIF file or an unpacked image, or a URI that Apptainer knows (`oras://…`).
        folders: Folders of the host that are seen inside under the same name.
        binds: Further ones, as `FOLDER` or `FOLDER:INSIDE[:ro]`.
        cwd: The command's working folder; None leaves it to Apptainer.
        gpu_vendor: Whose driver is brought in: `nvidia`, `amd`, or None.
        options: Further words of `apptainer exec`.
        program: `apptainer`, its path, or `singularity`.
        version: The version of hpcmass outside, which the rank holds against its own; empty: not checked.
        keep: Variables of the host's Python and MPI that stay, because the host's MPI is bound in, say.
    """

    image: str
    folders: tuple[str, ...] = ()
    binds: tuple[str, ...] = ()
    cwd: str | None = None
    gpu_vendor: Literal["nvidia", "amd"] | None = None
    options: tuple[str, ...] = ()
    program: str = "apptainer"
    version: str = ""
    keep: tuple[str, ...] = ()

    def words(self) -> list[str]:
        """The words in front of a command; each stands for itself, no shell reads them.

        Raises:
            ConfigError: A path holds what Apptainer cannot be given.
        """
        dropped = [word for name in _OF_THE_HOST if name not in self.keep for word in ("-u", name)]
        # A home folder's own packages (~/.local) are for the host's Python.
        env = ["PYTHONNOUSERSITE=1", *([f"{OUTSIDE}={self.version}"] if self.version else [])]
        words = ["env", *dropped, *env, self.program, "exec"]
        for source, inside, options in [*((f, f, "") for f in self.folders), *map(_parts, self.binds)]:
            words += _bind(source, inside, options)
        if self.cwd is not None:
            words += ["--pwd", self.cwd]
        if self.gpu_vendor is not None:
            words.append(_GPU_OPTION[self.gpu_vendor])
        return [*words, *self.options, self.image]


def container_words(
    target: Target,
    *,
    folders: Iterable[str] = (),
    cwd: str | None = None,
    program: str = "apptainer",
    version: str = "",
    env: Mapping[str, str] | None = None,
) -> list[str]:
    """The words in front of every rank's command on a target; none where it has no container.

    Args:
        target: Its `container`, `container_binds`, `container_options` and `gpu_vendor` count.
        folders: Absolute paths that the ranks use, bound under their own names; what lies in another one of
            them is left out.
        cwd: The ranks' working folder.
        program: What starts containers.
        version: The version of hpcmass outside.
        env: The environment, for variables (`$HOME`, `$SLURM_JOB_ID`) in the image's path and the binds.

    Raises:
        ConfigError: A variable in a path is not set, or a path holds what Apptainer cannot be given.
    """
    if target.container is None:
        return []
    env = os.environ if env is None else env
    asked = [_expanded(bind, env, "container_binds") for bind in target.container_binds]
    spec = ContainerSpec(
        image=_expanded(target.container, env, "container"),
        folders=tuple(outermost(folders)),
        binds=tuple(asked),
        cwd=cwd,
        gpu_vendor=target.gpu_vendor if target.gpus else None,
        options=tuple(target.container_options),
        program=program,
        version=version,
        keep=tuple(name for name in _OF_THE_HOST if name in target.env),
    )
    return spec.words()


def outermost(folders: Iterable[str]) -> list[str]:
    """Absolute folders without those that lie in another one, sorted.

    Raises:
        ConfigError: One is not absolute, or is the root, which cannot be bound over the image's own.
    """
    found: list[str] = []
    for folder in sorted({posixpath.normpath(each) for each in folders}, key=lambda p: p.split("/")):
        if not folder.startswith("/") or folder == "/":
            raise ConfigError("this folder cannot be bound into a container", where=folder)
        if not any(folder == other or folder.startswith(other + "/") for other in found):
            found.append(folder)
    return found


def inside_container(env: Mapping[str, str]) -> bool:
    """Whether this process runs in an image already."""
    return any(env.get(name) for name in _INSIDE)


def check_versions(inside: str, env: Mapping[str, str]) -> None:
    """Hold the version of hpcmass in an image against that of the hpcmass which started the rank.

    Raises:
        LaunchError: They differ.
    """
    outside = env.get(OUTSIDE)
    if outside and outside != inside and inside_container(env):
        image = next(env[name] for name in _INSIDE if env.get(name))
        raise LaunchError(
            f"hpcmass is {inside} in the container and {outside} outside",
            where=image,
            hint="build the image from this version (containers/build.sh), or start the run with the image's",
        )


def _bind(source: str, inside: str, options: str) -> Sequence[str]:
    """`--bind` where its syntax can say the path, else `--mount`, whose fields are quoted as in CSV."""
    both = source + inside
    if not source.startswith("/") or not inside.startswith("/") or any(sign in both for sign in "\0\n\r"):
        raise ConfigError("this cannot be bound into a container", where=repr(source))
    if not any(sign in both for sign in ':,"\\'):
        return ["--bind", ":".join([source, inside, options] if options else [source, inside])]
    fields = ["type=bind", f"source={source}", f"destination={inside}", *(["ro"] if options == "ro" else [])]
    quoted = [
        '"' + field.replace('"', '""') + '"' if any(s in field for s in ',"') else field for field in fields
    ]
    return ["--mount", ",".join(quoted)]


def _parts(text: str) -> tuple[str, str, str]:
    """Source, place inside and options of a bind as the site file's author writes it."""
    head, colon, options = text.rpartition(":")
    if not colon or options not in ("ro", "rw"):
        head, options = text, ""
    source, colon, inside = head.partition(":/")
    return (source, "/" + inside, options) if colon and source.startswith("/") else (head, head, options)


def _expanded(text: str, env: Mapping[str, str], key: str) -> str:
    """The text with `$NAME` and `${NAME}` replaced; by hand, since `os.path.expandvars` reads os.environ."""
    import re

    def value(match: re.Match[str]) -> str:
        name = match[1] or match[2]
        if name not in env:
            raise ConfigError(f"${name} is not set", where=key, hint="set it, or write the path out")
        return env[name]

    return re.sub(r"\$(?:\{(\w+)\}|(\w+))", value, text)
