"""One rank of a training run, as a user's process: `train_worker.py RUN_FOLDER PROJECT JOB_FILE [KEY=VALUE …]`.

Prints the status at the end; a refusal is printed once and gives exit code 2, as by the command line.
"""

import sys
from pathlib import Path

from hpcmass.config import Project, load_job
from hpcmass.errors import HpcmassError
from hpcmass.runs import RunFolder
from hpcmass.train.rank import train_rank


def main() -> int:
    folder, project, job_file, *sets = sys.argv[1:]
    try:
        status = train_rank(load_job(Path(job_file), sets), RunFolder(folder), Project(Path(project)))
    except HpcmassError as error:
        if not error.data.get("told"):
            print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    print(status.state.value, status.step)
    return 0


if __name__ == "__main__":
    sys.exit(main())
