"""How a probe's report reads on a terminal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import click

from hpcmass.cli.console import relative, table
from hpcmass.workflow.probe import Probe


def show_probe(probe: Probe) -> None:
    """One target: what its nodes are, how ranks start on them, what works, how fast."""
    report = probe.report
    job = f", job {probe.job_id}" if probe.job_id else ""
    click.echo(
        f"\n== target {probe.target}{job}: " + ("probed" if probe.complete else f"not probed: {probe.why}")
    )
    if not report:
        return
    _nodes(report.get("topology", ()))
    _starts(report.get("starts", ()))
    chosen = next((s for s in report.get("starts", ()) if s["right"] and _is(s, report.get("chosen"))), None)
    if chosen is not None:
        _binding(chosen["binding"])
    _files(report.get("files", {}))
    for name, found in (("torch.distributed", report.get("torch")), ("Horovod", report.get("horovod"))):
        if found:
            _backend(name, found)
    click.echo(f"report: {relative(probe.folder / 'report.json')}")


def _is(start: dict[str, Any], chosen: dict[str, Any] | None) -> bool:
    return chosen is not None and (start["launcher"], start["pmi"]) == (chosen["launcher"], chosen["pmi"])


def _nodes(nodes: Sequence[dict[str, Any]]) -> None:
    rows = []
    for node in nodes:
        gpus = node.get("accelerators", ())
        shown = f"{len(gpus)} × {gpus[0]['name']}" if gpus else "none seen"
        cores = f"{node['sockets']} × {node['cores'] // max(1, node['sockets'])}"
        rows.append(
            (
                node["node"],
                node["cpu"],
                cores,
                node["threads"],
                node["numa"],
                node["memory_gb"],
                node["allowed_cores"],
                shown,
            )
        )
    table(rows, ["node", "CPU", "sockets × cores", "threads", "NUMA", "GB", "allowed", "accelerators"])


def _starts(starts: Sequence[dict[str, Any]]) -> None:
    rows = []
    for start in starts:
        speed = start.get("measured") or {}
        cells = []
        for where in ("within a node", "between nodes"):
            found = speed.get(where)
            cells.append(f"{found['latency_us']:.1f} µs, {found['bandwidth_gb_s']:.2f} GB/s" if found else "-")
        rows.append(
            (start["name"], "right" if start["right"] else "WRONG", start["verdict"], start["seconds"], *cells)
        )
    table(rows, ["ranks started by", "", "what happened", "s", "within a node", "between nodes"])


def _binding(places: Sequence[dict[str, Any]]) -> None:
    rows = []
    for place in places:
        rows.append((place["rank"], place["node"], ranges(place["cores"]), accelerators(place["visible"])))
    table(rows, ["rank", "node", "cores", "accelerators"])


def _files(files: dict[str, dict[str, Any]]) -> None:
    rows = []
    for name, found in files.items():
        if "why" in found:
            rows.append((name, found["folder"], found["why"], "-", "-", "-"))
        else:
            speeds = [round(found[key]) for key in ("write_mb_s", "read_mb_s", "creates_s", "stats_s")]
            rows.append((name, found["folder"], *speeds))
    table(rows, ["", "folder", "write MB/s", "read MB/s", "creates/s", "stats/s"])


def _backend(name: str, found: dict[str, Any]) -> None:
    words = "works" if found["works"] else f"does not work: {found.get('why', 'no reason known')}"
    if found["works"] and "first" in found:
        words += f" the second time; the first: {found['first']}"
    if name == "torch.distributed":
        words += f" ({found['backend']})"
        if found["backend"] != "nccl":
            words += "; NCCL was not tried: torch sees no GPU" if found.get("gpus_seen") in ([0], []) else ""
    click.echo(f"{name}: {words}")
    if "import_s" in found:
        imports, alive = found["import_s"], found["alive_s"]
        click.echo(
            f"import torch on all ranks: {imports['median']:.1f} s, slowest {imports['slowest']:.1f} s; "
            f"from the start of the process {alive['slowest']:.1f} s"
        )


def accelerators(visible: dict[str, str]) -> str:
    """`0,1 (CUDA_VISIBLE_DEVICES and 5 more)`: what variables of one value say is said once."""
    names: dict[str, list[str]] = {}
    for name, value in visible.items():
        names.setdefault(value, []).append(name)
    shown = [
        f"{value} ({group[0]}" + (f" and {len(group) - 1} more)" if group[1:] else ")")
        for value, group in names.items()
    ]
    return "; ".join(shown) or "-"


def show_summary(probes: Sequence[Probe]) -> None:
    """One line a target: how to start ranks there, and what works."""
    rows = []
    for probe in probes:
        report, chosen = probe.report, probe.chosen
        if chosen is None:
            why = _unchosen(report)
            rows.append((probe.target, "-", "-", "-", "-", "-", why))
            continue
        start = next(s for s in report["starts"] if s["right"] and _is(s, chosen))
        speed = (start.get("measured") or {}).get("between nodes") or {}
        latency = f"{speed['latency_us']:.1f} µs" if speed else "-"
        bandwidth = f"{speed['bandwidth_gb_s']:.2f} GB/s" if speed else "-"
        cells = [_works(report.get(name)) for name in ("torch", "horovod")]
        rows.append(
            (
                probe.target,
                start["name"],
                latency,
                bandwidth,
                *cells,
                "" if probe.complete else "not to its end",
            )
        )
    if any(probe.report.get("starts") for probe in probes):
        click.echo()
        table(rows, ["target", "ranks by", "latency", "bandwidth", "torch", "Horovod", ""])


def _unchosen(report: dict[str, Any]) -> str:
    """Why no way to start ranks was found."""
    if not report.get("starts"):
        return "not probed, see above"
    if report.get("ranks") == 1:
        return "one rank shows no PMI right; it takes two: cores, nodes, or --ranks-per-node 2"
    return "no way to start ranks is right"


def _works(found: dict[str, Any] | None) -> str:
    if not found:
        return "not tried"
    return f"{found.get('backend', '')} works".strip() if found["works"] else "does not work"


def ranges(numbers: Sequence[int]) -> str:
    """`0-3,8` for 0, 1, 2, 3, 8."""
    parts: list[list[int]] = []
    for number in sorted(numbers):
        if parts and number == parts[-1][-1] + 1:
            parts[-1] = [parts[-1][0], number]
        else:
            parts.append([number])
    return ",".join("-".join(map(str, part)) for part in parts)
