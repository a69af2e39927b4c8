"""How hpcmass starts itself again, as a rank."""

from __future__ import annotations

import sys
from pathlib import Path

_HOME = str(Path(__file__).resolve().parents[2])


def hpcmass_command(*, in_container: bool = False) -> list[str]:
    """The words that run this hpcmass with this interpreter, wherever the working folder is.

    In a container they run the image's own hpcmass with the image's `python`.

    `python -m` would put the working folder first on the ranks' `sys.path`: a user's `datasets.py` in it would
    then stand in the way of an installed package, on several ranks and not on one (`-P` is new in Python 3.11).
    """
    return module_command("hpcmass.__main__", in_container=in_container)


def module_command(module: str, *, in_container: bool = False) -> list[str]:
    """As `hpcmass_command`, for the `main()` of one module of hpcmass, which ends the process itself."""
    home = "" if in_container else f"sys.path.append({_HOME!r}); "
    start = f"import sys; sys.path[:] = [p for p in sys.path if p]; {home}from {module} import main; main()"
    return ["python" if in_container else sys.executable, "-c", start]
