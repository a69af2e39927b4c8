"""What the page is told: as the product's own readers say it, whatever the files hold, and never by writing."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
from made_project import HOSTILE, Client, made_run, made_version, served
from made_study import make_study

from hpcmass.catalogue import Catalogue
from hpcmass.config import Project
from hpcmass.dashboard import runs as runs_module
from hpcmass.dashboard.run import thinned
from hpcmass.files import append_record, replace_json
from hpcmass.runs import State, explain
from hpcmass.runs.folder import RunFolder
from hpcmass.serve.deployment import Deployment, launched
from hpcmass.sweep.show import study_summary

DAMAGE = {
    "no JSON": b"{",
    "empty": b"",
    "a list": b"[1]",
    "nested": b"[" * 100_000,
    "newer": b'{"format": 99, "state": "RUNNING"}',
    "infinite format": b'{"format": 1e999, "state": "RUNNING"}',
    "odd values": b'{"format": 1, "state": "COMPLETED", "step": {"a": 1}, "started": "then", "metrics": {"a": "x"}}',
    "no state": b'{"format": 1, "state": "<b>"}',
    "bytes": bytes(range(256)),
}


def test_runs_are_told_as_their_folders_say(client: Client, project: Project) -> None:
    found = client.get("runs")
    assert {row["name"]: row["state"] for row in found["runs"]} == {
        "done": "COMPLETED", "lost": "UNKNOWN", "fresh": "CREATED", "broken": "FAILED",
    }  # fmt: skip
    assert found["counts"] == {
        "CREATED": 1,
        "RUNNING": 0,
        "COMPLETED": 1,
        "FAILED": 1,
        "STOPPED": 0,
        "UNKNOWN": 1,
    }
    assert [row["name"] for row in client.get("runs?state=FAILED")["runs"]] == ["broken"]
    assert {row["name"] for row in client.get("runs?q=O")["runs"]} == {"done", "lost", "broken"}
    page = client.get("runs?limit=2&offset=1")
    assert [row["name"] for row in page["runs"]] == [row["name"] for row in found["runs"][1:3]]
    why = explain(RunFolder(project.runs / "broken"))
    told = client.get("runs/broken")["why"]
    assert (told["headline"], told["advice"], told["error"]["host"]) == (why.headline, why.advice, "cn7")


def test_a_run_that_goes_on_is_seen_and_read_only_from_there_on(client: Client, project: Project) -> None:
    run = made_run(project, "going", State.RUNNING)
    with run.lease():
        first = client.get("runs/going")
        assert (first["state"], first["step"]) == ("RUNNING", 40)
        assert "it is running (process" in first["why"]["headline"]
        [loss] = [curve for curve in first["curves"] if curve["name"] == "valid loss"]
        assert loss["steps"] == [10, 20, 30, 40]
        run.append({"kind": "valid", "step": 50, "loss": 0.25})
        run.append({"kind": "resume", "from_step": 30})
        run.append({"kind": "valid", "step": 40, "loss": float("nan")})
        run.append({"kind": "valid", "step": 50, "loss": 0.125})
        run.update(step=50)
        time.sleep(1.6)  # the least time between two looks
        second = client.get("runs/going")
        [loss] = [curve for curve in second["curves"] if curve["name"] == "valid loss"]
        assert (second["step"], loss["steps"], loss["values"][-1]) == (50, [10, 20, 30, 50], 0.125)


@pytest.mark.parametrize("what", DAMAGE)
def test_what_cannot_be_read_is_unknown_with_its_reason(client: Client, project: Project, what: str) -> None:
    bad = made_run(project, "bad", State.COMPLETED)
    (bad.path / "status.json").write_bytes(DAMAGE[what])
    (bad.path / "metrics.jsonl").write_bytes(DAMAGE[what])
    study = make_study(project.studies / "digits", 12)
    (study / "trials/000002/outcome.json").write_bytes(DAMAGE[what])
    for file in ("deployment.json", "endpoint.json", "gateway/status.json", "events.jsonl"):
        (project.root / "deployments/front" / file).write_bytes(DAMAGE[what])
    (project.catalogue / "models/net/versions/000001.json").write_bytes(DAMAGE[what])
    overview = client.get("overview")
    [row] = [one for one in client.get("runs")["runs"] if one["name"] == "bad"]
    if what != "odd values":  # of which what is right is told
        # An empty status is one that was laid down and never filled.
        assert row["state"] == ("CREATED" if what == "empty" else "UNKNOWN")
        assert what == "empty" or (row["damaged"] and row["reason"])
        [told] = overview["studies"]["studies"]
        assert (told["state"], bool(told["reason"])) == ("UNKNOWN", True)
        [told] = overview["deployments"]["deployments"]
        assert told["state"] == "UNKNOWN"
        assert ("deployment.json" in told["reason"]) == (what != "no state")
    assert client.get("runs/bad")["state"] == row["state"]
    assert client.get("studies/digits")["name"] == "digits"
    assert client.get("deployments/front")["name"] == "front"
    assert client.get("models")["total"] >= 1
    code, _, body = client.ask("/api/models/net@1", authorization=f"Bearer {client.access.token}")
    # An empty claim is one that its writer has not filled yet.
    assert (code, bool(json.loads(body)["error"])) == (404 if what == "empty" else 422, True)
    assert client.get("models/net@2")["ref"] == "net@2"


def test_a_folder_that_may_not_be_read_is_told(client: Client, project: Project) -> None:
    (project.studies).rmdir()
    project.studies.symlink_to(project.studies)
    assert client.get("overview")["studies"] == {"error": "Too many levels of symbolic links"}
    assert client.get("overview")["runs"]["total"] == 4
    assert client.get("studies", 422)["error"].startswith("cannot be read")


def test_a_study_is_told_as_sweep_show_has_it(client: Client, project: Project) -> None:
    study = make_study(project.studies / "digits", 41, hostile=True)
    summary, found = study_summary(study), client.get("studies/digits?limit=10")
    assert summary.best is not None
    assert (found["best"]["number"], found["best"]["value"]) == (summary.best.number, summary.best.value)
    assert {state: found["counts"].get(state, 0) for state in ("complete", "pruned", "failed")} == {
        state: summary.counts[state] for state in ("complete", "pruned", "failed")
    }
    assert (found["planned"], found["waiting"], len(found["points"]["trials"])) == (51, 1, 40)
    assert [row["number"] for row in found["trials"]["rows"]] == list(range(40, 30, -1))
    assert {row["state"] for row in client.get("studies/digits?state=failed")["trials"]["rows"]} == {"failed"}
    assert client.get("studies/digits/3")["name"] == "digits/3"
    assert client.get("studies/digits/99", 404)["error"]
    code, head, body = client.ask("/api/studies/digits/report", authorization=f"Bearer {client.access.token}")
    assert (code, head["Content-Type"]) == (200, "text/html; charset=utf-8")
    assert "script-src 'sha256-" in head["Content-Security-Policy"]
    assert b"<script>document.title" not in body


def test_many_trials_are_drawn_by_their_best_newest_and_a_sample(project: Project) -> None:
    make_study(project.studies / "many", 701)
    with served(project) as client:
        found = client.get("studies/many")
    drawn = [one[0] for one in found["points"]["trials"]]
    assert (found["points"]["of"], len(drawn), len(set(drawn))) == (700, 600, 600)
    assert found["best"]["number"] in drawn
    assert drawn[-1] == 699


def test_models_are_found_by_the_catalogues_expressions(
    client: Client, project: Project, tmp_path: Path
) -> None:
    assert [one["ref"] for one in client.get("models")["versions"]] == ["net@2", "net@1"]
    found = client.get("models?q=accuracy%20%3E%200.9%20and%20%27production%27%20in%20aliases")
    assert ([one["ref"] for one in found["versions"]], found["total"]) == (["net@2"], 1)
    assert client.get("models?q=accuracy%20%3E%3E%201", 422)["error"]
    assert client.get("models?q=colour%20%3D%3D%201", 422)["error"]
    one = client.get("models/net@production")
    assert (one["ref"], one["aliases"]["production"]["why"], one["run_at"]) == (
        "net@2",
        HOSTILE,
        ["runs", "done"],
    )
    kinds = {node["key"]: node["kind"] for node in one["lineage"]["nodes"]}
    assert kinds["version:net@1"] == "version"
    assert kinds["alias:net@production"] == "alias"
    assert kinds["deployment:front"] == "deployment"
    assert client.get("models/net@9", 404)["hint"] == "the newest is 2"
    assert "# " in client.get("card/net@2")["markdown"]
    made_version(project, "later", 0.5, tmp_path)
    time.sleep(3.1)
    assert client.get("models")["versions"][0]["ref"] == "later@1"


def test_pages_of_models_hold_each_version_once(client: Client, project: Project, tmp_path: Path) -> None:
    for place in range(23):
        made_version(project, "more", place / 100, tmp_path)
    refs = [
        one["ref"]
        for first in range(0, 30, 10)
        for one in client.get(f"models?sort=accuracy&limit=10&offset={first}")["versions"]
    ]
    assert refs == [one.ref for one in Catalogue(project.catalogue).search(sort=["accuracy"])]
    assert client.get("models?limit=99999999999&offset=-1")["offset"] == 0


def test_a_deployment_is_told_as_its_gateway_says(client: Client, project: Project) -> None:
    found = client.get("deployments/front")
    assert (found["state"], found["ready"], found["wanted"], found["bounds"]) == ("READY", 2, 3, [1, 4])
    assert [(one["id"], one["p99_ms"], one["node"]) for one in found["replicas"]] == [
        ("r-0001", 4.25, "cn1"),
        ("r-0002", 12.5, "gn1"),
    ]
    assert (found["split"], found["canary"]) == (
        [["net@1", 0.9, 1], ["net@2", 0.1, 1]],
        {"model": "net@2", "share": 0.1},
    )
    assert client.get("deployments/none", 404)
    status = project.root / "deployments/front/gateway/status.json"
    old = json.loads(status.read_text())
    status.write_text(json.dumps({**old, "time": time.time() - 60}))
    time.sleep(1.6)
    silent = client.get("deployments")["deployments"][0]
    assert (silent["state"], silent["reason"]) == ("UNKNOWN", "its gateway is silent")
    # Ended, and asked for again: no gateway has come yet. What it does not speak of is told by its own folder.
    deployment = Deployment(project.root / "deployments/front")
    replace_json(deployment.endpoint_file, {"format": 1, "state": "ended"})
    status.write_text(json.dumps({**old, "time": time.time() - 60, "state": "ended", "replicas": []}))
    laid = deployment.new_replica("net@1", lambda rid, folder: ["true"], "cpu")
    launched(laid, {"kind": "slurm", "id": "77"})
    replace_json(laid.path / "endpoint.json", {"format": 1, "state": "loading", "model": "net", "version": "1"})
    time.sleep(1.6)
    again = client.get("deployments/front")
    assert again["state"] == "STARTING"
    (one,) = [one for one in again["replicas"] if one["id"] == laid.rid]
    assert (one["model"], one["job"], one["target"], one["state"]) == ("net@1", "77", "cpu", "loading")


def test_the_monitors_last_verdict_is_told(client: Client, project: Project) -> None:
    folder = project.root / "deployments/front/monitor"
    assert "drift" not in client.get("deployments/front")
    found = {
        "feature": "in:x",
        "test": "psi",
        "p": 1e-9,
        "effect": 0.4,
        "floor": 0.1,
        "n": 900.0,
        "drift": True,
    }
    append_record(folder / "drift.jsonl", {"state": "clean", "time": 1.0, "version": "1", "findings": []})
    append_record(
        folder / "drift.jsonl",
        {"state": "drift", "time": 2.0, "version": "1", "requests": 900, "findings": [found, 3]},
    )
    append_record(folder / "drift.jsonl", {"state": 5})
    append_record(folder / "alerts.jsonl", {"kind": "drift", "on": True, "text": HOSTILE, "told": 2.0})
    append_record(folder / "alerts.jsonl", {"kind": "errors", "on": True, "text": "many", "told": 2.0})
    append_record(folder / "alerts.jsonl", {"kind": "errors", "on": False, "text": "over", "told": 3.0})
    time.sleep(1.6)
    told = client.get("deployments/front")
    assert (told["drift"]["drifted"], told["drift"]["when"]) == (True, 2.0)
    assert told["drift"]["features"] == [
        {"name": "in:x", "test": "psi", "drifted": True, "p": 1e-9, "effect": 0.4, "floor": 0.1}
    ]
    assert told["alerts"] == [{"kind": "drift", "text": HOSTILE, "when": 2.0}]
    assert client.get("deployments")["deployments"][0]["drift"]["drifted"]


def test_looking_writes_nothing(client: Client, project: Project) -> None:
    make_study(project.studies / "digits", 12)

    def tree() -> dict[str, tuple[int, int]]:
        return {str(p): (p.lstat().st_mtime_ns, p.lstat().st_size) for p in project.root.rglob("*")}

    before = tree()
    for path in ("overview", "runs", "runs/done", "runs/lost", "runs/broken", "studies", "studies/digits", "studies/digits/1",
                 "models", "models/net@2", "card/net@2", "deployments", "deployments/front"):  # fmt: skip
        client.get(path)
    assert tree() == before


def test_ended_runs_are_not_read_at_every_look(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    for place in range(30):
        made_run(project, f"r{place}", State.COMPLETED, steps=0)
    reader = runs_module.RunsReader(project.runs)
    reader.page({})
    asked: list[str] = []
    monkeypatch.setattr(runs_module, "row_of", lambda path, name: asked.append(name))
    monkeypatch.setattr(runs_module, "_facts", lambda path: asked.append(path.name))
    reader._look()
    assert set(asked) <= {"fresh", "lost"}


def test_thinning_keeps_ends_and_spikes() -> None:
    points = [(float(step), 1.0) for step in range(10_000)]
    points[5003] = (5003.0, 99.0)
    kept = thinned(points)
    assert len(kept) <= 400
    assert (5003.0, 99.0) in kept
    assert (kept[0], kept[-1]) == (points[0], points[-1])
    assert kept == sorted(kept)
