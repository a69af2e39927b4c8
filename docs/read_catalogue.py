#!/usr/bin/env python3
"""Read an hpcmass catalogue without hpcmass: checks every file, prints every version and alias.

python read_catalogue.py CATALOGUE        exit code 1 when something does not fit
"""

import hashlib
import json
import re
import sys
from pathlib import Path


def claims(folder: Path) -> list[Path]:
    """Files 000001.json … of a folder, in order; one without content is of a writer that died."""
    found = [p for p in folder.glob("*.json") if re.fullmatch(r"\d{6,}\.json", p.name) and p.stat().st_size]
    return sorted(found, key=lambda path: int(path.stem))


def content(cas: Path, entry: dict) -> bytes:
    """A file's bytes: a part of its pack, or of the one that it was moved to; else a blob."""
    digest, pack, at = entry["sha256"], entry.get("pack"), entry.get("offset", 0)
    while pack:
        path = cas / "packs" / pack[:2] / pack
        if path.exists():
            with open(path, "rb") as file:
                return file.read(entry["bytes"]) if file.seek(at) == at else b""
        moved = path.with_name(f"{pack}.json")
        files = json.loads(moved.read_text())["files"] if moved.exists() else {}
        pack, at = files.get(digest, (None, 0))
    return (cas / digest[:2] / digest).read_bytes()


def check(root: Path, path: Path) -> str:
    """Hold the files of a claim's version, or versions, against their digests; return their references."""
    claim = json.loads(path.read_text(encoding="utf-8"))
    for number, version in enumerate(claim.get("versions", [claim]), int(path.stem)):
        if (version["name"], version["version"]) != (path.parts[-3], number) or version["format"] > 3:
            raise ValueError(f"another model's or number's version, or a newer format, at {number}")
        for name, entry in version.get("files", {}).items():  # one that was removed has none
            data = content(root / "cas", entry) if name[0] != "/" and ".." not in name.split("/") else b""
            if (hashlib.sha256(data).hexdigest(), len(data)) != (entry["sha256"], entry["bytes"]):
                raise ValueError(f"digest, size or name of {name}")
    return f"{claim['name']}@{path.stem.lstrip('0')}" + (f"..{number}" if "versions" in claim else "")


def main(root: Path) -> None:
    """Read all of it."""
    for path in (path for model in sorted((root / "models").iterdir()) for path in claims(model / "versions")):
        try:
            print(check(root, path))
        except (OSError, ValueError, KeyError) as error:
            sys.exit(print(f"WRONG {path}: {error!r}") or 1)
    for alias in sorted((root / "models").glob("*/aliases/[!.]*")):
        for move in [json.loads(path.read_text(encoding="utf-8")) for path in claims(alias)[-1:]]:
            print(f"{alias.parts[-3]}@{alias.name} -> {move['version']} ({move['by']}: {move['why']})")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
