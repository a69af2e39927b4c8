"""How long `hpcmass --help` and `import hpcmass` take, beside a bare interpreter in the same minutes.

    python benchmarks/startup.py [--quick]

Each round runs every command once, in turn, so that what else the machine does falls on all alike. Medians;
the ratio to `python -c pass` is what can be compared between machines. Aim: under 0.2 s and under 0.1 s.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

HELP_AIM_S, IMPORT_AIM_S = 0.2, 0.1
BARE, IMPORT, HELP = "python -c pass", "python -c 'import hpcmass'", "hpcmass --help"


def commands() -> dict[str, list[str]]:
    """What is measured: label -> argv. The installed command where there is one, as a user would call it."""
    installed = Path(sys.executable).parent / "hpcmass"
    call = [str(installed)] if installed.exists() else [sys.executable, "-m", "hpcmass"]
    return {
        BARE: [sys.executable, "-c", "pass"],
        IMPORT: [sys.executable, "-c", "import hpcmass"],
        HELP: [*call, "--help"],
    }


def seconds(command: list[str]) -> float:
    """Wall clock of one run of a command."""
    started = time.perf_counter()
    # Compiled files may be written, as for a user: with this set each process would compile hpcmass anew.
    env = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    subprocess.run(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, env=env, check=True)
    return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="15 rounds instead of 60")
    rounds = 15 if parser.parse_args().quick else 60
    measured = commands()
    for command in measured.values():  # compiles to .pyc and fills the page cache
        seconds(command)
    times: dict[str, list[float]] = {label: [] for label in measured}
    for _ in range(rounds):
        for label, command in measured.items():
            times[label].append(seconds(command))

    bare = statistics.median(times[BARE])
    print(f"{rounds} rounds, Python {sys.version.split()[0]}; wall clock in ms")
    print(f"{'command':<28}{'median':>8}{'fastest':>9}{'above bare':>12}{'ratio':>7}")
    for label, values in times.items():
        middle = statistics.median(values)
        columns = (
            f"{middle * 1e3:>8.1f}{min(values) * 1e3:>9.1f}{(middle - bare) * 1e3:>12.1f}{middle / bare:>7.2f}"
        )
        print(f"{label:<28}{columns}")
    help_s, import_s = statistics.median(times[HELP]), statistics.median(times[IMPORT])
    print(f"import hpcmass: {import_s:.3f} s (aim: under {IMPORT_AIM_S} s)")
    met = help_s < HELP_AIM_S and import_s < IMPORT_AIM_S
    figure = {"name": "startup", "value": round(help_s, 4), "unit": "s", "goal": HELP_AIM_S, "met": met}
    print(json.dumps({**figure, "import_s": round(import_s, 4), "ratio_to_bare": round(help_s / bare, 2)}))


if __name__ == "__main__":
    main()
