"""The page of a report: data, style and script in one file that asks nothing of the network."""

from __future__ import annotations

import base64
import hashlib
import json
from importlib.resources import files
from pathlib import Path
from typing import Any

from hpcmass.files import replace
from hpcmass.sweep.report.gather import gather

_SCRIPTS = (
    "core.js",
    "scales.js",
    "plot.js",
    "search.js",
    "parallel.js",
    "curves.js",
    "timeline.js",
    "table.js",
    "main.js",
)


def render(data: dict[str, Any]) -> str:
    """The HTML of `gather`'s data.

    What is a user's (names, errors, values) is in the JSON alone, in which `<`, `>` and `&` are escaped, and
    the script puts it on the page as text. The policy lets no other script run and nothing be fetched.
    """
    style = _static("report.css")
    script = "(() => {\n'use strict';\n" + "\n".join(_static(name) for name in _SCRIPTS) + "\n})();\n"
    policy = (
        f"default-src 'none'; style-src '{_digest(style)}'; script-src '{_digest(script)}'; "
        "img-src data:; base-uri 'none'; form-action 'none'"
    )
    page = _static("report.html")
    # Data last: nothing of it is looked at for the other marks.
    for mark, text in (("POLICY", policy), ("STYLE", style), ("SCRIPT", script), ("DATA", embedded(data))):
        before, _, after = page.partition(f"@@{mark}@@")
        page = before + text + after
    return page


def embedded(data: Any) -> str:
    """JSON that may stand in a script element, whatever its strings hold."""
    text = json.dumps(data, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")


def write_report(folder: Path, out: Path | None = None) -> Path:
    """Write the report of a study, as a whole or not at all; gives the file.

    Args:
        folder: The study's.
        out: The file; by default `report.html` in the study's folder.

    Raises:
        NotFound: There is no study here.
        StorageError: The file system refused.
    """
    page = render(gather(folder))
    file = out or folder / "report.html"
    replace(file, page)
    return file


def _static(name: str) -> str:
    return (files(__package__) / "static" / name).read_text(encoding="utf-8")


def _digest(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
