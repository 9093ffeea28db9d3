"""What the Triton kernels become on GPUs that need not be here.

Each kernel is compiled ahead of time for sm_80, sm_90 and sm_100, and read with the `cuobjdump` that triton's wheel
carries: registers, spills, shared memory, and what is in the innermost loops. The bytes of `sparse_kernel` are counted
from its own loads and stores (`benchmarks.triton_traffic`). Beside the time that these bytes take stands the one that
`benchmarks.gpu.roofline` models for an H200 from latencies and gathers. Both are models, and not timings.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from benchmarks.gpu.roofline import H200, sparse_us
from benchmarks.triton_traffic import DTYPES, EXPERTS, Layer, ideal_bytes, ratios
from kernels.attention.rotary_triton import rotary_kernel
from kernels.expert_linear.bank import ROW_BLOCK
from kernels.expert_linear.low_rank_triton import COLUMNS, RANKS, STAGES, shrink_kernel
from kernels.expert_linear.residual_triton import ROWS, SHRINKING_ROWS, residual_kernel
from kernels.expert_linear.sparse_triton import SPARSE, sparse_kernel
from kernels.expert_linear.tiles import TILE, WORDS
from kernels.gated_triton import gated_kernel
from kernels.norm_triton import add_norm_kernel

BANDWIDTH = {80: 2039e9, 90: 3350e9, 100: 8000e9}
"""Bytes a second of the memory of an A100 80 GB, an H100 and a B200 (SXM), by NVIDIA's data sheets."""
POINTERS = {
    "index": "*u16",
    "places": "*i64",
    **dict.fromkeys(("ranks", "tiles", "token", "slots"), "*i32"),
    **dict.fromkeys(("scale", "u", "gate", "gates", "delta", "query_delta", "key_delta"), "*fp32"),
}
OPERANDS = (
    *("x", "y", "bias", "made", "weight", "stream", "gate_up", "out"),
    *("query", "key", "cos", "sin", "key_cache", "value_cache", "query_weight", "key_weight"),
)
FLOATS = ("factor", "eps", "offset")
MULTIPLES = ("rows", "columns", "x_stride", "directions", "elements", "size", "stride")
"""Arguments that are multiples of 16 in every model's layers. Triton finds that at launch and specialises them."""


@dataclass(frozen=True)
class Loop:
    """What is in an innermost loop that loads from memory.

    Attributes:
        instructions: all of them.
        loads: from memory.
        in_flight: loads before the first number is used.
        ahead: loads into shared memory for a later turn, for which this turn does not wait.
        barriers: waits of a block's warps for each other.
        shuffles: exchanges between the lanes of a warp.
        shared: loads from and stores to shared memory.
    """

    instructions: int
    loads: int
    in_flight: int
    ahead: int
    barriers: int
    shuffles: int
    shared: int


@dataclass(frozen=True)
class Compiled:
    """One kernel on one architecture.

    Attributes:
        name: the kernel, and what it is compiled for.
        target: the architecture.
        registers: a thread's.
        spills: instructions that keep registers in local memory.
        shared_bytes: a block's shared memory.
        barriers: in the whole kernel.
        multiplies: tensor-core instructions.
        loops: the innermost ones.
        bytes_vs_ideal: bytes moved, by each operand once; None if they are not counted.
        bytes_us: the time that the bytes take at the card's bandwidth; a model, not a timing.
        latency_us: the time with latencies and gathers, on an H200; a model, not a timing.
    """

    name: str
    target: str
    registers: int
    spills: int
    shared_bytes: int
    barriers: int
    multiplies: int
    loops: tuple[Loop, ...]
    bytes_vs_ideal: float | None = None
    bytes_us: float | None = None
    latency_us: float | None = None


def compile_sparse(layer: Layer, capability: int, bytes_vs_ideal: float) -> Compiled:
    """`sparse_kernel` for a layer."""
    constants = {
        "HAS_BIAS": False,
        "HAS_SCALE": layer.values == "i8",
        "FIRST": True,
        "LAST": True,
        "ROWS": SPARSE.rows,
        "UNROLL": SPARSE.unroll,
        "ROW_BLOCK": ROW_BLOCK,
        "WORDS": WORDS,
    }
    types = {"value": f"*{layer.values}", "table": "*i32", "sums": f"*{layer.dtype}"}
    name = f"sparse_kernel {layer.rows}x{layer.columns} T={layer.tokens} {layer.dtype}, experts {layer.values}"
    options = {"num_warps": SPARSE.warps, "num_stages": 1}
    made = compile_kernel(name, sparse_kernel, constants, types, layer.dtype, capability, options)
    shape, value_bytes = (layer.rows, layer.columns), DTYPES[layer.values].itemsize
    return Compiled(
        **{
            **{field: getattr(made, field) for field in made.__dataclass_fields__},
            "bytes_vs_ideal": round(bytes_vs_ideal, 4),
            "bytes_us": round(bytes_vs_ideal * ideal_bytes(layer) / BANDWIDTH[capability] * 1e6, 2),
            "latency_us": round(sparse_us(H200, shape, layer.tokens, min(EXPERTS, layer.tokens), value_bytes), 2),
        }
    )


