#!/usr/bin/env python3
"""Gets an Apptainer that runs here, and prints its path; says why where it cannot be had (exit code 3).

In this order: the one on PATH (or `module load`ed); the one that an earlier call kept; as root, the
distribution's own package; and, on Debian and Ubuntu, the package of Debian's unstable distribution, taken
through a private apt configuration with this machine's own mirror and keys and unpacked, not installed, into
${XDG_CACHE_HOME:-~/.cache}/hpcmass/apptainer/. No source of the system is changed and no other package of
unstable is taken. Its programs are linked against two functions of a newer C library
(__isoc23_strtol, __isoc23_strtoul: strtol and strtoul that also know binary numbers); where this machine's is
older, those two imports are rewritten to the functions they replace.

Unstable moves: what was seen working is in SEEN. Another version is tried too, and is kept only if it
answers; the caller is told.

    containers/get_apptainer.py            get it where it is missing, print its path
    containers/get_apptainer.py --look     only look
"""

from __future__ import annotations

import os
import shutil
import struct
import subprocess
import sys
import tempfile
from pathlib import Path

SEEN = {"1.4.5-2"}
MISSING = 3
SUITE = "sid"
KEYS = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
# What the program calls: of the distribution itself, and needed to build (the last two: only as another user).
HELPERS = {"mksquashfs": "squashfs-tools", "newuidmap": "uidmap"}
OLDER = {b"__isoc23_strtol": b"strtol", b"__isoc23_strtoul": b"strtoul"}
NEW_VERSION = b"GLIBC_2.38"


class CannotHave(Exception):
    """Why Apptainer cannot be had here."""


def kept_folder() -> Path:
    """Where an unpacked Apptainer is kept."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return cache / "hpcmass" / "apptainer"


def look() -> Path | None:
    """An Apptainer that answers: of PATH, or kept."""
    on_path = shutil.which("apptainer") or shutil.which("singularity")
    kept = sorted(kept_folder().glob("*/usr/bin/apptainer"), key=lambda p: p.stat().st_mtime, reverse=True)
    for program in [*([Path(on_path)] if on_path else []), *kept]:
        if answers(program):
            return program
    return None


def answers(program: Path) -> bool:
    """Whether it says its version."""
    try:
        done = subprocess.run([program, "--version"], capture_output=True, text=True, timeout=60, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return False
    return done.returncode == 0 and "version" in done.stdout


def get() -> Path:
    """Get it.

    Raises:
        CannotHave: And why.
    """
    found = look()
    if found is None and distribution_has_it():
        apt_install("apptainer")
        found = look()
    if found is None:
        found = unpack_unstable()
    missing = {package for program, package in HELPERS.items() if shutil.which(program) is None}
    if missing and not apt_install(*sorted(missing)):
        print(f"apptainer: without {', '.join(sorted(missing))} images cannot be built here", file=sys.stderr)
    return found


def distribution_has_it() -> bool:
    """Whether apt's ordinary sources offer it to root."""
    if os.geteuid() != 0 or shutil.which("apt-cache") is None:
        return False
    done = run("apt-cache", "policy", "apptainer")
    candidate = [line.split(":", 1)[1].strip() for line in done.splitlines() if "Candidate:" in line]
    return bool(candidate) and candidate[0] != "(none)"


def apt_install(*packages: str) -> bool:
    """Install packages of the distribution, as root and unless APT=no; whether that went well."""
    if os.environ.get("APT") == "no" or os.geteuid() != 0 or shutil.which("apt-get") is None:
        return False
    env = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    command = ["apt-get", "install", "-y", "-qq", "--no-install-recommends", *packages]
    for attempt in (["true"], ["apt-get", "update", "-qq"]):
        subprocess.run(attempt, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=False)
        done = subprocess.run(command, env=env, capture_output=True, stdin=subprocess.DEVNULL, check=False)
        if done.returncode == 0:
            return True
    return False


