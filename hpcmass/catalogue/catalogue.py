"""The file-based model catalogue: immutable versions, read-only blobs, aliases as numbered claims.

No server, no lock and no database: a version or a move of an alias is one file that is claimed by its
number, so of many writers on many nodes exactly one gets it and the others take the next.
"""

from __future__ import annotations

import difflib
import os
import secrets
import shutil
import sqlite3
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias, TypeVar

from hpcmass.catalogue.aliases import ANY, AliasMove, Anything, last_move, move, read_moves
from hpcmass.catalogue.aside import removal_told
from hpcmass.catalogue.blobs import BlobStore, make_durable_dir
from hpcmass.catalogue.check import Problem, VerifyReport, check_blobs
from hpcmass.catalogue.claims import claim_json, listdir, numbered, numbers, recall_file_system
from hpcmass.catalogue.frame import frame
from hpcmass.catalogue.index import Index
from hpcmass.catalogue.journal import Pointer, append, named
from hpcmass.catalogue.packs import Packer
from hpcmass.catalogue.ranges import VersionClaims
from hpcmass.catalogue.register import Registration, claim_versions, looked_at, register_all
from hpcmass.catalogue.removing import revive
from hpcmass.catalogue.search import SearchResult, Stream, search, stream
from hpcmass.catalogue.version import FORMAT, Version, check_alias
from hpcmass.errors import AlreadyExists, HpcmassError, NotFound
from hpcmass.files import check_name, fsync_dir, make_dir, storage_errors

# The method `Catalogue.list` hides the type of this name inside the class.
Versions: TypeAlias = list[Version]
Moves: TypeAlias = list[AliasMove]
Names: TypeAlias = list[str]
Pointers: TypeAlias = list[Pointer]
T = TypeVar("T")


