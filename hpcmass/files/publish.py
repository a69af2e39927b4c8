"""The only code that makes files appear on a shared file system.

Three verbs. `publish`: a name is written once and is complete or absent. `replace`: a small live file
(a status) is exchanged as a whole. `append_line`: one record at the end of a file with one writer.

A publication is a temporary in the same folder, fsync, `link(2)` onto the final name, unlink, fsync of
the folder. `link` may succeed and still report an error over NFS, so an error is settled by the
temporary's link count (open(2) and link(2), Linux manual, on O_EXCL over NFS).
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import secrets
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hpcmass.errors import AlreadyExists, CorruptError, NotFound, StorageError
from hpcmass.files.shared import settle_open

_NO_LINKS = {errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK}


@contextlib.contextmanager
def storage_errors(path: Path | str, doing: str) -> Iterator[None]:
    """Turn an `OSError` of the body into a `StorageError` or `NotFound` that says what to do."""
    try:
        yield
    except FileNotFoundError as error:
        raise NotFound(f"cannot {doing}: no such file or folder", where=error.filename or path) from error
    except OSError as error:
        hints = {
            errno.ENOSPC: "the disk is full: free space, or put the project elsewhere",
            errno.EDQUOT: "the quota is used up: remove files, or put the project elsewhere",
            errno.EFBIG: "a file size limit was hit (ulimit -f)",
            errno.EACCES: "check the permissions of this folder",
            errno.EPERM: "check the permissions of this folder",
            errno.EROFS: "the file system is mounted read-only",
        }
        raise StorageError(
            f"cannot {doing}: {error.strerror or error}",
            where=error.filename or path,
            hint=hints.get(error.errno or 0),
            transient=error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.ESTALE),
            errno=error.errno,
        ) from error


def make_dir(path: Path) -> Path:
    """Create a folder and its parents; an existing one is fine."""
    if not os.path.isdir(path):
        with storage_errors(path, "make the folder"):
            path.mkdir(parents=True, exist_ok=True)
    return path


def temporary_beside(path: Path) -> Path:
    """A name in the same folder that no other process uses, and that readers skip (leading dot)."""
    unique = f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(4)}"
    return path.with_name(f".{path.name[:80]}.{unique}.tmp")


def fsync_dir(folder: Path) -> None:
    """Make the names in a folder durable."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def fsync_file(path: Path) -> None:
    """Make the bytes of a file durable."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _write(path: Path, data: bytes, *, durable: bool = True) -> None:
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
    try:
        settle_open(handle, path.parent, 0o644)
        view = memoryview(data)
        while view:
            view = view[os.write(handle, view) :]
        if durable:
            os.fsync(handle)
    finally:
        os.close(handle)


_avoided: set[str] = set()


def avoid_links(folder: Path) -> None:
    """Do not try hard links below a folder, where a probe found that they do not do what they should."""
    _avoided.add(os.path.realpath(folder))


def _avoids(path: Path) -> bool:
    if not _avoided:
        return False
    real = os.path.realpath(path)
    return any(real.startswith(folder + os.sep) for folder in _avoided)


class NoLinks(StorageError):
    """The file system has no hard links, and without them a name cannot appear with its content."""


def _link_once(temporary: Path, path: Path, reserve: bool = True, same: bool = False) -> None:
    """Give `temporary` its final name if that name is free, else raise `FileExistsError`."""
    try:
        if _avoids(path):
            raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP), str(path))
        os.link(temporary, path)
        return
    except OSError as error:
        if os.stat(temporary).st_nlink == 2:
            return
        if error.errno == errno.EEXIST and same and os.stat(path).st_size == 0:
            os.rename(temporary, path)  # reserved, by a writer of long ago that died
            return
        if error.errno not in _NO_LINKS:
            raise
        if not reserve and not same:
            raise NoLinks("the file system has no hard links", where=path) from error
    if same:  # whoever has the name has the same content
        os.rename(temporary, path)
        return
    # No hard links here: O_EXCL reserves the name, and the rename puts the content in its place.
    os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666))
    try:
        os.rename(temporary, path)
    except OSError:
        if not temporary.exists():  # it was done
            return
        with contextlib.suppress(OSError):
            os.unlink(path)
        raise


@contextlib.contextmanager
def publishing(
    path: Path, *, reserve: bool = True, same: bool = False, sync_folder: bool = True
) -> Iterator[Path]:
    """Publish the file that the body writes under the temporary name it is given.

    The final name appears, complete and durable, when the body ends well; otherwise nothing stays.

    Args:
        path: The final name.
        reserve: Where there are no hard links, let the name appear empty for a moment; else refuse.
        same: Whoever publishes this name publishes the same content, by which it is named: nothing is reserved.
        sync_folder: False where something else in this folder is made durable next, and the name with it.

    Raises:
        AlreadyExists: The final name was taken (before, or meanwhile).
        NoLinks: There are no hard links, and `reserve` is false.
        StorageError: The file system refused.
    """
    make_dir(path.parent)
    temporary = temporary_beside(path)
    try:
        with storage_errors(path, "write the file"):
            if path.exists() and not (same and path.stat().st_size == 0):
                raise AlreadyExists("is there already and is written only once", where=path)
            yield temporary
            fsync_file(temporary)
            _link_once(temporary, path, reserve, same)
    except StorageError as error:
        if error.data.get("errno") == errno.EEXIST:
            raise AlreadyExists("is there already and is written only once", where=path) from error
        raise
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()
    if sync_folder:
        with storage_errors(path, "write the folder"):
            fsync_dir(path.parent)


def publish(path: Path, data: bytes | str, *, sync_folder: bool = True) -> None:
    """Publish bytes (or UTF-8 text) under a name that is written once; `sync_folder` as for `publishing`.

    Raises:
        AlreadyExists: The name is taken.
        StorageError: The file system refused; nothing is left behind.
    """
    with publishing(path, sync_folder=sync_folder) as temporary:
        _write(temporary, data.encode() if isinstance(data, str) else data, durable=False)  # it will be


def claim(path: Path, data: bytes | str = b"") -> bool:
    """Publish, and say whether the name was ours: of many callers exactly one gets `True`."""
    try:
        publish(path, data)
    except AlreadyExists:
        return False
    return True


_ENCODER = json.JSONEncoder(sort_keys=True, allow_nan=False)


def _json_text(value: Any, flat: bool) -> str:
    if not flat:
        return json.dumps(value, indent=1, sort_keys=True, allow_nan=False) + "\n"
    encode = _ENCODER.encode  # in C, which an indent is not
    return "{\n" + ",\n".join(f" {encode(key)}: {encode(value[key])}" for key in sorted(value)) + "\n}\n"


def publish_json(path: Path, value: Any, *, sync_folder: bool = True, flat: bool = False) -> None:
    """Publish a value as indented JSON.

    Args:
        path: The file.
        value: What it says.
        sync_folder: As for `publishing`.
        flat: It is a dict, and has one line a key, which is made much more quickly.
    """
    publish(path, _json_text(value, flat), sync_folder=sync_folder)


def replace(path: Path, data: bytes | str, *, durable: bool = True, sync_folder: bool = True) -> None:
    """Exchange a small live file (a status) as a whole; a reader sees the old or the new one.

    Not durable it is quicker, and a machine that loses its power may leave an empty file in its place;
    `sync_folder` as for `publishing`.
    """
    make_dir(path.parent)
    temporary = temporary_beside(path)
    try:
        with storage_errors(path, "write the file"):
            _write(temporary, data.encode() if isinstance(data, str) else data, durable=durable)
            os.replace(temporary, path)
            if durable and sync_folder:
                fsync_dir(path.parent)
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()


def replace_json(
    path: Path, value: Any, *, durable: bool = True, sync_folder: bool = True, flat: bool = False
) -> None:
    """Exchange a small live JSON file as a whole; see `replace`, and `publish_json` for `flat`."""
    replace(path, _json_text(value, flat), durable=durable, sync_folder=sync_folder)


def read_json(path: Path) -> Any:
    """Read a JSON file.

    Raises:
        NotFound: There is no such file.
        CorruptError: The file is not JSON.
    """
    with storage_errors(path, "read the file"):
        data = path.read_bytes()
    try:
        return json.loads(data)
    except (ValueError, RecursionError) as error:
        raise CorruptError(f"is not valid JSON ({error})", where=path) from error


def sha256_bytes(data: bytes) -> str:
    """SHA-256 as lower-case hex."""
    return hashlib.sha256(data).hexdigest()


def sha256_file(path: Path, block_bytes: int = 1 << 22) -> str:
    """SHA-256 of a file's bytes as lower-case hex, read in blocks."""
    digest = hashlib.sha256()
    with storage_errors(path, "read the file"), open(path, "rb", buffering=0) as file:
        while block := file.read(block_bytes):
            digest.update(block)
    return digest.hexdigest()


def canonical_json(value: Any) -> bytes:
    """The one JSON text of a value that identities are hashed from: sorted keys, no spaces, no NaN."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return text.encode()
