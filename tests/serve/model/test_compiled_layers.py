"""The compiled step against the decoder's single operations, bit for bit."""

import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import Tensor

from kernels.attention import AttentionBatch
from kernels.compiled import ISAS
from kernels.decoder import CompiledLayers, math, not_compiled
from kernels.expert_linear import ExpertBatch, PackedWeight
from merge.bundle.quantised import INT4, INT8, quantise
from serve.model import Decoder, ForwardBatch, KvCache, LayerConfig, ModelConfig, TensorNames
from serve.model.layers import RmsNorm
from serve.model.rope import NO_ROPE, RopeConfig
from tests.kernels.conftest import kernels_of
from tests.kernels.experts import filled_bank, filled_low_rank

BLOCK, SLOTS, VOCABULARY = 4, 4, 60
PLAIN = ModelConfig(
    architecture="LlamaForCausalLM",
    vocab_size=VOCABULARY,
    hidden_size=64,
    intermediate_size=96,
    num_heads=4,
    num_kv_heads=2,
    head_dim=16,
    layers=(LayerConfig(), LayerConfig()),
    rms_norm_eps=1e-5,
    tied=True,
    max_positions=600,
    longest_positions=600,
    dtype=torch.float32,
    eos_token_ids=(1,),
)
BIASES = LayerConfig(attention_bias=True, output_bias=True, mlp_bias=True)
AROUND = TensorNames(output_norm="a_norm", mlp_norm="b_norm", down_norm="c_norm")
AFTER = TensorNames(input_norm=None, output_norm="a_norm", mlp_norm=None, down_norm="c_norm")
HALF = RopeConfig(part=0.5)
CONFIGS: dict[str, dict[str, Any]] = {
    "plain": {},
    "one key head, biases": {"num_heads": 6, "num_kv_heads": 1, "layers": (BIASES, BIASES)},
    "norms of heads, two windows": {
        "layers": tuple(LayerConfig(head_norms="each", window=window) for window in (3, None, 5)),
        "num_kv_heads": 4,
    },
    "norms after, of all heads at once, two ropes": {
        "layers": tuple(
            LayerConfig(head_norms="all", names=AFTER, rope=rope)
            for rope in (RopeConfig(), NO_ROPE, RopeConfig(theta=5))
        ),
    },
    "norms around added to 1, GELU, softcap": {
        "layers": (
            LayerConfig(names=AROUND, norm_offset=1.0, activation="gelu_tanh", softcap=2.0, attention_scale=0.7),
        )
        * 2,
        "embedding_scale": 8.0,
        "num_kv_heads": 1,
    },
    "scaled residuals, half of each head rotated": {
        "layers": (LayerConfig(residual_scale=0.22, attention_scale=0.1, rope=HALF),) * 2,
        "head_dim": 20,
    },
    "sizes of no vector": {
        "hidden_size": 52,
        "intermediate_size": 37,
        "head_dim": 10,
        "num_heads": 3,
        "num_kv_heads": 3,
    },
}
EXPERTS: dict[str, Callable[[int], ExpertBatch | None]] = {
    "none": lambda _: None,
    "no token's": lambda tokens: ExpertBatch.from_slots([-1] * tokens),
    "one": lambda tokens: ExpertBatch.from_slots([2] * tokens),
    "distinct": lambda tokens: ExpertBatch.from_slots([token % (SLOTS + 1) - 1 for token in range(tokens)]),
    "mixed": lambda tokens: ExpertBatch.from_slots(
        [[token % 3 - 1, token * 5 % SLOTS] for token in range(tokens)],
        [[0.25 + token / 64, -0.5] for token in range(tokens)],
    ),
}


