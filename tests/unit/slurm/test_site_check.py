"""A site file held against Slurm: every planted error is found, and nothing is found where nothing is wrong."""

from __future__ import annotations

import importlib.util
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from hpcmass.config import Site, Target
from hpcmass.slurm.site_check import check_site
from hpcmass.slurm.site_facts import (
    SlurmFacts,
    has_features,
    parse_associations,
    parse_pmi,
    parse_reservations,
)

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

_spec = importlib.util.spec_from_file_location("site_texts", Path(__file__).with_name("site_texts.py"))
assert _spec is not None
assert _spec.loader is not None
texts = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(texts)

CPU: dict[str, Any] = {
    "partition": "cpu",
    "cores": 4,
    "memory_gb": 4.1,
    "max_nodes": 2,
    "max_time": "1-00:00:00",
    "launcher": "mpiexec",
}
GPU: dict[str, Any] = {
    "partition": "gpu",
    "constraint": "hbm40g",
    "qos": "normal",
    "account": "proj",
    "cores": 8,
    "memory_gb": 260.0,
    "gpus": 4,
    "gpu_type": "a100",
    "max_nodes": 2,
    "max_time": "2h",
    "exclusive": True,
    "launcher": "srun",
    "pmi": "pmix",
    "sbatch": {"hint": "nomultithread"},
}


THREADS = (
    "gn1 has 2 hardware threads a core, and --cpus-per-task counts them: "
    "ranks would get 1/2 of the cores that they are meant to have"
)


def findings(
    values: dict[str, Any], facts: SlurmFacts | None = None, **site: Any
) -> list[tuple[str, str, bool]]:
    """Keys, what Slurm says, and whether it is wrong."""
    target = Target(kind="slurm", **values)
    whole = Site(name="lab", default_target="t", targets={"t": target}, **{"max_array_size": 1001, **site})
    return [(f.key, f.slurm, f.wrong) for f in check_site(whole, facts or texts.FACTS)]


@pytest.mark.parametrize("values", [CPU, GPU])
def test_what_agrees_has_no_finding(values: dict[str, Any]) -> None:
    assert findings(values) == []


@pytest.mark.parametrize(
    ("base", "planted", "key", "said"),
    [
        (CPU, {"partition": "cpuu"}, "partition", "no such partition; there are: cpu, gpu, spare, old"),
        (CPU, {"partition": "old"}, "partition", "State=DOWN: jobs do not start there"),
        (CPU, {"cores": 5}, "cores", "4 cores on cn1"),
        (CPU, {"memory_gb": 4.2}, "memory_gb", "4.19 GB (4000 MiB) on cn1"),
        (CPU, {"max_nodes": 3}, "max_nodes", "MaxNodes=2"),
        (CPU, {"max_time": "2-00:00:00"}, "max_time", "MaxTime=1-00:00:00 of cpu"),
        (CPU, {"default_time": "25h"}, "default_time", "MaxTime=1-00:00:00 of cpu"),
        (
            CPU,
            {"constraint": "intel"},
            "constraint",
            "no node of partition cpu has it; features there: amd, cpu",
        ),
        (CPU, {"gpus": 1}, "gpus", "no node of partition cpu has it; Gres there: none"),
        (CPU, {"gres": {"fpga": 1}}, "gres.fpga", "no node of partition cpu has it; Gres there: none"),
        (CPU, {"account": "other"}, "account", "your accounts: proj"),
        (CPU, {"qos": "long"}, "qos", "no such QOS; there are: normal, gpuqos, short"),
        (CPU, {"qos": "gpuqos"}, "qos", "with account proj you may use: normal, short"),
        (CPU, {"qos": "short"}, "max_time", "MaxWall=00:10:00 of QOS short"),
        (CPU, {"qos": "short"}, "max_nodes", "QOS short: 1 nodes a job"),
        (CPU, {"reservation": "exam"}, "reservation", "no such reservation; there are: school"),
        (
            CPU,
            {"launcher": "srun"},
            "pmi",
            "MpiDefault=none, but without pmi ranks are started by srun --mpi=none, N runs of one rank; "
            "name one of pmix, pmi2",
        ),
        (CPU, {"launcher": "srun", "pmi": "cray_shasta"}, "pmi", "srun --mpi=list has pmix, none, pmi2"),
        (CPU, {"partition": "spare"}, "preemptible", "PreemptMode=CANCEL: jobs give way to those of cpu, old"),
        (
            CPU,
            {"partition": "spare", "preemptible": True},
            "requeue",
            "PreemptMode=CANCEL: preempted jobs are not requeued",
        ),
        (GPU, {"account": "guest"}, "account", "your accounts: proj"),
        (GPU, {"qos": "short"}, "qos", "AllowQos=normal of gpu"),
        (GPU, {"gpus": 5}, "gpus", "4 on gn1"),
        (GPU, {"constraint": None}, "max_nodes", None),
        (GPU, {"gpu_type": "h100"}, "gpu_type", "no node of partition gpu has it; Gres there: gpu:a100"),
        (GPU, {"cores": 17}, "cores", "8 cores on gn1 (16 hardware threads)"),
        (GPU, {"sbatch": {}}, "sbatch.hint", THREADS),
        (GPU, {"sbatch": {"threads-per-core": "2"}}, "sbatch.hint", THREADS),
        (GPU, {"max_time": "3h"}, "max_time", "MaxWall=02:00:00 of QOS gpuqos"),
    ],
)
def test_a_planted_error_is_found(
    base: dict[str, Any], planted: dict[str, Any], key: str, said: str | None
) -> None:
    found: Any = findings({**base, **planted})
    if said is None:
        assert [one for one in found if one[0] == key] == []  # without a constraint there are three nodes
        return
    assert (key, said, True) in found
    found = _written({**base, **planted}, key)
    assert found is None or (key, said, True) not in findings(found)


