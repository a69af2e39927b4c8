"""The other process of `catalogue doctor`: does on this machine what it is told, in a folder that both see.

It stands alone (standard library only), so that any Python of another node runs it:
`python doctor_peer.py FOLDER`, a command a line on standard input, an answer a line on standard output.
"""

from __future__ import annotations

import fcntl
import os
import socket
import sys
import time

WAIT_S = 90.0


def await_size(path: str, size: int) -> float:
    """Seconds until a file of at least so many bytes is seen; -1 where it does not come."""
    begun = time.monotonic()
    while time.monotonic() - begun < WAIT_S:
        try:
            with open(path, "rb") as file:
                if file.seek(0, os.SEEK_END) >= size:
                    return time.monotonic() - begun
        except FileNotFoundError:
            pass
        time.sleep(0.001)
    return -1.0


def claim_all(prefix: str, count: int, tag: str, links: bool) -> list[int]:
    """Try to take each of so many names; gives the numbers that this process got."""
    own = f"{prefix}-of-{tag}"
    with open(own, "w") as file:
        file.write(tag)
    won = []
    for number in range(count):
        name = f"{prefix}-{number}"
        try:
            if links:
                os.link(own, name)
            else:
                os.close(os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL))
        except FileExistsError:
            continue
        won.append(number)
    return won


def append_all(path: str, count: int, tag: str) -> int:
    """Append so many lines, each by one write."""
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    try:
        for number in range(count):
            os.write(handle, f"{tag} {number} {'x' * 60}\n".encode())
        os.fsync(handle)
    finally:
        os.close(handle)
    return count


def try_flock(path: str) -> str:
    """Whether a lock that the other process has is seen here: `held`, `got` or the error."""
    try:
        with open(path, "rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return "got"
    except BlockingIOError:
        return "held"
    except OSError as error:
        return str(error.strerror)


def answer(words: list[str]) -> object:
    """Do what a line says."""
    verb, *rest = words
    if verb == "host":
        return socket.gethostname()
    if verb == "look":
        return os.path.exists(rest[0])
    if verb == "await":
        return await_size(rest[0], int(rest[1]))
    if verb == "claim":
        return ",".join(map(str, claim_all(rest[0], int(rest[1]), rest[2], rest[3] == "link")))
    if verb == "append":
        return append_all(rest[0], int(rest[1]), rest[2])
    if verb == "flock":
        return try_flock(rest[0])
    raise ValueError(verb)


def main() -> None:
    """Answer until standard input ends."""
    os.chdir(sys.argv[1])
    for line in sys.stdin:
        print(answer(line.split()), flush=True)


if __name__ == "__main__":
    main()
