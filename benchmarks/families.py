"""What a decoding step costs in one compiled call, layer by layer, and with a routed feed-forward.

Random weights in bfloat16: speed depends on shapes and bytes, not on what the weights mean. The routed model reads as
many bytes for one token as the other: each token takes two MLPs of half the width. Steps are timed in turn, on the
CPU, without the head and without experts.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace

import torch

from kernels.attention import AttentionBatch
from serve.model import Decoder, ForwardBatch, KvCache, LayerConfig, ModelConfig, RoutedConfig

CONTEXT, BLOCK = 128, 16
BRANCHES, CHOSEN = 8, 2
SEQUENCES = (1, 8)


@dataclass(frozen=True)
class Case:
    """One variant's figures.

    Attributes:
        sequences: of the step, one token each.
        mode: compiled (one call for all layers), layers (one operation after another) or routed (the same, and the
            feed-forward routed).
        ms: of a step, median.
        ratio: ms by that of compiled.
    """

    sequences: int
    mode: str
    ms: float
    ratio: float


def shape(layers: int = 8, hidden: int = 896, inner: int = 4864) -> ModelConfig:
    """A model of a 0.5 B model's width."""
    return ModelConfig(
        architecture="Qwen2ForCausalLM",
        vocab_size=1000,
        hidden_size=hidden,
        intermediate_size=inner,
        num_heads=hidden // 64,
        num_kv_heads=2,
        head_dim=64,
        layers=(LayerConfig(attention_bias=True),) * layers,
        rms_norm_eps=1e-6,
        tied=True,
        max_positions=CONTEXT,
        longest_positions=CONTEXT,
        dtype=torch.bfloat16,
        eos_token_ids=(),
    )


def routed(config: ModelConfig) -> ModelConfig:
    """The same with a routed feed-forward."""
    feed_forward = RoutedConfig(BRANCHES, CHOSEN, config.intermediate_size // CHOSEN, renormalised=True)
    return replace(config, layers=tuple(replace(layer, routed=feed_forward) for layer in config.layers))


def measure(config: ModelConfig, sequences: int, rounds: int) -> list[Case]:
    """All variants of one step, in turn."""
    modes = {"compiled": _step(config, sequences), "layers": _step(config, sequences, compiled=False)}
    modes["routed"] = _step(routed(config), sequences)
    times: dict[str, list[float]] = {mode: [] for mode in modes}
    for _ in range(rounds):
        for mode, step in modes.items():
            start = time.perf_counter()
            step()
            times[mode].append(1e3 * (time.perf_counter() - start))
    found = {mode: statistics.median(values) for mode, values in times.items()}
    return [Case(sequences, mode, round(ms, 3), round(ms / found["compiled"], 3)) for mode, ms in found.items()]


def _step(config: ModelConfig, sequences: int, compiled: bool = True) -> Callable[[], None]:
    decoder = Decoder(config, CONTEXT, config.dtype, torch.device("cpu"))
    for placement in decoder.placements.values():
        placement.target.normal_(0, placement.shape[-1] ** -0.5)
    if not compiled:
        decoder._compiled = None
    blocks = CONTEXT // BLOCK
    cache = KvCache.allocate(config, blocks * sequences, BLOCK, config.dtype, decoder.device)
    tables = torch.arange(blocks * sequences, dtype=torch.int32).view(sequences, blocks)
    batch = ForwardBatch(
        tokens=torch.arange(sequences),
        positions=torch.full((sequences,), CONTEXT - 1),
        slot_mapping=tables[:, -1].to(torch.int64) * BLOCK + BLOCK - 1,
        attention={None: AttentionBatch.build(tables, [CONTEXT] * sequences, [1] * sequences, BLOCK)},
    )

    def step() -> None:
        with torch.inference_mode():
            decoder.forward(batch, cache)

    step()
    return step


def main() -> None:
    """Print what each variant takes."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.families", description=__doc__)
    parser.add_argument("--rounds", type=int, default=100, help="steps of each variant")
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    options = parser.parse_args()
    cases = [case for sequences in SEQUENCES for case in measure(shape(), sequences, options.rounds)]
    if options.json:
        print(json.dumps({"threads": torch.get_num_threads(), "cases": [asdict(case) for case in cases]}))
        return
    for case in cases:
        print(f"{case.sequences} sequences, {case.mode}: {case.ms} ms, {case.ratio} of compiled")


if __name__ == "__main__":
    main()
