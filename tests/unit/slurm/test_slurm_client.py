"""The client's patience and its limits, with commands that behave as a Slurm in trouble does.

What a real Slurm answers is in tests/slurm; a command that hangs, or fails twice and then works, cannot be had
from it at will.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from hpcmass.errors import SlurmError
from hpcmass.files import process_start
from hpcmass.slurm import client as client_module
from hpcmass.slurm.client import Slurm
from hpcmass.slurm.commands import SACCT_FIELDS, SEPARATOR, SQUEUE_FIELDS
from hpcmass.slurm.jobs import JobState

Command = Callable[..., None]


@pytest.fixture
def command(tmp_path: Path) -> Command:
    """Puts a command of Slurm's in place, as lines of sh; `$N` is how often it was called before."""

    def put(name: str, body: str) -> None:
        file = tmp_path / "bin" / name
        file.parent.mkdir(exist_ok=True)
        count = tmp_path / f"{name}.calls"
        file.write_text(
            f'#!/bin/sh\nN=$(cat "{count}" 2>/dev/null || echo 0); echo $((N + 1)) >"{count}"\n{body}\n'
        )
        file.chmod(0o755)

    return put


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Slurm:
    monkeypatch.setattr(client_module, "_FIRST_PAUSE_S", 0.01)
    monkeypatch.setattr(client_module, "_QUIET_S", 600.0)  # a shell that starts late is told of in its own test
    return Slurm({"PATH": f"{tmp_path / 'bin'}:/usr/bin:/bin"}, timeout_s=240, patience_s=240)


def squeue_line(job_id: str, state: str) -> str:
    values = dict.fromkeys(SQUEUE_FIELDS, "")
    values.update({"%i": job_id, "%A": job_id, "%F": job_id, "%T": state, "%j": "x"})
    return SEPARATOR.join(values.values())


def sacct_line(job_id: str, state: str, code: str = "0:0") -> str:
    values = {
        **dict.fromkeys(SACCT_FIELDS, ""),
        "JobID": job_id,
        "JobIDRaw": job_id,
        "State": state,
        "ExitCode": code,
    }
    return SEPARATOR.join(values.values())


DOWN = "echo 'slurm_load_jobs error: Unable to contact slurm controller (connect failure)' >&2; exit 1"


def test_a_failure_that_passes_is_waited_out(slurm: Slurm, command: Command) -> None:
    command("squeue", f"[ $N -lt 3 ] && {{ {DOWN}; }}\necho answer")
    told: list[str] = []
    slurm._on_wait = told.append
    assert slurm.run(["squeue"]) == "answer\n"
    assert slurm.calls == 4
    assert len(told) == 3
    assert "cannot be reached" in told[0]


def test_patience_ends_with_a_plain_error(slurm: Slurm, command: Command) -> None:
    command("squeue", DOWN)
    patience_s = 0.2
    while slurm.calls < 2:  # The first call alone may take longer.
        slurm.calls, patience_s = 0, patience_s * 2
        with pytest.raises(SlurmError) as caught:
            slurm.run(["squeue"], patience_s=patience_s)
    error = caught.value
    assert error.transient
    assert error.data["kind"] == "controller"
    assert "cannot be reached" in error.message


def test_a_refusal_is_not_tried_again(slurm: Slurm, command: Command) -> None:
    command(
        "sbatch", "echo 'sbatch: error: Batch job submission failed: Invalid qos specification' >&2; exit 1"
    )
    with pytest.raises(SlurmError) as caught:
        slurm.run(["sbatch", "x"])
    assert (caught.value.data["kind"], caught.value.data["exit_code"], slurm.calls) == ("qos", 1, 1)
    assert caught.value.data["argv"] == ["sbatch", "x"]


def test_sbatch_is_not_tried_again_where_the_job_may_be_taken(slurm: Slurm, command: Command) -> None:
    command("sbatch", "echo 'sbatch: error: Batch job submission failed: Socket timed out' >&2; exit 1")
    with pytest.raises(SlurmError) as caught:
        slurm.run(["sbatch", "x"])
    assert caught.value.data["unsure"]
    assert slurm.calls == 1


def test_a_command_that_hangs_is_ended_with_its_children(
    slurm: Slurm, command: Command, tmp_path: Path
) -> None:
    command("squeue", f'sleep 600 & echo $! >"{tmp_path}/child"; wait')
    slurm.timeout_s, told = 0.5, tmp_path / "child"
    while not (told.exists() and told.read_text()):  # It may be ended before it has begun.
        slurm.timeout_s *= 2
        with pytest.raises(SlurmError) as caught:
            slurm.run(["squeue"], patience_s=0)
    assert caught.value.transient
    assert f"did not answer within {slurm.timeout_s:g} s" in caught.value.message
    child = int(told.read_text())
    until = time.monotonic() + 240
    while process_start(child) is not None and time.monotonic() < until:
        time.sleep(0.05)
    assert process_start(child) is None