def unpack_unstable() -> Path:
    """Unpack Debian unstable's package into the cache; its program.

    Raises:
        CannotHave: No apt, no keys, no mirror, no such package, or it does not run here.
    """
    for tool in ("apt-get", "apt-cache", "dpkg-deb"):
        if shutil.which(tool) is None:
            raise CannotHave(f"it is not on PATH, and there is no {tool} to get it with")
    if not KEYS.is_file():
        raise CannotHave(f"the keys of Debian's archive are not here ({KEYS})")
    with tempfile.TemporaryDirectory(prefix="hpcmass-apt-") as folder:
        scratch = Path(folder)
        apt = private_apt(scratch, mirror())
        run("apt-get", "-c", apt, "-qq", "update")
        shown = run("apt-cache", "-c", apt, "show", "apptainer")
        versions = [line.split(":", 1)[1].strip() for line in shown.splitlines() if line.startswith("Version:")]
        if not versions:
            raise CannotHave(f"{SUITE} has no package apptainer")
        version = versions[0]
        if version not in SEEN:
            print(
                f"apptainer: {SUITE} has {version} by now; {', '.join(sorted(SEEN))} was tried", file=sys.stderr
            )
        run("apt-get", "-c", apt, "-qq", "download", f"apptainer={version}", cwd=scratch)
        (package,) = scratch.glob("apptainer_*.deb")
        tree = kept_folder() / f".{version}.{os.getpid()}"
        tree.mkdir(parents=True)
        try:
            run("dpkg-deb", "-x", package, tree)
            relocatable(tree)
            for program in [tree / "usr/bin/apptainer", *tree.glob("usr/lib*/**/bin/starter")]:
                program.write_bytes(for_older_libc(program.read_bytes()))
            if not answers(tree / "usr/bin/apptainer"):
                raise CannotHave(f"{SUITE}'s apptainer {version} does not run on this machine")
            place = kept_folder() / version
            shutil.rmtree(place, ignore_errors=True)
            tree.rename(place)
        finally:
            shutil.rmtree(tree, ignore_errors=True)
    return place / "usr/bin/apptainer"


def relocatable(tree: Path) -> None:
    """Lay the unpacked package out so that its two programs find its files from where they lie themselves."""
    shutil.rmtree(tree / "usr/share", ignore_errors=True)
    (tree / "etc").rename(tree / "usr/etc")
    (tree / "usr/var/lib/apptainer/mnt/session").mkdir(parents=True)
    (starter,) = tree.glob("usr/lib*/**/bin/starter")
    prefix = starter.parents[3]  # where it takes its prefix to be
    for name in ("etc", "var"):
        if not (prefix / name).exists():
            (prefix / name).symlink_to(os.path.relpath(tree / "usr" / name, prefix))


def mirror() -> str:
    """The address of Debian's archive that this machine's apt uses.

    Raises:
        CannotHave: It uses none.
    """
    targets = run("apt-get", "indextargets", "--format", "$(ORIGIN)\t$(LABEL)\t$(REPO_URI)")
    for line in targets.splitlines():
        origin, label, address = line.split("\t")
        if origin == "Debian" and label == "Debian":
            return address
    raise CannotHave("apt knows no mirror of Debian here (run apt-get update once)")


def private_apt(scratch: Path, address: str) -> Path:
    """An apt configuration with one source and own folders, which needs no root and touches no other."""
    for name in ("lists/partial", "cache/archives/partial", "state", "parts"):
        (scratch / name).mkdir(parents=True)
    (scratch / "status").touch()
    (scratch / "sources.list").write_text(f"deb [signed-by={KEYS}] {address} {SUITE} main\n")
    settings = {
        "Dir::Etc::sourcelist": scratch / "sources.list",
        "Dir::Etc::sourceparts": scratch / "parts",
        "Dir::Etc::preferencesparts": scratch / "parts",
        "Dir::State": scratch / "state",
        "Dir::State::lists": scratch / "lists",
        "Dir::State::status": scratch / "status",
        "Dir::Cache": scratch / "cache",
        "Acquire::Languages": "none",
        "APT::Sandbox::User": "root",
        "Debug::NoLocking": "true",
    }
    file = scratch / "apt.conf"
    file.write_text("".join(f'{name} "{value}";\n' for name, value in settings.items()))
    return file


