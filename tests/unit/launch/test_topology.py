"""Topology read from a /proc and /sys laid out as kernels do, and from what the drivers' programs print."""

from __future__ import annotations

import mmap
import os
import re
from pathlib import Path

import pytest

from hpcmass.launch.topology import binding, loaded_library, node_facts, numa_nodes, parse_nvidia, parse_rocm

CPUINFO = """\
processor\t: {}
model name\t: AMD EPYC 7763 64-Core Processor
flags\t\t: fpu sse4_2 avx f16c fma bmi2 avx2{}

"""


def node(root: Path) -> Path:
    """Two sockets of two cores of two threads, two NUMA nodes, 256 GB; one CPU lacks avx512f."""
    (root / "proc").mkdir(parents=True)
    (root / "proc/cpuinfo").write_text("".join(CPUINFO.format(n, " avx512f" if n else "") for n in range(8)))
    (root / "proc/meminfo").write_text("MemTotal:       250000000 kB\nMemFree: 1 kB\n")
    for cpu in range(8):
        folder = root / f"sys/devices/system/cpu/cpu{cpu}/topology"
        folder.mkdir(parents=True)
        (folder / "physical_package_id").write_text(f"{cpu % 4 // 2}\n")
        (folder / "core_id").write_text(f"{cpu % 2}\n")
    (root / "sys/devices/system/cpu/cpufreq").mkdir()
    for number in range(2):
        (root / f"sys/devices/system/node/node{number}").mkdir(parents=True)
    return root


def test_sockets_cores_threads_numa_memory(tmp_path: Path) -> None:
    facts = node_facts(node(tmp_path))
    assert (facts["sockets"], facts["cores"], facts["threads"], facts["numa"]) == (2, 4, 8, 2)
    assert facts["memory_gb"] == 256.0
    assert facts["cpu"] == "AMD EPYC 7763 64-Core Processor"


def test_a_flag_counts_only_when_every_cpu_has_it(tmp_path: Path) -> None:
    assert node_facts(node(tmp_path))["flags"] == ["sse4_2", "avx", "f16c", "fma", "bmi2", "avx2"]


def test_a_machine_that_tells_nothing_has_one_of_each(tmp_path: Path) -> None:
    facts = node_facts(tmp_path)
    assert (facts["sockets"], facts["numa"], facts["memory_gb"], facts["flags"]) == (1, 1, 0.0, [])
    assert numa_nodes(tmp_path) == 1


def test_this_machine_is_read() -> None:
    facts = node_facts()
    assert 1 <= facts["sockets"] <= facts["cores"] <= facts["threads"]
    assert facts["memory_gb"] > 0.1
    assert binding()["cores"] == sorted(os.sched_getaffinity(0))


def test_what_nvidia_smi_prints() -> None:
    line = "NVIDIA A100-SXM4-40GB, 40960 MiB, 00000000:{}:00.0, GPU-{}\n"
    text = line.format("03", 1) + line.format("41", 2)
    first, second = parse_nvidia(text)
    assert first == {"kind": "nvidia", "name": "NVIDIA A100-SXM4-40GB", "memory": "40960 MiB",
                     "bus": "00000000:03:00.0", "id": "GPU-1"}  # fmt: skip
    assert second["id"] == "GPU-2"
    assert parse_nvidia("No devices were found\n") == []


def test_what_rocm_smi_prints() -> None:
    text = '{"card0": {"Card Series": "MI250X", "PCI Bus": "0000:C1:00.0", "Unique ID": "0x1"}, "system": {}}'
    assert parse_rocm(text) == [{"kind": "amd", "name": "MI250X", "bus": "0000:C1:00.0", "id": "0x1"}]
    assert parse_rocm("ERROR: no driver") == []


def test_libraries_of_this_process_are_found_by_name() -> None:
    # More than one is possible: a wheel may bring a library of its own beside the system's.
    found = loaded_library("libc")
    assert found
    assert all(Path(each).exists() for each in found)
    assert all(re.match(r"libc[.-]", Path(each).name) for each in found), found
    assert loaded_library("libmpi_that_nobody_has") == []


CRAY = ["libmpi_gnu_91.so.12", "libmpi_gnu_123.so.12.0.0", "libmpi_cray.so.12", "libmpi_nvidia.so.12"]
OTHERS = ["libmpi.so.40", "libmpi-1a2b3c4d.so.12.4.1", "libmpi_abi.so.0", "libmpi_ibm.so.3"]
NONE = [
    "libmpi_gtl_cuda.so", "libmpi_gtl_hsa.so.0", "libmpicxx.so.12", "libmpifort_gnu_123.so.12", "libmpi_cxx.so.40",
    "libmpi_mpifh.so.40", "libmpi_usempif08.so.40", "libmpi_usempi_ignore_tkr.so.40", "libmpich_tools.so.1",
]  # fmt: skip


@pytest.mark.parametrize("name", [*CRAY, *OTHERS, *NONE])
def test_an_mpi_is_known_by_every_makers_name_and_what_lies_beside_it_is_none(
    tmp_path: Path, name: str
) -> None:
    file = tmp_path / name
    file.write_bytes(b"\x7fELF" + b"\0" * 4096)
    with file.open("rb") as opened, mmap.mmap(opened.fileno(), 0, prot=mmap.PROT_READ):
        found = [path for path in loaded_library("libmpi") if path.startswith(f"{tmp_path}/")]
    assert found == ([] if name in NONE else [str(file)])