def _written(values: dict[str, Any], key: str) -> dict[str, Any] | None:
    """The target with the line that a finding says to write; None where it leaves a choice."""
    site = Site(
        name="lab", default_target="t", targets={"t": Target(kind="slurm", **values)}, max_array_size=1001
    )
    writes = [one.write for one in check_site(site, texts.FACTS) if one.key == key and one.wrong]
    line = writes[0].partition(";")[0]
    assert line
    if line.startswith("remove "):
        return {name: value for name, value in values.items() if name != line.split()[-1]}
    try:
        return {**values, **tomllib.loads(line)}
    except tomllib.TOMLDecodeError:
        return None


@pytest.mark.parametrize(
    ("base", "planted", "key", "said"),
    [
        (CPU, {"cores": 2}, "cores", "4 cores on cn1"),
        (CPU, {"memory_gb": 2.0}, "memory_gb", "4.19 GB on cn1"),
        (
            CPU,
            {"max_time": None},
            "max_time",
            "MaxTime=1-00:00:00 of cpu: a job that asks for more is refused only there",
        ),
        (CPU, {"preemptible": True}, "preemptible", "PreemptMode=OFF, nothing goes before it"),
        (GPU, {"cores": 16}, "cores", "8 cores on gn1 (16 hardware threads)"),
        (
            GPU,
            {"exclusive": False},
            "exclusive",
            "OverSubscribe=EXCLUSIVE: jobs get whole nodes, and are charged so",
        ),
        (GPU, {"gpus": 2}, "gpus", "4 on gn1"),
        (GPU, {"gpus": 0, "gpu_type": None}, "gpus", "gn1 has 4, which would lie idle"),
    ],
)
def test_what_is_worth_knowing_is_no_error(
    base: dict[str, Any], planted: dict[str, Any], key: str, said: str
) -> None:
    assert findings({**base, **planted}) == [(key, said, False)]


def test_hardware_threads_matter_only_where_slurm_counts_them() -> None:
    assert findings({**GPU, "sbatch": {"threads-per-core": "1"}}) == []
    assert findings({**GPU, "sbatch": {"hint": "multithread"}}) == []  # said on purpose
    # A site may have Slurm count cores (CPUs= of slurm.conf): then there is nothing to tell it.
    cores = texts.NODES.replace("CPUEfctv=16 CPUTot=16", "CPUEfctv=8 CPUTot=8")
    facts = texts.without(nodes=tuple(texts.parse_nodes(cores)))
    assert findings({**GPU, "sbatch": {}}, facts) == []


