"""What a virtual environment is, asked of its own interpreter before it is packed."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

from hpcmass.errors import NotFound

# Run by the environment's own interpreter: what it is, and what it takes from elsewhere.
_ASK = r"""
import json, re, sys, sysconfig
from importlib import metadata, util
from pathlib import Path

def plain(name):
    return re.sub(r"[-_.]+", "-", name or "").lower()

inplace, inside, outside = {}, set(), set()
prefix = Path(sys.prefix).resolve()
for dist in metadata.distributions():
    here = Path(str(dist.locate_file(""))).resolve().is_relative_to(prefix)
    (inside if here else outside).add(plain(dist.metadata["Name"]))
    url = json.loads(dist.read_text("direct_url.json") or "{}")
    if url.get("dir_info", {}).get("editable"):
        for name in (dist.read_text("top_level.txt") or "").split():
            spec = util.find_spec(name)
            where = spec and (spec.submodule_search_locations or [spec.origin])
            if where:
                inplace[name] = [dist.metadata["Name"], str(list(where)[0])]
try:
    mine = metadata.version("hpcmass")
    lines = [line for line in metadata.requires("hpcmass") or [] if "extra ==" not in line]
except metadata.PackageNotFoundError:
    mine, lines = None, []
needs = {"hpcmass", *(plain(re.match(r"[\w.-]+", line)[0]) for line in lines)}
outside -= {"", *inside}
print(json.dumps({"hpcmass": mine, "prefix": sys.prefix, "base": sys.base_prefix,
    "purelib": sysconfig.get_path("purelib"),
    "executable": str(Path(getattr(sys, "_base_executable", sys.executable)).resolve()),
    "version": "%d.%d.%d" % sys.version_info[:3], "short": "%d.%d" % sys.version_info[:2], "inplace": inplace,
    "outside": sorted(outside), "needed": sorted(outside & needs)}))
"""


def ask_environment(environment: Path) -> dict[str, Any]:
    """Prefix, interpreter, version, and packages in place or outside of a virtual environment.

    Raises:
        NotFound: It is none, or its interpreter does not start.
    """
    python = environment / "bin" / "python"
    if not (environment / "pyvenv.cfg").is_file() or not python.exists():
        raise NotFound(
            "is no virtual environment (pyvenv.cfg and bin/python)",
            where=environment,
            hint="make one: hpcmass env build; a conda environment is packed by conda-pack",
        )
    done = subprocess.run(
        [str(python), "-I", "-c", _ASK], capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL
    )
    if done.returncode != 0:
        raise NotFound(f"its interpreter fails: {done.stderr.strip()[-300:]}", where=python)
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


def sees_the_systems(environment: Path) -> bool:
    """Whether packages of its interpreter's own are seen, as `venv --system-site-packages` has it."""
    for line in (environment / "pyvenv.cfg").read_text(errors="replace").splitlines():
        key, _, value = line.partition("=")
        if key.strip().lower() == "include-system-site-packages":
            return value.strip().lower() == "true"
    return False
