"""Slurm's error texts, as Slurm writes them (22.05 and its list of errors), become plain messages."""

from __future__ import annotations

import pytest

from hpcmass.slurm.messages import explain, last_word, plain

FAILED = "sbatch: error: Batch job submission failed: "
MEMORY = "sbatch: error: Memory specification can not be satisfied"
TEXTS = [
    ("account", FAILED + "Invalid account or account/partition combination specified"),
    (
        "partition",
        "sbatch: error: invalid partition specified: no\n" + FAILED + "Invalid partition name specified",
    ),
    ("partition-access", FAILED + "User's group not permitted to use this partition"),
    ("partition-down", FAILED + "Required partition not available (inactive or drain)"),
    ("partition-down", FAILED + "Partition in DOWN state"),
    ("qos", FAILED + "Invalid qos specification"),
    ("constraint", FAILED + "Invalid feature specification"),
    ("other", "slurm_load_jobs error: Operation now in progress"),
    ("gres", "sbatch: error: Invalid generic resource (gres) specification"),
    ("gres", FAILED + "Invalid generic resource (gres) specification"),
    ("nodes", MEMORY + "\n" + FAILED + "Requested node configuration is not available"),
    ("nodes", "allocation failure: Requested node configuration is not available"),
    ("memory", MEMORY),
    ("size", FAILED + "Node count specification invalid"),
    ("size", FAILED + "More processors requested than permitted"),
    ("size", "sbatch: error: CPU count per node can not be satisfied"),
    ("time", FAILED + "Requested time limit is invalid (missing or exceeds some limit)"),
    ("time", "sbatch: error: QOSMaxWallDurationPerJobLimit"),
    ("limit", FAILED + "Job violates accounting/QOS policy (job submit limit, user's size and/or time limits)"),
    ("array", FAILED + "Invalid job array specification"),
    ("dependency", FAILED + "Job dependency problem"),
    ("reservation", FAILED + "Requested reservation is invalid"),
    ("node-name", FAILED + "Invalid node name specified"),
    ("option", "sbatch: unrecognized option '--foo=1'\nTry \"sbatch --help\" for more information"),
    ("option", "sbatch: error: Invalid --time specification"),
    ("job", "slurm_load_jobs error: Invalid job id specified"),
    ("job", "scancel: error: Kill job error on job id 3: Invalid job id specified"),
    ("permission", "scancel: error: Kill job error on job id 3: Access/permission denied"),
    ("controller", FAILED + "Unable to contact slurm controller (connect failure)"),
    ("controller", "slurm_load_jobs error: Unable to contact slurm controller (connect failure)"),
    ("controller", "Unexpected message received for job 10"),
    ("timeout", FAILED + "Socket timed out on send/recv operation"),
    ("timeout", FAILED + "Zero Bytes were transmitted or received"),
    ("timeout", FAILED + "Unable to contact slurm controller (receive failure)"),
    (
        "no-slurm",
        "sbatch: error: resolve_ctls_from_dns_srv: res_nsearch error: Unknown host\n"
        "sbatch: error: fetch_config: DNS SRV lookup failed\n"
        "sbatch: fatal: Could not establish a configuration source",
    ),
    ("no-accounting", "Slurm accounting storage is disabled"),
    (
        "no-accounting",
        "sacct: fatal: You are not running a supported accounting_storage plugin\n"
        "Only 'accounting_storage/slurmdbd' is supported.",
    ),
    ("accounting", "sacct: error: Problem talking to the database: Connection refused"),
    ("quota", "sbatch: error: Unable to open file: Disk quota exceeded"),
    ("space", FAILED + "I/O error writing script/environment to file"),
    ("space", "sbatch: error: write: No space left on device"),
    ("auth", FAILED + "Protocol authentication error"),
    ("busy", FAILED + "Resource temporarily unavailable"),
    ("too-long", FAILED + "Pathname of a file, directory or other parameter too long"),
    ("other", "sbatch: error: something new"),
]


@pytest.mark.parametrize(("kind", "text"), TEXTS)
def test_texts(kind: str, text: str) -> None:
    trouble = explain(text, ["sbatch"])
    assert trouble.kind == kind
    assert trouble.message
    assert "\n" not in trouble.message
    if kind != "other":
        assert "error:" not in trouble.message
    assert last_word(text) in plain(text) or trouble.message in plain(text)


def test_what_may_pass_by_itself() -> None:
    transient = {kind for kind, text in TEXTS if explain(text).transient}
    assert transient == {"controller", "timeout", "busy", "auth", "accounting"}
    # Only where the request may have arrived is it unsure whether a job was taken.
    assert {kind for kind, text in TEXTS if explain(text).unsure} == {"timeout"}


def test_what_can_be_done_is_said() -> None:
    assert all(explain(text).hint for kind, text in TEXTS if kind != "other")


def test_words() -> None:
    assert last_word("sbatch: error: Batch job submission failed: No way\n\n") == "No way"
    assert last_word("") == ""
    assert explain("", ["/usr/bin/sbatch"]).message == "sbatch failed and said nothing"
    assert plain("sbatch: error: something new") == "something new"
    assert plain(FAILED + "Invalid qos specification").endswith("(Slurm: Invalid qos specification)")


NO_MUNGED = """\
squeue: error: If munged is up, restart with --num-threads=10
squeue: error: Munge encode failed: Failed to access "/cl/run/munge.sock": No such file or directory (Did you start munged?)
squeue: error: slurm_send_node_msg: auth_g_create: REQUEST_JOB_INFO has authentication error
slurm_load_jobs error: Protocol authentication error
"""


def test_a_cluster_that_is_down_is_not_called_a_matter_of_credentials() -> None:
    trouble = explain(NO_MUNGED, ["squeue"])
    assert trouble.transient
    assert "the munge service" in trouble.message
    assert "does not run" in trouble.message
    assert "hpcmass slurm up" in str(trouble.hint)
    assert "credentials" in explain("slurm_load_jobs error: Protocol authentication error").message
