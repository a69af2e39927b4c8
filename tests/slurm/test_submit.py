"""`hpcmass submit` and `rerun` on a real Slurm: what is submitted, what is refused, and what is left behind."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from hpcmass.config import Project, load_site, site_to_toml
from hpcmass.devcluster import Cluster
from hpcmass.errors import ConfigError, HpcmassError, LeaseHeld, NotFound, SlurmError, StorageError
from hpcmass.runs import RunFolder, State
from hpcmass.slurm import send as send_module
from hpcmass.slurm.client import Slurm
from hpcmass.slurm.jobs import JobInfo, JobState
from hpcmass.slurm.judge import Phase
from hpcmass.slurm.records import read_submissions
from hpcmass.workflow import laydown as laydown_module
from hpcmass.workflow import submit as submit_module
from hpcmass.workflow.cancel import Cancelled, cancel_runs
from hpcmass.workflow.state import observe
from hpcmass.workflow.submit import Submission, rerun, submit

pytestmark = pytest.mark.slurm

DUMP = """
import json, os, sys
keep = {k: v for k, v in os.environ.items() if k.startswith(("SLURM_", "TEST_", "SBATCH_"))}
print("GOT " + json.dumps([sys.argv[1:], keep]), flush=True)
"""


@pytest.fixture
def words(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Sets what the scripts run in place of hpcmass: this is about what reaches a node, not training."""

    def put(*argv: str) -> None:
        monkeypatch.setattr(submit_module, "hpcmass_command", lambda: list(argv))

    put(sys.executable, "-c", DUMP)
    return put


@pytest.fixture
def slurm(slurm_env: dict[str, str]) -> Slurm:
    return Slurm(patience_s=240)


@pytest.fixture
def proj(project: Path, cluster: Cluster) -> Project:
    (project / "hpcmass.toml").write_text(f'name = "tests"\nsite = "{cluster.site_file}"\n')
    return Project(project)


@pytest.fixture
def go(proj: Project, slurm: Slurm, words: object) -> Callable[..., Submission]:
    """Submits the project's job; most jobs here ask for one core of a node."""

    def call(job: str = "job.toml", **more: object) -> Submission:
        sets = [*more.pop("sets", ()), "resources.threads_per_rank=1"]  # type: ignore[misc]
        return submit(proj.root / job, proj, sets=sets, slurm=slurm, **more)  # type: ignore[arg-type]

    return call


def ended(slurm: Slurm, job_id: str, within_s: float = 400.0) -> JobInfo:
    """Waits until a job is over."""
    until = time.monotonic() + within_s
    while True:
        info = slurm.jobs([job_id])[job_id]
        if info.state.ended:
            return info
        assert time.monotonic() < until, info
        time.sleep(0.2)


def output(run: Path, job_id: str) -> str:
    """Slurm's output file, which a shared file system may show late."""
    file = run / "slurm" / f"out-{job_id}.log"
    until = time.monotonic() + 180
    while not (file.exists() and file.read_text()):
        assert time.monotonic() < until, sorted(path.name for path in file.parent.iterdir())
        time.sleep(0.1)
    return file.read_text()


def got(run: Path, job_id: str) -> tuple[list[str], dict[str, str]]:
    [line] = [line for line in output(run, job_id).splitlines() if line.startswith("GOT ")]
    argv, env = json.loads(line.removeprefix("GOT "))
    return argv, env


def site_with(proj: Project, cluster: Cluster, **changes: object) -> Path:
    """A site file whose target `cpu` has other values."""
    site = load_site(cluster.site_file)
    cpu = site.targets["cpu"].model_copy(update=changes)
    file = proj.root / "other-site.toml"
    file.write_text(site_to_toml(site.model_copy(update={"targets": {**site.targets, "cpu": cpu}})))
    return file


def snapshot(folder: Path) -> dict[str, bytes]:
    """All files with their bytes; a lease that was taken and given back leaves its number behind."""
    files = (path for path in folder.rglob("*") if path.is_file() and not path.name.startswith("lease."))
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


# -- what is submitted ---------------------------------------------------------------------------------------


