"""What hpcmass uses of submitit that is private to it: a new version has to pass this before it is taken."""

from __future__ import annotations

import inspect
import os
from pathlib import Path

import pytest

from hpcmass.errors import AlreadyExists, SlurmError
from hpcmass.slurm.client import Slurm
from hpcmass.slurm.submission import submit_script

slurm_module = pytest.importorskip("submitit.slurm.slurm")


def test_the_private_methods_are_there() -> None:
    executor = slurm_module.SlurmExecutor

    def parameters(name: str) -> list[str]:
        return list(inspect.signature(getattr(executor, name)).parameters)

    assert parameters("_make_submission_command") == ["self", "submission_file_path"]
    assert parameters("_get_job_id_from_submission_command") == ["string"]
    assert parameters("_submit_command") == ["self", "command"]
    assert executor.job_class is slurm_module.SlurmJob
    assert "folder" in inspect.signature(slurm_module.SlurmJob).parameters


def sbatch(tmp_path: Path, body: str) -> Slurm:
    file = tmp_path / "bin" / "sbatch"
    file.parent.mkdir(exist_ok=True)
    file.write_text(f"#!/bin/sh\n{body}\n")
    file.chmod(0o755)
    return Slurm({"PATH": f"{file.parent}:{os.environ['PATH']}"}, patience_s=0)


def test_the_script_is_submitted_as_it_stands_and_nothing_is_pickled(tmp_path: Path) -> None:
    slurm = sbatch(tmp_path, f'printf "%s\\n" "$@" >"{tmp_path}/argv"; cat "$4" >"{tmp_path}/seen"; echo 77')
    text = "#!/bin/bash\n#SBATCH -J 'é'\necho $'a\\nb'\n"
    folder = tmp_path / "my runs" / "slurm"
    assert (
        submit_script(text, folder, slurm=slurm, name="job-0001.sbatch", options=["--array=3"], comment="c")
        == "77"
    )
    assert (tmp_path / "seen").read_text() == text
    argv = (tmp_path / "argv").read_text().splitlines()
    assert argv == ["--parsable", "--comment=c", "--array=3", str(folder / "job-0001.sbatch")]
    assert [path.name for path in folder.iterdir()] == ["job-0001.sbatch"]
    assert (
        submit_script(text, folder, slurm=slurm, name="job-0001.sbatch", options=["--array=3"], comment="c")
        == "77"
    )
    with pytest.raises(AlreadyExists):
        submit_script(text + "#", folder, slurm=slurm, name="job-0001.sbatch")


def test_a_job_that_was_taken_unheard_is_found_by_its_comment(tmp_path: Path) -> None:
    slurm = sbatch(tmp_path, "echo 'sbatch: error: Batch job submission failed: Socket timed out' >&2; exit 1")
    squeue = tmp_path / "bin" / "squeue"
    squeue.write_text(
        "#!/bin/sh\nprintf '5\\037RUNNING\\0370\\037other\\n8_[0-3]\\037PENDING\\0370\\037hpcmass:1\\n'\n"
    )
    squeue.chmod(0o755)
    assert submit_script("#!/bin/sh\n", tmp_path / "s", slurm=slurm, comment="hpcmass:1") == "8"
    with pytest.raises(SlurmError) as caught:
        submit_script("#!/bin/sh\n", tmp_path / "s", slurm=slurm, comment="hpcmass:2")
    assert caught.value.data["unsure"]
    assert "before you submit again" in (caught.value.hint or "")


def test_an_answer_without_an_id_is_no_success(tmp_path: Path) -> None:
    slurm = sbatch(tmp_path, "echo welcome")
    with pytest.raises(SlurmError, match="holds no job id"):
        submit_script("#!/bin/sh\n", tmp_path / "s", slurm=slurm)
