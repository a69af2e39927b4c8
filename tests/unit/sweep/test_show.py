import subprocess
import sys

import pytest
from test_driver import drive
from toy_trials import toy_job

from hpcmass.config import job_to_toml
from hpcmass.errors import NotFound
from hpcmass.sweep.show import study_summary, study_table


def test_the_table_is_read_from_the_folder_alone(tmp_path):
    job = toy_job(trials=3)
    (tmp_path / "job.toml").write_text(job_to_toml(job))
    result, _ = drive(job, tmp_path)
    rows = study_table(tmp_path)
    assert [(r.number, r.state, r.steps, r.attempts) for r in rows] == [(n, "complete", 3, 1) for n in range(3)]
    assert all(r.seconds >= 0 and r.value == pytest.approx(r.params["x"] + 1 / 3) for r in rows)
    (tmp_path / "trials/000001/outcome.json").unlink()
    summary = study_summary(tmp_path)
    assert summary.counts == {"complete": 2, "completed": 1}
    assert (summary.best is None, summary.driver, summary.planned) == (False, None, 3)
    assert summary.best.path == tmp_path / "trials" / f"{summary.best.number:06d}"
    assert result.counts["complete"] == 3


def test_no_study_is_said_plainly(tmp_path):
    with pytest.raises(NotFound, match="no study here"):
        study_table(tmp_path / "nothing")


def test_showing_a_study_needs_neither_optuna_nor_parsl():
    code = (
        "import sys, hpcmass.sweep.show; print([m for m in ('optuna', 'parsl', 'torch') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
