"""The linear layer with experts against torch's, against memory and against itself without experts.

Every variant of one layer is timed call by call in turn, over enough copies of the weights and of the experts that
none stays in the processor's caches, so what slows the machine for a while slows all of them. Figures are medians of
single calls; ratios are to the project's own plain product of the same layer and number of tokens.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from kernels.compiled import ISAS, library
from kernels.expert_linear import ExpertBank, ExpertBatch, LowRankBank, expert_linear
from kernels.patch import Patch, patch, unpatch
from serve.model.huge_pages import hold_together

SHAPES = ((896, 896), (896, 4864), (4864, 896), (4096, 4096), (4096, 11008), (11008, 4096))
"""Columns and rows: a 0.5 B and a 7 B model's layers."""
TOKENS = (1, 8, 64, 512)
EXPERTS = 8
DENSITY = 0.01
LOW_RANK = {"low_rank8_int8": (8, torch.int8), "lora16_bf16": (16, torch.bfloat16)}
"""Rank and dtype of the low-rank experts."""
COLD_BYTES = 320 << 20
DTYPE = torch.bfloat16

Call = Callable[[int], object]


@dataclass(frozen=True)
class Case:
    """One variant's figures.

    Attributes:
        shape: columns and rows.
        tokens: T.
        experts: none, one, distinct8 or zipf.
        mode: torch (its linear), plain (ours), fused, fused_int8 (experts in 8 bits), low_rank8_int8 and lora16_bf16
            (low-rank experts), patched (a product on patched weights), patch or unpatch.
        us: microseconds a call, median.
        ratio: us by the plain product's.
        floor_us: the time its bytes take at the bandwidth at which the run reads these weights: weights and each
            distinct expert once.
        floor_ratio: its bytes by the plain product's.
    """

    shape: tuple[int, int]
    tokens: int
    experts: str
    mode: str
    us: float
    ratio: float
    floor_us: float
    floor_ratio: float


