"""A few layers of real models' shapes: what a layer of a step takes, its kernels, and growing contexts."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from benchmarks.gpu.clock import Clock
from benchmarks.gpu.layers import DENSITY, fill
from benchmarks.gpu.report import Value, measure, rounded
from kernels.attention import AttentionBatch
from kernels.expert_linear import ExpertBatch
from serve.model import Decoder, ForwardBatch, KvCache, ModelConfig, ResidualBanks, ResidualShape
from serve.model.config import LayerConfig

BLOCK = 256


@dataclass(frozen=True)
class Shape:
    """Hidden and inner size, heads, key heads, size of a head, vocabulary, and how many layers are made of it."""

    hidden: int
    inner: int
    heads: int
    kv: int
    dim: int
    vocabulary: int
    layers: int
    bias: bool


SHAPES = {
    "qwen": Shape(896, 4864, 14, 2, 64, 151_936, 8, True),
    "llama": Shape(4096, 14_336, 32, 8, 128, 128_256, 4, False),
}
SMALL = {"small": Shape(64, 96, 4, 2, 16, 97, 2, True)}
CASES = ((1, 0), (1, 1), (8, 0), (8, 1), (8, 8), (64, 0), (64, 1), (64, 8), (64, 64))
"""Sequences that decode, and how many experts they share."""
PROMPTS = ((1, 512, 0), (1, 512, 1), (4, 512, 4), (32, 60, 8))
"""Prompts, their tokens, and how many experts they share."""


class Made:
    """A decoder with random weights and experts, and a cache for 64 sequences."""

    def __init__(self, clock: Clock, shape: Shape, context: int, slots: int) -> None:
        device, self.clock, self.layers, self.context = clock.device, clock, shape.layers, context
        config = ModelConfig(
            architecture="Qwen2ForCausalLM" if shape.bias else "LlamaForCausalLM",
            vocab_size=shape.vocabulary,
            hidden_size=shape.hidden,
            intermediate_size=shape.inner,
            num_heads=shape.heads,
            num_kv_heads=shape.kv,
            head_dim=shape.dim,
            layers=(LayerConfig(attention_bias=shape.bias),) * shape.layers,
            rms_norm_eps=1e-5,
            tied=shape.bias,
            max_positions=8192,
            longest_positions=8192,
            dtype=torch.bfloat16,
            eos_token_ids=(),
        )
        self.decoder = Decoder(config, 8192, torch.bfloat16, device)
        generator = torch.Generator(device=device).manual_seed(0)
        for part in {placement.part: None for placement in self.decoder.placements.values()}:
            tensor = part.tensor
            if tensor.dim() == 2:
                tensor.normal_(0.0, tensor.shape[1] ** -0.5, generator=generator)
            else:
                tensor.fill_(1.0 if part.kind == "weight" else 0.0)
        entries = {
            name: max(1, round(DENSITY * placement.shape[1]))
            for name, placement in self.decoder.placements.items()
            if len(placement.shape) == 2 and name.startswith("model.layers.")
        }
        ResidualBanks(self.decoder, ResidualShape(entries, frozenset(), frozenset(entries)), slots)
        for layer, name in itertools.product(self.decoder.layers, ("qkv", "output", "gate_up", "down")):
            if (bank := getattr(layer, name).bank) is not None:
                fill(bank, generator)
        self._blocks = -(-context // BLOCK) + 1
        self._cache = KvCache.allocate(config, 64 * self._blocks, BLOCK, torch.bfloat16, device)

    def batch(self, sequences: int, context: int, count: int, experts: int) -> ForwardBatch:
        """The last `count` tokens of each sequence."""
        device = self.clock.device
        tables = torch.arange(sequences * self._blocks, dtype=torch.int32).view(sequences, -1)
        positions = torch.arange(context - count, context).repeat(sequences)
        row = torch.arange(sequences).repeat_interleave(count)
        places = row * self._blocks * BLOCK + positions
        return ForwardBatch(
            tokens=torch.arange(sequences * count).remainder(97).to(device),
            positions=positions.to(device),
            slot_mapping=places.to(device),
            attention={
                None: AttentionBatch.build(tables.to(device), [context] * sequences, [count] * sequences, BLOCK)
            },
            experts=ExpertBatch.from_slots((row % experts)[:, None], None, device) if experts else None,
        )

    def hidden(self, batch: ForwardBatch) -> Tensor:
        """The layers."""
        with torch.inference_mode():
            return self.decoder.forward(batch, self._cache)

    def logits(self, batch: ForwardBatch) -> Tensor:
        """The whole step."""
        with torch.inference_mode():
            return self.decoder.logits(self.decoder.forward(batch, self._cache), batch.experts)


def run(clock: Clock) -> None:
    """Tell both models."""
    for name, shape in (SHAPES if clock.on_gpu else SMALL).items():
        made = Made(clock, shape, 1024 if clock.on_gpu else 32, 64 if clock.on_gpu else 8)
        for sequences, experts in CASES if clock.on_gpu else CASES[:5]:
            measure(f"{name}_T{sequences}_E{experts}", partial(_decoding, made, sequences, experts))
        for sequences, count, experts in PROMPTS if clock.on_gpu else ((2, 8, 2),):
            key = f"{name}_prompts_{sequences}x{count}_E{experts}_ms_a_layer"
            measure(key, partial(_prompts, made, sequences, count, experts))
        measure(f"{name}_eager_growing_ms", partial(_growing, made))
        if clock.on_gpu:
            measure(f"{name}_profile_T8_E8", partial(_profile, made))
            del made
            torch.cuda.empty_cache()


def _decoding(made: Made, sequences: int, experts: int) -> Value:
    batch = made.batch(sequences, made.context, 1, experts)
    made.logits(batch)
    layers = made.clock.microseconds([partial(made.hidden, batch)])
    whole = made.clock.microseconds([partial(made.logits, batch)])
    return {"layer_us": rounded(layers / made.layers), "head_us": rounded(whole - layers)}


def _prompts(made: Made, sequences: int, count: int, experts: int) -> float:
    batch = made.batch(sequences, count, count, experts)
    made.hidden(batch)
    return rounded(made.clock.seconds(partial(made.hidden, batch), 5) * 1e3 / made.layers)


def _growing(made: Made) -> Value:
    """Milliseconds of eager steps whose contexts grow by one token."""
    sequences = 8 if made.clock.on_gpu else 2
    batches = [made.batch(sequences, made.context - 8 + step, 1, sequences) for step in range(6)]
    return [rounded(made.clock.seconds(partial(made.logits, batch), 1) * 1e3) for batch in batches]


def _profile(made: Made) -> Value:
    batch = made.batch(8, made.context, 1, 8)
    made.logits(batch)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        made.hidden(batch)
        made.clock.wait()
    events = sorted(profile.key_averages(), key=lambda event: -event.device_time_total)
    return {
        "kernels_a_layer": rounded(sum(event.count for event in events) / made.layers),
        "us_a_layer": rounded(sum(event.device_time_total for event in events) / made.layers),
        "longest": [f"{event.key[:40]}: {event.device_time_total / made.layers:.3g} us" for event in events[:8]],
    }
