"""`hpcmass env pack`: a virtual environment as one file, which works wherever it is unpacked.

The archive holds the environment; packages that are installed in place (`pip install -e`), as ordinary ones;
and the interpreter with its standard library, unless that is the node's own, below /usr. In text files the
environment's path is replaced by a token, and the list of them lies in the archive: unpacking is tar and sed
(`hpcmass.launch.packed`). Beside `ENV.tar` lies `ENV.tar.json`, which says what it is.
"""

from __future__ import annotations

import io
import os
import shutil
import subprocess
import tarfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO, Any

from hpcmass import __version__
from hpcmass.config import Target
from hpcmass.errors import ConfigError, CorruptError, NotFound, StorageError
from hpcmass.files import publishing, read_json, replace_json, sha256_file
from hpcmass.launch.packed import RELOCATE, TOKEN, PackedEnv, unpack_function
from hpcmass.workflow.env_ask import ask_environment, sees_the_systems

COMPRESS = {".tar": None, ".tar.gz": ["gzip", "-1"], ".tar.zst": ["zstd", "-3", "-T0", "-q"]}
_TEXT_BYTES = 1 << 20  # a script or a configuration that names the prefix is smaller
_SKIP_OF_PYTHON = {"test", "idlelib", "turtledemo", "site-packages", "ensurepip", "lib2to3"}


@dataclass
class Packing:
    """What a packing did.

    Attributes:
        packed: The archive.
        files: Files in it.
        with_python: Whether the interpreter is in it.
        inplace: Packages taken from where they were installed in place.
        warnings: What will not work, or may not, where it is unpacked.
    """

    packed: PackedEnv
    files: int
    with_python: bool
    inplace: list[str]
    warnings: list[str] = field(default_factory=list)


def pack(environment: Path, archive: Path, *, with_python: bool | None = None) -> Packing:
    """Pack a virtual environment.

    Args:
        environment: Its folder.
        archive: `NAME.tar`, `.tar.gz` or `.tar.zst`; an older one is replaced when the new one is complete.
        with_python: Whether to pack the interpreter and its standard library; None: unless it lies in /usr.

    Raises:
        NotFound: There is no virtual environment.
        ConfigError: The archive's name has no such suffix, its compressor is not installed, or what hpcmass
            needs lies outside the environment.
        StorageError: The file system refused.
    """
    command = _compressor(archive)
    facts = ask_environment(environment)
    base = Path(facts["base"])
    shared = sees_the_systems(environment)
    if shared and facts["needed"]:
        raise ConfigError(
            f"it takes {', '.join(facts['needed'])} from outside (--system-site-packages), which is not packed",
            where=environment,
            hint="install them into it: bin/python -m pip install --ignore-installed …, or hpcmass env build",
        )
    if with_python is None:
        with_python = not Path(facts["executable"]).is_relative_to("/usr")
    writer = _Writer(environment.absolute(), facts)
    if facts["hpcmass"] is None:
        writer.warnings.append("hpcmass is not in this environment: no job of hpcmass can run in it")
    if shared and facts["outside"]:
        names = facts["outside"]
        shown = ", ".join(names[:5]) + (" …" if len(names) > 5 else "")
        writer.warnings.append(f"{len(names)} packages outside the environment are not packed ({shown})")
    fresh = archive.with_name(f".{archive.name}.{os.getpid()}.new")
    try:
        with (
            publishing(fresh) as temporary,
            _open(temporary, command) as stream,
            tarfile.open(fileobj=stream, mode="w|", format=tarfile.PAX_FORMAT) as tar,
        ):
            writer.environment(tar)
            if with_python:
                writer.python(tar, base)
            writer.finish(tar, with_python)
        packed = PackedEnv(
            str(archive.absolute()), sha256_file(fresh), fresh.stat().st_size, writer.bytes, facts["version"]
        )
        # The description goes first: whoever reads the old archive with it is refused by its size.
        replace_json(
            describe(archive),
            {
                "format": 1,
                **asdict(packed),
                "prefix": facts["prefix"],
                "hpcmass": facts["hpcmass"],
                "files": writer.files,
                "created": time.time(),
            },
        )
        os.replace(fresh, archive)
    except OSError as error:
        raise StorageError(f"cannot be written: {error.strerror or error}", where=archive) from error
    finally:
        fresh.unlink(missing_ok=True)
    return Packing(packed, writer.files, with_python, sorted(facts["inplace"]), writer.warnings)


def describe(archive: Path) -> Path:
    """The file beside an archive that says what it is."""
    return archive.with_name(archive.name + ".json")


