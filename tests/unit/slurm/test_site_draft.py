"""A drafted site file is valid, agrees with the Slurm that it is drafted from, and says where it came from."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpcmass.config import Site, load_site
from hpcmass.slurm.parse import NodeInfo
from hpcmass.slurm.site_check import check_site
from hpcmass.slurm.site_draft import draft_site, kinds_of
from hpcmass.slurm.site_facts import SlurmFacts

_spec = importlib.util.spec_from_file_location("site_texts", Path(__file__).with_name("site_texts.py"))
assert _spec is not None
assert _spec.loader is not None
texts = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(texts)


def draft(folder: Path, facts: SlurmFacts, *, has_mpiexec: bool = True) -> tuple[Site, str]:
    text = draft_site(facts, by="by a test", has_mpiexec=has_mpiexec)
    (folder / "site.toml").write_text(text, encoding="utf-8")
    return load_site(folder / "site.toml"), text


def test_targets_are_the_kinds_of_node_of_each_partition(tmp_path: Path) -> None:
    site, _ = draft(tmp_path, texts.FACTS)
    assert set(site.targets) == {"cpu", "gpu-hbm40g", "gpu-hbm80g", "spare", "old"}
    assert (site.name, site.default_target, site.max_array_size, site.verified) == ("lab", "cpu", 1001, False)
    gpu = site.targets["gpu-hbm40g"]
    assert (gpu.partition, gpu.constraint, gpu.account) == ("gpu", "hbm40g", "proj")
    assert (gpu.cores, gpu.gpus, gpu.gpu_type, gpu.max_nodes) == (8, 4, "a100", 2)
    assert gpu.memory_gb == 268.4  # 256000 MiB, rounded down
    assert gpu.sbatch == {"hint": "nomultithread"}
    assert gpu.exclusive
    assert gpu.max_time == "02:00:00"  # of its QOS
    assert site.targets["cpu"].max_nodes == 2  # of the partition, which has three
    assert site.targets["spare"].preemptible
    assert not site.targets["spare"].requeue


def test_the_draft_agrees_with_its_slurm(tmp_path: Path) -> None:
    site, _ = draft(tmp_path, texts.FACTS)
    wrong = [finding for finding in check_site(site, texts.FACTS) if finding.wrong]
    assert [(finding.target, finding.key) for finding in wrong] == [("old", "partition")]  # which is down


def test_every_value_says_where_it_came_from(tmp_path: Path) -> None:
    _, text = draft(tmp_path, texts.FACTS)
    values = [line for line in text.splitlines() if " = " in line and not line.startswith("#")]
    assert [line for line in values if "  # " not in line and not line.startswith("kind")] == []
    assert "verified = false" in text


@pytest.mark.parametrize(
    ("pmi", "default", "mpiexec", "launcher", "chosen"),
    [
        (("pmix", "none"), "none", True, "mpiexec", None),
        (("none", "pmi2", "pmix"), "none", False, "srun", "pmix"),
        (("none", "pmi2", "pmix"), "pmi2", False, "srun", "pmi2"),
        (("pmix", "pmix_v4"), "pmix_v4", False, "srun", "pmix"),
        (("none",), "none", False, "mpiexec", None),
        (None, "none", False, "mpiexec", None),
    ],
)
def test_the_guess_at_a_launcher(
    tmp_path: Path, pmi: tuple[str, ...] | None, default: str, mpiexec: bool, launcher: str, chosen: str | None
) -> None:
    facts = texts.without(pmi=pmi, config={**texts.FACTS.config, "MpiDefault": default})
    site, _ = draft(tmp_path, facts, has_mpiexec=mpiexec)
    assert (site.targets["cpu"].launcher, site.targets["cpu"].pmi) == (launcher, chosen)


def test_kinds_that_nothing_tells_apart_are_described_by_the_poorest() -> None:
    sizes = {"a": (8, 1000), "b": (4, 2000), "c": (8, 1000)}
    nodes = [NodeInfo(name, cpus=cpus, memory_mb=memory) for name, (cpus, memory) in sizes.items()]
    (kind,) = kinds_of(nodes)
    assert kind.first.name == "b"
    assert "poorest" in kind.also


def test_resources_tell_kinds_apart_where_features_do_not() -> None:
    gpu = (("gpu", "h100", 4),)
    kinds = kinds_of([NodeInfo("a", cpus=8), NodeInfo("b", cpus=8, gres=gpu), NodeInfo("c", cpus=8, gres=gpu)])
    assert {kind.suffix: len(kind.nodes) for kind in kinds} == {"": 1, "-h100": 2}


def test_only_devices_are_asked_for_by_every_job(tmp_path: Path) -> None:
    from dataclasses import replace

    gres = (
        ("gpu", "a100", 4), ("mps", "", 400), ("shard", "", 16), ("craynetwork", "", 4), ("nvme", "", 3600),
        ("lscratch", "", 800), ("fpga", "", 2), ("ve", "", 8), ("blocks", "", 5000),
    )  # fmt: skip
    nodes = tuple(replace(n, gres=gres) if n.name == "gn1" else n for n in texts.FACTS.nodes)
    site, text = draft(tmp_path, texts.without(nodes=nodes))
    (target,) = [each for name, each in site.targets.items() if name.startswith("gpu") and each.gres]
    assert target.gres == {"fpga": 2, "ve": 8}
    (left,) = [line for line in text.splitlines() if line.startswith("# gres = ")]
    assert "mps = 400, shard = 16, craynetwork = 4, nvme = 3600, lscratch = 800, blocks = 5000" in left
    assert "left out" in left


def test_what_is_not_drafted_makes_no_kind_of_its_own() -> None:
    gpu = ("gpu", "", 4)
    (kind,) = kinds_of(
        [NodeInfo("a", cpus=8, gres=(gpu,)), NodeInfo("b", cpus=8, gres=(gpu, ("nvme", "", 960)))]
    )
    assert len(kind.nodes) == 2


NAMES = st.text(st.characters(blacklist_categories=("Cs", "Cc", "Zs", "Zl", "Zp")), min_size=1, max_size=12)


@given(cluster=NAMES, partition=NAMES, account=NAMES)
def test_any_name_goes_into_the_file_and_back(
    tmp_path_factory: pytest.TempPathFactory, cluster: str, partition: str, account: str
) -> None:
    from dataclasses import replace

    node = replace(texts.FACTS.nodes[0], partitions=(partition,))
    info = replace(texts.FACTS.partitions[0], name=partition)
    config = {**texts.FACTS.config, "ClusterName": cluster}
    facts = texts.without(partitions=(info,), nodes=(node,), config=config, default_account=account)
    if not (cluster.isprintable() and partition.isprintable() and account.isprintable()):
        return
    site, _ = draft(tmp_path_factory.mktemp("draft"), facts)
    (target,) = site.targets.values()
    assert (site.name, target.partition, target.account) == (cluster, partition, account)