def test_a_job_runs_with_its_records(
    go: Callable[..., Submission], proj: Project, slurm: Slurm, cluster: Cluster
) -> None:
    done = go()
    run = proj.runs / "job"
    assert done.runs == (run,)
    assert ended(slurm, str(done.job_id)).state is JobState.COMPLETED
    argv, env = got(run, str(done.job_id))
    assert argv == ["hop", str(run), "--project", str(proj.root)]
    assert env["SLURM_JOB_NAME"] == "job"
    [record] = read_submissions(run)
    assert (record.job_id, record.by, record.target, record.site) == (
        done.job_id,
        "submit",
        "cpu",
        "devcluster",
    )
    assert record.layout["ranks"] == 1
    assert (run / "slurm" / record.script).read_text() == done.script
    assert RunFolder(run).status().state is State.CREATED
    assert (run / "recipe.py").read_text() == (proj.root / "recipe.py").read_text()
    text = cluster.run("scontrol", "show", "job", str(done.job_id)).stdout
    assert f"Comment={record.comment}" in text
    assert f"WorkDir={proj.root}" in text
    # Below submitit's part that pickles a function: nothing of it is left.
    assert sorted(path.name for path in (run / "slurm").iterdir()) == [
        "intent-0001.json", "job-0001.sbatch", f"out-{done.job_id}.log", "submission-0001.json",
    ]  # fmt: skip


NASTY = "a 'b' \"c\" ; $(touch hacked) `id` $HOME é 中 %j \\ # | & * ~"


def test_names_that_shells_read_otherwise_reach_the_program(
    cluster: Cluster, project: Path, slurm: Slurm, words: Callable[..., None], tmp_path: Path
) -> None:
    """Project folder, command words and variables, through sbatch, slurmd and bash."""
    root = tmp_path / NASTY.replace("\\", "").replace("/", "")
    os.rename(project, root)
    proj = Project(root)
    nasty = NASTY + "\n\t\r\n#SBATCH --partition=gpu"
    words(sys.executable, "-c", DUMP, nasty)
    site = site_with(proj, cluster, env={"TEST_VALUE": nasty})
    done = submit(root / "job.toml", proj, site_file=site, sets=["resources.threads_per_rank=1"], slurm=slurm)
    assert ended(slurm, str(done.job_id)).state is JobState.COMPLETED
    argv, env = got(proj.runs / "job", str(done.job_id))
    assert argv == [nasty, "hop", str(proj.runs / "job"), "--project", str(root)]
    assert env["TEST_VALUE"] == nasty
    assert env["SLURM_JOB_PARTITION"] == "cpu"
    assert not list(root.rglob("hacked"))


@pytest.mark.parametrize(
    "value", ["it's", 'say "hi"', "back\\slash", "a#b", "$HOME", "`id`", "x; y | z", "é 中", "%j", "a\tb"]
)
def test_sbatch_reads_a_value_as_it_was_meant(
    value: str, cluster: Cluster, tmp_path: Path, slurm: Slurm
) -> None:
    from hpcmass.slurm.script import option_line

    if "\t" in value:
        with pytest.raises(ConfigError):
            option_line("comment", value, "comment")
        return
    script = tmp_path / "x.sbatch"
    lines = [
        "#!/bin/bash",
        "#SBATCH --hold",
        option_line("job-name", value, "name"),
        option_line("comment", value, "comment"),
    ]
    script.write_text("\n".join([*lines, "true", ""]))
    job_id = slurm.run(["sbatch", "--parsable", str(script)]).strip()
    assert cluster.run("squeue", "-h", "-j", job_id, "-o", "%j|%k").stdout == f"{value}|{value}\n"