@dataclass(frozen=True)
class Layer:
    """One layer many times over, so that no cache holds it.

    Attributes:
        weights: [copies, N, K], held as the engine holds a model's.
        patched: the same with an expert patched in.
        banks: for each copy a bank of experts.
        banks8: the same in 8 bits.
        low_rank: for each of `LOW_RANK` and each copy a bank of low-rank experts.
        rows: columns and values of the patched expert.
    """

    weights: Tensor
    patched: Tensor
    banks: list[ExpertBank]
    banks8: list[ExpertBank]
    low_rank: dict[str, list[LowRankBank]]
    rows: tuple[Tensor, Tensor]

    @classmethod
    def make(cls, columns: int, rows: int, device: str) -> Layer:
        """Random weights and experts, `COLD_BYTES` of weights at least."""
        copies = max(2, -(-COLD_BYTES // (columns * rows * DTYPE.itemsize)))
        weights = torch.empty(copies, rows, columns, dtype=DTYPE, device=device)
        hold_together([weights])
        weights.copy_((torch.randn(rows, columns) * columns**-0.5).to(DTYPE))
        entries = max(1, round(DENSITY * columns))
        bank = ExpertBank.allocate(EXPERTS, rows, columns, entries, DTYPE)
        bank8 = ExpertBank.allocate(EXPERTS, rows, columns, entries, torch.int8)
        for slot in range(EXPERTS):
            stride = columns // entries
            index = torch.randint(stride, (rows, entries)) + stride * torch.arange(entries)
            value = torch.randn(rows, entries) * 0.01
            bank.load(slot, index, value)
            scale = value.abs().amax(1) / 127
            bank8.load(slot, index, (value / scale[:, None]).round().to(torch.int8), scale)
        banks, banks8 = ([_copy(one, device) for _ in range(copies)] for one in (bank, bank8))
        low_rank = {name: _low_rank_banks(rows, columns, copies, device, *kind) for name, kind in LOW_RANK.items()}
        index, value = (part.to(device) for part in bank.rows(0))
        patched = torch.empty_like(weights)
        hold_together([patched])
        patched.copy_(weights)
        for one in patched:
            patch(one, index, value)
        return cls(weights, patched, banks, banks8, low_rank, (index, value))


def _copy(bank: ExpertBank, device: str) -> ExpertBank:
    scale = None if bank.scale is None else bank.scale.clone().to(device)
    index, value = bank.index.clone().to(device), bank.value.clone().to(device)
    return ExpertBank(index, value, scale, bank.out_features, bank.in_features)


def _low_rank_banks(
    rows: int, columns: int, copies: int, device: str, rank: int, dtype: torch.dtype
) -> list[LowRankBank]:
    """A bank of full slots for each copy, of the same random factors."""
    made: list[LowRankBank] = []
    parts = [(torch.randn(rank, columns) * columns**-0.5, torch.randn(rows, rank)) for _ in range(EXPERTS)]
    for _ in range(copies):
        bank = LowRankBank.allocate(EXPERTS, [(rows, rank)], columns, dtype, device)
        for slot, (a, b) in enumerate(parts):
            if dtype == torch.int8:
                of_a, of_b = a.abs().amax(1) / 127, b.abs().amax(0) / 127
                eight_bits = ((a / of_a[:, None]).round().to(dtype), (b / of_b).round().to(dtype))
                bank.load(slot, [(*eight_bits, 0.01 * of_a * of_b)])
            else:
                bank.load(slot, [(a.to(dtype), b.to(dtype), torch.full((rank,), 0.01))])
        made.append(bank)
    return made


@dataclass(frozen=True)
class Clock:
    """Times single calls on a device."""

    device: str

    def once(self, call: Callable[[], object]) -> float:
        """Microseconds of one call."""
        if self.device == "cpu":
            start = time.perf_counter()
            call()
            return (time.perf_counter() - start) * 1e6
        start_event: Any = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        end_event: Any = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        start_event.record()
        call()
        end_event.record()
        end_event.synchronize()
        return float(start_event.elapsed_time(end_event)) * 1e3

    def interleaved(self, variants: dict[str, Call], copies: int, rounds: int) -> dict[str, float]:
        """Median microseconds of each variant; every round calls each on every copy, one variant after another."""
        taken: dict[str, list[float]] = {name: [] for name in variants}
        for call in variants.values():
            self.once(partial(call, 0))
        for _ in range(rounds):
            for name, call in variants.items():
                taken[name] += [self.once(partial(call, copy)) for copy in range(copies)]
        return {name: statistics.median(times) for name, times in taken.items()}


def slots_of(experts: str, tokens: int) -> list[int]:
    """Every token's slot."""
    if experts == "none":
        return [-1] * tokens
    if experts == "one":
        return [0] * tokens
    if experts == "distinct8":
        return [token % EXPERTS for token in range(tokens)]
    weights = torch.tensor([1.0 / (rank + 1) for rank in range(EXPERTS)])
    drawn = torch.multinomial(weights, tokens, replacement=True, generator=torch.Generator().manual_seed(tokens))
    return [int(slot) for slot in drawn]


def measure_layer(columns: int, rows: int, tokens: tuple[int, ...], rounds: int, clock: Clock) -> list[Case]:
    """All cases of one shape."""
    layer = Layer.make(columns, rows, clock.device)
    copies = len(layer.weights)
    cases = []
    for count in tokens:
        x = torch.randn(count, columns).to(DTYPE).to(clock.device)
        variants, distinct = _variants(layer, x, clock.device)
        variants["read", "read"] = partial(_read, layer.weights)
        named = {"/".join(key): call for key, call in variants.items()}
        repeats = rounds if count < 512 else max(1, rounds // 8)
        times = clock.interleaved(named, copies, max(1, repeats * 4 // copies))
        bytes_a_us = layer.weights.nbytes / times.pop("read/read")
        if count == max(tokens):
            times |= _switching(layer, clock)
        weight_bytes = layer.weights[0].nbytes
        expert_bytes = {"fused": layer.banks[0].nbytes / EXPERTS, "fused_int8": layer.banks8[0].nbytes / EXPERTS}
        expert_bytes |= {name: banks[0].nbytes / EXPERTS for name, banks in layer.low_rank.items()}
        for name, us in times.items():
            experts, mode = name.split("/")
            moved = weight_bytes + expert_bytes.get(mode, 0) * distinct.get(experts, 0)
            cases.append(
                Case(
                    (columns, rows), count, experts, mode, round(us, 1), round(us / times["none/plain"], 4),
                    round(moved / bytes_a_us, 1), round(moved / weight_bytes, 4),
                )
            )  # fmt: skip
    return cases


def _variants(layer: Layer, x: Tensor, device: str) -> tuple[dict[tuple[str, str], Call], dict[str, int]]:
    tokens = x.shape[0]
    variants: dict[tuple[str, str], Call] = {
        ("none", "torch"): lambda copy: F.linear(x, layer.weights[copy]),
        ("none", "plain"): lambda copy: expert_linear(x, layer.weights[copy]),
        ("one", "patched"): lambda copy: expert_linear(x, layer.patched[copy]),
    }
    distinct = {}
    for experts in ("none", "one", "distinct8", "zipf"):
        slots = slots_of(experts, tokens)
        distinct[experts] = len(set(slots) - {-1})
        if tokens == 1 and experts in {"distinct8", "zipf"}:
            continue
        batch = ExpertBatch.from_slots(slots, device=device)
        variants[experts, "fused"] = partial(_fused, layer.weights, layer.banks, x, batch)
        if experts in {"one", "distinct8"} and tokens <= EXPERTS:
            variants[experts, "fused_int8"] = partial(_fused, layer.weights, layer.banks8, x, batch)
        if experts in {"one", "distinct8"}:
            for name, banks in layer.low_rank.items():
                variants[experts, name] = partial(_low_rank, layer.weights, banks, x, batch)
    return variants, distinct


def _fused(weights: Tensor, banks: list[ExpertBank], x: Tensor, batch: ExpertBatch, copy: int) -> Tensor:
    return expert_linear(x, weights[copy], None, banks[copy], batch)


def _low_rank(weights: Tensor, banks: list[LowRankBank], x: Tensor, batch: ExpertBatch, copy: int) -> Tensor:
    return expert_linear(x, weights[copy], None, None, batch, banks[copy])


def _read(weights: Tensor, copy: int) -> Tensor:
    del copy  # all of them, which no cache holds
    return weights.view(torch.int64).sum()


def _patch_into(made: list[Patch], weight: Tensor, rows: tuple[Tensor, Tensor]) -> None:
    made.append(patch(weight, *rows))


def _switching(layer: Layer, clock: Clock) -> dict[str, float]:
    put, taken = [], []
    made: list[Patch] = []
    for weight in layer.weights:
        put.append(clock.once(partial(_patch_into, made, weight, layer.rows)))
        taken.append(clock.once(partial(unpatch, weight, made.pop())))
    return {"one/patch": statistics.median(put), "one/unpatch": statistics.median(taken)}


def summarise(cases: list[Case]) -> dict[str, float | None]:
    """Medians over shapes of what the project promises."""

    def median(figure: Callable[[Case], float], tokens: int, experts: str, mode: str) -> float | None:
        found = [figure(case) for case in cases if (case.tokens, case.experts, case.mode) == (tokens, experts, mode)]
        return round(statistics.median(found), 4) if found else None

    return {
        "plain_vs_torch": median(lambda case: 1 / case.ratio, 1, "none", "torch"),
        "plain_vs_floor": median(lambda case: case.us / case.floor_us, 1, "none", "plain"),
        "none": median(lambda case: case.ratio, 1, "none", "fused"),
        "one_fused": median(lambda case: case.ratio, 1, "one", "fused"),
        "one_patched": median(lambda case: case.ratio, 1, "one", "patched"),
        "distinct8_fused": median(lambda case: case.ratio, 8, "distinct8", "fused"),
        "one_fused_int8": median(lambda case: case.ratio, 1, "one", "fused_int8"),
        "distinct8_fused_int8": median(lambda case: case.ratio, 8, "distinct8", "fused_int8"),
        "one_low_rank8_int8": median(lambda case: case.ratio, 1, "one", "low_rank8_int8"),
        "distinct8_low_rank8_int8": median(lambda case: case.ratio, 8, "distinct8", "low_rank8_int8"),
        "one_lora16_bf16": median(lambda case: case.ratio, 1, "one", "lora16_bf16"),
        "distinct8_lora16_bf16": median(lambda case: case.ratio, 8, "distinct8", "lora16_bf16"),
        "prefill512_lora16_bf16": median(lambda case: case.ratio, 512, "distinct8", "lora16_bf16"),
        "prefill512_fused": median(lambda case: case.ratio, 512, "distinct8", "fused"),
        "prefill512_patched": median(lambda case: case.ratio, 512, "one", "patched"),
    }


def measure(quick: bool, device: str) -> dict[str, Any]:
    """Run the benchmark: the document that `--json` prints."""
    shapes = SHAPES[:4] if quick else SHAPES
    tokens = (1, 8, 512) if quick else TOKENS
    clock = Clock(device)
    cases = [case for shape in shapes for case in measure_layer(*shape, tokens, 5 if quick else 24, clock)]
    kernels = library()
    plain = [case for case in cases if case.mode == "plain"]
    read = [case.shape[0] * case.shape[1] * DTYPE.itemsize / case.floor_us / 1e3 for case in plain]
    return {
        "device": device,
        "threads": torch.get_num_threads(),
        "kernels": "triton" if device == "cuda" else ISAS[kernels.isa] if kernels else "torch",
        "density": DENSITY,
        "dtype": "bfloat16",
        "read_gbps": round(statistics.median(read), 1),
        "cases": [asdict(case) for case in cases],
        "summary": summarise(cases),
    }


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.expert_linear", description=__doc__)
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    parser.add_argument("--quick", action="store_true", help="four shapes, fewer repetitions")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    options = parser.parse_args()
    report = measure(options.quick, options.device)
    if options.json:
        print(json.dumps(report))
        return
    print(f"{report['kernels']}, {report['threads']} threads, reads at {report['read_gbps']} GB/s")
    print(f"{'columns x rows':>14} {'tokens':>6} {'experts':>9} {'mode':>14} {'us':>9} {'ratio':>7} {'floor':>6}")
    for case in report["cases"]:
        shape = f"{case['shape'][0]} x {case['shape'][1]}"
        print(
            f"{shape:>14} {case['tokens']:>6} {case['experts']:>9} {case['mode']:>14} {case['us']:>9.1f} "
            f"{case['ratio']:>7.3f} {case['floor_ratio']:>6.3f}"
        )
    for name, figure in report["summary"].items():
        print(f"{name}: {figure}")


if __name__ == "__main__":
    main()
