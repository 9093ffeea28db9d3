from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from kernels.expert_linear import ExpertBatch
from merge.bundle import Expert, SparseDelta, quantise_rows, write_expert
from serve.model import Decoder, ModelError, ResidualBanks, ResidualShape, load_model
from tests.serve.conftest import random_delta, random_expert, random_model, with_expert
from tests.serve.model.test_decoder import expected, fill_slots, prompts, run

GATE = "model.layers.0.mlp.gate_proj.weight"
DOWN = "model.layers.0.mlp.down_proj.weight"
NORM = "model.norm.weight"


@pytest.fixture
def decoder(tmp_path: Path) -> Decoder:
    random_model(num_hidden_layers=1).save_pretrained(tmp_path)
    return load_model(tmp_path)


def expert(sparse: dict[str, SparseDelta] | None = None, dense: dict[str, Tensor] | None = None) -> Expert:
    return Expert("x", "digest", 0.1, sparse or {}, dense or {})


def delta(rows: int, columns: int, entries: int = 2) -> SparseDelta:
    return random_delta((rows, columns), entries, torch.Generator().manual_seed(0))


def banks_for(decoder: Decoder, **entries: int) -> ResidualBanks:
    names = {"gate": GATE, "down": DOWN}
    return ResidualBanks(decoder, ResidualShape({names[n]: k for n, k in entries.items()}, frozenset({NORM})), slots=2)


def test_only_what_some_expert_changes_has_slots(decoder: Decoder) -> None:
    banks = banks_for(decoder, gate=2)
    layer = decoder.layers[0]
    assert layer.gate_up.bank is not None
    assert layer.gate_up.bank.entries == 2
    assert layer.qkv.bank is None
    assert layer.down.bank is None
    assert decoder.norm.delta is not None
    assert layer.mlp_norm.delta is None
    assert banks.nbytes == layer.gate_up.bank.nbytes + 2 * 48 * 4


def test_stacked_rows_and_padding(decoder: Decoder) -> None:
    banks = banks_for(decoder, gate=3)
    residual = delta(80, 48)
    banks.load(1, banks.pack(expert({GATE: residual})))
    bank = decoder.layers[0].gate_up.bank
    assert bank is not None
    index, value = bank.rows(1)
    dense = torch.zeros(160, 48).scatter_add_(1, index, value.float())
    assert torch.equal(dense[:80], residual.dense(48))
    assert not dense[80:].any()


def test_loading_replaces_all_of_a_slot(decoder: Decoder) -> None:
    banks = banks_for(decoder, gate=2, down=2)
    banks.load(0, banks.pack(expert({GATE: delta(80, 48)}, {NORM: torch.ones(48)})))
    banks.load(0, banks.pack(expert({DOWN: delta(48, 80)})))
    gate, norm = decoder.layers[0].gate_up.bank, decoder.norm.delta
    assert gate is not None
    assert norm is not None
    assert not gate.rows(0)[1].any()
    assert not norm.any()


