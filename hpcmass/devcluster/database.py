"""The cluster's own MariaDB and slurmdbd: accounting without a service of the machine."""

from __future__ import annotations

import secrets
import subprocess
from collections.abc import Callable, Mapping, Sequence

from hpcmass.devcluster.packages import program
from hpcmass.devcluster.render import ACCOUNT, slurmdbd_conf
from hpcmass.devcluster.settings import Settings
from hpcmass.errors import LaunchError

Run = Callable[..., "subprocess.CompletedProcess[str]"]


def install(s: Settings, env: Mapping[str, str]) -> None:
    """Make the database's folder, once.

    Raises:
        LaunchError: mariadb-install-db failed.
    """
    folder = s.folder / "mysql"
    if (folder / "mysql" / "db.frm").exists():
        return
    argv = [
        program("mariadb-install-db") or "mariadb-install-db",
        "--no-defaults",
        f"--datadir={folder}",
        "--auth-root-authentication-method=socket",
        f"--auth-root-socket-user={s.user}",
        f"--user={s.user}",
        "--skip-test-db",
    ]
    # A server that starts clears temporary tables out of its temporary folder, also those of its neighbours.
    own = {**env, "TMPDIR": str(s.folder / "database-tmp")}
    done = subprocess.run(argv, env=own, capture_output=True, text=True, check=False)
    (s.folder / "log" / "mysql-install.log").write_text(done.stdout + done.stderr)
    if done.returncode != 0:
        raise LaunchError("mariadb-install-db failed", where=s.folder / "log" / "mysql-install.log")


def server_argv(s: Settings) -> list[str]:
    """MariaDB, small and quick rather than safe: the accounts of a development cluster may be lost."""
    return [
        "mariadbd",
        "--no-defaults",
        f"--socket={s.database_socket}",
        f"--datadir={s.folder}/mysql",
        f"--tmpdir={s.folder}/database-tmp",
        f"--port={s.database_port}",
        "--bind-address=127.0.0.1",
        "--skip-name-resolve",
        f"--pid-file={s.folder}/run/mysqld.pid",
        f"--user={s.user}",
        "--innodb-buffer-pool-size=16M",
        "--innodb-log-file-size=8M",
        "--innodb-flush-log-at-trx-commit=0",
        "--innodb-doublewrite=0",
        "--innodb-lock-wait-timeout=900",
        "--performance-schema=0",
    ]


def answers(s: Settings, run: Run) -> bool:
    """Whether MariaDB takes commands."""
    return _sql(s, run, "select 1").returncode == 0


def prepare(s: Settings, run: Run) -> None:
    """Make Slurm's database and user with a new password, and write slurmdbd.conf.

    Raises:
        LaunchError: MariaDB refused.
    """
    password = secrets.token_hex(16)
    done = _sql(
        s,
        run,
        "create database if not exists slurm_acct_db;"
        f"create or replace user 'slurm'@'127.0.0.1' identified by '{password}';"
        "grant all on slurm_acct_db.* to 'slurm'@'127.0.0.1'",
    )
    if done.returncode != 0:
        raise LaunchError(f"MariaDB refused: {done.stderr.strip()[:300]}")
    conf = s.folder / "etc" / "slurmdbd.conf"
    conf.touch(0o600)
    conf.chmod(0o600)
    conf.write_text(slurmdbd_conf(s, password))


def _sql(s: Settings, run: Run, text: str) -> subprocess.CompletedProcess[str]:
    return run("mariadb", "--no-defaults", f"--socket={s.database_socket}", f"--user={s.user}", "-e", text)


def register(run: Run, user: str) -> None:
    """Tell slurmdbd of the cluster, an account and the user; without them no job may be submitted.

    Raises:
        LaunchError: slurmdbd refused.
    """
    known = run("sacctmgr", "-nP", "list", "associations", "format=cluster,account,user").stdout.split()
    steps: list[tuple[str, Sequence[str]]] = [
        ("devcluster|root|", ["cluster", "devcluster"]),
        (f"devcluster|{ACCOUNT}|", ["account", ACCOUNT, "cluster=devcluster"]),
        (f"devcluster|{ACCOUNT}|{user}", ["user", user, f"account={ACCOUNT}", f"defaultaccount={ACCOUNT}"]),
    ]
    for line, words in steps:
        if line in known:
            continue
        done = run("sacctmgr", "-i", "add", *words)
        if done.returncode != 0:
            raise LaunchError(f"slurmdbd refused: {(done.stderr or done.stdout).strip()[:300]}")
