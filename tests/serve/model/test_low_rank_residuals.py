from pathlib import Path

import pytest
import torch
from torch import Tensor

from kernels.expert_linear import ExpertBatch, LowRankBank
from merge.bundle import Expert, LowRankDelta, write_expert
from serve.model import Decoder, ModelError, ResidualBanks, ResidualShape, load_model
from serve.model.lookup import add_low_rank_rows
from tests.serve.conftest import random_delta, random_low_rank, random_model, with_expert
from tests.serve.model.test_decoder import expected, fill_slots, prompts, run

PREFIX = "model.layers.0."
Q, K, V = (f"{PREFIX}self_attn.{part}_proj.weight" for part in "qkv")
GATE, UP, DOWN = (f"{PREFIX}mlp.{part}_proj.weight" for part in ("gate", "up", "down"))
EMBEDDING = "model.embed_tokens.weight"
SHAPES = {Q: (48, 48), K: (16, 48), V: (16, 48), GATE: (80, 48), UP: (80, 48), DOWN: (48, 80), EMBEDDING: (97, 48)}


@pytest.fixture
def decoder(tmp_path: Path) -> Decoder:
    random_model(num_hidden_layers=1, tie_word_embeddings=True).save_pretrained(tmp_path)
    return load_model(tmp_path)


def factors(name: str, rank: int, dtype: torch.dtype = torch.bfloat16, seed: int = 0) -> LowRankDelta:
    return random_low_rank(SHAPES.get(name, (48, 48)), rank, torch.Generator().manual_seed(seed), dtype)


def expert(low_rank: dict[str, LowRankDelta], name: str = "x") -> Expert:
    return Expert(name, "digest", 0.0, {}, {}, low_rank=low_rank)


def banks_for(decoder: Decoder, ranks: dict[str, int], quantised: frozenset[str] = frozenset()) -> ResidualBanks:
    return ResidualBanks(decoder, ResidualShape({}, frozenset(), frozenset(), ranks, quantised), slots=2)


def product(bank: LowRankBank, slot: int) -> Tensor:
    """What a slot holds, as a dense matrix."""
    rows = []
    for segment, part in zip(bank.segments, bank.factors(slot), strict=True):
        empty = torch.zeros(segment.rows, bank.in_features)
        rows.append(empty if part is None else (part[1].float() * part[2]) @ part[0].float())
    return torch.cat(rows)


def test_stacked_weights_have_ranks_of_their_own(decoder: Decoder) -> None:
    banks = banks_for(decoder, {Q: 3, V: 5, GATE: 2})
    layer = decoder.layers[0]
    assert layer.qkv.low_rank is not None
    assert layer.gate_up.low_rank is not None
    assert (layer.down.low_rank, layer.output.low_rank, layer.qkv.bank) == (None, None, None)
    assert [(one.rows, one.most_rank) for one in layer.qkv.low_rank.segments] == [(48, 3), (16, 0), (16, 5)]
    assert banks.nbytes == layer.qkv.low_rank.nbytes + layer.gate_up.low_rank.nbytes
    q, v = factors(Q, 2), factors(V, 5)
    packed = banks.pack(expert({Q: q, V: v}))
    banks.load(1, packed)
    found = product(layer.qkv.low_rank, 1)
    torch.testing.assert_close(found, torch.cat([q.dense(), torch.zeros(16, 48), v.dense()]))
    # In the slots, and so in the host's memory, factors have the dtype of the model's weights.
    assert packed.nbytes == 4 * (2 * (48 + 48) + 5 * (16 + 48)) + 4 * (2 + 5)
    assert not banks.patches(1)
    banks.load(1, banks.pack(expert({GATE: factors(GATE, 1)})))
    assert not product(layer.qkv.low_rank, 1).any()
    assert product(layer.gate_up.low_rank, 1)[:80].any()


def test_slots_are_made_whatever_a_damaged_header_says(decoder: Decoder) -> None:
    banks_for(decoder, {K: 500, GATE: 0})
    assert decoder.layers[0].gate_up.low_rank is None
    assert decoder.layers[0].qkv.low_rank is not None
    assert decoder.layers[0].qkv.low_rank.segments[1].most_rank == 16


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"model.layers.9.mlp.up_proj.weight": factors("", 1)}, r"'model.layers.9.*does not have"),
        ({Q: random_low_rank((47, 48), 1, torch.Generator())}, rf"{Q} has 47 rows.*\[48, 48\]"),
        ({Q: random_low_rank((48, 80), 1, torch.Generator())}, rf"the low-rank part of {Q} is for 80 columns"),
        ({"model.norm.weight": factors("", 1)}, "the 2-D residual of model.norm.weight"),
        (
            {Q: factors(Q, 3)},
            f"{Q} has rank 3, but the slots were made for rank 2, .* --enable-lora --max-lora-rank 3$",
        ),
        ({EMBEDDING: factors(EMBEDDING, 3)}, f"{EMBEDDING} has rank 3, .*restart with this expert in the bundle$"),
        ({K: factors(K, 1)}, f"{K} has rank 1, but the slots were made for rank 0"),
        ({DOWN: factors(DOWN, 4)}, f"{DOWN} has rank 4, but the slots were made for rank 0"),
        ({GATE: factors(GATE, 1)}, f"{GATE} has torch.bfloat16 factors, but every expert .* 8-bit .*restart"),
    ],
)
def test_what_does_not_fit_is_named(decoder: Decoder, bad: dict[str, LowRankDelta], message: str) -> None:
    with pytest.raises(ModelError, match=message) as raised:
        banks_for(decoder, {Q: 2, GATE: 2}, frozenset({GATE})).pack(expert(bad))
    assert "\n" not in str(raised.value)


