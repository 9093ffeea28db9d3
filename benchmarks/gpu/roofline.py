"""Floors of a decoding step on a card, by bytes, and a model of what this path takes. Nothing here is measured.

    python -m benchmarks.gpu.roofline

Every constant is named. Those of latency are read off the machine code that `python -m benchmarks.compile_report` shows
and published micro-benchmarks of Hopper; expect the model to be right within a factor of two.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass

from benchmarks.gpu.layers import DENSITY, LLAMA, QWEN


@dataclass(frozen=True)
class Card:
    """What a card can do: bytes/s by the sheet and as copied, bf16 operations/s, processors, and cycles/s."""

    sheet: float
    copied: float
    operations: float
    processors: int
    clock: float


@dataclass(frozen=True)
class Model:
    """A decoder: layers, the shapes of a layer's linears, vocabulary, hidden size, and keys and values of a token."""

    layers: int
    linears: tuple[tuple[int, int], ...]
    vocabulary: int
    hidden: int
    kv: int


H200 = Card(4.8e12, 4.3e12, 790e12, 132, 1.755e9)
MODELS = {
    "Llama-3.1-8B": Model(32, tuple(LLAMA.values()), 128_256, 4096, 2 * 8 * 128),
    "Qwen2.5-0.5B": Model(24, tuple(QWEN.values()), 151_936, 896, 2 * 2 * 64),
}

NODE = 1.8e-6
"""Seconds of a small kernel in a captured chain."""
LEAST_PRODUCT = 2.2e-6
"""Seconds of the smallest product."""
OPERATIONS = 13
"""Operations of a layer, if the experts' part is one launch for each linear layer."""
SMALL_KERNELS = 4
"""A layer's: two sums with their norms, the rotation with the cache, the activation."""
HOST = 1.5e-3
"""Seconds of the host's work for a step."""
MEMORY_LATENCY, CACHE_LATENCY = 600, 262
"""Cycles of a load from memory and from the second-level cache."""
GATHER = 20
"""Cycles of the first-level cache for 32 numbers at random places."""
IN_FLIGHT = 8
ROWS = 128
MEMBERS = 4
"""`sparse_kernel`'s launch: entries of a row in flight, rows of a program, tokens that an entry is loaded for."""
RESIDENT = 8
"""Programs of four warps and 64 registers on a processor at once."""
FACTOR_COLUMNS, FACTOR_RANKS, FACTOR_ROWS, FACTOR_PARTS = 128, 64, 256, 8
"""Columns of x and directions that a program multiplies in a turn, its rows, and the most parts of a sum."""
TURN = 90
"""Cycles of such a turn: three are on their way from the second-level cache at once."""
CACHE_BANDWIDTH = 5.5e12
"""Bytes a second that all processors together read from the second-level cache, as published for Hopper."""
SPLIT_ATTENTION = 0.8
"""Share of the bandwidth that paged attention reaches."""


def entries(columns: int) -> int:
    """Entries of an expert in a row."""
    return max(1, round(DENSITY * columns))


def sparse_us(card: Card, shape: tuple[int, int], tokens: int, experts: int, value_bytes: int) -> float:
    """Modelled microseconds of `sparse_kernel`: the longest of its bytes, its gathers, and its chains of latencies."""
    rows, columns = shape
    count, share = entries(columns), tokens / experts
    moved = experts * rows * count * (2 + value_bytes) / card.copied
    gathers = tokens * rows * count / 32 * GATHER / (card.processors * card.clock)
    # Chunks of entries follow one another: columns from memory, then the values of x at these columns from a cache.
    chain = math.ceil(count / IN_FLIGHT) * (MEMORY_LATENCY + CACHE_LATENCY)
    chunks = math.ceil(share / MEMBERS) * experts * math.ceil(rows / ROWS)
    waves = math.ceil(chunks / (card.processors * RESIDENT))
    return (max(moved, gathers, waves * chain / card.clock) + NODE) * 1e6


