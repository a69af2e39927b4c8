"""What a replica's job begins as: it says which addresses its node has, and becomes `hpcmass serve`."""

from __future__ import annotations

import os
import socket
import sys
from pathlib import Path

from hpcmass.files import replace_json
from hpcmass.launch import hpcmass_command
from hpcmass.workflow.addresses import own_addresses


def main() -> None:
    """`FILE.json WORD…`: the words are those of hpcmass."""
    file, words = Path(sys.argv[1]), sys.argv[2:]
    told = {"format": 1, "addresses": own_addresses(), "host": socket.gethostname(), "pid": os.getpid()}
    replace_json(file, told)
    command = [*hpcmass_command(), *words]
    os.execv(command[0], command)
