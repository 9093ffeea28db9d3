"""What the Triton kernels become on GPUs that need not be here.

Each kernel is compiled ahead of time for sm_80, sm_90 and sm_100, and read with the `cuobjdump` that triton's wheel
carries: registers, spills, shared memory, and how wide the instructions that fetch from memory are. The bytes it moves
are counted from its own loads and stores (`benchmarks.triton_traffic`). The time given for them is a model, those bytes
at the card's bandwidth, and not a timing.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import tempfile
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from benchmarks.triton_traffic import Layer, ideal_bytes, ratios
from kernels.expert_linear import triton as expert_linear
from kernels.expert_linear.bank import ROW_BLOCK
from kernels.expert_linear.low_rank_triton import RANKS, TOKEN_TILE

BANDWIDTH = {80: 2039e9, 90: 3350e9, 100: 8000e9}
"""Bytes a second of the memory of an A100 80 GB, an H100 and a B200 (SXM), by NVIDIA's data sheets."""
POINTERS = {
    "index": "*u16",
    "ranks": "*i32",
    "table": "*i64",
    "group_slot": "*i32",
    "group_start": "*i32",
    "group_token": "*i32",
}
FLOATS = {"scale": "*fp32", "u": "*fp32", "group_gate": "*fp32"}
OPERANDS = ("x", "weight", "bias", "y")


@dataclass(frozen=True)
class Compiled:
    """One kernel on one architecture.

    Attributes:
        name: the kernel, the layer's rows and columns, tokens, and how weights and experts are stored.
        target: the architecture.
        registers: a thread's.
        spills: instructions that keep registers in local memory.
        shared_bytes: a block's shared memory.
        load_bits: width of the loads that stream the largest operand: the weights, in the residual kernel the experts.
        loads: fetching instructions by name, such as LDGSTS.E.BYPASS.128, and how many there are.
        multiplies: tensor-core instructions.
        bytes_vs_ideal: bytes moved, by each operand once.
        modelled_us: the time the bytes take at the card's bandwidth; a model, not a timing.
    """

    name: str
    target: str
    registers: int
    spills: int
    shared_bytes: int
    load_bits: int
    loads: dict[str, int]
    multiplies: int
    bytes_vs_ideal: float
    modelled_us: float


def compile_kernel(layer: Layer, capability: int, bytes_vs_ideal: float) -> Compiled:
    """Compile one kernel and read its machine code."""
    kernel: Any = getattr(expert_linear, layer.kernel)
    decode = kernel is expert_linear.decode_kernel
    config = expert_linear.decode_config(layer.rows) if decode else expert_linear.RESIDUAL_CONFIG
    constants: dict[str, Any] = {
        "HAS_BIAS": True,
        "HAS_SPARSE": True,
        "HAS_SCALE": layer.values == "i8",
        "HAS_LOW_RANK": False,
        "WIDEN": False,
        "ROWS": config.rows,
        "COLUMNS": config.columns,
        "ENTRIES": config.entries,
        "RANKS": RANKS,
        "TOKENS": TOKEN_TILE,
        "ROW_BLOCK": ROW_BLOCK,
    }
    constants = {name: value for name, value in constants.items() if name in kernel.arg_names}
    types = {**POINTERS, **FLOATS, **dict.fromkeys(OPERANDS, f"*{layer.dtype}")}
    types |= dict.fromkeys(("value", "b"), f"*{layer.values}")
    signature = {name: "constexpr" if name in constants else types.get(name, "i32") for name in kernel.arg_names}
    # Pointers and strides are multiples of 16 in every model's layers: what triton would find at launch.
    aligned = {*types, "columns", "rows", "x_stride", "weight_stride"}
    attributes = {
        (place,): [["tt.divisibility", 16]]
        for place, name in enumerate(kernel.arg_names)
        if name in aligned and name not in constants
    }
    source = ASTSource(fn=kernel, signature=signature, constexprs=constants, attrs=attributes)
    options = {"num_warps": config.warps, "num_stages": config.stages, "enable_fp_fusion": True}
    made = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)
    usage, assembly = _disassemble(made.asm["cubin"])
    loads = Counter(re.findall(r"\b(?:LDGSTS|LDG|UTMALDG)\.[A-Z0-9.]+", assembly))
    return Compiled(
        name=f"{layer.kernel} {layer.rows}x{layer.columns} T={layer.tokens} {layer.dtype}, experts {layer.values}",
        target=f"sm_{capability}",
        registers=_registers(usage),
        spills=len(re.findall(r"\b(?:STL|LDL)\b", assembly)),
        shared_bytes=int(made.metadata.shared),
        load_bits=_stream_bits(loads),
        loads=dict(loads.most_common()),
        multiplies=len(re.findall(r"\b(?:HMMA|HGMMA|UTCHMMA|DMMA|IMMA)\b", assembly)),
        bytes_vs_ideal=round(bytes_vs_ideal, 4),
        modelled_us=round(bytes_vs_ideal * ideal_bytes(layer) / BANDWIDTH[capability] * 1e6, 2),
    )


