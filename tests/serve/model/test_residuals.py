from pathlib import Path

import pytest
import torch
from torch import Tensor

from merge.bundle import Expert, SparseDelta, write_expert
from serve.model import Decoder, ModelError, ResidualBanks, ResidualShape, load_model
from tests.serve.conftest import random_delta, random_expert, random_model

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