def test_no_slurm_here(slurm: Slurm) -> None:
    with pytest.raises(SlurmError) as caught:
        slurm.run(["squeue"])
    assert caught.value.data["kind"] == "no-slurm"
    assert "login" in str(caught.value)
    assert slurm.jobs(["7"])["7"].state is JobState.UNKNOWN


def test_unknown_where_nothing_answers(slurm: Slurm, command: Command) -> None:
    command("squeue", DOWN)
    command("sacct", "echo 'Slurm accounting storage is disabled' >&2; exit 1")
    slurm.patience_s = 0
    info = slurm.jobs(["7"])["7"]
    assert info.state is JobState.UNKNOWN
    assert "cannot be reached" in info.reason
    assert info.state.ended is None
    assert slurm.calls == 2
    slurm.jobs(["7"])
    assert slurm.calls == 3  # that there is no accounting was learnt


def test_accounting_that_does_not_answer_is_no_forgotten_job(slurm: Slurm, command: Command) -> None:
    """The controller forgets a job after minutes; then only accounting can say how it ended."""
    command("squeue", f"echo '{squeue_line('8', 'RUNNING')}'")
    command("sacct", "echo 'sacct: error: Problem talking to the database: Connection refused' >&2; exit 1")
    infos = slurm.jobs(["7", "8"])
    assert infos["7"].reason == slurm.silent == "its accounting database is away"
    assert infos["8"].state is JobState.RUNNING
    slurm.jobs(["8"])
    assert slurm.silent == ""
    command("sacct", f"echo '{sacct_line('7', 'FAILED', '1:0')}'")
    assert slurm.jobs(["7"])["7"].state is JobState.FAILED


@pytest.mark.parametrize(
    "text",
    [
        "Slurm accounting storage is disabled",
        # From 23.02 on.
        "sacct: fatal: You are not running a supported accounting_storage plugin",
    ],
)
def test_a_slurm_without_accounting_is_asked_once(slurm: Slurm, command: Command, text: str) -> None:
    command("squeue", "exit 0")
    command("sacct", f"echo '{text}' >&2; exit 1")
    assert (slurm.jobs(["7"])["7"].state, slurm.jobs(["7"])["7"].reason) == (JobState.UNKNOWN, "")
    assert slurm.silent == ""
    calls = slurm.calls
    slurm.jobs(["7"])
    assert slurm.calls == calls + 1


def test_a_state_of_accounting_is_stale_while_the_controller_is_down(slurm: Slurm, command: Command) -> None:
    command("squeue", DOWN)
    command("sacct", f"printf '%s\\n' '{sacct_line('7', 'RUNNING')}' '{sacct_line('8', 'FAILED', '3:0')}'")
    slurm.patience_s = 0
    infos = slurm.jobs(["7", "8"])
    assert infos["7"].state is JobState.UNKNOWN
    assert (infos["8"].state, infos["8"].exit_code) == (JobState.FAILED, 3)


def test_sacct_that_lags_behind_does_not_win(slurm: Slurm, command: Command) -> None:
    command("squeue", f"printf '%s\\n' '{squeue_line('7', 'COMPLETED')}' '{squeue_line('8', 'RUNNING')}'")
    command("sacct", f"printf '%s\\n' '{sacct_line('7', 'RUNNING')}'")
    infos = slurm.jobs(["7", "8", "9"])
    assert [infos[one].state.value for one in "789"] == ["COMPLETED", "RUNNING", "UNKNOWN"]
    command("sacct", f"printf '%s\\n' '{sacct_line('9', 'RUNNING')}'")
    late = slurm.jobs(["9"])["9"]  # squeue knows it no more: it is not known to run
    assert late.state is JobState.UNKNOWN
    assert "RUNNING" in late.reason


def test_an_array_as_a_whole(slurm: Slurm, command: Command) -> None:
    lines = [squeue_line("7_0", "COMPLETED"), squeue_line("7_1", "FAILED"), squeue_line("7_[2-3]", "PENDING")]
    command("squeue", "printf '%s\\n' " + " ".join(f"'{line}'" for line in lines))
    command("sacct", "exit 0")
    infos = slurm.jobs(["7", "7_1", "7_3"])
    assert [infos[one].state.value for one in ("7", "7_1", "7_3")] == ["PENDING", "FAILED", "PENDING"]
    assert list(slurm.alive(["7_0", "7_1", "7_2"])) == ["7_2"]


def test_two_calls_for_two_thousand_jobs(slurm: Slurm, command: Command) -> None:
    command("squeue", "exit 0")
    command("sacct", "exit 0")
    ids = [str(n) for n in range(100_000_000, 100_020_000)]
    assert len(slurm.jobs(ids)) == 20_000
    assert slurm.calls == 2