def read_packed(archive: Path) -> PackedEnv:
    """What lies beside an archive.

    Raises:
        NotFound: The archive or its description is not there.
        CorruptError: They do not belong together.
    """
    if not archive.is_file():
        raise NotFound("there is no such archive", where=archive, hint="make it: hpcmass env pack ENV")
    found = read_json(describe(archive))
    try:
        packed = PackedEnv(
            str(archive.absolute()),
            str(found["sha256"]),
            int(found["bytes"]),
            int(found["unpacked_bytes"]),
            str(found["python"]),
        )
    except (KeyError, TypeError, ValueError):
        raise CorruptError("is no description of a packed environment", where=describe(archive)) from None
    if archive.stat().st_size != packed.bytes:
        raise CorruptError(
            f"has {archive.stat().st_size} bytes, but {describe(archive).name} says {packed.bytes}",
            where=archive,
            hint="pack it again: hpcmass env pack ENV",
        )
    return packed


def packed_of(target: Target) -> PackedEnv | None:
    """The packed environment that jobs on a target run in, or None where they run in the login node's own.

    Raises:
        NotFound, CorruptError: The target names one that is not there, or not whole.
        ConfigError: Another version of hpcmass is in it.
    """
    if target.environment is None:
        return None
    archive = Path(target.environment)
    packed = read_packed(archive)
    inside = read_json(describe(archive)).get("hpcmass")
    if inside != __version__:
        raise ConfigError(
            f"the environment holds hpcmass {inside or '(none)'}, and this is {__version__}",
            where=archive,
            hint="install this version there and pack it again: hpcmass env pack ENV",
        )
    return packed


