"""Which ranks train a job, and under which site; which folder a study's name means."""

import pytest

from hpcmass.config import Project, Site, as_job, job_from_values, load_site, site_to_toml
from hpcmass.errors import ConfigError, NotFound
from hpcmass.runs import State
from hpcmass.workflow import training
from hpcmass.workflow.projects import find_study


@pytest.mark.parametrize(
    ("size", "asked", "launched"), [("2", None, 2), ("2", 2, 2), ("1", None, 1), ("1", 4, None)]
)
def test_ranks_of_a_launcher(monkeypatch, size, asked, launched):
    monkeypatch.setenv("OMPI_COMM_WORLD_RANK", "0")
    monkeypatch.setenv("OMPI_COMM_WORLD_SIZE", size)
    assert training._launched(asked) == launched


def test_other_ranks_than_were_started_are_refused(monkeypatch):
    monkeypatch.setenv("OMPI_COMM_WORLD_RANK", "1")
    monkeypatch.setenv("OMPI_COMM_WORLD_SIZE", "2")
    with pytest.raises(ConfigError, match="4 ranks are asked for, but 2 were started"):
        training._launched(4)


def test_overrides_count_for_a_job_that_is_loaded_already():
    job = job_from_values({"name": "j", "command": ["true"]})
    assert as_job(job, ["train.backend=torch", "name=k"]).train.backend == "torch"
    assert as_job(job, ["name=k"]).name == "k"


def test_the_site_of_the_project(tmp_path, monkeypatch):
    monkeypatch.delenv("HPCMASS_SITE", raising=False)
    project = Project.create(tmp_path, "p")
    (tmp_path / "hpcmass.toml").write_text('name = "p"\nsite = "here.toml"\n')
    (tmp_path / "here.toml").write_text(site_to_toml(Site.local().model_copy(update={"name": "here"})))
    assert load_site(None, Project(project.root).site_file).name == "here"
    assert load_site(None, project.site_file).name == "local"


def test_another_command_is_not_the_run_of_that_name(tmp_path):
    project = Project.create(tmp_path, "p")
    (tmp_path / "a.py").write_text("")
    (tmp_path / "b.py").write_text("raise SystemExit(1)")
    run, status = training.run_command(["python", str(tmp_path / "a.py")], project, run_name="r", quiet=True)
    assert status.state is State.COMPLETED
    with pytest.raises(ConfigError, match=r"another command \(python .*a\.py\)"):
        training.run_command(["python", str(tmp_path / "b.py")], project, run_name="r", quiet=True)
    _, status = training.run_command(["python", str(tmp_path / "a.py")], project, run_name="r", quiet=True)
    assert (status.state, status.attempt) == (State.COMPLETED, 1)
    assert (run.path / "site.toml").exists()


def test_a_folder_with_a_job_file_is_no_study(tmp_path, monkeypatch):
    project = Project.create(tmp_path, "p")
    (tmp_path / "mnist").mkdir()
    (tmp_path / "mnist" / "job.toml").touch()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(NotFound):
        find_study("mnist", project)
    (project.studies / "mnist").mkdir()
    (project.studies / "mnist" / "job.toml").touch()
    assert find_study("mnist", project) == project.studies / "mnist"
    with pytest.raises(NotFound):
        find_study("./mnist", project)
