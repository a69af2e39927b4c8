"""Runs every benchmark of this folder, one after the other, each in a process of its own.

    python benchmarks/run_all.py [--quick] [NAME ...]

A benchmark is a script here that takes `--quick` and prints what it measured. Their output goes to the
terminal as it comes. Ends with 1 if one of them failed; a slow figure is no failure.
"""

from __future__ import annotations

import argparse
import os
import platform
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).parent


def main() -> int:
    names = sorted(path.stem for path in HERE.glob("*.py") if path.stem != "run_all" and path.stem[0] != "_")
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a minute or less for each")
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"some of: {', '.join(names)}")
    arguments = parser.parse_args()
    unknown = sorted(set(arguments.names) - set(names))
    if unknown:
        parser.error(f"no benchmark {', '.join(unknown)}; there are {', '.join(names)}")
    print(f"{platform.platform()}, {os.cpu_count()} cores, Python {platform.python_version()}")
    failed = []
    for name in arguments.names or names:
        print(f"\n== {name}", flush=True)
        started = time.monotonic()
        command = [sys.executable, str(HERE / f"{name}.py"), *(["--quick"] if arguments.quick else [])]
        if subprocess.run(command, stdin=subprocess.DEVNULL).returncode != 0:
            failed.append(name)
        print(f"== {name}: {time.monotonic() - started:.1f} s", flush=True)
    if failed:
        print(f"failed: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
