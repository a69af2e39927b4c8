"""The keeper of one rank, and the guard of one mpiexec. Standard library only; run by its path.

`child.py rank COMMAND…` runs COMMAND as the rank that the launcher's environment says: sets the variables
that torchrun sets, sends its output to the rank's log, waits, and notes how it ended, because no mpiexec
tells that for every rank; `child.py rank-json JSON` does so for a command in one word, the list of its own.
`child.py guard SIGNAL PARENT COMMAND…` becomes COMMAND, which gets SIGNAL when PARENT is gone. `child.py shield
COMMAND…` becomes COMMAND, deaf to SIGTERM; a guard shields too. `child.py port` prints a free port of this
machine.

Nothing outlives what started it: the command dies with its keeper (PR_SET_PDEATHSIG), and a keeper whose
own parent is gone ends its whole process group, so also the data loader's workers of a rank.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib.util
import json
import os
import signal
import socket
import sys
import time
from pathlib import Path
from typing import Any, NoReturn

PR_SET_PDEATHSIG = 1
SECONDS_TO_END = 5
EXIT_CANNOT_START = 127
_CONNECT_S = 5.0


def main(argv: list[str]) -> int:
    """Dispatch on the first word."""
    if argv[0] == "guard":
        _guard(int(argv[1]), int(argv[2]), argv[3:])
    if argv[0] == "shield":
        _shield(argv[1:])
    if argv[0] == "port":
        with socket.socket() as probe:
            probe.bind(("", 0))
            print(f"port {probe.getsockname()[1]}", flush=True)
        return 0
    return _keep(json.loads(argv[1]) if argv[0] == "rank-json" else argv[1:])


def _guard(number: int, parent: int, command: list[str]) -> NoReturn:
    # Slurm ends a job by SIGTERM to each of its processes, and an mpiexec that gets it kills the ranks at once:
    # they could write no checkpoint. Whoever started it ends it otherwise. srun cannot be shielded (it fetches
    # its signals, blocked or not), and need not be: while a job ends, Slurm does not let it kill the ranks.
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    _die_with_parent(number)
    if os.getppid() != parent:
        sys.exit(128 + number)
    _become(command, dict(os.environ))


def _shield(command: list[str]) -> NoReturn:
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    if not os.access(command[0], os.X_OK):  # another installation keeps its daemon elsewhere
        command = [os.path.basename(command[0]), *command[1:]]
    _become(command, dict(os.environ))


def _keep(command: list[str]) -> int:
    # The mask is inherited: whoever is shielded above must not make its ranks deaf.
    signal.pthread_sigmask(signal.SIG_SETMASK, set())
    folder = Path(os.environ["HPCMASS_KEEPER"])
    settings = json.loads((folder / "settings.json").read_text(encoding="utf-8"))
    parent = os.getppid()
    env, record = _rank_environment(settings)
    rank = int(env["RANK"])
    if os.getpgrp() != os.getpid():
        os.setpgid(0, 0)
    _note(folder, f"start-{rank}.json", record)
    if "HPCMASS_RUN_DIR" in env:  # a script of the user's own cannot write it down itself
        place = Path(env["HPCMASS_RUN_DIR"], "ranks")
        place.mkdir(exist_ok=True)
        _note(place, f"attempt-{env.get('HPCMASS_ATTEMPT', '1')}-rank-{rank}.json", record)
    log = os.open(settings["logs"][rank], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    _end_group_with_parent(parent)
    keeper = os.getpid()
    child = os.fork()
    if child == 0:
        _die_with_parent(signal.SIGKILL)
        if os.getppid() != keeper:
            os._exit(128 + signal.SIGKILL)
        if settings.get("ignore_usr1", False):
            # A script that knows nothing of SIGUSR1 would die of it at once; one that does sets its handler.
            signal.signal(signal.SIGUSR1, signal.SIG_IGN)
        _become(command, env)
    _drop_launcher_pipes(env)
    line = _lifeline(settings, env, record)
    _, status = os.waitpid(child, 0)
    ended = time.time()
    number = os.WTERMSIG(status) if os.WIFSIGNALED(status) else None
    code = os.WEXITSTATUS(status) if os.WIFEXITED(status) else None
    _note(folder, f"exit-{rank}.json", {"rank": rank, "exit_code": code, "signal": number, "time": ended})
    if line is not None:
        with contextlib.suppress(OSError):
            line.sendall(b"bye")
    if number is not None:
        _die_by(number)
    return code if code is not None else 1


def _rank_environment(settings: dict[str, Any]) -> tuple[dict[str, str], dict[str, object]]:
    """Torchrun's variables, out of what the launcher says, and the rank's record; refuses a wrong size."""
    # Behind the standard library: a package folder must not shadow it. The module alone, not its package:
    # that takes four times as long, in every rank of every trial.
    sys.path.append(str(Path(__file__).resolve().parents[2]))
    spec = importlib.util.spec_from_file_location("_hpcmass_ranks", Path(__file__).with_name("ranks.py"))
    assert spec is not None
    assert spec.loader is not None
    ranks = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = ranks
    spec.loader.exec_module(ranks)

    env = dict(os.environ)
    try:
        place = ranks.detect_ranks(env)
    except ranks.LaunchError as error:
        sys.exit(f"hpcmass: {error}")
    if place.size != settings["ranks"]:
        sys.exit(
            f"hpcmass: {settings['ranks']} ranks were started, but this process is rank {place.rank} "
            f"of {place.size}: its launcher and its environment do not fit"
        )
    nodes = settings.get("nodes", [])
    here = env.get("SLURMD_NODENAME") or socket.gethostname()
    node = nodes.index(here) if here in nodes else place.node
    numbers = {
        "RANK": place.rank,
        "LOCAL_RANK": place.local_rank,
        "WORLD_SIZE": place.size,
        "LOCAL_WORLD_SIZE": place.local_size,
        "GROUP_RANK": node,
        "NODE_RANK": node,
        "GROUP_WORLD_SIZE": max(1, len(nodes)),
        "HPCMASS_RANK": place.rank,
        "HPCMASS_SIZE": place.size,
        "HPCMASS_LOCAL_RANK": place.local_rank,
        "HPCMASS_LOCAL_SIZE": place.local_size,
    }
    env["HPCMASS_SOURCE"] = place.source
    env["HPCMASS_LAUNCHER"] = settings.get("launcher", place.source)
    if ranks.in_slurm_step(env):
        env["HPCMASS_SLURM_STEP"] = env["SLURM_STEP_ID"]
    env.update({name: str(number) for name, number in numbers.items()})
    try:
        env.update(
            ranks.gpu_share(
                env,
                place,
                settings.get("gpus_per_rank", 0),
                own=settings.get("own_gpus", False),
                # A machine may have a small AMD GPU in its CPU beside NVIDIA's.
                amd=os.path.exists("/dev/kfd") and not os.path.exists("/dev/nvidiactl"),
            )
        )
    except ranks.LaunchError as error:
        sys.exit(f"hpcmass: {error}")
    cpus = len(os.sched_getaffinity(0))
    return env, ranks.describe(
        env, place, host=socket.gethostname(), pid=os.getpid(), cpus=cpus, at=time.time()
    )


def _become(command: list[str], env: dict[str, str]) -> NoReturn:
    try:
        os.execvpe(command[0], command, env)
    except OSError as error:
        sys.stderr.write(f"hpcmass: cannot start {command[0]!r}: {error.strerror}\n")
        sys.stderr.flush()
        os._exit(EXIT_CANNOT_START)


def _die_with_parent(number: int) -> None:
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, number, 0, 0, 0)


def _end_group_with_parent(parent: int) -> None:
    """Handle signals: those of the group reach the command by themselves; the parent's death ends all."""
    ending = False

    def on_signal(_number: int, _frame: object) -> None:
        nonlocal ending
        if os.getppid() == parent or ending:
            return
        ending = True
        signal.alarm(SECONDS_TO_END)
        os.killpg(0, signal.SIGTERM)

    def on_alarm(_number: int, _frame: object) -> None:
        os.killpg(0, signal.SIGKILL)

    signal.signal(signal.SIGALRM, on_alarm)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2, signal.SIGHUP):
        signal.signal(number, on_signal)
    _die_with_parent(signal.SIGTERM)
    if os.getppid() != parent:
        os.kill(os.getpid(), signal.SIGTERM)


