"""Whether an ONNX file runs on any CPU: its operators held against those of ONNX Runtime.

The kernels of ONNX's own domains are registered alike on x86-64 and arm64 (what differs between them is in
Microsoft's domains: forms of convolutions and products laid out for one processor). So an operator that is
there here, for this opset and in a graph that nothing was exchanged in, is there on arm64.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from hpcmass.errors import RecipeError
from hpcmass.train.exported import onnxruntime
from hpcmass.train.onnx_wire import read_onnx

STANDARD = ("", "ai.onnx.ml")


@dataclass(frozen=True)
class Portability:
    """What a file needs.

    Attributes:
        opsets: Version of each domain of operators, `ai.onnx` and perhaps `ai.onnx.ml`.
        operators: Names of all operators, those of other domains than ONNX's own with it in front.
        ir_version: Of the format.
    """

    opsets: dict[str, int]
    operators: tuple[str, ...]
    ir_version: int

    def to_json(self) -> dict[str, Any]:
        """As in `signature.json`."""
        return {
            "opset": self.opsets,
            "operators": list(self.operators),
            "ir_version": self.ir_version,
            "architectures": ["x86_64", "aarch64"],
        }


def check_portable(data: bytes) -> Portability:
    """Refuse a file with operators that ONNX Runtime's CPU provider lacks, or has on some processors alone.

    Raises:
        RecipeError: It has such; they are named.
        ValueError: It is no ONNX file.
    """
    facts = read_onnx(data)
    foreign = sorted(_named(one) for one in facts.operators if one[0] not in STANDARD)
    if foreign:
        raise RecipeError(
            f"the exported model has operators that are not ONNX's own: {', '.join(foreign)}",
            hint="they run in some builds and on some processors only",
        )
    kernels = cpu_kernels()
    missing = sorted(
        _named((domain, name))
        for domain, name in facts.operators
        if not any(
            first <= facts.opsets.get(domain, 1) <= last for first, last in kernels.get((domain, name), ())
        )
    )
    if missing:
        raise RecipeError(
            f"ONNX Runtime has no CPU kernel of {', '.join(missing)} for opset {facts.opsets.get('', 1)}"
        )
    used = {domain for domain, _ in facts.operators}
    return Portability(
        {domain or "ai.onnx": version for domain, version in sorted(facts.opsets.items()) if domain in used},
        tuple(sorted(map(_named, facts.operators))),
        facts.ir_version,
    )


def cpu_kernels() -> dict[tuple[str, str], list[tuple[int, int]]]:
    """First and last opset of each kernel of the CPU provider, by the operator's domain and name."""
    runtime = onnxruntime()
    found: dict[tuple[str, str], list[tuple[int, int]]] = {}
    for kernel in runtime.capi.onnxruntime_pybind11_state.get_all_opkernel_def():
        if kernel.provider == "CPUExecutionProvider":
            first, last = kernel.version_range
            domain = "" if kernel.domain == "ai.onnx" else kernel.domain
            found.setdefault((domain, kernel.op_name), []).append((int(first), int(last)))
    return found


def _named(operator: tuple[str, str]) -> str:
    return operator[1] if not operator[0] else f"{operator[0]}:{operator[1]}"