def test_what_surrounds_the_submit_does_not_leak_in(
    go: Callable[..., Submission], proj: Project, slurm: Slurm, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`SBATCH_*` would win over the script; `SLURM_*` of a job around us would mislead the new one's srun."""
    monkeypatch.setenv("SBATCH_PARTITION", "gpu")
    monkeypatch.setenv("SLURM_JOB_ID", "999999")
    monkeypatch.setenv("SLURM_MEM_PER_CPU", "77")
    done = go()
    ended(slurm, str(done.job_id))
    _, env = got(proj.runs / "job", str(done.job_id))
    assert env["SLURM_JOB_PARTITION"] == "cpu"
    assert env["SLURM_JOB_ID"] == done.job_id
    assert env.get("SLURM_MEM_PER_CPU") != "77"
    assert not any(name.startswith("SBATCH_") for name in env)


def test_resources_reach_slurm(go: Callable[..., Submission], proj: Project, slurm: Slurm) -> None:
    done = go(
        target="gpu",
        sets=["resources.ranks=3", "resources.nodes=2", "resources.memory_gb=2.0", 'resources.time="7m"'],
    )
    ended(slurm, str(done.job_id))
    _, env = got(proj.runs / "job", str(done.job_id))
    assert (env["SLURM_NNODES"], env["SLURM_NTASKS"], env["SLURM_CPUS_PER_TASK"]) == ("2", "3", "1")
    assert env["SLURM_MEM_PER_NODE"] == "1907"
    assert env["SLURM_JOB_PARTITION"] == "gpu"
    assert env["SLURM_GPUS_ON_NODE"] == "2"
    assert slurm.jobs([str(done.job_id)])[str(done.job_id)].time_limit_s == 420


def test_a_script_of_the_users_own_is_submitted(
    go: Callable[..., Submission], proj: Project, slurm: Slurm
) -> None:
    (proj.root / "own.toml").write_text('name = "own"\ncommand = ["echo", "{a}"]\n[params]\na = "x $(id)"\n')
    done = go("own.toml")
    assert ended(slurm, str(done.job_id)).state is JobState.COMPLETED
    assert not (proj.runs / "own" / "recipe.py").exists()


def test_an_array(go: Callable[..., Submission], proj: Project, slurm: Slurm) -> None:
    done = go(array="train.lr=0.1,0.02,0.003", run_name="lr")
    assert [path.name for path in done.runs] == ["lr-0", "lr-1", "lr-2"]
    assert ended(slurm, str(done.job_id)).state is JobState.COMPLETED
    for index, run in enumerate(done.runs):
        argv, env = got(run, f"{done.job_id}_{index}")
        assert argv[:2] == ["hop", str(run)]
        assert env["SLURM_ARRAY_TASK_ID"] == str(index)
        [record] = read_submissions(run)
        assert (record.job_id, record.array_index, record.slurm_id) == (
            done.job_id,
            index,
            f"{done.job_id}_{index}",
        )
        assert f"lr = {[0.1, 0.02, 0.003][index]}" in (run / "job.toml").read_text()
        assert (run / "slurm" / record.script).read_text() == done.script
    # Again: what has completed is left out, and the others keep their places.
    RunFolder(done.runs[1]).update(state=State.COMPLETED)
    again = go(array="train.lr=0.1,0.02,0.003", run_name="lr")
    assert again.elements == (0, 2)
    assert ended(slurm, str(again.job_id)).state is JobState.COMPLETED
    assert got(done.runs[2], f"{again.job_id}_2")[0][1] == str(done.runs[2])
    assert len(read_submissions(done.runs[1])) == 1
    # One of them alone, by the same script.
    one = rerun(RunFolder(done.runs[2]), slurm=slurm)
    assert ended(slurm, f"{one.job_id}_2").state is JobState.COMPLETED
    assert got(done.runs[2], f"{one.job_id}_2")[0][1] == str(done.runs[2])
    assert not list((done.runs[0] / "slurm").glob(f"out-{one.job_id}*"))


def test_an_array_larger_than_slurm_takes_is_refused(
    go: Callable[..., Submission], proj: Project, slurm: Slurm, cluster: Cluster
) -> None:
    most = int(slurm.config()["MaxArraySize"])
    values = ",".join(map(str, range(most + 1)))
    site = proj.root / "loose.toml"
    site.write_text(cluster.site_file.read_text().replace("max_array_size", "# max_array_size"))
    with pytest.raises(ConfigError, match=f"{most} at most"):
        go(array=f"params.width={values}", site_file=site)
    with pytest.raises(ConfigError, match="site 'devcluster' allows"):
        go(array=f"params.width={values}")
    assert not proj.runs.exists() or not list(proj.runs.iterdir())


def test_after(
    go: Callable[..., Submission], proj: Project, slurm: Slurm, words: Callable[..., None], cluster: Cluster
) -> None:
    words("/bin/sh", "-c", "sleep 600")
    first = go(run_name="first")
    words(sys.executable, "-c", DUMP)
    second = go(run_name="second", after=["first"])
    third = go(run_name="third", after=[f"afterany:{first.job_id}", "afterany:second"])
    assert second.after == (f"afterok:{first.job_id}",)
    waiting = slurm.jobs([str(second.job_id), str(third.job_id)])
    assert {info.state for info in waiting.values()} == {JobState.PENDING}
    cluster.run("scancel", str(first.job_id))
    ended(slurm, str(first.job_id))
    # What it waited for was cancelled: it is cancelled too, rather than waiting for ever; afterany starts.
    assert ended(slurm, str(second.job_id)).state is JobState.CANCELLED
    assert ended(slurm, str(third.job_id)).state is JobState.COMPLETED
    with pytest.raises(ConfigError, match="would never start"):
        go(run_name="fourth", after=["first"])
    # Slurm itself starts a job at once that is to come after one it does not know.
    with pytest.raises(NotFound, match="nothing is known of Slurm job 999999"):
        go(run_name="fourth", after=["999999"])
    assert not (proj.runs / "fourth").exists()
    fine = go(run_name="fourth", after=["third"])
    assert fine.after == ()
    assert "has ended already" in fine.notes[0]


# -- what is refused -----------------------------------------------------------------------------------------


def test_what_the_real_sbatch_refuses(
    proj: Project, cluster: Cluster, slurm: Slurm, go: Callable[..., Submission]
) -> None:
    """Each in plain words, and without a trace of a run."""
    cases = [
        ({"partition": "nope"}, "partition", "no partition of that name"),
        ({"constraint": "nope"}, "constraint", "no node has the features"),
        ({"reservation": "nope"}, "reservation", "reservation does not exist"),
        ({"gres": {"nope": 1}}, "gres", "does not know the generic resource"),
        ({"sbatch": {"mem": "900G"}}, "nodes", "no node of the partition can ever give"),
        ({"sbatch": {"nonsense": "1"}}, "option", "does not know an option"),
        ({"sbatch": {"nodelist": "nope"}}, "node-name", "does not exist"),
    ]
    if cluster.has_accounting:
        cases += [
            ({"account": "nope"}, "account", "account is not valid"),
            ({"qos": "nope"}, "qos", "QOS does not exist"),
        ]
    for changes, kind, words in cases:
        with pytest.raises(SlurmError) as caught:
            go(site_file=site_with(proj, cluster, **changes))
        assert caught.value.data["kind"] == kind, (changes, caught.value.data["stderr"])
        assert words in caught.value.message
        assert caught.value.hint
        assert list(proj.runs.iterdir()) == [], changes
    cluster.run("scontrol", "update", "PartitionName=fpga", "State=INACTIVE")
    try:
        with pytest.raises(SlurmError) as caught:
            go(target="fpga")
        assert caught.value.data["kind"] == "partition-down"
    finally:
        cluster.run("scontrol", "update", "PartitionName=fpga", "State=UP")
    assert list(proj.runs.iterdir()) == []


def test_limits_of_the_qos_become_plain(
    go: Callable[..., Submission], proj: Project, cluster: Cluster, slurm: Slurm
) -> None:
    if not cluster.has_accounting:
        pytest.skip("needs accounting (slurmdbd and MariaDB)")

    def qos(*limits: str) -> None:
        done = cluster.run("sacctmgr", "-i", "modify", "qos", "normal", "set", *limits)
        assert done.returncode == 0, done.stderr + done.stdout

    def refused(words: str, **more: object) -> SlurmError:
        """Limits take a moment to reach the controller; a job that it still takes is cancelled."""
        until, said = time.monotonic() + 240, ""
        while True:
            assert time.monotonic() < until, said
            try:
                done = go(fresh=True, **more)
            except SlurmError as error:
                if words in error.message:
                    return error
                said = f"{error.message}\n{error.data['stderr']}"  # an earlier limit
                time.sleep(0.5)
                continue
            cluster.run("scancel", str(done.job_id))
            ended(slurm, str(done.job_id))

    def free() -> bool:
        words = ("sbatch", "--hold", "--ntasks=3", "--time=10", "--output=/dev/null", "--wrap=true")
        return cluster.run(*words).returncode == 0

    try:
        qos("MaxWall=00:05:00", "Flags=DenyOnLimit")
        error = refused("more wall time than the QOS allows")
        assert error.data["kind"] in ("limit", "time"), error.data["stderr"]
        qos("MaxWall=-1", "MaxTRESPerJob=cpu=1")
        error = refused("more CPUs than the QOS allows", sets=["resources.ranks=3"])
        assert error.data["kind"] == "limit", error.data["stderr"]
    finally:
        qos("MaxWall=-1", "MaxTRESPerJob=cpu=-1", "Flags=-1")
        until = time.monotonic() + 240
        while not free():  # The next test is to find no limit.
            assert time.monotonic() < until
            time.sleep(0.5)


def test_what_the_target_cannot_give_never_reaches_slurm(
    go: Callable[..., Submission], proj: Project, slurm: Slurm, cluster: Cluster
) -> None:
    before = slurm.calls
    for sets, where in [
        (["resources.ranks=99"], "resources.ranks"),
        (["resources.memory_gb=99.0"], "resources.memory_gb"),
        (["resources.gpus_per_rank=1"], "resources.gpus_per_rank"),
    ]:
        with pytest.raises(ConfigError) as caught:
            go(sets=sets)
        assert caught.value.where == where
    with pytest.raises(ConfigError, match="a wall time of 2h"):
        go(site_file=site_with(proj, cluster, max_time="1h"), sets=['resources.time="2h"'])
    with pytest.raises(NotFound, match="no dataset"):
        go(sets=['data.train="data/nope"'])
    with pytest.raises(ConfigError, match="no target 'moon'"):
        go(target="moon")
    with pytest.raises(ConfigError, match="is set by hpcmass itself"):
        go(site_file=site_with(proj, cluster, sbatch={"array": "0-9"}))
    with pytest.raises(ConfigError, match="per-shard job runs on one node"):
        go(sets=['train.mode="per-shard"', "per_shard.groups=2", "resources.nodes=2", "resources.ranks=2"])
    assert slurm.calls == before
    assert list(proj.runs.iterdir()) == []


def test_a_dry_run_touches_nothing(go: Callable[..., Submission], proj: Project, slurm: Slurm) -> None:
    before = snapshot(proj.root)
    shown = go(dry_run=True, after=["12"], array="train.lr=0.1,0.2")
    assert shown.job_id is None
    assert "#SBATCH --array=0-1" in shown.script
    assert "#SBATCH --dependency=afterok:12" in shown.script
    assert slurm.calls == 0
    assert snapshot(proj.root) == before
    assert not list(proj.runs.iterdir())


def test_a_run_is_submitted_once(
    go: Callable[..., Submission], proj: Project, slurm: Slurm, words: Callable[..., None], cluster: Cluster
) -> None:
    words("/bin/sh", "-c", "sleep 600")
    done = go()
    before = snapshot(proj.runs / "job")
    before.pop(f"slurm/out-{done.job_id}.log", None)
    for again in (
        lambda: go(),
        lambda: go(fresh=True),
        lambda: rerun(RunFolder(proj.runs / "job"), slurm=slurm),
    ):
        with pytest.raises(LeaseHeld) as caught:
            again()
        assert caught.value.data["job_id"] == done.job_id
        assert f"Slurm job {done.job_id}" in caught.value.message
    after = snapshot(proj.runs / "job")
    after.pop(f"slurm/out-{done.job_id}.log", None)
    assert after == before
    cluster.run("scancel", str(done.job_id))
    ended(slurm, str(done.job_id))
    more = go(sets=['resources.time="5m"'])  # another wall time: the same run
    assert [record.job_id for record in read_submissions(proj.runs / "job")] == [done.job_id, more.job_id]
    assert 'time = "5m"' in (proj.runs / "job" / "job.toml").read_text()


@pytest.mark.parametrize("again", ["submit", "fresh", "rerun"])
def test_of_two_submits_at_once_one_has_the_run(
    go: Callable[..., Submission],
    proj: Project,
    slurm: Slurm,
    monkeypatch: pytest.MonkeyPatch,
    again: str,
) -> None:
    """The whole of one lies between the other's question whether the run has a job and its sbatch."""
    run = RunFolder(proj.runs / "job")
    first = go()
    ended(slurm, str(first.job_id))
    real, quicker = Slurm.alive, []

    def slow(self: Slurm, ids: Sequence[str]) -> dict[str, JobInfo]:
        answer = real(self, ids)
        if not quicker:
            quicker.append(None)
            quicker[0] = go(sets=['resources.time="7m"'])
        return answer

    monkeypatch.setattr(Slurm, "alive", slow)
    with pytest.raises(LeaseHeld, match="another submit"):
        rerun(run, slurm=slurm) if again == "rerun" else go(fresh=again == "fresh")
    assert [record.job_id for record in read_submissions(run.path)] == [first.job_id, quicker[0].job_id]
    assert 'time = "7m"' in run.job_file.read_text()  # its job's, and nobody else's


def test_of_two_submits_of_a_new_run_one_has_it(
    go: Callable[..., Submission], proj: Project, slurm: Slurm, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, quicker = laydown_module.laying_down, []

    def slow(*args: object, **more: object) -> object:
        if not quicker:
            quicker.append(None)
            quicker[0] = go()
        return real(*args, **more)

    monkeypatch.setattr(submit_module, "laying_down", slow)
    with pytest.raises(LeaseHeld, match="another submit"):
        go()
    [record] = read_submissions(proj.runs / "job")
    assert record.job_id == quicker[0].job_id
    assert ended(slurm, record.job_id).state is JobState.COMPLETED


def test_a_refused_submit_leaves_an_earlier_run_as_it_was(
    go: Callable[..., Submission], proj: Project, slurm: Slurm, cluster: Cluster
) -> None:
    done = go()
    ended(slurm, str(done.job_id))
    output(proj.runs / "job", str(done.job_id))
    RunFolder(proj.runs / "job").ask_to_stop("before")
    before = snapshot(proj.runs)
    bad = site_with(proj, cluster, partition="nope")
    for fresh in (False, True):
        with pytest.raises(SlurmError):
            go(site_file=bad, fresh=fresh, sets=['resources.time="5m"'])
        assert snapshot(proj.runs) == before
    with pytest.raises(ConfigError, match="begun with another job"):
        go(sets=["train.lr=0.9"])
    assert snapshot(proj.runs) == before
    good = go(fresh=True)
    ended(slurm, str(good.job_id))
    assert (proj.runs / "job.old-1" / "slurm" / "submission-0001.json").exists()
    assert [record.job_id for record in read_submissions(proj.runs / "job")] == [good.job_id]


def test_a_completed_run_is_not_run_again(go: Callable[..., Submission], proj: Project, slurm: Slurm) -> None:
    done = go()
    ended(slurm, str(done.job_id))
    run = RunFolder(proj.runs / "job")
    run.update(state=State.COMPLETED)
    with pytest.raises(ConfigError, match="has completed already"):
        go()
    with pytest.raises(ConfigError) as caught:
        rerun(run, slurm=slurm)
    assert "--run NAME" in str(caught.value)
    assert len(read_submissions(run.path)) == 1
    more = go(sets=["train.epochs=3"])  # it asks for more
    ended(slurm, str(more.job_id))


# -- rerun ---------------------------------------------------------------------------------------------------


def test_rerun_submits_exactly_what_ran(
    go: Callable[..., Submission], proj: Project, slurm: Slurm, cluster: Cluster
) -> None:
    run = RunFolder(proj.runs / "job")
    with pytest.raises(HpcmassError):
        rerun(run, slurm=slurm)
    words_before = go(run_name="before")
    ended(slurm, str(words_before.job_id))
    first = go(after=[f"afterany:{words_before.job_id}"])
    ended(slurm, str(first.job_id))
    (proj.root / "job.toml").write_text("changed since")
    (run.path / "slurm" / "cancel").write_text("an earlier one was cancelled")
    again = rerun(run, slurm=slurm)
    assert again.job_id != first.job_id
    assert ended(slurm, str(again.job_id)).state is JobState.COMPLETED
    folder = run.path / "slurm"
    assert (folder / "job-0002.sbatch").read_bytes() == (folder / "job-0001.sbatch").read_bytes()
    assert (
        cluster.run("scontrol", "write", "batch_script", str(again.job_id), "-").stdout.strip()
        == first.script.strip()
    )
    one, two = read_submissions(run.path)
    assert (two.by, two.script, two.layout) == ("rerun", "job-0002.sbatch", one.layout)
    assert one.comment != two.comment
    assert got(run.path, str(again.job_id))[0] == got(run.path, str(first.job_id))[0]
    assert not (folder / "cancel").exists()


def test_rerun_does_not_wait_for_what_has_ended(
    go: Callable[..., Submission], proj: Project, slurm: Slurm, words: Callable[..., None], cluster: Cluster
) -> None:
    words("/bin/sh", "-c", "sleep 600")
    first = go(run_name="first")
    second = go(run_name="second", after=["first"])
    cluster.run("scancel", str(first.job_id))
    assert ended(slurm, str(second.job_id)).state is JobState.CANCELLED
    again = rerun(RunFolder(proj.runs / "second"), slurm=slurm)
    until = time.monotonic() + 240
    while slurm.jobs([str(again.job_id)])[str(again.job_id)].state is not JobState.RUNNING:
        assert time.monotonic() < until
        time.sleep(0.2)


# -- when things go wrong meanwhile ----------------------------------------------------------------------------


def test_the_controller_is_away_for_some_seconds(
    go: Callable[..., Submission], proj: Project, slurm: Slurm, cluster: Cluster
) -> None:
    told: list[str] = []
    back = threading.Thread(target=cluster.start_controller)

    def on_wait(words: str) -> None:
        told.append(words)
        if back.ident is None:  # It is away until that was seen.
            back.start()

    slurm._on_wait = on_wait
    cluster.stop_controller()
    try:
        done = go()
    finally:
        if back.ident is not None:
            back.join()
    assert ended(slurm, str(done.job_id)).state is JobState.COMPLETED
    assert told
    assert "does not answer" in told[0] or "cannot be reached" in told[0]
    assert len(read_submissions(proj.runs / "job")) == 1


def test_a_controller_that_stays_away_is_a_plain_error(
    proj: Project, cluster: Cluster, go: Callable[..., Submission], slurm: Slurm
) -> None:
    done = go(run_name="earlier")
    ended(slurm, str(done.job_id))
    output(proj.runs / "earlier", str(done.job_id))
    before = snapshot(proj.runs)
    slurm.patience_s = 1.0
    cluster.stop_controller()
    try:
        with pytest.raises(SlurmError) as caught:
            go(run_name="new")
        assert "cannot be reached" in caught.value.message
        assert caught.value.transient
        assert snapshot(proj.runs) == before
    finally:
        cluster.start_controller()


def test_a_submit_that_dies_after_sbatch_is_found_again(
    proj: Project, slurm: Slurm, cluster: Cluster, go: Callable[..., Submission], words: Callable[..., None]
) -> None:
    """The process is killed between sbatch's answer and the record."""
    code = f"""
import os, signal, sys
from hpcmass.slurm import send
from hpcmass.workflow import submit
submit.hpcmass_command = lambda: ["/bin/sh", "-c", "sleep 600"]
real = send.submit_script
def dies(*a, **k):
    print(real(*a, **k), flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
send.submit_script = dies
from hpcmass.config import Project
from pathlib import Path
submit.submit({str(proj.root / "job.toml")!r}, Project(Path({str(proj.root)!r})))
"""
    killed = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=dict(os.environ), timeout=600
    )
    assert killed.returncode == -9, killed.stderr
    job_id = killed.stdout.strip()
    assert job_id.isdigit()
    run = proj.runs / "job"
    assert read_submissions(run) == []
    with pytest.raises(LeaseHeld) as caught:
        go()
    assert caught.value.data["job_id"] == job_id
    [record] = read_submissions(run)
    assert (record.job_id, record.script, record.target) == (job_id, "job-0001.sbatch", "cpu")
    # `cancel` finds it as well.
    (run / "slurm" / "submission-0001.json").unlink()
    assert cancel_runs([RunFolder(run)], slurm)[0] == Cancelled("job", f"cancelled job {job_id}")
    ended(slurm, job_id)
    again = go()
    assert [record.job_id for record in read_submissions(run)] == [job_id, again.job_id]


def test_a_record_that_cannot_be_written_takes_no_run_from_its_job(
    go: Callable[..., Submission], proj: Project, slurm: Slurm, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk is full after sbatch has taken the job: what the job needs has to stay."""

    def full(*_: object) -> None:
        raise StorageError("no space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(send_module, "publish_submission", full)
        with pytest.raises(StorageError) as caught:
            go()
    run = proj.runs / "job"
    (job_id,) = slurm.find_comment(json.loads((run / "slurm" / "intent-0001.json").read_text())["comment"])
    assert f"has taken job {job_id}" in str(caught.value.hint)
    assert ended(slurm, job_id).state is JobState.COMPLETED
    assert got(run, job_id)


def test_a_submit_that_dies_before_sbatch_stands_in_nobodys_way(
    go: Callable[..., Submission], proj: Project, slurm: Slurm, monkeypatch: pytest.MonkeyPatch
) -> None:
    def dies(*_: object, **__: object) -> str:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(send_module, "submit_script", dies)
        with pytest.raises(KeyboardInterrupt):
            go()
    run = proj.runs / "job"
    assert (run / "slurm" / "intent-0001.json").exists()
    with pytest.raises(LeaseHeld, match="under way"):  # its process, this one, still lives
        go()
    (view,) = observe([RunFolder(run)], slurm)
    assert (view.phase, view.verdict.reason, view.verdict.final) == (
        Phase.CREATED,
        "it is being submitted",
        False,
    )
    intent = json.loads((run / "slurm" / "intent-0001.json").read_text())
    intent["owner"]["start_ticks"] = 1
    (run / "slurm" / "intent-0001.json").write_text(json.dumps(intent))
    (view,) = observe([RunFolder(run)], slurm)
    assert (view.phase, view.verdict.final) == (Phase.UNKNOWN, True)
    done = go()
    assert ended(slurm, str(done.job_id)).state is JobState.COMPLETED
    assert [record.number for record in read_submissions(run)] == [2]


def test_without_accounting(
    cluster_factory: Callable[..., Cluster], project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All of it works without slurmdbd; on this cluster the partitions' limits are enforced at submission."""
    private = cluster_factory(accounting=False)
    conf = Path(private.env["SLURM_CONF"])
    conf.write_text(conf.read_text() + "EnforcePartLimits=ALL\n")
    assert private.run("scontrol", "reconfigure").returncode == 0
    slurm = Slurm(private.env, patience_s=240)
    assert not slurm.has_accounting()
    assert slurm.qos() == []
    proj = Project(project)
    monkeypatch.setattr(submit_module, "hpcmass_command", lambda: [sys.executable, "-c", DUMP])

    def go(**more: object) -> Submission:
        sets = [*more.pop("sets", ()), "resources.threads_per_rank=1"]  # type: ignore[misc]
        return submit(proj.root / "job.toml", proj, site_file=private.site_file, sets=sets, slurm=slurm, **more)  # type: ignore[arg-type]

    done = go()
    info = ended(slurm, str(done.job_id))
    assert (info.state, info.source, info.exit_code, info.used) == (JobState.COMPLETED, "squeue", None, ())
    calls = slurm.calls
    assert slurm.jobs(["999999", str(done.job_id)])["999999"].state is JobState.UNKNOWN
    assert slurm.calls == calls + 1  # it has learnt that there is no accounting to ask
    assert private.run("scontrol", "update", "PartitionName=cpu", "MaxTime=5", "MaxNodes=1").returncode == 0
    with pytest.raises(SlurmError) as caught:
        go(run_name="long")
    assert caught.value.data["kind"] == "time", caught.value.data["stderr"]
    with pytest.raises(SlurmError) as caught:
        go(run_name="wide", sets=['resources.time="4m"', "resources.ranks=2", "resources.nodes=2"])
    assert caught.value.data["kind"] == "size", caught.value.data["stderr"]
    assert [path.name for path in proj.runs.iterdir()] == ["job"]


def test_the_command_line(proj: Project, slurm_env: dict[str, str]) -> None:
    def call(*argv: str) -> subprocess.CompletedProcess[str]:
        words = [sys.executable, "-m", "hpcmass", *argv, "--project", str(proj.root)]
        return subprocess.run(words, capture_output=True, text=True, env=dict(os.environ), timeout=600)

    job = str(proj.root / "job.toml")
    shown = call("submit", job, "--dry-run", "--time", "90m", "--ranks", "2", "--nodes", "2")
    assert shown.returncode == 0, shown.stderr
    assert shown.stdout.startswith("#!/bin/bash\n")
    assert "#SBATCH --time=01:30:00\n" in shown.stdout
    assert "#SBATCH --nodes=2\n" in shown.stdout
    wrong = call("submit", job, "--time", "90")
    assert wrong.returncode == 2
    assert "Traceback" not in wrong.stderr
    assert "resources.time" in wrong.stderr
    done = call("submit", job, "--json", "--set", "resources.threads_per_rank=1")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["job_id"].isdigit()
    lost = call("rerun", "nope")
    assert lost.returncode == 2
    assert "there is no run 'nope'" in lost.stderr


def test_from_submit_to_a_model(proj: Project, slurm: Slurm) -> None:
    """With the command that really stands in the script: it trains, and says so in the run folder."""
    done = submit(proj.root / "job.toml", proj, sets=["resources.ranks=2"], slurm=slurm)
    info = ended(slurm, str(done.job_id))
    run = RunFolder(done.runs[0])
    text = output(run.path, str(done.job_id))
    assert info.state is JobState.COMPLETED, text
    status = run.status()
    assert (status.state, status.ranks) == (State.COMPLETED, 2), text
    assert run.model.is_dir()
    with pytest.raises(ConfigError, match="has completed already"):
        submit(proj.root / "job.toml", proj, sets=["resources.ranks=2"], slurm=slurm)


def test_a_parameter_reaches_the_users_own_program(proj: Project, slurm: Slurm) -> None:
    nasty = NASTY + "\n\t\r\nlast"
    (proj.root / "own.py").write_text(
        "import json, sys\nfrom pathlib import Path\nPath('argv.json').write_text(json.dumps(sys.argv[1:]))\n"
    )
    (proj.root / "own.toml").write_text(
        f'name = "own"\ncommand = ["python", "own.py", "--text={{text}}"]\n[params]\ntext = {json.dumps(nasty)}\n'
    )
    done = submit(proj.root / "own.toml", proj, slurm=slurm)
    info = ended(slurm, str(done.job_id))
    assert info.state is JobState.COMPLETED, output(done.runs[0], str(done.job_id))
    assert RunFolder(done.runs[0]).status().state is State.COMPLETED
    assert json.loads((proj.root / "argv.json").read_text()) == [f"--text={nasty}"]
    assert not list(proj.root.rglob("hacked"))
