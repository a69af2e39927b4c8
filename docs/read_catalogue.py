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


def check_version(root: Path, path: Path) -> str:
    """Hold one version's files against their digests; return its reference."""
    version = json.loads(path.read_text(encoding="utf-8"))
    need(version["format"] == 1, "unknown format")
    need(version["name"] == path.parent.parent.name, "another model's version")
    need(version["version"] == int(path.stem), "another version's number")
    for name, entry in version["files"].items():
        need(not name.startswith("/") and ".." not in name.split("/"), f"file name {name!r}")
        data = (root / "cas" / entry["sha256"][:2] / entry["sha256"]).read_bytes()
        need(len(data) == entry["bytes"], f"size of {name}")
        need(hashlib.sha256(data).hexdigest() == entry["sha256"], f"digest of {name}")
    return f"{version['name']}@{version['version']}"


def main(root: Path) -> int:
    """Read all of it."""
    for model in sorted((root / "models").iterdir()):
        for path in numbered(model / "versions"):
            try:
                print(check_version(root, path))
            except (OSError, ValueError, KeyError) as error:
                print(f"WRONG {path}: {error!r}")
                return 1
        for alias in sorted((model / "aliases").iterdir()) if (model / "aliases").is_dir() else []:
            last = json.loads(numbered(alias)[-1].read_text(encoding="utf-8"))
            print(f"{model.name}@{alias.name} -> {last['version']} ({last['by']}: {last['why']})")
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
