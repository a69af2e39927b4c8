"""Bearer tokens: made at random, kept as digests alone, compared in constant time.

A token has 256 random bits, so its plain SHA-256 tells nothing of it; no salt and no slow hash is needed,
and one comparison costs microseconds.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
from pathlib import Path

from hpcmass.errors import AlreadyExists, ConfigError, NotFound
from hpcmass.files import check_name, replace

_DIGEST = re.compile(r"[0-9a-f]{64}")


class Tokens:
    """Digests of the tokens that are let in, by the name of who has each."""

    def __init__(self, digests: dict[str, bytes]) -> None:
        self._digests = digests

    def __len__(self) -> int:
        return len(self._digests)

    def allows(self, header: bytes | None) -> bool:
        """Whether the value of an `Authorization` header holds one of the tokens."""
        return self.whose(header) is not None

    def whose(self, header: bytes | None) -> str | None:
        """The name of who has the token in the value of an `Authorization` header; None: nobody's."""
        kind, _, token = (header or b"").partition(b" ")
        given = hashlib.sha256(token.strip()).hexdigest().encode()
        found = None
        for name, digest in self._digests.items():  # all of them, whichever it is
            if hmac.compare_digest(given, digest):
                found = name
        return found if kind.lower() == b"bearer" else None


def read_tokens(file: Path) -> Tokens:
    """Read a file of tokens: `NAME SHA256` a line, `#` begins a comment.

    Raises:
        NotFound: There is no such file.
        ConfigError: A line is something else, or there is none.
    """
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        raise NotFound(
            "there is no file of tokens", where=file, hint="make one: hpcmass token NAME --file FILE"
        ) from None
    except UnicodeDecodeError as error:
        raise ConfigError("is no text", where=file) from error
    digests: dict[str, bytes] = {}
    for number, line in enumerate(lines, 1):
        words = line.partition("#")[0].split()
        if not words:
            continue
        if len(words) != 2 or not _DIGEST.fullmatch(words[1]):
            raise ConfigError("is not a name and a SHA-256 digest", where=f"{file}:{number}")
        digests[words[0]] = words[1].encode()
    if not digests:
        raise ConfigError("holds no token", where=file, hint="make one: hpcmass token NAME --file FILE")
    return Tokens(digests)


def new_token(name: str, file: Path) -> str:
    """Make a token, add its digest to the file, and give the token, which is kept nowhere.

    Raises:
        AlreadyExists: The file has a token of that name.
        NameNotAllowed: The name holds what names may not hold.
    """
    check_name(name)
    text = file.read_text(encoding="utf-8") if file.exists() else ""
    if any(line.split()[:1] == [name] for line in text.splitlines()):
        raise AlreadyExists(f"there is a token of {name} already", where=file, hint="remove its line first")
    token = secrets.token_urlsafe(32)
    kept = text if not text or text.endswith("\n") else text + "\n"
    replace(file, f"{kept}{name} {hashlib.sha256(token.encode()).hexdigest()}\n")
    return token