class Catalogue:
    """A catalogue in a folder, which is made at the first registration."""

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        recall_file_system(self.path)
        self.blobs = BlobStore(self.path / "cas")
        self._packer = Packer(self.blobs)
        self.index = Index(self.path)
        self._identified = False
        self._kept: dict[Path, Any] = {}

    # -- writing ---------------------------------------------------------------------------------------
    def register(
        self,
        name: str,
        folder: Path,
        *,
        metrics: Mapping[str, Any],
        lineage: Mapping[str, Any],
        description: str = "",
        tags: Mapping[str, Any] | Iterable[str] = (),
    ) -> Version:
        """Make the next version of a model from the files of a folder.

        The blobs go first and the version's file last, in one atomic step, so a writer that dies leaves no
        version at all (blobs that nobody names stay behind).

        Args:
            name: The model's name, see `check_name`.
            folder: Every regular file in it and below, `__pycache__` aside, becomes part of the version.
            metrics: What was measured; anything JSON can hold, numpy scalars too.
            lineage: Where it came from, see `hpcmass.catalogue.lineage`.
            description: One or a few sentences.
            tags: Words to find it by, or words with what they say.

        Raises:
            NameNotAllowed: The name is none.
            NotFound: There is no such folder.
            CatalogueError: The folder is empty or holds links or odd files, or a value is no JSON.
            StorageError: The file system refused.
        """
        model = looked_at(Registration(name, folder, metrics, lineage, description, tags))
        model.files = {path: self.blobs.add(source) for path, source in model.sources}
        make_durable_dir(self._versions_dir(name))
        return claim_versions([model], self._claims(name), self._announce, self.blobs)[0]

    def register_many(self, models: Iterable[Registration]) -> Versions:
        """Make each of many models the next version of its name; gives the versions in the order of the models.

        Files up to 256 KiB are packed many to a file, and up to 1,000 versions of a name are one claim: a
        thousand small models of one name are two files, and five waits for the disk. Everything is checked
        before anything is written. Versions of one claim appear together or not at all; where the file
        system has no hard links, each is a claim of its own.

        Args:
            models: Any number, of one name or of several.

        Raises:
            NameNotAllowed: A name is none.
            NotFound: There is no such folder.
            CatalogueError: A folder is empty or holds links or odd files, or a value is no JSON.
            StorageError: The file system refused; the data's `registered` has what was registered before.
        """
        return register_all(models, self._packer, self._claims, self._announce)

    def alias(
        self,
        name: str,
        alias: str,
        version: int,
        *,
        why: str,
        expect: int | Anything | None = ANY,
        gates: Sequence[Mapping[str, Any]] = (),
    ) -> AliasMove:
        """Point an alias at a version.

        Args:
            name: The model.
            alias: Such as `production`; not all digits, not `latest`.
            version: A version that exists.
            why: The reason, kept in the history.
            expect: The version that the caller believes the alias has now, or None for "no such alias yet";
                left out, the alias moves whatever it has.
            gates: What it was held against, see `hpcmass.workflow.promote`; kept in the history.

        Raises:
            CatalogueError: The alias has another version than expected; says who moved it, and when.
            NotFound: There is no such model or version.
        """
        check_alias(alias)
        self.get(f"{check_name(name, 'model name')}@{version:d}")
        folder = self._alias_dir(name, alias)
        make_durable_dir(folder)

        def announce(number: int) -> None:
            append(self.path / "journals", [Pointer(name, number, alias)])
            revive(self.path, name, version)  # and again below: `gc` may be taking it away

        made = move(
            folder,
            version,
            what=f"alias {alias!r} of {name!r}",
            why=why,
            expect=expect,
            announce=announce,
            gates=gates,
        )
        revive(self.path, name, made.version)
        return made

    # -- reading ---------------------------------------------------------------------------------------
    def models(self) -> Names:
        """Names of all models, sorted."""
        return listdir(self.path / "models")

    def list(self, name: str | None = None) -> Versions:
        """All versions of all models, or of one, sorted by name and number.

        A version whose file cannot be read is left out with a warning; `verify` names it.

        Raises:
            NotFound: There is no model of that name.
        """
        if name is not None:
            self._require_model(name)
        found = []
        for model in [name] if name is not None else self.models():
            for _, versions in self._claims(model).each():
                if isinstance(versions, HpcmassError):
                    warnings.warn(f"left out: {versions}", stacklevel=2)
                else:
                    found += versions
        return found

    def get(self, ref: str) -> Version:
        """The version that a reference means: `name` or `name@latest`, `name@3`, `name@production`.

        Raises:
            NotFound: There is no such model, version or alias; the message has the nearest known names.
            CorruptError: The version's file is damaged.
        """
        name, at, suffix = ref.partition("@")
        if at and not suffix:
            raise NotFound(
                f"the reference {ref!r} ends after '@'", hint="write name, name@3 or name@production"
            )
        self._require_model(name)
        if not suffix or suffix == "latest":
            return self._latest(name)
        if suffix.isdecimal() and suffix.isascii():
            version = self._claims(name).read(int(suffix)) if len(suffix) <= 12 else None
            if version is None:
                latest = self._latest(name).version
                hint = removal_told(self.path, ref) or f"the newest is {latest}"
                raise NotFound(f"model {name!r} has no version {suffix}", hint=hint)
            return version
        check_alias(suffix)
        move = last_move(self._alias_dir(name, suffix))
        if move is None:
            raise NotFound(
                f"model {name!r} has no alias {suffix!r}",
                hint=_nearest(suffix, self._alias_names(name), "alias"),
            )
        return self.get(f"{name}@{move.version}")

    def search(
        self, expression: str | None = None, *, sort: Sequence[str] = (), limit: int | None = None
    ) -> SearchResult:
        """The versions that an expression holds for, from the index, which is refreshed first.

        Args:
            expression: Such as `"recipe == 'mnist' and accuracy > 0.95 and params.lr < 0.1"`, see
                `hpcmass.catalogue.query`; None for all versions.
            sort: Facts to sort by, a `-` before one for downwards; then by name and number.
            limit: At most so many.

        Raises:
            CatalogueError: The expression or the order is wrong; the message shows the place.
            StorageError: The catalogue cannot be read.
        """
        return self._searched(search, expression, sort, limit)

    def stream(
        self, expression: str | None = None, *, sort: Sequence[str] = (), limit: int | None = None
    ) -> Stream:
        """As `search`, for more versions than memory should hold at once: they are read as one goes through."""
        return self._searched(stream, expression, sort, limit)

    def _searched(self, how: Callable[..., T], *what: Any) -> T:
        try:
            return how(self.index.fresh(), *what)
        except sqlite3.Error:  # broken where nothing showed it before
            return how(self.index.rebuild(), *what)

    def frame(
        self, expression: str | None = None, *, sort: Sequence[str] = (), limit: int | None = None
    ) -> Any:
        """As `search`, as a `pandas.DataFrame`; see `hpcmass.catalogue.frame`."""
        return frame(self.stream(expression, sort=sort, limit=limit))

    def count(self, name: str | None = None) -> int:
        """How many versions the index has, of all models or of one."""
        where, values = ("", ()) if name is None else (" WHERE name = ?", (name,))
        row = self.index.fresh().execute(f"SELECT count(*) FROM versions{where}", values).fetchone()
        return int(row[0])

    def aliases(self, name: str) -> dict[str, int]:
        """The aliases of a model and the versions they have now."""
        self._require_model(name)
        moves = {alias: last_move(self._alias_dir(name, alias)) for alias in self._alias_names(name)}
        return {alias: move.version for alias, move in moves.items() if move is not None}

    def aliases_of(self, version: Version) -> Names:
        """The aliases that point at a version now, sorted."""
        return sorted(
            alias for alias, number in self.aliases(version.name).items() if number == version.version
        )

    def history(self, name: str, alias: str) -> Moves:
        """Every move of an alias, oldest first.

        Raises:
            NotFound: There is no such model or alias.
        """
        self._require_model(name)
        folder = self._alias_dir(name, check_alias(alias))
        found = read_moves(folder)
        if not found:
            raise NotFound(
                f"model {name!r} has no alias {alias!r}", hint=_nearest(alias, self._alias_names(name), "alias")
            )
        return found

    def open_files(self, version: Version) -> dict[str, Path]:
        """A file with the content of each file of a version, to be read in place; sizes are checked.

        A packed file is copied to the user's cache first, verified on the way.

        Raises:
            NotFound: A blob or pack is missing.
            CorruptError: A blob has another size, or a packed file's content does not fit its digest.
        """
        return {name: self.blobs.in_place(entry) for name, entry in version.files.items()}

    def materialise(self, version: Version, target_dir: Path) -> Path:
        """Write the files of a version into a new folder, which appears whole and verified or not at all.

        Args:
            version: Which version.
            target_dir: Does not exist yet, or is an empty folder.

        Raises:
            AlreadyExists: The folder has something in it.
            NotFound: A blob is missing.
            CorruptError: A blob's content does not fit its digest.
            StorageError: The file system refused.
        """
        target = Path(target_dir)
        if target.is_symlink() or (target.exists() and (not target.is_dir() or any(target.iterdir()))):
            raise AlreadyExists("is there already and not an empty folder", where=target)
        make_dir(target.parent)
        temporary = target.with_name(f".{target.name[:80]}.{os.getpid()}-{secrets.token_hex(4)}.tmp")
        try:
            make_dir(temporary)
            for name, entry in version.files.items():
                make_dir((temporary / name).parent)
                self.blobs.copy(entry, temporary / name)
            with storage_errors(target, "write the folder"):
                try:
                    os.rename(temporary, target)
                except OSError as error:
                    if target.is_dir() and any(target.iterdir()):  # another process was faster
                        raise AlreadyExists("is there already", where=target) from error
                    raise
                fsync_dir(target.parent)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
        return target

    def verify(self, ref: str | None = None) -> VerifyReport:
        """Read every blob of one version, or of all versions, and every alias, and name what is wrong.

        Args:
            ref: As for `get`, or None for everything.

        Raises:
            NotFound: There is no such version.
        """
        report = VerifyReport()
        if ref is not None:
            check_blobs(self.blobs, [self.get(ref)], report)
            return report
        versions = []
        for name in self.models():
            free = 1
            for start, found in self._claims(name).each():
                where, refs = str(numbered(self._versions_dir(name), start)), (f"{name}@{start}",)
                if isinstance(found, HpcmassError):
                    report.problems.append(Problem(where, f"corrupt: {found.message}", refs))
                    continue
                if start < free:
                    report.problems.append(Problem(where, "corrupt: lies within the claim before it", refs))
                versions += found
                free = max(free, start + len(found))
            for alias in self._alias_names(name):
                folder = self._alias_dir(name, alias)
                if not numbers(folder):  # a writer died before its first move
                    continue
                try:
                    self.get(f"{name}@{self.history(name, alias)[-1].version}")
                except HpcmassError as error:
                    report.problems.append(Problem(str(folder), error.message, (f"{name}@{alias}",)))
        check_blobs(self.blobs, versions, report)
        report.unlisted = [pointer.ref for pointer in self._unlisted()]
        return report

    def reindex(self) -> Names:
        """Make this user's index anew from the tree, and journal what no journal names; gives its references.

        Raises:
            StorageError: The file system refused.
        """
        missing = self._unlisted()
        if missing:
            append(self.path / "journals", missing)
        self.index.rebuild()
        return [pointer.ref for pointer in missing]

    # -- inside ----------------------------------------------------------------------------------------
    def _versions_dir(self, name: str) -> Path:
        return self.path / "models" / name / "versions"

    def _alias_dir(self, name: str, alias: str) -> Path:
        return self.path / "models" / name / "aliases" / alias

    def _alias_names(self, name: str) -> Names:
        return listdir(self.path / "models" / name / "aliases")

    def _require_model(self, name: str) -> None:
        check_name(name, "model name")
        if not numbers(self._versions_dir(name)):
            raise NotFound(
                f"the catalogue has no model {name!r}",
                where=self.path,
                hint=_nearest(name, self.models(), "model"),
            )

    def _latest(self, name: str) -> Version:
        version = self._claims(name).latest()
        if version is None:
            raise NotFound(f"model {name!r} has no finished version", where=self.path)
        return version

    def _claims(self, name: str) -> VersionClaims:
        return VersionClaims(self._versions_dir(name), name, self._kept)

    def _announce(self, name: str, number: int) -> None:
        self._identify()
        append(self.path / "journals", [Pointer(name, number)])

    def _unlisted(self) -> Pointers:
        there = {*self.index.tree(), *self.index.measured()}
        return sorted(there - named(self.path / "journals"), key=lambda pointer: pointer.ref)

    def _identify(self) -> None:
        """Give the catalogue an id, by which an index knows that it is of another one at the same place."""
        path = self.path / "catalogue.json"
        if not self._identified and not path.exists():
            claim_json(path, {"format": FORMAT, "id": secrets.token_hex(16)})
        self._identified = True


def _nearest(name: str, known: Names, what: str) -> str:
    if not known:
        return f"there is no {what} yet"
    close = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    return f"did you mean {', '.join(close)}?" if close else f"known: {', '.join(known[:10])}"