def _stream_bits(loads: Counter[str]) -> int:
    """The narrowest copy to shared memory, which is how weights are streamed; without one the widest load."""
    widths = {name: int(last) if (last := name.rsplit(".", 1)[1]).isdigit() else 32 for name in loads}
    copies = [bits for name, bits in widths.items() if name.startswith(("LDGSTS", "UTMALDG"))]
    return min(copies) if copies else max(widths.values())


def _registers(usage: str) -> int:
    found = re.search(r"\bREG:(\d+)", usage)
    if found is None:
        raise ValueError(f"cuobjdump gave no registers: {usage.strip()[:200]}")
    return int(found.group(1))


def _disassemble(cubin: bytes) -> tuple[str, str]:
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        outputs = [
            subprocess.run([tool, option, file.name], check=True, capture_output=True, text=True).stdout
            for option in ("-res-usage", "-sass")
        ]
    return outputs[0], outputs[1]


LAYERS = [
    *(Layer("decode_kernel", rows, columns, 8, "bf16", "bf16") for rows, columns in ((896, 896), (4864, 896))),
    *(Layer("decode_kernel", rows, columns, 8, "bf16", "bf16") for rows, columns in ((4096, 4096), (11008, 4096))),
    Layer("decode_kernel", 4096, 4096, 8, "bf16", "i8"),
    Layer("decode_kernel", 4096, 4096, 8, "fp16", "fp16"),
    Layer("decode_kernel", 4096, 4096, 8, "fp32", "fp32"),
    Layer("residual_kernel", 4096, 4096, 128, "bf16", "bf16"),
    Layer("residual_kernel", 4096, 4096, 128, "bf16", "i8"),
]
"""As served, with eight experts in the batch at 1 %."""


def report() -> list[Compiled]:
    """Every kernel on every architecture."""
    moved = ratios(LAYERS)
    return [
        compile_kernel(layer, capability, ratio)
        for layer, ratio in zip(LAYERS, moved, strict=True)
        for capability in BANDWIDTH
    ]


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.compile_report", description=__doc__)
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    options = parser.parse_args()
    compiled = report()
    if options.json:
        print(json.dumps({"triton": triton.__version__, "kernels": [asdict(one) for one in compiled]}))
        return
    print(f"triton {triton.__version__}")
    for one in compiled:
        loads = ", ".join(f"{name} x{count}" for name, count in one.loads.items())
        print(
            f"{one.name} {one.target}: {one.registers} registers, {one.spills} spills, {one.shared_bytes} B shared, "
            f"{one.load_bits}-bit stream, {one.multiplies} tensor-core, bytes {one.bytes_vs_ideal:.3f} of ideal, "
            f"modelled (not timed) {one.modelled_us} us; {loads}"
        )


if __name__ == "__main__":
    main()