@dataclass
class Case:
    """A decoder of random numbers, and how its forward pass is made."""

    decoder: Decoder
    monkeypatch: pytest.MonkeyPatch

    def steps(self, batches: list[ForwardBatch], compiled: bool) -> tuple[list[Tensor], KvCache]:
        """What each step returns, and the cache after the last. Fails if a step was not computed as requested."""
        cache = self.cache_for(*batches)
        layers = self.decoder._compiled
        assert layers is not None
        ran = []

        def one_call(*arguments: Any) -> bool:
            ran.append(compiled and layers(*arguments))
            return ran[-1]

        with self.monkeypatch.context() as patched, torch.inference_mode():
            patched.setattr(self.decoder, "_compiled", one_call)
            found = [self.decoder.forward(batch, cache) for batch in batches]
        assert ran == [compiled] * len(batches)
        return found, cache

    def cache_for(self, *batches: ForwardBatch) -> KvCache:
        """A cache of zeros with all blocks that the batches name."""
        blocks = 1 + max(int(plan.block_tables.max()) for batch in batches for plan in batch.attention.values())
        return KvCache.allocate(self.decoder.config, blocks, BLOCK, self.decoder.dtype, self.decoder.device)

    def takes(self, batch: ForwardBatch) -> bool:
        """Whether a step is computed in one call."""
        cache, decoder = self.cache_for(batch), self.decoder
        x = decoder.embedding.lookup(batch.tokens, None)
        angles = {rope: table.at(batch.positions, x.dtype) for rope, table in decoder._rotary.items()}
        plan = batch.slot_mapping, batch.attention, batch.experts
        return decoder._compiled is not None and decoder._compiled(x, angles, cache.keys, cache.values, *plan)

    def check(self, batches: list[ForwardBatch]) -> None:
        """Both ways give the same bits."""
        (want, want_cache), (got, got_cache) = self.steps(batches, False), self.steps(batches, True)
        for one, other in zip(
            (*want, *want_cache.keys, *want_cache.values), (*got, *got_cache.keys, *got_cache.values), strict=True
        ):
            assert torch.equal(one, other)
        assert all(result.isfinite().all() for result in want)


Make = Callable[..., Case]


@pytest.fixture
def make(monkeypatch: pytest.MonkeyPatch) -> Make:
    """Makes a case of a configuration's name, a dtype, an instruction set and the banks' dtype."""

    def made(
        name: str = "plain",
        dtype: torch.dtype = torch.float32,
        isa: str = "avx2",
        values: torch.dtype | None = torch.bfloat16,
        factors: torch.dtype | None = None,
        **settings: Any,
    ) -> Case:
        kernels = kernels_of(isa)
        monkeypatch.setattr(sys.modules["kernels.compiled.library"], "library", lambda: kernels)
        monkeypatch.setattr("kernels.expert_linear.dispatch.library", lambda: kernels)
        config = replace(PLAIN, **{**CONFIGS[name], **settings})
        decoder = Decoder(config, config.max_positions, dtype, torch.device("cpu"))
        fill(decoder, values)
        if factors is not None:
            fill_low_rank(decoder, factors)
        return Case(decoder, monkeypatch)

    return made


def fill(decoder: Decoder, values: torch.dtype | None) -> None:
    """Random weights, and with `values` a residual of every kind in every slot of every layer."""
    generator = torch.Generator().manual_seed(0)
    for placement in decoder.placements.values():
        size = placement.shape[-1] ** -0.5 if len(placement.shape) == 2 else 0.5
        offset = 1.0 if isinstance(placement.part.layer, RmsNorm) else 0.0
        placement.target.copy_(offset + size * torch.randn(placement.shape, generator=generator))
    if values is None:
        return
    for seed, layer in enumerate(dict.fromkeys(placement.part.layer for placement in decoder.placements.values())):
        if isinstance(layer, RmsNorm):
            layer.delta = 0.3 * torch.randn(SLOTS, len(layer.weight), generator=generator)
        elif layer is not decoder.embedding:
            rows, columns = layer.weight.shape
            layer.bank = filled_bank(SLOTS, rows, columns, 3, values, seed)
            if layer.bias is not None:
                layer.bias_delta = 0.3 * torch.randn(SLOTS, rows, generator=generator)


