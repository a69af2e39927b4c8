"""What a probe says of a launcher's output, and how its report is shown."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from hpcmass.cli.probing import accelerators, ranges
from hpcmass.config import Target, load_site
from hpcmass.workflow.probe import Probe, is_hopeless, probe_layout, write_findings
from hpcmass.workflow.probe_program import _crashed, _telling

CRASH = """\
[W socket.cpp:207] [c10d] The hostname of the client socket cannot be retrieved. err=-3
[gn2:00148] *** Process received signal ***
[gn2:00148] Signal: Segmentation fault (11)
[gn2:00148] Signal code: Address not mapped (1)
[gn2:00148] *** End of error message ***
slurmstepd-gn1: error: *** STEP 2.6 ON gn1 CANCELLED AT 2026-11-28T13:15:43 ***
srun: error: gn2: task 2: Segmentation fault (core dumped)
srun: error: gn2: task 3: Killed
"""


@pytest.mark.parametrize(
    ("text", "line"),
    [
        (CRASH, "[gn2:00148] Signal: Segmentation fault (11)"),
        ("\n".join(CRASH.splitlines()[4:]), "srun: error: gn2: task 2: Segmentation fault (core dumped)"),
        ("srun: error: no PMIx plugin\nbye", "srun: error: no PMIx plugin"),
        ("slurmstepd: error: *** STEP 1.0 ON cn1 CANCELLED AT x ***\nlast", "last"),
        ("one\ntwo", "two"),
        ("", ""),
    ],
)
def test_the_line_that_says_most(text: str, line: str) -> None:
    assert _telling(text.splitlines()) == line


def test_only_a_crash_of_ranks_that_all_started_is_tried_again() -> None:
    started = [{"step": "imported"}] * 2
    assert _crashed(started, 2, 139)
    assert not _crashed(started, 2, None)  # hung
    assert not _crashed(started, 2, 0)
    assert not _crashed(started[:1], 2, 139)
    assert not _crashed([*started[:1], {"error": "ImportError"}], 2, 1)


def test_variables_of_one_value_are_said_once() -> None:
    assert accelerators({}) == "-"
    assert accelerators({"CUDA_VISIBLE_DEVICES": "0"}) == "0 (CUDA_VISIBLE_DEVICES)"
    assert accelerators({"A": "0,1", "B": "0,1", "C": "2"}) == "0,1 (A and 1 more); 2 (C)"
    assert ranges([0, 1, 2, 3, 8]) == "0-3,8"


@pytest.mark.parametrize(
    "reason",
    [
        "PartitionDown", "PartitionInactive", "PartitionNodeLimit", "PartitionTimeLimit", "BadConstraints",
        "InvalidAccount", "AccountNotAllowed", "InvalidQOS", "QOSNotAllowed", "JobHeldUser", "JobHeldAdmin",
        "QOSMaxNodePerJobLimit", "QOSMaxCpuPerJobLimit", "QOSMaxWallDurationPerJobLimit", "QOSMinCpuNotSatisfied",
        "AssocMaxNodePerJobLimit", "AssocMaxWallDurationPerJobLimit", "QOSMaxGRESPerJob", "ReservationDeleted",
    ],
)  # fmt: skip
def test_what_never_passes_is_not_waited_for(reason: str) -> None:
    assert is_hopeless(reason)
    assert is_hopeless(f"({reason})")


@pytest.mark.parametrize(
    "reason",
    [
        "", "None", "Priority", "Resources",
        "Nodes required for job are DOWN, DRAINED or reserved for jobs in higher priority partitions",
        "Nodes_required_for_job_are_DOWN,_DRAINED_or_reserved_for_jobs_in_higher_priority_partitions",
        "ReqNodeNotAvail, Reserved for maintenance", "ReqNodeNotAvail, UnavailableNodes:cn[1-2]",
        "Reservation", "AssocMaxJobsLimit", "AssocMaxSubmitJobLimit", "AssocGrpNodeLimit", "AssocGrpCpuLimit",
        "AssocGrpCPUMinutesLimit", "AssocGrpWallLimit", "QOSGrpWallLimit", "QOSMaxNodePerUserLimit",
        "QOSMaxCpuPerUserLimit", "QOSMaxJobsPerUserLimit", "QOSGrpNodeLimit", "MaxNodePerAccount",
    ],
)  # fmt: skip
def test_what_passes_by_itself_is_waited_for(reason: str) -> None:
    assert not is_hopeless(reason)


@pytest.mark.parametrize(
    ("target", "ranks", "per_node", "gpus"),
    [
        ({"cores": 4, "max_nodes": 3}, 4, 2, 0),
        ({"cores": 8, "gpus": 4, "max_nodes": 1}, 4, 4, 4),
        ({"cores": 8, "gpus": 1}, 2, 1, 1),
        ({"cores": 8, "gpus": 1, "max_nodes": 1}, 2, 2, 1),  # both on the one GPU
        ({"cores": 1}, 2, 1, 0),
        ({"cores": 2, "gpus": 4, "max_nodes": 1}, 2, 2, 2),
        ({"cores": 1, "max_nodes": 1}, 1, 1, 0),  # there is no room for two
    ],
)
def test_a_probe_has_two_ranks_wherever_there_is_room(
    target: dict[str, Any], ranks: int, per_node: int, gpus: int
) -> None:
    layout = probe_layout(Target(kind="slurm", **target), None, "t")
    assert (layout.ranks, layout.ranks_per_node, layout.gpus_per_node) == (ranks, per_node, gpus)


def test_nothing_is_written_of_a_target_whose_pmi_was_not_seen_right(tmp_path: Path) -> None:
    file = tmp_path / "site.toml"
    table = '[targets.{}]\nkind = "slurm"\ncores = 1\nlauncher = "auto"\n'
    file.write_text(
        'name = "x"\ndefault_target = "a"\nverified = false\n' + table.format("a") + table.format("b")
    )
    chosen = {"launcher": "srun", "pmi": "pmix"}
    seen = Probe("a", tmp_path, report={"complete": True, "chosen": chosen})
    alone = Probe("b", tmp_path, report={"complete": True, "chosen": None})
    assert write_findings(file, load_site(file), [seen, alone]) == [
        'targets.a.launcher = "srun"',
        'targets.a.pmi = "pmix"',
    ]
    assert load_site(file).verified is False
    assert load_site(file).targets["b"].pmi is None