def test_factors_beyond_the_range_of_the_weights_dtype_are_named(tmp_path: Path) -> None:
    random_model(num_hidden_layers=1).save_pretrained(tmp_path)
    banks = banks_for(load_model(tmp_path, torch.float16), {Q: 1})
    large = LowRankDelta(torch.full((1, 48), 1e5), torch.ones(48, 1), torch.ones(1))
    with pytest.raises(ModelError, match=f"{Q} has factors too large for torch.float16: serve with --dtype bfloat16"):
        banks.pack(expert({Q: large}))


def test_experts_with_low_rank_parts_are_not_patched(decoder: Decoder) -> None:
    banks = banks_for(decoder, {Q: 1})
    banks.load(0, banks.pack(expert({Q: factors(Q, 1)})))
    with pytest.raises(RuntimeError, match="slot 0 cannot be patched: its expert must be sparse"):
        banks.patch(0)
    assert banks.patches(1)


def test_shape_of_files(tmp_path: Path) -> None:
    write_expert(tmp_path / "a", expert({Q: factors(Q, 2, torch.int8), GATE: factors(GATE, 2, torch.int8)}))
    write_expert(tmp_path / "b", expert({GATE: factors(GATE, 7), UP: factors(UP, 3)}))
    write_expert(
        tmp_path / "c",
        Expert(
            "c",
            "digest",
            0.1,
            {GATE: random_delta((80, 48), 2, torch.Generator())},
            {"model.norm.weight": torch.ones(48)},
        ),
    )
    shape = ResidualShape.of([tmp_path / name for name in "abc"])
    assert shape.ranks == {Q: 2, GATE: 7, UP: 3}
    assert shape.quantised_ranks == {Q}
    assert (shape.entries, shape.dense) == ({GATE: 2}, {"model.norm.weight"})


@pytest.mark.parametrize("dtype", [torch.int8, torch.float16, torch.float32])
def test_every_form_of_factors_equals_dense_weights(dtype: torch.dtype, tmp_path: Path) -> None:
    """The embedding's part acts on the lookup and on the tied head."""
    model = random_model(num_hidden_layers=1, tie_word_embeddings=True)
    model.save_pretrained(tmp_path)
    decoder = load_model(tmp_path)
    experts = [
        expert({name: factors(name, 1 + place % 3, dtype, seed) for place, name in enumerate(SHAPES)}, f"e{seed}")
        for seed in (1, 2)
    ]
    fill_slots(decoder, experts, tmp_path)
    bank = decoder.embedding.low_rank
    assert bank is not None
    assert decoder.head is decoder.embedding
    assert bank.a.dtype == (torch.int8 if dtype == torch.int8 else torch.float32)
    sequences = prompts(9, 7, 4)
    got = run(decoder, sequences, experts=ExpertBatch.from_slots([0] * 9 + [1] * 7 + [-1] * 4))
    models = [with_expert(model, [(one, 1.0)]) for one in experts]
    want = torch.cat([expected(m, [s]) for m, s in zip([*models, model], sequences, strict=True)])
    torch.testing.assert_close(got, want, atol=1e-4, rtol=1e-4)


def test_rows_looked_up_do_not_depend_on_their_company() -> None:
    generator = torch.Generator().manual_seed(1)
    bank = LowRankBank.allocate(3, [(97, 6)], 48, torch.bfloat16)
    parts = [random_low_rank((97, 48), rank, generator) for rank in (6, 1, 4)]
    for slot, part in enumerate(parts):
        bank.load(slot, [(part.a, part.b, part.scale)])
    tokens = torch.tensor([0, 15, 16, 96, 50, 50, 3])
    slots = torch.tensor([[0, 1], [1, -1], [-1, -1], [2, 0], [-1, 2], [2, -1], [0, -1]])
    gates = torch.rand(slots.shape, generator=generator) + 0.5
    rows = torch.zeros(7, 48)
    add_low_rank_rows(rows, tokens, bank, ExpertBatch.from_slots(slots, gates))
    for token in range(7):
        alone = torch.zeros(1, 48)
        plan = ExpertBatch.from_slots(slots[token : token + 1], gates[token : token + 1])
        add_low_rank_rows(alone, tokens[token : token + 1], bank, plan)
        assert torch.equal(alone[0], rows[token])
        pairs = [(int(s), float(g)) for s, g in zip(slots[token], gates[token], strict=True) if s >= 0]
        want = sum((g * parts[s].dense()[tokens[token]] for s, g in pairs), torch.zeros(48))
        torch.testing.assert_close(rows[token], want)
