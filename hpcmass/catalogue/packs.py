"""Small files, many to one: a pack is their bytes one after the other, `cas/packs/ab/<sha256>`.

A pack carries no index of its own: the versions say where in it their files lie. Like a blob it is named by
the SHA-256 of its content, appears whole or not at all, and is never written again.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from hpcmass.catalogue.blobs import BlobStore, make_durable_dir, open_regular
from hpcmass.catalogue.version import FileEntry
from hpcmass.errors import AlreadyExists, CatalogueError
from hpcmass.files import publishing, settle, storage_errors

SMALL_BYTES = 256 << 10
"""Files up to this size are packed; larger ones are blobs."""

PACK_BYTES = 32 << 20
"""A pack is closed when it has this size; it is held in memory until then."""

_REMEMBERED = 100_000


class Packer:
    """Puts small files into packs, and larger ones into blobs.

    Entries are final after `flush`: until then a small file's pack has no name. The same content is stored
    once among all that one packer has taken.
    """

    def __init__(self, blobs: BlobStore) -> None:
        self.blobs = blobs
        self._known: dict[str, FileEntry] = {}  # of packs that are durable
        self._open: dict[str, tuple[int, bytes]] = {}  # of the pack at hand: offset and content
        self._bytes = 0

    def add(self, source: Path) -> str | FileEntry:
        """Take a file's content; gives its digest, or its entry where it became a blob.

        Raises:
            CatalogueError: The source is no regular file, or changed while it was read.
            StorageError: The file system refused.
        """
        with storage_errors(source, "read the file"), open_regular(source) as file:
            size = os.fstat(file.fileno()).st_size
            data = file.read(SMALL_BYTES + 1) if size <= SMALL_BYTES else None
        if data is None:
            return self.blobs.add(source)
        if len(data) > SMALL_BYTES:
            raise CatalogueError("changed while it was being registered", where=source)
        digest = hashlib.sha256(data).hexdigest()
        if digest not in self._known and digest not in self._open:
            if self._bytes + len(data) > PACK_BYTES:
                self.flush()
            self._open[digest] = (self._bytes, data)
            self._bytes += len(data)
        return digest

    def flush(self) -> None:
        """Publish the pack at hand.

        Raises:
            StorageError: The file system refused.
        """
        if not self._open:
            return
        content = b"".join(data for _, data in self._open.values())
        digest = hashlib.sha256(content).hexdigest()
        target = self.blobs.pack_path(digest)
        make_durable_dir(target.parent)
        try:
            with publishing(target, same=True) as temporary:
                temporary.write_bytes(content)
                settle(temporary, 0o444)
        except AlreadyExists:  # the very same files before, or at the same time
            self.blobs.need_pack(digest, len(content))
        for name, (offset, data) in self._open.items():
            self._known[name] = FileEntry(name, len(data), digest, offset)
        self._open, self._bytes = {}, 0

    def forget(self) -> None:
        """Let go of what is known when it is much; not between `add` and `entry`."""
        if len(self._known) > _REMEMBERED:
            self._known.clear()

    def entry(self, taken: str | FileEntry) -> FileEntry:
        """The entry of what `add` gave, after `flush`."""
        return taken if isinstance(taken, FileEntry) else self._known[taken]