def for_older_libc(elf: bytes) -> bytes:
    """A program (64-bit ELF) whose imports of GLIBC_2.38 in `OLDER` are what they were called before.

    A name's end is a name: `__isoc23_strtol` is 9 bytes in front of `strtol`, so a symbol's entry only points
    further. The version that is asked for becomes the oldest that the program asks of the same library.

    Raises:
        CannotHave: It imports something else of that version, which has no older name.
    """
    sections = _sections(elf)
    if ".dynsym" not in sections or NEW_VERSION not in elf:
        return elf
    out = bytearray(elf)
    (names_at, _), (symbols_at, symbols), (needs_at, _) = (
        sections[s] for s in (".dynstr", ".dynsym", ".gnu.version_r")
    )
    versym_at = sections[".gnu.version"][0]
    new, oldest = _glibc_entries(elf, needs_at, names_at)
    for number in range(symbols // 24):
        (version,) = struct.unpack_from("<H", elf, versym_at + 2 * number)
        if version & 0x7FFF != new[1]:
            continue
        (name_at,) = struct.unpack_from("<I", elf, symbols_at + 24 * number)
        name = _text(elf, names_at + name_at)
        if name not in OLDER:
            raise CannotHave(f"it needs {name.decode()} of a newer C library")
        struct.pack_into("<I", out, symbols_at + 24 * number, name_at + len(name) - len(OLDER[name]))
    # vernaux: hash, flags, other (the number that symbols name), name, next
    out[new[0] : new[0] + 4] = elf[oldest[0] : oldest[0] + 4]
    out[new[0] + 8 : new[0] + 12] = elf[oldest[0] + 8 : oldest[0] + 12]
    return bytes(out)


def _sections(elf: bytes) -> dict[str, tuple[int, int]]:
    """Offset and size of every section by name."""
    if elf[:5] != b"\x7fELF\x02":
        raise CannotHave("its program is no 64-bit ELF file")
    (table,) = struct.unpack_from("<Q", elf, 0x28)
    size, count, names = struct.unpack_from("<HHH", elf, 0x3A)
    headers = [struct.unpack_from("<IIQQQQ", elf, table + size * n) for n in range(count)]
    return {_text(elf, headers[names][4] + h[0]).decode(): (h[4], h[5]) for h in headers}


def _glibc_entries(elf: bytes, at: int, names_at: int) -> tuple[tuple[int, int], tuple[int, int]]:
    """Place and number of the vernaux entries of GLIBC_2.38 and of libc's oldest version."""
    while True:
        _, count, file, aux, following = struct.unpack_from("<HHIII", elf, at)
        if _text(elf, names_at + file) == b"libc.so.6":
            break
        if not following:
            raise CannotHave("it does not import the C library as expected")
        at += following
    entries, entry = {}, at + aux
    for _ in range(count):
        _, _, number, name, following = struct.unpack_from("<IHHII", elf, entry)
        entries[_text(elf, names_at + name)] = (entry, number)
        entry += following
    numbered = [name for name in entries if name[6:7].isdigit()]
    oldest = min(numbered, key=lambda name: [int(part) for part in name[6:].split(b".")])
    return entries[NEW_VERSION], entries[oldest]


def _text(elf: bytes, at: int) -> bytes:
    return elf[at : elf.index(b"\0", at)]


def run(*words: str | Path, cwd: Path | None = None) -> str:
    """What a command prints.

    Raises:
        CannotHave: It failed: with the last line that it said.
    """
    done = subprocess.run(
        words, cwd=cwd, capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=300, check=False
    )
    if done.returncode != 0:
        said = (done.stderr or done.stdout).strip().splitlines()
        raise CannotHave(f"{words[0]} {words[-1]}: {said[-1] if said else f'ended with {done.returncode}'}")
    return done.stdout


def main() -> int:
    """Print the program's path, or the reason on standard error."""
    try:
        found = look() if "--look" in sys.argv[1:] else get()
    except (CannotHave, OSError, subprocess.TimeoutExpired) as error:
        print(f"apptainer cannot be had here: {error}", file=sys.stderr)
        return MISSING
    if found is None:
        print("apptainer is not here; containers/get_apptainer.py gets it", file=sys.stderr)
        return MISSING
    print(found)
    return 0


if __name__ == "__main__":
    sys.exit(main())