def compile_kernel(
    name: str,
    kernel: Any,
    constants: Mapping[str, Any],
    types: Mapping[str, str],
    dtype: str,
    capability: int,
    options: Mapping[str, Any],
) -> Compiled:
    """Compile a kernel and read its machine code.

    Args:
        name: what it is called in the report.
        kernel: the jitted function.
        constants: its compile-time constants.
        types: of its arguments, if they are not those of `POINTERS`, `OPERANDS` and `FLOATS`, or int32.
        dtype: of activations.
        capability: of the architecture.
        options: warps and stages.
    """
    known = {**POINTERS, **dict.fromkeys(OPERANDS, f"*{dtype}"), **dict.fromkeys(FLOATS, "fp32"), **types}
    signature = {name: "constexpr" if name in constants else known.get(name, "i32") for name in kernel.arg_names}
    specialised = {parameter.name for parameter in kernel.params if not parameter.do_not_specialize}
    attributes = {
        (place,): [["tt.divisibility", 16]]
        for place, argument in enumerate(kernel.arg_names)
        if signature[argument].startswith("*") or (argument in MULTIPLES and argument in specialised)
    }
    source = ASTSource(fn=kernel, signature=signature, constexprs=dict(constants), attrs=attributes)
    made = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=dict(options))
    usage, assembly = _disassemble(made.asm["cubin"])
    instructions = _instructions(assembly)
    return Compiled(
        name=name,
        target=f"sm_{capability}",
        registers=_registers(usage),
        spills=sum(one.startswith(("STL", "LDL")) for _, one in instructions),
        shared_bytes=int(made.metadata.shared),
        barriers=sum(one.startswith("BAR") for _, one in instructions),
        multiplies=sum(bool(re.match(r"HMMA|HGMMA|UTCHMMA|DMMA|IMMA", one)) for _, one in instructions),
        loops=tuple(loop for loop in _loops(instructions) if loop.loads),
    )


def _instructions(assembly: str) -> list[tuple[int, str]]:
    """Addresses and instructions, without the conditions before them."""
    found = re.findall(r"/\*([0-9a-f]{4,})\*/\s+(?:@!?U?P\w+\s+)?([A-Z][^;]*);", assembly)
    return [(int(address, 16), text.strip()) for address, text in found]


def _loops(instructions: list[tuple[int, str]]) -> list[Loop]:
    """The innermost loops: the instructions between a backward branch and its target, without another such branch."""
    spans = []
    for address, text in instructions:
        target = re.match(r"BRA\S*\s.*?0x([0-9a-f]+)", text)
        if target is not None and int(target.group(1), 16) < address:
            spans.append((int(target.group(1), 16), address))
    inner = [
        one for one in spans if not any(one != other and one[0] <= other[0] and other[1] <= one[1] for other in spans)
    ]
    return [_loop([text for address, text in instructions if first <= address <= last]) for first, last in inner]


