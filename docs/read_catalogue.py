#!/usr/bin/env python3
"""Read an hpcmass catalogue without hpcmass: checks every file, prints every version and alias.

python read_catalogue.py CATALOGUE        exit code 1 when something does not fit
"""

import hashlib
import json
import re
import sys
from pathlib import Path


def numbered(folder: Path) -> list[Path]:
    """The claims 000001.json … of a folder, in order; names that start with a dot are unfinished."""
    found = folder.iterdir() if folder.is_dir() else []
    return sorted((p for p in found if re.fullmatch(r"\d{6,}\.json", p.name)), key=lambda p: int(p.stem))


def need(condition: bool, what: str) -> None:
    """Refuse what does not hold."""
    if not condition:
        raise ValueError(what)


def content(root: Path, entry: dict) -> bytes:
    """A file's bytes: a blob, or a part of a pack."""
    digest = entry.get("pack", entry["sha256"])
    with open(root / ("cas/packs" if "pack" in entry else "cas") / digest[:2] / digest, "rb") as file:
        file.seek(entry.get("offset", 0))
        return file.read(entry["bytes"] if "pack" in entry else -1)


def check_claim(root: Path, path: Path) -> str:
    """Hold the files of a claim's version, or versions, against their digests; return their reference."""
    claim = json.loads(path.read_text(encoding="utf-8"))
    versions = claim.get("versions", [claim])
    need(claim.get("count", 1) == len(versions), "count of versions")
    for number, version in enumerate(versions, int(path.stem)):
        need(version["format"] in (1, 2), "unknown format")
        need(version["name"] == path.parent.parent.name, "another model's version")
        need(version["version"] == number, "another version's number")
        check_files(root, version)
    return f"{claim['name']}@{claim['version']}" + (f"..{number}" if len(versions) > 1 else "")


def check_files(root: Path, version: dict) -> None:
    """Hold one version's files against their digests."""
    for name, entry in version["files"].items():
        need(not name.startswith("/") and ".." not in name.split("/"), f"file name {name!r}")
        data = content(root, entry)
        need(len(data) == entry["bytes"], f"size of {name}")
        need(hashlib.sha256(data).hexdigest() == entry["sha256"], f"digest of {name}")


def main(root: Path) -> int:
    """Read all of it."""
    for model in sorted((root / "models").iterdir()):
        for path in numbered(model / "versions"):
            try:
                print(check_claim(root, path))
            except (OSError, ValueError, KeyError) as error:
                print(f"WRONG {path}: {error!r}")
                return 1
        for alias in sorted((model / "aliases").iterdir()) if (model / "aliases").is_dir() else []:
            for path in numbered(alias)[-1:]:
                last = json.loads(path.read_text(encoding="utf-8"))
                print(f"{model.name}@{alias.name} -> {last['version']} ({last['by']}: {last['why']})")
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