def _lifeline(settings: dict[str, Any], env: dict[str, str], record: dict[str, object]) -> socket.socket | None:
    """The connection that says that this node lives (see `lifeline.py`); one a node."""
    told = settings.get("lifeline")
    if not told or env["LOCAL_RANK"] != "0":
        return None
    try:
        line = socket.create_connection((told["host"], told["port"]), timeout=_CONNECT_S)
        line.settimeout(None)
        line.sendall(f"{told['token']} {record['node']}\n".encode())
    except OSError:
        return None
    return line


def _drop_launcher_pipes(env: dict[str, str]) -> None:
    """Close MPICH's pipe here: Hydra learns that a rank is gone by its end, which only the rank may hold."""
    for name in ("PMI_FD", "HYDI_CONTROL_FD"):
        number = env.get(name, "")
        if number.isdigit() and int(number) > 2:
            try:
                os.close(int(number))
            except OSError:
                continue


def _note(folder: Path, name: str, record: dict[str, object]) -> None:
    temporary = folder / f".{name}.tmp"
    temporary.write_text(json.dumps({**record, "host": socket.gethostname()}), encoding="utf-8")
    os.replace(temporary, folder / name)


def _die_by(number: int) -> None:
    """End as the command ended, so that mpiexec sees it too; without a second core file."""
    import resource

    resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))
    if number not in (signal.SIGKILL, signal.SIGSTOP):
        signal.signal(number, signal.SIG_DFL)
    os.kill(os.getpid(), number)
    time.sleep(1)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