def test_the_hint_is_written_beside_the_other_options() -> None:
    target = Target(kind="slurm", **{**GPU, "sbatch": {"licenses": 'a"b', "threads-per-core": "2"}})
    (found,) = check_site(
        Site(name="lab", default_target="t", targets={"t": target}, max_array_size=1001), texts.FACTS
    )
    assert tomllib.loads(found.write) == {"sbatch": {"licenses": 'a"b', "hint": "nomultithread"}}


def test_of_several_partitions_what_holds_in_all_is_told() -> None:
    both = {**CPU, "partition": "cpu,spare", "preemptible": False}
    assert findings({**both, "max_nodes": 3}) == []  # `cpu` allows two only, `spare` may be preempted
    assert findings({**both, "cores": 5}) == [("cores", "4 cores on cn1", True)]
    there = "there are: cpu, gpu, spare, old"
    assert findings({**both, "partition": "cpu,spar"}) == [("partition", f"no partition spar; {there}", True)]
    target = Target(kind="slurm", **{**both, "partition": "cpu,spar,quite-else"})
    found = check_site(
        Site(name="lab", default_target="t", targets={"t": target}, max_array_size=1001), texts.FACTS
    )
    assert [one.write for one in found] == ['partition = "cpu,spare,quite-else"', 'partition = "cpu,spar"']


def test_an_array_longer_than_the_site_allows_is_found() -> None:
    assert findings(CPU, max_array_size=5000) == [("max_array_size", "MaxArraySize=1001", True)]
    assert findings(CPU, max_array_size=None) == [("max_array_size", "MaxArraySize=1001", False)]


def test_what_to_write_is_a_line_of_the_file() -> None:
    target = Target(kind="slurm", **{**GPU, "gpus": 5, "gpu_type": "a10", "partition": "gpus"})
    site = Site(name="lab", default_target="t", targets={"t": target}, max_array_size=5000)
    writes = [one.write for one in check_site(site, texts.FACTS)]
    assert writes == ["max_array_size = 1001", 'partition = "gpu"']
    site = Site(name="lab", default_target="t", targets={"t": target.model_copy(update={"partition": "gpu"})})
    assert [one.write for one in check_site(site, texts.FACTS) if one.wrong] == ['gpu_type = "a100"']
    two = Target(kind="slurm", **{**CPU, "launcher": "srun"})
    (found,) = check_site(
        Site(name="lab", default_target="t", targets={"t": two}, max_array_size=1001), texts.FACTS
    )
    assert found.write == 'pmi = "pmix"; which is right, hpcmass site probe finds out'


@pytest.mark.parametrize("pmi", [("cray_shasta", "none", "pmi2"), None])
def test_srun_without_pmi_is_wrong_whatever_slurm_takes_by_default(pmi: tuple[str, ...] | None) -> None:
    facts = texts.without(config={**texts.FACTS.config, "MpiDefault": "cray_shasta"}, pmi=pmi)
    target = Target(kind="slurm", **{**CPU, "launcher": "srun"})
    (found,) = check_site(
        Site(name="lab", default_target="t", targets={"t": target}, max_array_size=1001), facts
    )
    assert (found.key, found.wrong, found.write) == ("pmi", True, 'pmi = "cray_shasta"')
    assert found.slurm.startswith(
        "MpiDefault=cray_shasta, but without pmi ranks are started by srun --mpi=none"
    )
    assert findings({**CPU, "launcher": "srun", "pmi": "cray_shasta"}, facts) == []


def test_the_limits_of_the_default_qos_hold_where_a_target_names_none() -> None:
    mine = tuple(replace(one, default_qos="short") for one in texts.FACTS.associations or ())
    found = findings({**CPU, "max_time": "1h"}, texts.without(associations=mine))
    assert ("max_time", "MaxWall=00:10:00 of QOS short", True) in found
    assert ("max_nodes", "QOS short: 1 nodes a job", True) in found
    lax = {**texts.FACTS.config, "AccountingStorageEnforce": "associations"}
    assert findings({**CPU, "max_time": "1h"}, texts.without(associations=mine, config=lax)) == []