def _loop(texts: list[str]) -> Loop:
    loads = [place for place, text in enumerate(texts) if re.match(r"LDG(STS)?\b|UTMALDG", text)]
    arithmetic = [place for place, text in enumerate(texts) if re.match(r"FFMA|FMUL|FADD|HMMA|HGMMA|LDSM", text)]
    first = arithmetic[0] if arithmetic else len(texts)
    return Loop(
        instructions=len(texts),
        loads=len(loads),
        in_flight=sum(place < first for place in loads),
        ahead=sum(texts[place].startswith(("LDGSTS", "UTMALDG")) for place in loads),
        barriers=sum(text.startswith("BAR") for text in texts),
        shuffles=sum(text.startswith("SHFL") for text in texts),
        shared=sum(bool(re.match(r"LDS\b|LDS\.|LDSM|STS", text)) for text in texts),
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


LAYERS = [
    *(Layer(rows, columns, 8, "bf16", "bf16") for rows, columns in ((896, 896), (896, 4864))),
    *(Layer(rows, columns, 8, "bf16", "i8") for rows, columns in ((4096, 4096), (28672, 4096), (4096, 14336))),
    Layer(4096, 4096, 64, "bf16", "i8"),
    Layer(4096, 4096, 8, "fp32", "fp32"),
]
"""Layers as they are served, with eight experts of 1 % in the batch."""

_LOW_RANK = {"TOKENS": TILE, "RANKS": RANKS, "SPLITS": 4, "WORDS": WORDS, "WIDEN": False, "COLUMNS": COLUMNS}
_FLAGS = {"SPARSE": False, "SHRINKS": False, "HAS_BIAS": False, "HAS_SCALE": False, "FIRST": True, "LAST": True}
_PARTS = {**_LOW_RANK, **_FLAGS, "ROWS": ROWS, "UNROLL": SPARSE.unroll, "ROW_BLOCK": ROW_BLOCK}
_BOTH = {**_PARTS, "SPARSE": True, "HAS_SCALE": True, "ROWS": SPARSE.rows}
_FACTORS = {"table": "*i64", "a": "*bf16", "b": "*bf16", "sums": "*fp32", "value": "*i8", "row_scale": "*fp32"}
_HEADS = {
    "NORMED": False,
    "QUERY_DELTA": False,
    "KEY_DELTA": False,
    "HAS_OFFSET": False,
    "HEADS": 32,
    "KV_HEADS": 8,
    "DIM": 128,
    "ROTATED": 128,
    "BLOCK": 128,
}
OTHERS: tuple[tuple[str, Any, dict[str, Any], dict[str, str], int], ...] = (
    ("shrink_kernel, bf16 factors", shrink_kernel, _LOW_RANK, _FACTORS, 4),
    ("residual_kernel, factors", residual_kernel, _PARTS, _FACTORS, 4),
    (
        *("residual_kernel, factors, shrinking", residual_kernel),
        *({**_PARTS, "SHRINKS": True, "ROWS": SHRINKING_ROWS}, _FACTORS, 8),
    ),
    ("residual_kernel, entries and factors", residual_kernel, _BOTH, _FACTORS, 4),
    (
        *("residual_kernel, entries and factors, shrinking", residual_kernel),
        *({**_BOTH, "SHRINKS": True}, _FACTORS, 4),
    ),
    (
        *("add_norm_kernel 4096, with deltas", add_norm_kernel),
        {"SIZE": 4096, "HEADS": 1, "HAS_MADE": True, "HAS_DELTA": True, "HAS_OFFSET": False, "BLOCK": 4096},
        *({}, 8),
    ),
    (
        *("rotary_kernel, 32 and 8 heads of 128", rotary_kernel),
        _HEADS,
        *({"value": "*bf16"}, 1),
    ),
    (
        *("rotary_kernel, with norms and deltas", rotary_kernel),
        {**_HEADS, "NORMED": True, "QUERY_DELTA": True, "KEY_DELTA": True},
        *({"value": "*bf16"}, 1),
    ),
    ("gated_kernel", gated_kernel, {"GELU": False, "BLOCK": 1024}, {}, 4),
)
"""The other kernels: their name, constants, types and warps."""


def report() -> list[Compiled]:
    """Every kernel on every architecture."""
    moved = ratios(LAYERS)
    sparse = [
        compile_sparse(layer, target, ratio) for layer, ratio in zip(LAYERS, moved, strict=True) for target in BANDWIDTH
    ]
    return sparse + [other(number, target) for number in range(len(OTHERS)) for target in BANDWIDTH]


def other(number: int, capability: int) -> Compiled:
    """One of the other kernels."""
    name, kernel, constants, types, warps = OTHERS[number]
    return compile_kernel(
        name, kernel, constants, types, "bf16", capability, {"num_warps": warps, "num_stages": STAGES}
    )


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.compile_report", description=__doc__)
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    options = parser.parse_args()
    compiled = report()
    if options.json:
        print(json.dumps({"triton": triton.__version__, "kernels": [asdict(one) for one in compiled]}))
        return
    print(f"triton {triton.__version__}; times are modelled, not timed")
    for one in compiled:
        times = ""
        if one.bytes_us is not None:
            times = f"; bytes {one.bytes_vs_ideal:.3f} of ideal, {one.bytes_us} us; with latencies {one.latency_us} us"
        print(
            f"{one.name} {one.target}: {one.registers} registers, {one.spills} spills, {one.shared_bytes} B shared, "
            f"{one.barriers} barriers, {one.multiplies} tensor-core{times}"
        )
        for loop in one.loops:
            print(
                f"    loop of {loop.instructions}: {loop.loads} loads, {loop.in_flight} in flight, {loop.ahead} ahead, "
                f"{loop.barriers} barriers, {loop.shuffles} shuffles, {loop.shared} shared"
            )


if __name__ == "__main__":
    main()