def low_rank_us(
    card: Card,
    shape: tuple[int, int],
    tiles: int,
    rank: int,
    factor_bytes: int,
    shrinks: bool,
    program_rows: int = FACTOR_ROWS,
) -> float:
    """Modelled microseconds of low-rank residuals in one launch whose programs each shrink, or in two launches.

    Args:
        card: the GPU.
        shape: rows and columns of the layer.
        tiles: of tokens, each of another expert.
        rank: directions of an expert.
        factor_bytes: of a number.
        shrinks: in one launch.
        program_rows: of a program that shrinks.
    """
    rows, columns = shape
    turns = math.ceil(columns / FACTOR_COLUMNS)
    expand = MEMORY_LATENCY / card.clock
    moved = tiles * rank * (rows + columns) * factor_bytes / card.copied
    if not shrinks:
        parts = max(1, min(FACTOR_PARTS, columns // 1024))
        chain = (MEMORY_LATENCY + math.ceil(turns / parts) * TURN) / card.clock
        return (2 * NODE + max(moved, chain + expand)) * 1e6
    programs = tiles * math.ceil(rows / program_rows)
    chain = MEMORY_LATENCY + math.ceil(rank / FACTOR_RANKS) * turns * TURN
    chain *= math.ceil(programs / (2 * card.processors)) / card.clock
    read = programs * rank * columns * factor_bytes / CACHE_BANDWIDTH
    return (NODE + max(moved, read, chain + expand)) * 1e6


def product_us(card: Card, shape: tuple[int, int], tokens: int) -> float:
    """Modelled microseconds of torch's product: its bytes or its operations, at 93 and 75 % of what the card does."""
    rows, columns = shape
    nbytes = 2 * (rows * columns + tokens * (columns + 2 * rows))
    return max(1.08 * nbytes / card.copied, 2 * tokens * rows * columns / (0.75 * card.operations), LEAST_PRODUCT) * 1e6


def linear_us(card: Card, shape: tuple[int, int], tokens: int, experts: int, value_bytes: int = 1) -> float:
    """Modelled microseconds of an expert linear."""
    return product_us(card, shape, tokens) + (sparse_us(card, shape, tokens, experts, value_bytes) if experts else 0)


@dataclass(frozen=True)
class Step:
    """A modelled decoding step; times are milliseconds.

    Attributes:
        gigabytes: that must be read.
        floor: by those bytes at the card's sheet.
        linears: of all layers, and the head.
        attention: of all layers.
        small: the other kernels.
        ahead: the longer of the device's work and the host's, if the next step is launched behind the draws.
        total: with the host between the steps.
    """

    gigabytes: float
    floor: float
    linears: float
    attention: float
    small: float
    ahead: float
    total: float


def step(card: Card, model: Model, tokens: int, experts: int, context: int, value_bytes: int = 1) -> Step:
    """A decoding step of `tokens` sequences that share `experts` experts, each with `context` tokens in the cache."""
    weights = 2 * (sum(rows * columns for rows, columns in model.linears) * model.layers)
    head = 2 * model.vocabulary * model.hidden
    residuals = sum(rows * entries(columns) for rows, columns in model.linears) * model.layers * (2 + value_bytes)
    cache = tokens * context * model.kv * 2 * model.layers
    nbytes = weights + head + experts * residuals + cache
    linears = sum(linear_us(card, shape, tokens, experts, value_bytes) for shape in model.linears) * model.layers
    linears += product_us(card, (model.vocabulary, model.hidden), tokens)
    attention = max(cache / (SPLIT_ATTENTION * card.copied), 2 * NODE * model.layers) * 1e6
    small = SMALL_KERNELS * NODE * model.layers * 1e6
    total = linears + attention + small
    host = HOST * 1e6
    times = (linears, attention, small, max(total, host), total + host)
    return Step(nbytes / 1e9, nbytes / card.sheet * 1e3, *(time / 1e3 for time in times))


def steps(context: int = 1024) -> Iterator[tuple[str, int, int, Step]]:
    """Models, sequences, experts and the step that they make."""
    for name, model in MODELS.items():
        for tokens in (1, 8, 64, 256):
            for experts in (0, 1, 8, 64):
                if experts <= tokens:
                    yield name, tokens, experts, step(H200, model, tokens, experts, context)


def table() -> Iterator[str]:
    """Lines of a table in Markdown."""
    named = "floor ms | linears | attention | small kernels | launched ahead | host between steps"
    yield f"| model | sequences | experts | GB | {named} |"
    yield "|---|---|---|---|---|---|---|---|---|---|"
    for name, tokens, experts, one in steps():
        times = (one.floor, one.linears, one.attention, one.small, one.ahead, one.total)
        shown = " | ".join(f"{number:.2f}" for number in times)
        yield f"| {name} | {tokens} | {experts} | {one.gigabytes:.1f} | {shown} |"


def factor_table(rank: int = 16, factor_bytes: int = 1) -> Iterator[str]:
    """Lines of a table in Markdown: LoRAs, each sequence with another, by one launch for a linear layer or by two."""
    yield "| model | sequences | operations a layer | low-rank, us a layer | always with two launches |"
    yield "|---|---|---|---|---|"
    for name, model in MODELS.items():
        for tiles in (1, 4, 8, 16, 64):
            times = [
                [low_rank_us(H200, shape, tiles, rank, factor_bytes, shrinks) for shape in model.linears]
                for shrinks in (True, False)
            ]
            best = [min(both) for both in zip(*times, strict=True)]
            operations = OPERATIONS + sum(two < one for one, two in zip(*times, strict=True))
            yield f"| {name} | {tiles} | {operations} | {sum(best):.1f} | {sum(times[1]):.1f} |"


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu.roofline", description="Model decoding steps.")
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    if parser.parse_args().json:
        rows = [{"model": name, "sequences": n, "experts": e, **asdict(one)} for name, n, e, one in steps()]
        print(json.dumps({"modelled": rows}))
        return
    print("Modelled for an H200, experts of 1 % in 8 bits, 1,024 tokens of context; nothing is measured.\n")
    print("\n".join(table()))
    print("\nLow-rank experts of rank 16 in 8 bits, one for each sequence; nothing is measured.\n")
    print("\n".join(factor_table()))


if __name__ == "__main__":
    main()
