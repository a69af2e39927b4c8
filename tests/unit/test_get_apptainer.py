"""The script that gets Apptainer: its own reading of ELF files, and a clear reason where it cannot help."""

from __future__ import annotations

import importlib.util
import os
import platform
import shutil
import struct
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

SCRIPT = Path(__file__).parents[2] / "containers" / "get_apptainer.py"


@pytest.fixture(scope="module")
def module() -> ModuleType:
    spec = importlib.util.spec_from_file_location("get_apptainer", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    loaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    return loaded


PROGRAM = r"""
extern long __isoc23_strtol(const char *, char **, int);
extern void exit(int);
__attribute__((force_align_arg_pointer)) void _start(void) { exit((int)__isoc23_strtol("42", 0, 10)); }
"""
LIBRARY = "long __isoc23_strtol(const char *a, char **b, int c) { return 0; }\nvoid exit(int n) { for (;;); }\n"
VERSIONS = "GLIBC_2.2.5 { global: exit; };\nGLIBC_2.38 { global: __isoc23_strtol; };\n"


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A program that wants strtol by the name and version of a newer C library, and ends with what it gave."""
    if not shutil.which("gcc") or platform.machine() != "x86_64":
        pytest.skip("needs a C compiler for x86_64")
    folder = tmp_path_factory.mktemp("elf")
    for name, text in (("program.c", PROGRAM), ("library.c", LIBRARY), ("versions", VERSIONS)):
        (folder / name).write_text(text)
    shared = ["gcc", "-shared", "-fPIC", "-nostdlib", "-fno-builtin", "library.c", "-o", "libnew.so"]
    subprocess.run([*shared, "-Wl,-soname,libc.so.6", "-Wl,--version-script=versions"], cwd=folder, check=True)
    link = ["gcc", "-nostdlib", "-nostartfiles", "-fno-builtin", "program.c", "-o", "program"]
    subprocess.run([*link, "-L.", "-l:libnew.so"], cwd=folder, check=True)
    return (folder / "program").read_bytes()


def test_a_program_for_a_newer_library_runs_with_an_older_one(
    module: ModuleType, program: bytes, tmp_path: Path
) -> None:
    assert b"GLIBC_2.38" in program
    changed = module.for_older_libc(program)
    assert changed != program
    file = tmp_path / "program"
    file.write_bytes(changed)
    file.chmod(0o755)
    done = subprocess.run([file], capture_output=True, text=True)
    assert done.returncode == 42, done.stderr
    shown = subprocess.run(["readelf", "-V", str(file)], capture_output=True, text=True).stdout
    assert "GLIBC_2.38" not in shown


def test_another_program_stays_as_it_is(module: ModuleType) -> None:
    elf = Path(sys.executable).resolve().read_bytes()
    if b"GLIBC_2.38" in elf:
        pytest.skip("this Python itself wants a new C library")
    assert module.for_older_libc(elf) == elf


def test_what_is_no_program_is_refused(module: ModuleType) -> None:
    with pytest.raises(module.CannotHave, match="no 64-bit ELF"):
        module.for_older_libc(b"\x7fELF\x01" + struct.pack("<Q", 0))


def test_without_apt_it_says_why_and_ends_with_3(tmp_path: Path) -> None:
    env = {"PATH": str(tmp_path), "HOME": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path / "cache")}
    done = subprocess.run([sys.executable, SCRIPT], env=env, capture_output=True, text=True)
    assert done.returncode == 3
    assert "there is no apt-get" in done.stderr
    looked = subprocess.run([sys.executable, SCRIPT, "--look"], env=env, capture_output=True, text=True)
    assert (looked.returncode, looked.stdout) == (3, "")


def test_the_one_on_path_is_taken(tmp_path: Path) -> None:
    program = tmp_path / "apptainer"
    program.write_text("#!/bin/sh\necho apptainer version 9\n")
    program.chmod(0o755)
    env = {"PATH": os.pathsep.join([str(tmp_path), "/usr/bin", "/bin"]), "HOME": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, SCRIPT, "--look"], env=env, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == str(program)