def unpack(archive: Path, folder: str | None = None) -> tuple[Path, str]:
    """Unpack on this machine, as a job does on each node.

    Args:
        archive: What `pack` made.
        folder: The node-local folder; None: `$TMPDIR`, else `/tmp`.

    Returns:
        The environment's folder, and what was said.

    Raises:
        StorageError: It could not be unpacked; the message has the reason.
    """
    lines = [*unpack_function(read_packed(archive), folder), "hpcmass_unpack || exit 1", 'echo "$HPCMASS_ENV"']
    done = subprocess.run(["bash", "-c", "\n".join(lines)], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        said = (done.stderr or done.stdout).strip().splitlines()
        raise StorageError(said[-1] if said else "bash failed", where=archive)
    *said, where = done.stdout.strip().splitlines()
    return Path(where), "\n".join(said)


def _compressor(archive: Path) -> list[str] | None:
    for suffix, command in COMPRESS.items():
        if archive.name.endswith(suffix) and len(archive.name) > len(suffix):
            if command and shutil.which(command[0]) is None:
                raise ConfigError(f"{command[0]} is not installed here", where=archive, hint="use NAME.tar")
            return command
    raise ConfigError(f"expected a name ending in {', '.join(COMPRESS)}", where=archive)


class _open:
    """The stream to write to: the file itself, or a compressor that writes it."""

    def __init__(self, file: Path, command: list[str] | None) -> None:
        self.file, self.command = file, command
        self.process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> IO[bytes]:
        out = open(self.file, "xb")
        if self.command is None:
            self.out: IO[bytes] = out
            return out
        with out:
            self.process = subprocess.Popen(self.command, stdin=subprocess.PIPE, stdout=out)
        assert self.process.stdin is not None
        self.out = self.process.stdin
        return self.out

    def __exit__(self, *_: object) -> None:
        self.out.close()
        if self.process is not None and self.process.wait() != 0:
            raise StorageError(f"{self.process.args!r} ended with {self.process.returncode}", where=self.file)


class _Writer:
    """Puts files into the archive under the names that they have below the unpacked folder."""

    def __init__(self, root: Path, facts: dict[str, Any]) -> None:
        self.root, self.facts = root, facts
        self.prefixes = sorted({str(root), str(root.resolve()), facts["prefix"]}, key=len, reverse=True)
        self.relocate: list[str] = []
        self.files = self.bytes = 0
        self.warnings: list[str] = []
        self.named_in: list[str] = []
        self.site = Path(facts["purelib"]).relative_to(facts["prefix"])

    def environment(self, tar: tarfile.TarFile) -> None:
        """The environment itself, and what is installed in place."""
        for path, name in _walk(self.root, ""):
            if name in ("pyvenv.cfg", RELOCATE) or (name.startswith("bin/python") and path.is_symlink()):
                continue
            if path.parent == self.root / self.site and path.name.startswith("__editable__"):
                continue
            if path.parent == self.root / self.site and path.suffix == ".pth":
                self._look_at_pth(path)
            self.add(tar, path, name)
        for package, (_dist, where) in sorted(self.facts["inplace"].items()):
            source = Path(where)
            target = f"{self.site}/{package}"
            if source.is_file():
                self.add(tar, source, f"{self.site}/{source.name}")
                continue
            for path, name in _walk(source, target):
                self.add(tar, path, name)

    def python(self, tar: tarfile.TarFile, base: Path) -> None:
        """The interpreter and its standard library, below `python/`."""
        short = self.facts["short"]
        self.add(tar, Path(self.facts["executable"]), f"python/bin/python{short}")
        for path, name in _walk(base / "lib" / f"python{short}", f"python/lib/python{short}"):
            inner = name.split("/")[3]
            if inner not in _SKIP_OF_PYTHON and not inner.startswith("config-"):
                self.add(tar, path, name, relocatable=False)
        for library in sorted((base / "lib").glob("*.so*")):
            self.add(tar, library, f"python/lib/{library.name}", relocatable=False)

    def finish(self, tar: tarfile.TarFile, with_python: bool) -> None:
        """The interpreter's names, pyvenv.cfg, and the list of files to relocate, which is last."""
        short = self.facts["short"]
        real = f"../python/bin/python{short}" if with_python else self.facts["executable"]
        for name, link in (("python3", real), ("python", "python3"), (f"python{short}", "python3")):
            self._link(tar, f"bin/{name}", link)
        home = f"{TOKEN}/python/bin" if with_python else str(Path(self.facts["executable"]).parent)
        self._text(
            tar,
            "pyvenv.cfg",
            f"home = {home}\ninclude-system-site-packages = false\nversion = {self.facts['version']}\n",
        )
        if with_python:
            self.relocate.append("pyvenv.cfg")
        if self.named_in:
            shown = ", ".join(self.named_in[:3]) + (" …" if len(self.named_in) > 3 else "")
            self.warnings.append(
                f"{len(self.named_in)} compiled files hold the environment's own path ({shown}): "
                "they may look for libraries there"
            )
        self._text(tar, RELOCATE, "".join(f"{name}\0" for name in self.relocate))

    def add(self, tar: tarfile.TarFile, path: Path, name: str, *, relocatable: bool = True) -> None:
        """One file, link or folder; in a text file the prefix becomes the token."""
        info = tar.gettarinfo(str(path), arcname=name)
        if info is None or not (info.isreg() or info.issym() or info.isdir() or info.islnk()):
            return
        info.uid = info.gid = 0
        info.uname = info.gname = ""
        if info.issym():
            self._check_link(path, info)
        self.files += not info.isdir()
        if not info.isreg():
            tar.addfile(info)
            return
        if relocatable and info.size <= _TEXT_BYTES and (changed := self._relocated(path)) is not None:
            info.size = len(changed)
            self.relocate.append(name)
            self.bytes += info.size
            tar.addfile(info, io.BytesIO(changed))
            return
        if relocatable and ".so" in path.name and self._holds_prefix(path):
            self.named_in.append(name)
        self.bytes += info.size
        with open(path, "rb") as file:
            tar.addfile(info, file)

    def _relocated(self, path: Path) -> bytes | None:
        """The text with the token in place of the prefix, or None where it needs none."""
        # Python sources and compiled Python do not name the prefix; looking at each costs the whole packing.
        if path.suffix in (".py", ".pyc", ".pyi", ".so", ".h", ".pyx", ".pxd") and path.parent.name != "bin":
            return None
        data = path.read_bytes()
        if b"\0" in data or not any(prefix.encode() in data for prefix in self.prefixes):
            return None
        for prefix in self.prefixes:
            data = data.replace(prefix.encode(), TOKEN.encode())
        return data

    def _holds_prefix(self, path: Path) -> bool:
        data = path.read_bytes()
        return any(f"{prefix}/".encode() in data for prefix in self.prefixes)

    def _check_link(self, path: Path, info: tarfile.TarInfo) -> None:
        target = Path(info.linkname)
        if not target.is_absolute():
            return
        for prefix in self.prefixes:
            if target.is_relative_to(prefix):
                info.linkname = os.path.relpath(self.root / target.relative_to(prefix), path.parent)
                return
        self.warnings.append(f"{info.name} is a link to {target}, outside the environment")

    def _look_at_pth(self, path: Path) -> None:
        for line in path.read_text(errors="replace").splitlines():
            if line.startswith("/") and not any(Path(line).is_relative_to(p) for p in self.prefixes):
                self.warnings.append(f"{path.name} names {line}, which is not packed")

    def _link(self, tar: tarfile.TarFile, name: str, target: str) -> None:
        info = tarfile.TarInfo(name)
        info.type, info.linkname, info.mode = tarfile.SYMTYPE, target, 0o777
        tar.addfile(info)

    def _text(self, tar: tarfile.TarFile, name: str, text: str) -> None:
        data = text.encode()
        info = tarfile.TarInfo(name)
        info.size, info.mode, info.mtime = len(data), 0o644, int(time.time())
        tar.addfile(info, io.BytesIO(data))


def _walk(folder: Path, name: str) -> Iterator[tuple[Path, str]]:
    """Files and links below a folder with their names in the archive, in a fixed order."""
    with os.scandir(folder) as entries:
        listed = sorted(entries, key=lambda entry: entry.name)
    for entry in listed:
        inner = f"{name}/{entry.name}" if name else entry.name
        if entry.is_dir(follow_symlinks=False):
            yield from _walk(Path(entry.path), inner)
        else:
            yield Path(entry.path), inner
