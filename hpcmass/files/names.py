"""Names that users give, held to characters that no shell, path or URL reads as something else."""

from __future__ import annotations

import re

from hpcmass.errors import NameNotAllowed

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


def check_name(name: str, what: str = "name") -> str:
    """Return `name` if it may be used as a file name, or refuse it.

    Args:
        name: 1 to 100 characters out of letters, digits, `.`, `_`, `-`; the first a letter or digit.
        what: What the name stands for, used in the message.

    Raises:
        NameNotAllowed: The name holds anything else (a slash, a space, `$`, a leading dot …).
    """
    if not isinstance(name, str) or not _NAME.fullmatch(name) or name.endswith("."):
        raise NameNotAllowed(
            f"{what} {name!r} is not allowed",
            hint="use 1 to 100 letters, digits, '.', '_' or '-', the first a letter or digit",
            name=name,
        )
    return name