def test_packed_bytes_are_those_of_the_tensors(decoder: Decoder) -> None:
    packed = banks_for(decoder, gate=2).pack(expert({GATE: delta(80, 48)}, {NORM: torch.ones(48)}))
    assert packed.nbytes == 160 * 2 * 4 + 48 * 4


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (expert(), "names no tensor"),
        (expert({"model.layers.9.mlp.gate_proj.weight": delta(80, 48)}), r"'model.layers.9.*does not have"),
        (expert(dense={"model.nrm.weight": torch.ones(48)}), "'model.nrm.weight', which this model does not have"),
        (expert({GATE: delta(81, 48)}), rf"{GATE} has 81 rows.*\[80, 48\]"),
        (expert({NORM: delta(48, 48)}), rf"2-D residual of {NORM}"),
        (expert(dense={NORM: torch.ones(47)}), rf"{NORM} has 47 rows"),
        (expert({GATE: delta(80, 60, 2)}), "column 5[0-9]; the weight has 48"),
        (expert({GATE: delta(80, 48, 4)}), "4 entries a row.*made for 2"),
        (expert({DOWN: delta(48, 80)}), "2 entries a row.*made for 0"),
        (expert(dense={"model.layers.0.input_layernorm.weight": torch.ones(48)}), "which no expert"),
    ],
)
def test_what_does_not_fit_is_named(decoder: Decoder, bad: Expert, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        banks_for(decoder, gate=2).pack(bad)


def test_tied_head_is_no_tensor_of_its_own(tmp_path: Path) -> None:
    random_model(tie_word_embeddings=True, num_hidden_layers=1).save_pretrained(tmp_path)
    banks = ResidualBanks(load_model(tmp_path), ResidualShape({}, frozenset()), 1)
    with pytest.raises(ModelError, match=r"'lm_head.weight', which this model does not have"):
        banks.pack(expert({"lm_head.weight": delta(97, 48)}))


def test_shape_of_files_skips_what_is_unreadable(tmp_path: Path) -> None:
    model = random_model(num_hidden_layers=1)
    write_expert(tmp_path / "a", random_expert(model, "d", "a", 0, entries=2))
    write_expert(tmp_path / "b", random_expert(model, "d", "b", 1, entries=5))
    (tmp_path / "c").write_text("no safetensors")
    shape = ResidualShape.of([tmp_path / name for name in "abc"])
    assert shape.entries[GATE] == 5
    assert NORM in shape.dense


def in_eight_bits(expert: Expert) -> Expert:
    sparse = {name: SparseDelta(d.index, *quantise_rows(d.numbers)) for name, d in expert.sparse.items()}
    return replace(expert, sparse=sparse)


@pytest.mark.parametrize("family", ["llama", "qwen3"])
def test_eight_bit_experts_stay_so_in_the_slots_and_equal_dense_weights(family: str, tmp_path: Path) -> None:
    model = random_model(family, num_hidden_layers=2)
    model.save_pretrained(tmp_path)
    decoder = load_model(tmp_path)
    experts = [in_eight_bits(random_expert(model, "d", name, seed, seed + 2)) for seed, name in enumerate("xy")]
    banks = fill_slots(decoder, experts, tmp_path)
    linears = [linear for layer in decoder.layers for linear in (layer.qkv, layer.output, layer.gate_up, layer.down)]
    sizes = 0
    for linear in linears:
        assert linear.bank is not None
        assert linear.bank.value.dtype == torch.int8
        # Rows are stored in blocks of 16: 3 entries of 1 + 2 bytes and a scale of 4 a row, for two experts.
        sizes += 2 * -(-linear.weight.shape[0] // 16) * 16 * (3 * 3 + 4)
    dense = sum(parameter.numel() for parameter in model.parameters() if parameter.dim() == 1)
    assert banks.nbytes == sizes + 2 * dense * 4

    sequences = prompts(9, 7, 4)
    got = run(decoder, sequences, experts=ExpertBatch.from_slots([0] * 9 + [1] * 7 + [-1] * 4))
    models = [with_expert(model, [(expert, 1.0)]) for expert in experts]
    want = torch.cat([expected(m, [s]) for m, s in zip([*models, model], sequences, strict=True)])
    torch.testing.assert_close(got, want, atol=1e-4, rtol=1e-4)


def test_a_patched_eight_bit_expert_is_the_dense_weight(decoder: Decoder) -> None:
    residual = in_eight_bits(expert({GATE: delta(80, 48, 3)}))
    banks = ResidualBanks(decoder, ResidualShape({GATE: 3}, frozenset(), frozenset({GATE})), slots=1)
    banks.load(0, banks.pack(residual))
    weight = decoder.layers[0].gate_up.weight
    before = weight.clone()
    banks.patch(0)
    assert torch.equal(weight[:80], before[:80] + residual.sparse[GATE].dense(48))
    banks.unpatch()
    assert torch.equal(weight, before)


def test_beside_wider_experts_eight_bits_are_multiplied_out(decoder: Decoder, tmp_path: Path) -> None:
    wide, narrow = expert({GATE: delta(80, 48)}), in_eight_bits(expert({GATE: delta(80, 48), DOWN: delta(48, 80)}))
    write_expert(tmp_path / "a", wide)
    write_expert(tmp_path / "b", narrow)
    shape = ResidualShape.of([tmp_path / "a", tmp_path / "b"])
    assert shape.quantised == {DOWN}
    banks = ResidualBanks(decoder, shape, slots=2)
    banks.load(1, banks.pack(narrow))
    gate, down = decoder.layers[0].gate_up.bank, decoder.layers[0].down.bank
    assert gate is not None
    assert down is not None
    assert (gate.value.dtype, down.value.dtype) == (torch.bfloat16, torch.int8)
    index, value = gate.rows(1)
    assert torch.equal(index[:80], narrow.sparse[GATE].index.long())
    assert torch.equal(value[:80], narrow.sparse[GATE].numbers.to(torch.bfloat16))
    assert torch.equal(down.rows(1)[1], narrow.sparse[DOWN].numbers)


def test_slots_of_eight_bits_refuse_a_wider_expert(decoder: Decoder) -> None:
    banks = ResidualBanks(decoder, ResidualShape({GATE: 2}, frozenset(), frozenset({GATE})), slots=1)
    with pytest.raises(ModelError, match=f"{GATE} has torch.bfloat16 values, but every expert.*restart"):
        banks.pack(expert({GATE: delta(80, 48)}))


def test_an_eight_bit_embedding_is_looked_up_and_multiplied(tmp_path: Path) -> None:
    model = random_model(tie_word_embeddings=True)
    model.save_pretrained(tmp_path)
    name = "model.embed_tokens.weight"
    made = in_eight_bits(expert({name: delta(97, 48, 5)}))
    decoder = load_model(tmp_path)
    fill_slots(decoder, [made], tmp_path)
    assert decoder.embedding.bank is not None
    assert decoder.embedding.bank.value.dtype == torch.int8
    sequences = prompts(9)
    got = run(decoder, sequences, experts=ExpertBatch.from_slots([0] * 9))
    torch.testing.assert_close(got, expected(with_expert(model, [(made, 1.0)]), sequences), atol=1e-4, rtol=1e-4)