def test_of_two_qos_the_partitions_own_decides_unless_the_jobs_is_over_it() -> None:
    long = replace(texts.FACTS.qos[1], name="long", max_wall_s=36000, max_per_job=(("gres/gpu", 2),))
    mine = tuple(replace(one, qos=("normal", "long")) for one in texts.FACTS.associations or ())
    partitions = tuple(replace(p, qos_allowed=None) for p in texts.FACTS.partitions)

    def found(flags: tuple[str, ...], **planted: Any) -> list[tuple[str, str, bool]]:
        qos = (*(texts.FACTS.qos or ()), replace(long, flags=flags))
        facts = texts.without(qos=qos, associations=mine, partitions=partitions)
        return findings({**GPU, "qos": "long", "gpus": 4, **planted}, facts)

    two = ("gpus", "QOS long: 2 GPUs a job", True)  # the partition's QOS says nothing of GPUs
    assert found((), max_time="3h") == [("max_time", "MaxWall=02:00:00 of QOS gpuqos", True), two]
    assert found(("OverPartQOS",), max_time="3h") == [two]
    late = ("max_time", "MaxWall=10:00:00 of QOS long", True)
    assert found(("OverPartQOS",), max_time="11h") == [late, two]


def test_a_qos_may_lift_the_limits_of_a_partition() -> None:
    flags = ("PartitionTimeLimit", "PartitionMaxNodes")
    qos = tuple(replace(q, flags=flags) if q.name == "normal" else q for q in texts.FACTS.qos or ())
    beyond = {**CPU, "qos": "normal", "max_time": "2-00:00:00", "max_nodes": 3}
    assert {key for key, _, wrong in findings(beyond) if wrong} == {"max_time", "max_nodes"}
    assert findings(beyond, texts.without(qos=qos)) == []


def test_preemption_by_qos() -> None:
    config = {**texts.FACTS.config, "PreemptType": "preempt/qos", "PreemptMode": "CANCEL"}
    over = tuple(replace(q, preempts=("normal",)) if q.name == "short" else q for q in texts.FACTS.qos or ())
    facts = texts.without(config=config, qos=over)
    assert findings({**CPU, "qos": "normal"}, facts) == [
        ("preemptible", "PreemptMode=CANCEL: jobs give way to those of QOS short", True),
        ("requeue", "PreemptMode=CANCEL: preempted jobs are not requeued", True),
    ]
    assert findings({**CPU, "qos": "normal", "preemptible": True, "requeue": False}, facts) == []
    # Without an answer about QOS nothing is known.
    assert findings({**CPU, "qos": "normal", "preemptible": True}, replace(facts, qos=None)) == []


def test_an_account_is_no_error_where_accounts_are_not_enforced() -> None:
    facts = texts.without(config={**texts.FACTS.config, "AccountingStorageEnforce": "none"})
    assert findings({**CPU, "account": "other"}, facts) == [("account", "your accounts: proj", False)]


def test_without_answers_nothing_is_found() -> None:
    assert findings({**CPU, "partition": "nowhere", "qos": "none"}, SlurmFacts()) == []


def test_nodes_that_are_all_down_are_told() -> None:
    nodes = tuple(n for n in texts.parse_nodes(texts.NODES.replace("State=IDLE", "State=DOWN+DRAIN")))
    said = "none of its 3 nodes is usable now (DOWN+DRAIN)"
    assert findings(CPU, texts.without(nodes=nodes)) == [("partition", said, False)]


@pytest.mark.parametrize(
    ("constraint", "fits"),
    [
        ("gpu", True),
        ("gpu&hbm80g", False),
        ("hbm80g|hbm40g", True),
        ("gpu&hbm40g|cpu", True),
        ("[gpu|cpu]", None),
        ("gpu*2", None),
        ("!gpu", None),
    ],
)
def test_constraints(constraint: str, fits: bool | None) -> None:
    node = next(node for node in texts.FACTS.nodes if node.name == "gn1")
    assert has_features(node, constraint) is fits


def test_answers_of_srun_and_sacctmgr_are_read() -> None:
    text = (
        "MPI plugin types are...\n\tpmix\n\tnone\n\tcray_shasta\n"
        "specific pmix plugin versions available: pmix_v4\n"
    )
    assert parse_pmi(text) == ("pmix", "none", "cray_shasta", "pmix_v4")
    (found,) = parse_associations("proj||normal,high|normal\n\nbroken|line\n")
    assert (found.account, found.partition, found.qos, found.default_qos) == (
        "proj",
        "",
        ("normal", "high"),
        "normal",
    )
    assert parse_reservations("ReservationName=a StartTime=x\nReservationName=b-1 y\n") == ("a", "b-1")
    assert parse_reservations("No reservations in the system\n") == ()
