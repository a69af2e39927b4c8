"""Content-addressed, read-only blobs: `cas/ab/<sha256>`, and packs of small files: `cas/packs/ab/<sha256>`."""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from hpcmass.catalogue.moved import Place, blob_place, elsewhere, pack_place
from hpcmass.catalogue.version import FileEntry, check_file_name
from hpcmass.errors import AlreadyExists, CatalogueError, CorruptError, NotFound, StorageError
from hpcmass.files import (
    cache_folder,
    fsync_dir,
    make_dir_as_parent,
    publishing,
    settle,
    storage_errors,
    temporary_beside,
)

_BLOCK_BYTES = 1 << 20
_SMALL_BYTES = 8 << 20  # files up to this size are read once, into memory


class BlobStore:
    """The blobs of one catalogue. A blob appears whole or not at all and is never written again."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._durable: set[str] = set()  # digests whose names this process has made durable

    def path(self, digest: str) -> Path:
        """Where the blob of a digest lies."""
        return blob_place(self.folder, digest)

    def pack_path(self, digest: str) -> Path:
        """Where the pack of a digest lies."""
        return pack_place(self.folder, digest)

    def where(self, entry: FileEntry) -> Path:
        """The file that holds the content of an entry: a blob or a pack."""
        return self.path(entry.sha256) if entry.pack is None else self.pack_path(entry.pack)

    def add(self, source: Path) -> FileEntry:
        """Put a file's content into the store; a blob that is there already is reused.

        Raises:
            CatalogueError: The source is no regular file, or changed while it was read.
            CorruptError: The blob of this content has another size.
            StorageError: The file system refused.
        """
        with storage_errors(source, "read the file"), open_regular(source) as file:
            size = os.fstat(file.fileno()).st_size
            data = file.read() if size <= _SMALL_BYTES else None
            digest = hashlib.sha256(data).hexdigest() if data is not None else _sha256(file)
            entry = FileEntry(digest, size if data is None else len(data))
            if self._there(entry):
                return entry
            target = self.path(digest)
            make_durable_dir(target.parent)
            try:
                with publishing(target, same=True) as temporary:
                    if data is not None:
                        temporary.write_bytes(data)
                    else:
                        file.seek(0)
                        copied = _copy(file, temporary)
                        if copied.content != entry.content:
                            raise CatalogueError("changed while it was being registered", where=source)
                    settle(temporary, 0o444)
            except AlreadyExists:  # another writer had the same content at the same time
                self._there(entry)
            self._durable.add(digest)
            return entry

    def copy(self, entry: FileEntry, target: Path) -> None:
        """Copy a blob to a new file, holding its bytes against the digest on the way.

        Raises:
            NotFound: The blob is missing.
            CorruptError: The blob's content does not fit its name.
        """
        with self.open(entry) as blob, storage_errors(target, "write the file"):
            if _copy(blob, target, sync=True).content != entry.content:
                raise CorruptError("the blob's content does not fit its digest", where=self.where(entry))

    def check(self, entry: FileEntry) -> str | None:
        """What is wrong with a blob (`missing: …`, `corrupt: …`), or None; reads all of it."""
        try:
            with self.open(entry) as blob, storage_errors(self.where(entry), "read the blob"):
                fits = _sha256(blob) == entry.sha256
        except NotFound:
            return "missing: there is no such blob"
        except CorruptError as error:
            return f"corrupt: {error.message}"
        return None if fits else "corrupt: its content does not fit its digest"

    def open(self, entry: FileEntry) -> BinaryIO:
        """Open a blob for reading, after a check of its size, or the part of a pack.

        Raises:
            NotFound: The blob or pack is missing.
            CorruptError: It is no regular file, or its size is another one, or the pack too short.
        """
        path = self.where(entry)
        try:
            return self._open_at(Place(path, None if entry.pack is None else entry.offset), entry)
        except NotFound:
            place = elsewhere(self.folder, entry)
            if place is None:
                raise
            return self._open_at(place, entry)

    def _open_at(self, place: Place, entry: FileEntry) -> BinaryIO:
        path = place.path
        if place.offset is not None:
            return self._slice(path, place.offset, entry)
        with storage_errors(path, "read the blob"):
            try:
                file = open_regular(path)
            except CatalogueError as error:
                raise CorruptError("is not a regular file", where=path) from error
            size = os.fstat(file.fileno()).st_size
        if size != entry.bytes:
            file.close()
            raise CorruptError(f"has {size} bytes instead of {entry.bytes}", where=path)
        return file

    def in_place(self, entry: FileEntry) -> Path:
        """A file with the content of an entry: the blob, or a verified copy in the user's cache.

        Raises:
            NotFound: The blob or pack is missing.
            CorruptError: A blob has another size, or the content of a packed file does not fit its digest.
        """
        if entry.pack is None:
            self.open(entry).close()
            if (path := self.path(entry.sha256)).exists():
                return path
        target = cache_folder("files", entry.sha256[:2], entry.sha256)
        if target.is_file() and target.stat().st_size == entry.bytes:
            return target
        with contextlib.suppress(FileNotFoundError):
            target.unlink()  # cut short by a full disk
        with contextlib.suppress(AlreadyExists), publishing(target) as temporary:
            self.copy(entry, temporary)
            os.chmod(temporary, 0o444)
        return target

    def need_pack(self, digest: str, size: int) -> None:
        """Make sure of a pack that somebody else wrote, before a version relies on it.

        Raises:
            CorruptError: It has another size.
            StorageError: The file system refused.
        """
        path = self.pack_path(digest)
        with storage_errors(path, "read the pack"):
            found = path.stat().st_size
            fsync_dir(path.parent)
        if found != size:
            hint = "remove this damaged pack, then register again: the content in hand will replace it"
            raise CorruptError(f"has {found} bytes instead of {size}", where=path, hint=hint)

    def hold(self, entry: FileEntry, source: Path) -> None:
        """Put content into the store again if it was taken away since it was added, as `gc` may.

        A writer looks back before and after it claims a version, `gc` looks at the claims before and after it
        takes content away: whichever is later finds the other.

        Raises:
            StorageError: It is gone, and the source holds something else by now; or the file system refused.
        """
        if self.where(entry).exists() or elsewhere(self.folder, entry, trash=False) is not None:
            return
        self._durable.discard(entry.sha256)
        if self.add(source).content != entry.content and elsewhere(self.folder, entry) is None:
            raise StorageError(
                "was taken away while it was registered", where=self.where(entry), transient=True
            )

    def _slice(self, path: Path, offset: int, entry: FileEntry) -> BinaryIO:
        with storage_errors(path, "read the pack"):
            try:
                with open_regular(path) as pack:
                    fits = offset + entry.bytes <= os.fstat(pack.fileno()).st_size
                    pack.seek(offset if fits else 0)
                    data = pack.read(entry.bytes) if fits else b""
            except CatalogueError as error:
                raise CorruptError("is not a regular file", where=path) from error
        if len(data) != entry.bytes or not fits:
            raise CorruptError(f"ends before byte {offset + entry.bytes}", where=path)
        return io.BytesIO(data)

    def _there(self, entry: FileEntry) -> bool:
        path = self.path(entry.sha256)
        try:
            self._open_at(Place(path), entry).close()
        except NotFound:
            return False
        except CorruptError as error:
            with contextlib.suppress(OSError):
                if entry.bytes and path.stat().st_size == 0:  # reserved by a writer that died
                    return False
            error.hint = "remove this damaged blob, then register again: the content in hand will replace it"
            raise
        if entry.sha256 not in self._durable:
            # Its writer may have linked it this moment: make the name durable before a version relies on it.
            with storage_errors(path, "write the folder"):
                fsync_dir(path.parent)
            self._durable.add(entry.sha256)
        return True


def make_durable_dir(path: Path) -> None:
    """Create a folder and its parents so that they outlive a power cut; an existing one costs one stat."""
    if path.is_dir():
        return
    make_durable_dir(path.parent)
    with storage_errors(path, "make the folder"):
        make_dir_as_parent(path, temporary_beside(path))
        fsync_dir(path.parent)


def open_regular(path: Path) -> BinaryIO:
    """Open a regular file for reading; a link, pipe, device or folder is refused.

    Raises:
        CatalogueError: It is something else than a regular file.
        OSError: It cannot be opened.
    """
    if not stat.S_ISREG(os.lstat(path).st_mode):
        raise CatalogueError("is not a regular file", where=path)
    # A pipe put there since then neither blocks the open nor passes the second look.
    handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise CatalogueError("is not a regular file", where=path)
    return os.fdopen(handle, "rb")


def walk_files(folder: Path) -> Iterator[tuple[str, Path]]:
    """Relative POSIX path and path of every file of a folder, sorted; `__pycache__` is passed over.

    Raises:
        NotFound: There is no such folder.
        CatalogueError: Something in it is no regular file or folder, or has a name that versions may not hold.
    """
    with storage_errors(folder, "read the folder"):
        if not folder.is_dir():
            raise NotFound("there is no such folder", where=folder)
        yield from _walk(folder, "")


def _walk(folder: Path, prefix: str) -> Iterator[tuple[str, Path]]:
    with os.scandir(folder) as found:
        entries = sorted(found, key=lambda entry: entry.name)
    for entry in entries:
        name, path = prefix + entry.name, folder / entry.name
        if entry.is_dir(follow_symlinks=False):
            if entry.name != "__pycache__":
                check_file_name(name)
                yield from _walk(path, name + "/")
            continue
        if not entry.is_file(follow_symlinks=False):
            kind = "a symbolic link" if entry.is_symlink() else "not a regular file"
            raise CatalogueError(f"is {kind}", where=path, hint="a version holds regular files only")
        try:
            check_file_name(name)
        except CatalogueError as error:
            error.where = str(path)
            raise
        yield name, path


def _sha256(file: BinaryIO) -> str:
    digest = hashlib.sha256()
    while block := file.read(_BLOCK_BYTES):
        digest.update(block)
    return digest.hexdigest()


def _copy(source: BinaryIO, target: Path, *, sync: bool = False) -> FileEntry:
    digest, size = hashlib.sha256(), 0
    with open(target, "xb") as out:
        while block := source.read(_BLOCK_BYTES):
            digest.update(block)
            size += len(block)
            out.write(block)
        out.flush()
        if sync:
            os.fsync(out.fileno())
    return FileEntry(digest.hexdigest(), size)
