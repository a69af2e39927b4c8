"""`hpcmass` and `python -m hpcmass`: the command line, with every known error as a plain message."""

from __future__ import annotations

import sys


def main() -> None:
    """Run the command line; exit with 0, 1 (a negative answer), 2 (an error told plainly), 130 (Ctrl-C)."""
    from hpcmass.cli.root import run

    code = run(sys.argv[1:])
    sys.stdout.flush()
    sys.stderr.flush()
    sys.exit(code)


if __name__ == "__main__":
    main()
