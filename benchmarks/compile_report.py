"""What the Triton kernels become on GPUs that need not be here.

Each kernel is compiled ahead of time for sm_80, sm_90 and sm_100, and read with the `cuobjdump` that triton's wheel
carries: registers, spills, shared memory, and how wide the instructions that fetch from memory are.
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

from kernels.expert_linear import triton as expert_linear
from kernels.expert_linear.bank import ROW_BLOCK

CAPABILITIES = (80, 90, 100)
POINTERS = {"index": "*u16", "group_slot": "*i32", "group_start": "*i32", "group_token": "*i32"}
FLOATS = {"scale": "*fp32", "group_gate": "*fp32"}
OPERANDS = ("x", "weight", "bias", "y")


@dataclass(frozen=True)
class Compiled:
    """One kernel on one architecture.

    Attributes:
        kernel: its name.
        rows: rows of the layer that its tiles are chosen for.
        dtype: of weights and tokens.
        values: how the experts are stored.
        sm: compute capability.
        registers: a thread's.
        spills: instructions that keep registers in local memory.
        shared_bytes: a block's shared memory.
        loads: fetching instructions by name, such as LDGSTS.E.BYPASS.128, and how many there are.
        multiplies: tensor-core instructions.
    """

    kernel: str
    rows: int
    dtype: str
    values: str
    sm: int
    registers: int
    spills: int
    shared_bytes: int
    loads: dict[str, int]
    multiplies: int


def compile_kernel(kernel: Any, rows: int, dtype: str, values: str, capability: int) -> Compiled:
    """Compile one kernel and read its machine code."""
    decode = kernel is expert_linear.decode_kernel
    config = expert_linear.decode_config(rows) if decode else expert_linear.RESIDUAL_CONFIG
    constants: dict[str, Any] = {
        "HAS_BIAS": True,
        "HAS_SCALE": values == "i8",
        "WIDEN": False,
        "ROWS": config.rows,
        "COLUMNS": config.columns,
        "ENTRIES": config.entries,
        "TOKENS": expert_linear.TOKEN_TILE,
        "ROW_BLOCK": ROW_BLOCK,
    }
    constants = {name: value for name, value in constants.items() if name in kernel.arg_names}
    types = {**POINTERS, **FLOATS, **dict.fromkeys(OPERANDS, f"*{dtype}"), "value": f"*{values}"}
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
    name = kernel.fn.__name__
    usage, assembly = _disassemble(made.asm["cubin"])
    return Compiled(
        kernel=name,
        rows=rows,
        dtype=dtype,
        values=values,
        sm=capability,
        registers=_registers(usage),
        spills=len(re.findall(r"\b(?:STL|LDL)\b", assembly)),
        shared_bytes=int(made.metadata.shared),
        loads=dict(Counter(re.findall(r"\b(?:LDGSTS|LDG|UTMALDG)\.[A-Z0-9.]+", assembly)).most_common()),
        multiplies=len(re.findall(r"\b(?:HMMA|HGMMA|UTCHMMA|DMMA|IMMA)\b", assembly)),
    )


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


def report() -> list[Compiled]:
    """Every kernel, as served: bf16 layers of three sizes, bf16 and int8 experts; fp16 and fp32 once."""
    variants = [
        (expert_linear.decode_kernel, 896, "bf16", "bf16"),
        (expert_linear.decode_kernel, 4096, "bf16", "bf16"),
        (expert_linear.decode_kernel, 11008, "bf16", "bf16"),
        (expert_linear.decode_kernel, 4096, "bf16", "i8"),
        (expert_linear.decode_kernel, 4096, "fp16", "fp16"),
        (expert_linear.decode_kernel, 4096, "fp32", "fp32"),
        (expert_linear.residual_kernel, 4096, "bf16", "bf16"),
        (expert_linear.residual_kernel, 4096, "bf16", "i8"),
    ]
    return [compile_kernel(*variant, capability) for variant in variants for capability in CAPABILITIES]


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
            f"{one.kernel} N={one.rows} {one.dtype} experts {one.values} sm_{one.sm}: {one.registers} registers, "
            f"{one.spills} spills, {one.shared_bytes} B shared, {one.multiplies} tensor-core, {loads}"
        )


if __name__ == "__main__":
    main()