def fill_low_rank(decoder: Decoder, factors: torch.dtype) -> None:
    """Low-rank residuals beside what the layers have, of two segments whose border is inside a block of rows."""
    for seed, layer in enumerate(decoder.layers):
        for linear in (layer.qkv, layer.output, layer.gate_up, layer.down):
            rows, columns = linear.weight.shape
            segments = [(rows // 3, 5), (rows - rows // 3, 9)]
            linear.low_rank = filled_low_rank(SLOTS, segments, columns, factors, seed)


def batch_of(decoder: Decoder, spans: list[tuple[int, int]], experts: ExpertBatch | None) -> ForwardBatch:
    """Tokens `start` to `end` of each sequence, whose blocks lie scattered."""
    most = -(-max(end for _, end in spans) // BLOCK) + 1
    tables = torch.arange(len(spans) * most).reshape(most, len(spans)).T.flip(1).to(torch.int32).contiguous()
    positions = torch.cat([torch.arange(start, end) for start, end in spans])
    owner = torch.repeat_interleave(torch.tensor([end - start for start, end in spans]))
    return ForwardBatch(
        tokens=(positions * 7 + owner * 3) % VOCABULARY,
        positions=positions,
        slot_mapping=tables[owner, positions // BLOCK].long() * BLOCK + positions % BLOCK,
        attention={
            window: AttentionBatch.build(tables, [e for _, e in spans], [e - s for s, e in spans], BLOCK, window)
            for window in decoder.windows
        },
        experts=experts,
    )


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", CONFIGS)
def test_one_call_gives_the_bits_of_the_single_operations(make: Make, name: str, dtype: torch.dtype, isa: str) -> None:
    case = make(name, dtype, isa)
    for experts in EXPERTS.values():
        prompt = batch_of(case.decoder, [(0, 9), (0, 1), (0, 6)], experts(16))
        step = batch_of(case.decoder, [(9, 10), (1, 2), (6, 7)], experts(3))
        case.check([prompt, step])
        case.check([batch_of(case.decoder, [(0, 1)], experts(1)), batch_of(case.decoder, [(1, 2)], experts(1))])


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("values", [None, torch.float32, torch.int8])
def test_banks_of_every_type(make: Make, values: torch.dtype | None, isa: str) -> None:
    case = make("plain", torch.bfloat16, isa, values)
    for experts in EXPERTS.values():
        if values is not None or experts(1) is None:
            case.check([batch_of(case.decoder, [(0, 30), (0, 3), (0, 31)], experts(64))])


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize(
    ("values", "factors"),
    [(None, torch.bfloat16), (None, torch.float32), (None, torch.int8), (torch.int8, torch.bfloat16)],
)
def test_low_rank_residuals(make: Make, values: torch.dtype | None, factors: torch.dtype, isa: str) -> None:
    case = make("sizes of no vector", torch.bfloat16, isa, values, factors)
    for experts in EXPERTS.values():
        case.check([batch_of(case.decoder, [(0, 30), (0, 3), (0, 31)], experts(64))])
        case.check([batch_of(case.decoder, [(0, 1)], experts(1)), batch_of(case.decoder, [(1, 2)], experts(1))])


@pytest.mark.parametrize("factors", [None, torch.bfloat16])
def test_the_number_of_threads_changes_nothing(make: Make, factors: torch.dtype | None) -> None:
    """Three threads on any machine, also with fewer processors, on which a barrier must yield."""
    case = make("norms of heads, two windows", torch.bfloat16, factors=factors)
    # A context of several parts at the end, so that threads join what others computed.
    batches = [batch_of(case.decoder, [(s, s + 60)], EXPERTS["mixed"](60)) for s in range(0, 540, 60)]
    batches += [batch_of(case.decoder, [(540, 541)], EXPERTS["mixed"](1))]
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            found.append(torch.cat(case.steps(batches, True)[0]))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_token_gets_the_same_bits_in_any_company(make: Make, dtype: torch.dtype) -> None:
    case = make("one key head, biases", dtype)
    slots, lengths = [[1, -1], [-1, -1], [3, 0], [1, 3]], [1, 3, 7, 5]
    owner = [sequence for sequence, length in enumerate(lengths) for _ in range(length)]
    every = ExpertBatch.from_slots([slots[sequence] for sequence in owner])
    together, _ = case.steps([batch_of(case.decoder, [(0, length) for length in lengths], every)], True)
    for sequence, part in enumerate(together[0].split(lengths)):
        # What tokens a sequence has depends on its number, so those before it are there, with one token each.
        spans = [(0, 1)] * sequence + [(0, lengths[sequence])]
        own = ExpertBatch.from_slots([[-1, -1]] * sequence + [slots[sequence]] * lengths[sequence])
        found, _ = case.steps([batch_of(case.decoder, spans, own)], True)
        assert torch.equal(found[0][sequence:], part)


def test_what_is_not_compiled_takes_the_single_operations(make: Make) -> None:
    case = make()
    few, many = (batch_of(case.decoder, [(0, tokens)], None) for tokens in (16, 17))
    assert case.takes(few)
    assert not case.takes(many)
    assert not make(values=torch.float16).takes(few)
    assert not make(head_dim=9).takes(few)
    assert not make(factors=torch.float16).takes(few)


def test_changed_weights_and_new_banks_are_seen(make: Make) -> None:
    case = make(dtype=torch.bfloat16)
    batch = batch_of(case.decoder, [(0, 5)], EXPERTS["one"](5))
    case.check([batch])
    before = case.steps([batch], True)[0][0]
    for layer in case.decoder.layers:
        layer.qkv.weight[3] += 1
        layer.down.bank = filled_bank(SLOTS, 64, 96, 5, torch.float32, 77)
        assert layer.mlp_norm is not None
        layer.mlp_norm.delta = None
    case.check([batch])
    assert not torch.equal(case.steps([batch], True)[0][0], before)


def plan(block: int, tokens: int) -> dict[int | None, AttentionBatch]:
    return {None: AttentionBatch.build(torch.tensor([[block]]), [tokens], [tokens], BLOCK)}


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"slot_mapping": torch.tensor([0, 1, 99])}, IndexError, "decoder was given a place outside the cache"),
        (
            {"slot_mapping": torch.tensor([0, 1])},
            ValueError,
            r"slot_mapping must be int64 \[3\], not torch.int64 \[2\]",
        ),
        ({"experts": ExpertBatch.from_slots([0, 0])}, ValueError, "the batch plans 2 tokens but x has 3"),
        ({"experts": ExpertBatch.from_slots([0, 0, 4])}, ValueError, "slot 4 is not among the 4 slots"),
        ({"attention": plan(0, 2)}, ValueError, "plans 2 tokens in blocks of 4; there are 3 tokens in blocks of 4"),
        ({"attention": plan(99, 3)}, IndexError, "decoder was given a place outside the cache"),
    ],
)
def test_plans_that_do_not_fit(make: Make, change: dict[str, Any], error: type[Exception], message: str) -> None:
    case = make()
    batch = replace(batch_of(case.decoder, [(0, 3)], None), **change)
    cache = KvCache.allocate(case.decoder.config, 4, BLOCK, torch.float32, torch.device("cpu"))
    with pytest.raises(error, match=message):
        case.decoder.forward(batch, cache)
    assert not any(tensor.any() for tensor in (*cache.keys, *cache.values))


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"layers": (LayerConfig(), LayerConfig(softcap=3.0))}, "its layers differ in more than windows and angles"),
        ({"head_dim": 9}, "an odd number of dimensions, 9 a head"),
        ({"layers": (LayerConfig(activation="relu"),)}, "the activation 'relu' is not supported"),  # type: ignore[arg-type]
    ],
)
def test_layers_that_compute_something_else_are_refused(changes: dict[str, Any], reason: str) -> None:
    decoder = Decoder(replace(PLAIN, **changes), 32, torch.float32, torch.device("cpu"))
    assert reason in str(decoder.not_compiled)
    assert decoder._compiled is None
    with pytest.raises(ValueError, match="cannot be computed in one compiled call"):
        CompiledLayers(decoder.layers)


def test_a_new_kind_of_mathematics_is_refused_until_the_compiled_call_knows_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    decoder = Decoder(PLAIN, 32, torch.float32, torch.device("cpu"))
    assert decoder.not_compiled is None
    monkeypatch.setattr(math, "COMPILED", math.COMPILED - {"softcap"})
    assert not_compiled(decoder.layers) == "softcap is not supported by the compiled call"


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("isa", ISAS)
def test_weights_of_few_bits(make: Make, isa: str, dtype: torch.dtype, bits: int) -> None:
    case = make("sizes of no vector", dtype, isa)
    for layer in case.decoder.layers:
        for linear in (layer.qkv, layer.output, layer.gate_up, layer.down):
            assert isinstance(linear.weight, Tensor)
            rounded = quantise(linear.weight, INT8 if bits == 8 else INT4)
            packed = PackedWeight.allocate(*rounded.shape, bits)
            packed.fill(rounded.value, rounded.scale.float())
            linear.weight = packed
    experts = EXPERTS["mixed"]
    case.check([batch_of(case.decoder, [(0, 9), (0, 3)], experts(12)), batch_of(case.decoder, [(9, 10)], experts(1))])
