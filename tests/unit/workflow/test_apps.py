"""A user's own Parsl script on a site without Slurm: the apps, and drivers that are written down."""

import os
import subprocess
import sys
from pathlib import Path

import parsl
import pytest
from study_jobs import RECIPE_JOB

from hpcmass import Site
from hpcmass.config import load_site
from hpcmass.errors import ConfigError, NotFound
from hpcmass.runs import RunFolder
from hpcmass.workflow import apps
from hpcmass.workflow.drive import DriverFile, note_driver
from hpcmass.workflow.registry import open_catalogue

SITE = """
name = "mine"
default_target = "small"

[targets.small]
kind = "local"
cores = 2

[targets.large]
kind = "local"
cores = 2
"""


@pytest.fixture
def site(tmp_path):
    (tmp_path / "mine.toml").write_text(SITE)
    return Site.load(tmp_path / "mine.toml")


@pytest.fixture
def job(project, tmp_path):
    (tmp_path / "job.toml").write_text(RECIPE_JOB)
    return tmp_path / "job.toml"


def chain(project, job):
    trained = apps.train(job, project=project.root, run="first", executor="large", ranks=1)
    score = apps.evaluate(trained, "data/toy/test", project=project.root, executor="small")
    version = apps.register(trained, project=project.root, name="toy", executor="small", evaluation=score)
    return trained.result(), score.result(), version.result()


def test_apps_give_paths_and_what_is_done_is_not_done_again(site, project, job, tmp_path):
    variable = parsl.python_app(os.getenv, executors=["large"], cache=False)
    with parsl.load(site.parsl_config(run_dir=tmp_path / "parsl")):
        data = apps.shard(
            [tmp_path / "raw.npz"], "data/again", project=project.root, executor="small",
            strategy="stratified", by="y", splits={"train": 0.8, "valid": 0.2}, shards=2,
        )  # fmt: skip
        assert Path(data.result()) == project.root / "data" / "again"
        assert {folder.name for folder in Path(data.result()).iterdir()} >= {"train", "valid"}
        assert variable("HPCMASS_TARGET").result() == "large"
        assert variable("HPCMASS_SITE").result() == str(tmp_path / "parsl" / "site.toml")
        run, score, version = chain(project, job)
        assert Path(run) == project.root / "runs" / "first"
        assert Path(score).parent == Path(run) / "evaluations"
        assert version == "toy@1"
        done = RunFolder(run).status()
        assert chain(project, job) == (run, score, version)
        assert RunFolder(run).status() == done
    # It ran on the target of its executor, whatever the site's default is.
    assert load_site(Path(run) / "site.toml").name == "mine"
    assert 'target = "large"' in (Path(run) / "job.toml").read_text()
    assert len(open_catalogue(project).list("toy")) == 1


def test_a_failed_training_says_why(site, project, job, tmp_path):
    with parsl.load(site.parsl_config(run_dir=tmp_path / "parsl", targets=["small"], retries=0)):
        run = apps.train(job, project=project.root, run="bad", executor="small", sets=["train.lr=-1.0"])
        with pytest.raises(Exception, match="lr"):
            run.result()


def test_what_parsl_cannot_be_given_is_refused(site, tmp_path):
    with pytest.raises(ConfigError, match="has no target 'huge'"):
        site.parsl_config(run_dir=tmp_path, targets=["huge"])
    with pytest.raises(ConfigError, match="hands this path to a shell"):
        site.parsl_config(run_dir=tmp_path / "a b", targets=["small"])


def test_a_driver_that_is_written_down_is_gone_on_with_by_its_folder(site, tmp_path):
    code = "import os, sys; open('done', 'a').write(' '.join(sys.argv[1:]) + '\\n')"
    words = [sys.executable, "-c", code, "a b", "$(c)"]
    folder, cwd = tmp_path / "work", tmp_path / "here"
    cwd.mkdir()
    note_driver(folder, words, site=site, target="large", leases=[folder / "lease"], cwd=cwd)
    file = DriverFile.read(folder)
    assert (file.command, file.target, file.leases) == (tuple(words), "large", (str(folder / "lease"),))
    assert load_site(folder / "driver" / "site.toml").name == "mine"
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])}
    resume = [sys.executable, "-m", "hpcmass", "workflow", "resume", str(folder)]
    subprocess.run(resume, env=env, cwd=tmp_path, check=True, timeout=400)
    assert (cwd / "done").read_text() == "a b $(c)\n"
    refused = subprocess.run([*resume, "--driver", "job"], env=env, capture_output=True, text=True, timeout=400)
    assert refused.returncode != 0
    assert "not one of Slurm's" in refused.stderr
    with pytest.raises(ConfigError, match="has no target 'none'"):
        note_driver(folder, words, site=site, target="none")
    with pytest.raises(NotFound):
        DriverFile.read(tmp_path)
