"""What is asked of a deployment, and how it changes: by a user, by an alias, by the end of a trial."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from time import monotonic

import pytest

from hpcmass.cli.root import run as hpcmass
from hpcmass.config import Project
from hpcmass.errors import ConfigError
from hpcmass.files import Lease, append_record, read_json, replace_json
from hpcmass.serve.controller import Controller
from hpcmass.serve.deployment import Asked, Canary, Deployment, ended, followed, launched, promoted
from hpcmass.serve.gateway import Gateway
from hpcmass.serve.member import Member
from hpcmass.serve.metrics import Metrics
from hpcmass.slurm.client import Slurm
from hpcmass.workflow.deploy_slurm import SlurmLauncher
from hpcmass.workflow.deploying import DeployOptions, _changed, _gateway_of, with_words
from hpcmass.workflow.drifting import monitor_of

OLD = Asked(name="toy", model="toy", asked="toy@1", stable="toy@1", follow="toy@production")
TRIAL = Canary(model="toy@2", share=0.1, since=1.0)


def test_a_trial_that_took_over_is_not_undone_by_the_alias_it_was_not_of() -> None:
    new = promoted(replace(OLD, canary=TRIAL), TRIAL)
    assert (new.stable, new.previous, new.canary, new.follow) == ("toy@2", "toy@1", None, None)


def test_what_a_user_has_said_meanwhile_counts_more_than_an_alias() -> None:
    assert followed(OLD, "toy@production", "toy@3").stable == "toy@3"
    for said in (
        replace(OLD, follow=None),  # rolled back
        replace(OLD, follow="toy@staging"),
        replace(OLD, canary=TRIAL),
        replace(OLD, state="ended"),
    ):
        assert followed(said, "toy@production", "toy@3") == said


@pytest.fixture
def made(tmp_path: Path) -> Deployment:
    found = Deployment(tmp_path / "toy")
    found.create(replace(OLD, gateway={"tokens": "t", "port": 80}))
    return found


def test_a_gateway_s_options_stay_unless_others_are_given(made: Deployment) -> None:
    assert _gateway_of(made, {"port": 81}) == {"tokens": "t", "port": 81}
    assert _gateway_of(made, {"anybody": True}) == {"anybody": True, "port": 80}
    assert _gateway_of(made, {"host": "0.0.0.0"})["tokens"] == "t"
    with pytest.raises(ConfigError, match="no tokens are asked for"):
        _gateway_of(Deployment(made.path.parent / "none"), {"target": "cpu"})


def test_a_gateway_that_runs_is_not_silently_left_as_it_was(made: Deployment) -> None:
    with Lease(made.path / "controller", ttl_s=20.0):
        assert _gateway_of(made, {"port": 80}) == {"tokens": "t", "port": 80}
        with pytest.raises(ConfigError, match="rate") as told:
            _gateway_of(made, {"rate": 5.0})
        assert "undeploy toy" in str(told.value.hint)
    assert _gateway_of(made, {"rate": 5.0})["rate"] == 5.0


def test_options_of_replicas_stay_unless_others_are_given() -> None:
    old = ("--threads", "2", "--keep-samples", "50")
    assert with_words(old, ("--threads", "4")) == ("--threads", "4", "--keep-samples", "50")
    given = {"serve": ("--threads", "4")}
    assert _changed(replace(OLD, serve=old), "toy@1", "toy", "toy@1", given, DeployOptions()).serve == (
        "--threads", "4", "--keep-samples", "50",
    )  # fmt: skip


def test_replicas_that_have_ended_are_not_looked_at_for_ever(made: Deployment) -> None:
    first, second = (made.new_replica("toy@1", lambda rid, folder: ["true"], None) for _ in range(2))
    ended(first, "was stopped")
    assert [one.rid for one in made.replicas()] == [second.rid]
    (first.path / "ended.json").unlink()  # what is not there any more is not asked for
    assert [one.rid for one in made.replicas()] == [second.rid]
    third = made.new_replica("toy@1", lambda rid, folder: ["true"], None)
    assert third.rid == "r-0003"


def test_the_monitor_is_where_the_project_has_its_deployments(tmp_path: Path) -> None:
    assert hpcmass(["init", str(tmp_path / "p")]) == 0
    file = tmp_path / "p" / "hpcmass.toml"
    file.write_text(file.read_text().replace("[paths]", "") + '\n[paths]\ndeployments = "elsewhere"\n')
    project = Project(tmp_path / "p")
    made = Deployment(project.deployments / "toy")
    made.create(OLD)
    append_record(made.path / "monitor" / "windows-r-0001.jsonl", {})
    assert monitor_of("toy", project).folder == project.root / "elsewhere" / "toy" / "monitor"


def test_how_busy_a_replica_is_is_of_all_its_cores(made: Deployment) -> None:
    words = ["hpcmass", "serve", "toy@1", "--threads", "4"]
    known = made.new_replica("toy@1", lambda rid, folder: words, None)
    member = Member(known)
    member.measured({"process_cpu_seconds_total": 1.0})
    member._last = (monotonic() - 1.0, 1.0, 0.0)
    member.measured({"process_cpu_seconds_total": 3.0})
    assert member.busy == pytest.approx(0.5, abs=0.02)  # two of four


def test_where_a_replica_says_that_it_is_ready(made: Deployment) -> None:
    member = Member(made.new_replica("toy@1", lambda rid, folder: [], None))
    assert member.health == "/v2/health/ready"
    member.known.endpoint = {"health": "/health"}
    assert member.health == "/health"
    member.known.endpoint = {"health": "/x HTTP/1.1\r\nHost: y"}
    assert member.health == "/v2/health/ready"


def test_a_slurm_that_does_not_answer_keeps_nobody_from_the_others(
    made: Deployment, monkeypatch: pytest.MonkeyPatch
) -> None:
    lost, other = (made.new_replica("toy@1", lambda rid, folder: ["true"], "cpu") for _ in range(2))
    record = read_json(lost.path / "replica.json")
    replace_json(lost.path / "replica.json", {**record, "created": record["created"] - 10})  # and it has no job
    launched(other, {"kind": "slurm", "id": "1"})
    monkeypatch.setenv("PATH", "")
    launcher = SlurmLauncher(made.path, made.path, {}, Slurm(patience_s=0.0))
    gateway = Gateway("toy", Metrics(), None, None)
    one = Controller(made, gateway, launcher, resolve=str, token=None, say=print)
    one.standby = False
    known, _ = one._read()
    assert [each.rid for each in known] == [lost.rid, other.rid]
    assert one.note


def test_one_that_is_damaged_hides_no_other(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    project = Project.create(tmp_path / "p")
    for name in ("a", "b"):
        Deployment(project.deployments / name).create(replace(OLD, name=name))
    Deployment(project.deployments / "a").file.write_text("{")
    capsys.readouterr()
    assert hpcmass(["deployments", "--project", str(project.root)]) == 0
    first, second = capsys.readouterr().out.splitlines()
    assert "cannot be read" in first
    assert second.startswith("b  without a gateway")
