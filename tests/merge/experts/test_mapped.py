"""Decoders whose weights stay in their files, on tiny models."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import PreTrainedModel

from merge.checkpoint import Checkpoint, CheckpointError, open_checkpoint
from merge.experts import Calibration, build_model, cut_expert, distill, running
from merge.experts.mapped import mapped
from merge.experts.placed import Product, Values, placed
from merge.experts.running import assign
from merge.lora import open_adapter
from tests.merge.experts.conftest import World
from tests.merge.lora.adapters import Q, factors, write_adapter
from tests.merge.tiny import save_tiny

IDS = torch.tensor([[1, 5, 9, 14], [1, 7, 3, 2]])
WEIGHT = f"{Q}.weight"


def hidden(model: PreTrainedModel) -> Tensor:
    with torch.inference_mode():
        found: Tensor = model(input_ids=IDS).logits
    return found


def expected(checkpoint: Checkpoint) -> Tensor:
    model = build_model(checkpoint.path if (checkpoint.path / "config.json").is_file() else checkpoint.model.path)  # type: ignore[attr-defined]
    assign(model, checkpoint)
    return hidden(model)


@pytest.fixture(scope="module")
def untied(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return open_checkpoint(save_tiny(tmp_path_factory.mktemp("untied") / "base", tied=False, dtype=torch.bfloat16))


@pytest.mark.parametrize("held", [0, 5000, 1 << 30])
def test_a_model_without_memory_computes_what_one_in_float32_does(untied: Checkpoint, held: int) -> None:
    model = build_model(untied.path, empty=True)
    assert all(parameter.is_meta for parameter in model.parameters())
    with mapped(model, untied, held):
        torch.testing.assert_close(hidden(model), expected(untied), rtol=0, atol=1e-6)
    assert all(parameter.is_meta for parameter in model.parameters())
    with mapped(model, untied, held):
        torch.testing.assert_close(hidden(model), expected(untied), rtol=0, atol=1e-6)


def test_what_is_in_the_files_precision_is_not_copied(untied: Checkpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(running, "WORTH_ROUNDING", 1)
    monkeypatch.setattr(running, "fast_bfloat16", lambda: True)
    model = build_model(untied.path, empty=True)
    with mapped(model, untied, 0):
        assert {p.dtype for p in model.parameters() if p.ndim == 2} == {torch.bfloat16}
        assert not any(parameter.is_meta for parameter in model.parameters())
        with running.products(model), torch.inference_mode():
            assert model.base_model(IDS).last_hidden_state.dtype == torch.float32


def test_a_lora_is_added_to_what_its_layers_compute(untied: Checkpoint, tmp_path: Path) -> None:
    base = open_checkpoint(save_tiny(tmp_path / "base", tied=False))
    tune = open_adapter(write_adapter(tmp_path / "lora", factors(Q, 32, 32)), base)
    model = build_model(base.path, empty=True)
    with mapped(model, tune, 0):
        assert torch.equal(model.get_parameter(WEIGHT), base.tensor(WEIGHT))
        torch.testing.assert_close(hidden(model), expected(tune), rtol=1e-4, atol=1e-4)
    with mapped(model, base, 0):
        torch.testing.assert_close(hidden(model), expected(base), rtol=0, atol=1e-6)


def test_entries_are_added_to_weights_that_are_read_for_each_call(untied: Checkpoint) -> None:
    model = build_model(untied.path, empty=True)
    values = Values(torch.arange(32)[:, None] % 5, torch.full((32, 1), 0.5))
    product = Product(torch.ones(32, 2), torch.full((2, 32), 0.1))
    found = []
    for held in (0, 1 << 30):
        with mapped(model, untied, held):
            before = hidden(model)
            with placed(model, {WEIGHT: values}, {WEIGHT: product}):
                found.append(hidden(model))
            assert torch.equal(hidden(model), before)
            assert not torch.equal(found[-1], before)
    torch.testing.assert_close(found[0], found[1], rtol=0, atol=1e-6)


def test_files_are_never_written(untied: Checkpoint) -> None:
    file = untied.path / "model.safetensors"
    before = file.read_bytes()
    model = build_model(untied.path, empty=True)
    norm = "model.norm.weight"
    with mapped(model, untied), placed(model, {norm: Values(None, torch.ones(32))}):
        assert float(model.get_parameter(norm).sum()) > float(load_file(file)[norm].float().sum())
    assert file.read_bytes() == before


def test_other_names_are_refused(untied: Checkpoint) -> None:
    model = build_model(untied.path, empty=True)
    lacking = untied.only(set(untied.tensors) - {WEIGHT})
    with pytest.raises(CheckpointError, match="is not in the checkpoint"), mapped(model, lacking):
        pass
    assert all(parameter.is_meta for parameter in model.parameters())


@pytest.mark.parametrize("held", [0, 1 << 30])
def test_experts_are_the_same_however_much_is_held(world: World, monkeypatch: pytest.MonkeyPatch, held: int) -> None:
    monkeypatch.setattr("merge.experts.mapped.HELD", held)
    monkeypatch.setattr(distill, "ACTIVATIONS", held)
    prompts = [[1, 5 + i, 6, 7 + 2 * i] for i in range(6)]
    models = [build_model(world.base.path, empty=True) for _ in range(2)]
    calibration = Calibration(models[0], models[1], prompts, frozenset({2}), 4)
    given = world.sources(form="auto", budget=0.2, distill=4)
    cut = cut_expert("one", world.fine_tunes["one"], given, calibration)
    assert cut.divergence is not None
    assert cut.divergence[1] < 0.5 * cut.divergence[0]
