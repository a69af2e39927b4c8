"""What kind of node this is: sockets, cores, NUMA, memory, accelerators, and what this process may use of it.

Read from /proc and /sys, and from `nvidia-smi` or `rocm-smi` where there is one. Standard library only.
"""

from __future__ import annotations

import json
import os
import platform
import re
import shutil
import socket
import subprocess
from pathlib import Path
from typing import Any

# What decides whether a program compiled for one x86 CPU runs on another.
VECTOR_FLAGS = (
    "sse4_2",
    "avx",
    "f16c",
    "fma",
    "bmi2",
    "avx2",
    "avx512f",
    "avx512bw",
    "avx512vl",
    "amx_bf16",
    "asimd",
    "sve",
)
VISIBLE = (
    "CUDA_VISIBLE_DEVICES",
    "ROCR_VISIBLE_DEVICES",
    "HIP_VISIBLE_DEVICES",
    "ZE_AFFINITY_MASK",
    "GPU_DEVICE_ORDINAL",
    "SLURM_STEP_GPUS",
    "SLURM_JOB_GPUS",
)


def node_name() -> str:
    """Slurm's name of this node, else the host name."""
    return os.environ.get("SLURMD_NODENAME") or socket.gethostname()


def node_facts(root: Path = Path("/")) -> dict[str, Any]:
    """Topology and software of this node, as values for JSON.

    Args:
        root: Where /proc and /sys lie.
    """
    cpu = cpu_facts(root)
    return {
        "node": node_name(),
        "host": socket.gethostname(),
        **cpu,
        "numa": numa_nodes(root),
        "memory_gb": round(memory_bytes(root) / 1e9, 1),
        "allowed_cores": len(os.sched_getaffinity(0)),
        "accelerators": accelerators(),
        "kernel": platform.release(),
        "glibc": platform.libc_ver()[1],
        "machine": platform.machine(),
    }


def cpu_facts(root: Path = Path("/")) -> dict[str, Any]:
    """Model, sockets, physical cores, hardware threads, and the vector instructions."""
    text = _read(root / "proc/cpuinfo")
    sockets: set[str] = set()
    cores: set[tuple[str, str]] = set()
    threads = 0
    for folder in sorted((root / "sys/devices/system/cpu").glob("cpu[0-9]*")):
        package = _read(folder / "topology/physical_package_id")
        if not package:
            continue
        threads += 1
        sockets.add(package)
        cores.add((package, _read(folder / "topology/core_id") or folder.name))
    model = re.search(r"^(?:model name|Model|cpu model)\s*:\s*(.+)$", text, re.M)
    return {
        "cpu": model[1].strip() if model else platform.machine(),
        "sockets": len(sockets) or 1,
        "cores": len(cores) or os.cpu_count() or 1,
        "threads": threads or os.cpu_count() or 1,
        "flags": cpu_flags(root),
    }


def cpu_flags(root: Path = Path("/")) -> list[str]:
    """Those of `VECTOR_FLAGS` that every CPU here has."""
    lines = re.findall(r"^(?:flags|Features)\s*:\s*(.+)$", _read(root / "proc/cpuinfo"), re.M)
    common = set.intersection(*(set(line.split()) for line in lines)) if lines else set()
    return [flag for flag in VECTOR_FLAGS if flag in common]


def numa_nodes(root: Path = Path("/")) -> int:
    """NUMA nodes; 1 where the kernel tells none."""
    return len(list((root / "sys/devices/system/node").glob("node[0-9]*"))) or 1


def memory_bytes(root: Path = Path("/")) -> int:
    """Memory of the node."""
    found = re.search(r"^MemTotal:\s+(\d+) kB", _read(root / "proc/meminfo"), re.M)
    return int(found[1]) * 1024 if found else 0


def accelerators() -> list[dict[str, str]]:
    """GPUs as their driver's program tells them: kind, name, memory, bus address."""
    query = ["nvidia-smi", "--query-gpu=name,memory.total,pci.bus_id,uuid", "--format=csv,noheader"]
    found = parse_nvidia(_ask(query))
    if not found:
        found = parse_rocm(_ask(["rocm-smi", "--showproductname", "--showbus", "--showuniqueid", "--json"]))
    return found


def gpu_drivers(root: Path = Path("/")) -> list[str]:
    """Whose GPU drivers are at work on this node: `nvidia`, `amd`."""
    found = {"nvidia": sorted((root / "dev").glob("nvidia[0-9]*")), "amd": sorted((root / "dev").glob("kfd"))}
    return [vendor for vendor, devices in found.items() if devices]


def parse_nvidia(text: str) -> list[dict[str, str]]:
    """The lines of `nvidia-smi --query-gpu=name,memory.total,pci.bus_id,uuid`."""
    found = []
    for line in text.splitlines():
        values = [value.strip() for value in line.split(",")]
        if len(values) == 4:
            name, memory, bus, uuid = values
            found.append({"kind": "nvidia", "name": name, "memory": memory, "bus": bus, "id": uuid})
    return found


def parse_rocm(text: str) -> list[dict[str, str]]:
    """The cards of `rocm-smi --json`."""
    try:
        cards = json.loads(text or "{}")
    except ValueError:
        return []
    found = []
    for name, card in sorted(cards.items()):
        if name.startswith("card") and isinstance(card, dict):
            product = card.get("Card Series") or card.get("Card series") or card.get("Card SKU") or name
            found.append(
                {
                    "kind": "amd",
                    "name": str(product),
                    "bus": str(card.get("PCI Bus", "")),
                    "id": str(card.get("Unique ID", "")),
                }
            )
    return found


def binding() -> dict[str, Any]:
    """What this process may use: cores by number, and what the launcher says of accelerators."""
    cores = sorted(os.sched_getaffinity(0))
    visible = {name: os.environ[name] for name in VISIBLE if name in os.environ}
    return {
        "node": node_name(),
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "cores": cores,
        "visible": visible,
    }


# What may follow a name, as in `libmpi_gnu_123.so.12` (Cray's) and in `libmpi-1a2b.so.12` (a wheel's copy).
_SUFFIX = r"(?P<parts>(_[a-z0-9]+)*)(-[0-9a-f.]+)?\.(so|[0-9])"
# Libraries beside an MPI that are none: Cray's GPU transport, Open MPI's and Intel's language bindings.
_NO_MPI = re.compile(r"_(gtl|cxx|mpifh|usempi[a-z0-9]*|java|ilp64|shm|memkind)(_|$)")


def loaded_library(stem: str) -> list[str]:
    """Paths of the shared libraries of this process that are called by a name, such as `libmpi`.

    A name may have a compiler's behind it (`libmpi_gnu_123.so.12`); `libmpi_gtl_cuda`, `libmpi_cxx`,
    `libmpifort` and the like are no MPI.
    """
    found = []
    for line in _read(Path("/proc/self/maps")).splitlines():
        path = line.partition("/")[2]
        fits = re.match(re.escape(stem) + _SUFFIX, Path(path).name) if path else None
        if fits is not None and not _NO_MPI.match(fits["parts"]):
            found.append("/" + path)
    return sorted(set(found))


def _ask(command: list[str]) -> str:
    if shutil.which(command[0]) is None:
        return ""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout if done.returncode == 0 else ""


def _read(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""