def test_cancelling_what_has_ended_is_no_failure(slurm: Slurm, command: Command) -> None:
    text = "scancel: error: Kill job error on job id 7: Invalid job id specified"
    command("scancel", f"echo '{text}' >&2; exit 1")
    slurm.cancel(["7"])
    other = "scancel: error: Kill job error on job id 8: Access/permission denied"
    command("scancel", f"echo '{text}' >&2; echo '{other}' >&2; exit 1")
    with pytest.raises(SlurmError, match="does not let you"):
        slurm.cancel(["7", "8"])


def test_the_environment_is_cleaned(slurm: Slurm, command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    command("sbatch", 'echo "$SLURM_JOB_ID/$SBATCH_PARTITION/$SLURM_CONF"')
    slurm._env = {**slurm.env, "SLURM_JOB_ID": "3", "SBATCH_PARTITION": "x", "SLURM_CONF": "/c"}
    assert slurm.run(["sbatch"]) == "//" + "/c\n"
    monkeypatch.setenv("HPCMASS_PROBE", "here")
    assert Slurm().env == dict(os.environ)


def test_a_wait_is_told(slurm: Slurm, command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client_module, "_QUIET_S", 0.3)
    command("squeue", "sleep 2; echo all of it")
    told: list[str] = []
    slurm._on_wait = told.append
    assert slurm.run(["squeue"]) == "all of it\n"
    assert told == ["Slurm does not answer squeue yet; waiting"]


@pytest.mark.parametrize("ahead_s", [0, 100, -100])
def test_the_time_left_is_reckoned_by_the_controllers_clock(
    slurm: Slurm, command: Command, ahead_s: int
) -> None:
    """A node's clock may be off by minutes: the limit's end is told by the controller's."""
    now = int(time.time()) + ahead_s  # there
    command("sdiag", f"echo 'sdiag output at Wed Feb 23 01:39:54 2022 ({now})'")
    values = {
        **dict.fromkeys(SQUEUE_FIELDS, ""),
        "%i": "7",
        "%A": "7",
        "%F": "7",
        "%T": "RUNNING",
        "%l": "2:00:00",
    }
    command("squeue", f"printf '%s\\n' '{SEPARATOR.join({**values, '%e': str(now + 3600)}.values())}'")
    ahead = slurm.clock_ahead_s()
    assert ahead is not None
    assert abs(ahead - ahead_s) < 50
    left = slurm.time_left_s("7", ahead_s=ahead)
    assert left is not None
    assert abs(left - 3600) < 50
    command("sdiag", "echo 'no permission' >&2; exit 1")
    assert slurm.clock_ahead_s() is None


def test_an_element_that_was_cancelled_alone_while_pending(slurm: Slurm, command: Command) -> None:
    """Slurm forgets it (seen on 22.05): squeue shows the array's other elements, sacct nothing."""
    command("squeue", f"echo '{squeue_line('7_[0,2]', 'PENDING')}'")
    command("sacct", "exit 0")
    assert slurm.jobs(["7_1"])["7_1"].state is JobState.CANCELLED
    assert slurm.jobs(["8_1"])["8_1"].state is JobState.UNKNOWN
    command("sacct", "echo 'Slurm accounting storage is disabled' >&2; exit 1")
    assert slurm.jobs(["7_1"])["7_1"].state is JobState.UNKNOWN  # it may have ended long ago


def test_what_accounting_has_not_heard_yet_the_controller_tells(slurm: Slurm, command: Command) -> None:
    """Seen on 22.05: for a second sacct has a job that is over as `allocation`, without partition and limit."""
    command("squeue", f"echo '{squeue_line('7', 'COMPLETED')}'")
    command("sacct", f"echo '{sacct_line('7', 'COMPLETED')}allocation'")
    info = slurm.jobs(["7"])["7"]
    assert (info.name, info.exit_code, info.source) == ("x", 0, "sacct")


def test_a_job_that_the_controller_does_not_have_is_gone_whatever_accounting_says(
    slurm: Slurm, command: Command
) -> None:
    command("squeue", "exit 0")
    for sacct in (
        "echo 'Slurm accounting storage is disabled' >&2; exit 1",
        "echo 'sacct: error: Problem talking to the database: Connection refused' >&2; exit 1",
        f"echo '{sacct_line('7', 'RUNNING')}'",
        "exit 0",
    ):
        command("sacct", sacct)
        slurm._accounting = None
        assert (slurm.jobs(["7"])["7"].state, slurm.jobs(["7"])["7"].gone) == (JobState.UNKNOWN, True)
    command("sacct", f"echo '{sacct_line('7', 'FAILED')}'")
    assert not slurm.jobs(["7"])["7"].gone  # it is known how it ended
    command("squeue", DOWN)
    slurm.patience_s = 0
    command("sacct", "exit 0")
    assert not slurm.jobs(["7"])["7"].gone  # nobody knows
