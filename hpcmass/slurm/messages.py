"""Slurm's error texts as plain messages: what is wrong, what to do, whether it may pass by itself. Pure."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

from hpcmass.slurm.reasons import plain_reason


@dataclass(frozen=True)
class Trouble:
    """What an error text of Slurm means.

    Attributes:
        kind: A short word for programs, such as `account`, `partition`, `controller`; `other` where unknown.
        message: What is wrong, one sentence.
        hint: What to do.
        transient: Whether the same command may succeed later by itself.
        unsure: Whether the command may have been carried out although it reports an error.
    """

    kind: str
    message: str
    hint: str | None = None
    transient: bool = False
    unsure: bool = False


_FOLDER_ONLY = "states of ended jobs, exit codes and usage are then known from the run folder only"
_RULES: tuple[tuple[str, Trouble], ...] = (
    (
        # Of 22.05, and of later ones.
        r"accounting storage is disabled|not running a supported accounting_storage plugin"
        r"|only allowed with an accounting|accounting_storage/",
        Trouble("no-accounting", "this Slurm keeps no accounting", _FOLDER_ONLY),
    ),
    (
        r"talking to the database|unable to connect to database|database connection|slurmdbd",
        Trouble("accounting", "Slurm's accounting database does not answer", _FOLDER_ONLY, transient=True),
    ),
    (
        r"socket timed out|zero bytes were transmitted|message receive failure|receive failure"
        r"|received zero length message",
        Trouble(
            "timeout",
            "Slurm's controller did not answer in time",
            "it is busy; the same command works a little later",
            transient=True,
            unsure=True,
        ),
    ),
    (
        r"unable to contact slurm controller|communication connection failure|controller is in standby"
        r"|backup controller in standby|message send failure|connection refused|unable to establish connect"
        # `scontrol requeue` 22.05, where it did not get through.
        r"|unexpected message received for job",
        Trouble(
            "controller",
            "Slurm's controller (slurmctld) cannot be reached",
            "it is down or restarting; try again later, or ask the site's operators",
            transient=True,
        ),
    ),
    (
        r"could not establish a configuration source|dns srv lookup failed|unable to process configuration file"
        r"|can't find an address, check slurm.conf|could not find.*slurm\.conf",
        Trouble(
            "no-slurm",
            "Slurm's configuration is not found on this machine",
            "run this on a login node; 'hpcmass slurm up' starts a small Slurm here",
        ),
    ),
    (
        r"resource temporarily unavailable|job update not available right now"
        r"|unable to create job record, try again"
        r"|slurm temporarily unable to accept job|system submissions disabled",
        Trouble(
            "busy",
            "Slurm takes no jobs at the moment",
            "it is busy or closed for maintenance; try again later",
            transient=True,
        ),
    ),
    (
        r"job array|maximum array size",
        Trouble(
            "array",
            "the job array is larger than this Slurm allows, or its indices are wrong",
            "cut it into several; 'scontrol show config | grep MaxArraySize' shows the largest index plus 1",
        ),
    ),
    (
        r"invalid account or account/partition|invalid account\b|account specification",
        Trouble(
            "account",
            "the account is not valid for you on this partition",
            "set 'account' of the target in the site file; 'sacctmgr show associations user=$USER' lists yours",
        ),
    ),
    (
        r"invalid partition name|no partition specified|invalid partition specified",
        Trouble(
            "partition",
            "there is no partition of that name here",
            "'sinfo' lists the partitions; set 'partition' of the target in the site file",
        ),
    ),
    (
        r"group not permitted to use this partition|not permitted to use (?:this )?partition",
        Trouble(
            "partition-access",
            "your group may not use this partition",
            "name another target, or ask the site for access",
        ),
    ),
    (
        r"partition in down state|required partition not available|partition .*inactive|partition is down",
        Trouble(
            "partition-down",
            "the partition is down or drained",
            "'sinfo -s' shows the partitions' states; name another target, or wait",
            transient=False,
        ),
    ),
    (
        r"invalid qos|qos specification",
        Trouble(
            "qos",
            "the QOS does not exist, or is not yours to use",
            "'sacctmgr show qos format=name' lists them; set 'qos' of the target in the site file",
        ),
    ),
    (
        r"qosmaxwall|assocmaxwall|time limit is invalid|requested time limit|time limit exceeds|qosgrpwall",
        Trouble(
            "time",
            "the wall time is longer than the partition, account or QOS allows",
            "ask for less with --time (resources.time); a run goes on in its next hop. "
            "'scontrol show partition' shows MaxTime",
        ),
    ),
    (
        r"job violates accounting/qos policy|assocmaxsubmit|qosmaxsubmit|assocgrp|qosgrp|qosmax|assocmax"
        r"|submit limit|qos usage threshold",
        Trouble(
            "limit",
            "a limit of your account or QOS is exceeded (jobs at once, size or time)",
            "wait until some of your jobs have ended, ask for less, or name another target; "
            "'sacctmgr show qos' and 'sacctmgr show associations user=$USER' show the limits",
        ),
    ),
    (
        r"invalid feature|invalid preferred feature|--constraint|--batch option is invalid|constraint",
        Trouble(
            "constraint",
            "no node has the features that 'constraint' asks for",
            "'sinfo -o \"%N %f\"' lists the nodes' features; set 'constraint' of the target in the site file",
        ),
    ),
    (
        r"invalid generic resource|invalid gres|invalid tres|\bgres\b",
        Trouble(
            "gres",
            "Slurm does not know the generic resource (GPU, FPGA …) that is asked for",
            "'sinfo -o \"%N %G\"' lists what the nodes have; see 'gpus', 'gpu_type' and 'gres' of the target",
        ),
    ),
    (
        r"memory required by task is not available|memory specification can not be satisfied"
        r"|requested memory|memory limit",
        Trouble(
            "memory",
            "no node of the partition has as much memory as is asked for",
            "ask for less (resources.memory_gb), or name a target with larger nodes",
        ),
    ),
    (
        r"node count specification invalid|more processors requested than permitted"
        r"|requested nodes? not in this|cpu count specification invalid"
        r"|cpu count per node can not be satisfied|more tasks than available"
        r"|partition node limit|task count specification invalid",
        Trouble(
            "size",
            "more nodes or cores are asked for than the partition has or allows",
            "ask for fewer nodes or ranks, or name another target; 'sinfo' shows what there is",
        ),
    ),
    (
        r"requested node configuration is not available|requested partition configuration not available",
        Trouble(
            "nodes",
            "no node of the partition can ever give what is asked for (cores, memory, GPUs, features)",
            "compare the target with 'sinfo -o \"%P %N %c %m %G %f\"', and run: hpcmass site check",
        ),
    ),
    (
        r"invalid node name|required node not available",
        Trouble("node-name", "a node that is asked for does not exist, or is down", "see 'sinfo -N'"),
    ),
    (
        r"reservation",
        Trouble(
            "reservation",
            "the reservation does not exist, has ended, or is not yours",
            "'scontrol show reservation' lists them; set 'reservation' of the target in the site file",
        ),
    ),
    (
        r"job dependency problem|circular job dependency|invalid dependency|dependency",
        Trouble(
            "dependency",
            "the job that this one is to come after is not known to Slurm any more, or the list is wrong",
            "leave --after out if that job has ended",
        ),
    ),
    (
        r"invalid job id|invalid job ?step|job/step already completing or completed|job has already finished"
        r"|job is not pending nor running",
        Trouble(
            "job", "Slurm does not know the job, or it has ended already", "hpcmass status shows what is known"
        ),
    ),
    (
        r"access/permission denied|operation not permitted|invalid user id",
        Trouble(
            "permission", "Slurm does not let you do this", "the job or the resource belongs to somebody else"
        ),
    ),
    (
        r"disk quota exceeded",
        Trouble("quota", "the disk quota is used up", "remove files, or put the project elsewhere"),
    ),
    (
        r"no space left on device|i/o error writing script",
        Trouble(
            "space", "the disk is full (yours, or that of Slurm's controller)", "free space, then try again"
        ),
    ),
    (
        r"munge|authentication|invalid credential|protocol authentication",
        Trouble(
            "auth",
            "Slurm does not accept this machine's credentials",
            "the munge service may be down here; try again, or ask the site's operators",
            transient=True,
        ),
    ),
    (
        r"incompatible versions",
        Trouble("version", "this machine's Slurm commands do not fit the controller's version", None),
    ),
    (
        r"batch job submission disabled|operation .*not supported|requested operation is presently disabled",
        Trouble("disabled", "this Slurm has that operation switched off", "see the site's documentation"),
    ),
    (
        r"unrecognized option|invalid option|invalid directive|invalid --|unknown option|requires an argument"
        r"|invalid argument|more than one",
        Trouble(
            "option",
            "sbatch does not know an option, or cannot read its value",
            "see 'sbatch' of the target in the site file; hpcmass submit --dry-run shows the script",
        ),
    ),
    (
        r"pathname of a file, directory or other parameter too long|script.*too (?:large|long)"
        r"|environment is too",
        Trouble(
            "too-long",
            "the script, a path or the environment is too long for this Slurm",
            "shorter paths and fewer variables help",
        ),
    ),
    (
        r"requested nodes are busy|unable to allocate resources|job can not start immediately",
        Trouble("busy-nodes", "the nodes asked for are busy", "try again later", transient=True),
    ),
)
# Its last line speaks of credentials only.
_NO_MUNGED = re.compile(
    r"munge encode failed: failed to (?:access|connect)|did you start munged", re.IGNORECASE
)
_MUNGED = Trouble(
    "auth",
    "the munge service, by which Slurm knows who asks, does not run on this machine",
    "a development cluster is down: 'hpcmass slurm up' starts it again; else ask the site's operators",
    transient=True,
)
_COMPILED = tuple((re.compile(pattern, re.IGNORECASE | re.DOTALL), trouble) for pattern, trouble in _RULES)
_PREFIX = re.compile(r"^(?:s[a-z]+: )?(?:(?:error|fatal): )?", re.IGNORECASE)
# Those that `plain_reason` can say; others keep the words of their rule.
_NAMED_LIMIT = re.compile(r"\b(?:QOS|Assoc)(?:Max|Grp)\w+Limit\b")
_NOISE = ("batch job submission failed: ", "allocation failure: ", "slurm_load_jobs error: ")


def explain(stderr: str, argv: Sequence[str] = ()) -> Trouble:
    """What an error text means; Slurm's own words where it is none that is known.

    Args:
        stderr: What the command wrote.
        argv: The command.
    """
    if named := _NAMED_LIMIT.search(stderr):  # What follows it says only that some limit is exceeded.
        rule = next(trouble for pattern, trouble in _COMPILED if pattern.search(named[0]))
        limit = plain_reason(named[0])
        if limit.text.startswith("Slurm says"):
            return replace(rule, message=f"{rule.message}: {named[0]}")
        return replace(rule, message=limit.text.replace("it ", "the job ", 1), hint=limit.advice or rule.hint)
    if _NO_MUNGED.search(stderr):
        return _MUNGED
    for text in (
        last_word(stderr),
        stderr,
    ):  # The last line says why; those before it may be about something else.
        for pattern, trouble in _COMPILED:
            if pattern.search(text):
                return trouble
    name = argv[0].rsplit("/", 1)[-1] if argv else "Slurm"
    return Trouble("other", last_word(stderr) or f"{name} failed and said nothing")


def last_word(stderr: str) -> str:
    """Slurm's own last sentence, without the name of the command before it."""
    for line in reversed(stderr.splitlines()):
        text = _PREFIX.sub("", line.strip())
        for noise in _NOISE:
            if text.lower().startswith(noise):
                text = text[len(noise) :]
        if text and not text.startswith("Try "):  # 'Try "sbatch --help" for more information'
            return text
    return ""


def plain(stderr: str, argv: Sequence[str] = ()) -> str:
    """The message of `explain` with Slurm's own words behind it."""
    trouble, words = explain(stderr, argv), last_word(stderr)
    return trouble.message if not words or words == trouble.message else f"{trouble.message} (Slurm: {words})"
