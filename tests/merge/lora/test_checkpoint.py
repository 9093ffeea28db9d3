"""Adapted tensors against the formulas, worked out here by hand."""

import json
import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from merge.checkpoint import Checkpoint, CheckpointError, open_checkpoint
from merge.lora import is_adapter, open_adapter
from tests.merge.lora.adapters import PREFIX, Q, factors, write_adapter
from tests.merge.tiny import save_tiny

UP = "model.layers.1.mlp.up_proj"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return open_checkpoint(save_tiny(tmp_path_factory.mktemp("model") / "base", tied=False))


def test_only_the_adapted_tensors_change(model: Checkpoint, tmp_path: Path) -> None:
    made = factors(Q, 32, 32)
    adapted = open_adapter(write_adapter(tmp_path, made), model)
    assert is_adapter(tmp_path)
    assert adapted.path == tmp_path
    assert adapted.tensors == model.tensors
    for name in model.tensors:
        expected = model.tensor(name)
        if name == f"{Q}.weight":
            expected = expected + 6 / 4 * made[f"{Q}.lora_B.weight"] @ made[f"{Q}.lora_A.weight"]
        torch.testing.assert_close(adapted.tensor(name), expected, rtol=0, atol=1e-5)
        assert adapted.tensor(name, torch.float64).dtype == torch.float64


def test_an_adapter_of_zeros_gives_the_model_back_to_the_bit(model: Checkpoint, tmp_path: Path) -> None:
    made = factors(Q, 32, 32)
    made[f"{Q}.lora_B.weight"].zero_()
    adapted = open_adapter(write_adapter(tmp_path, made), model)
    assert all(torch.equal(adapted.tensor(name), model.tensor(name)) for name in model.tensors)


def test_scales(model: Checkpoint, tmp_path: Path) -> None:
    made = {**factors(Q, 32, 32), **factors(UP, 48, 32, rank=8)}
    patterns = {"rank_pattern": {"up_proj": 8}, "alpha_pattern": {r"layers\.1\.mlp\.up_proj": 3}}
    for rslora in (False, True):
        adapted = open_adapter(write_adapter(tmp_path, made, use_rslora=rslora, **patterns), model)
        for module, alpha, rank in ((Q, 6, 4), (UP, 3, 8)):
            scale = alpha / (math.sqrt(rank) if rslora else rank)
            product = made[f"{module}.lora_B.weight"] @ made[f"{module}.lora_A.weight"]
            expected = model.tensor(f"{module}.weight") + scale * product
            torch.testing.assert_close(adapted.tensor(f"{module}.weight"), expected, rtol=0, atol=1e-5)


def test_dora_keeps_the_stored_norms(model: Checkpoint, tmp_path: Path) -> None:
    made = {**factors(Q, 32, 32), f"{Q}.lora_magnitude_vector": torch.rand(32) + 0.5}
    weight = open_adapter(write_adapter(tmp_path, made, use_dora=True), model).tensor(f"{Q}.weight")
    torch.testing.assert_close(weight.norm(dim=1), made[f"{Q}.lora_magnitude_vector"])
    direction = model.tensor(f"{Q}.weight") + 1.5 * made[f"{Q}.lora_B.weight"] @ made[f"{Q}.lora_A.weight"]
    torch.testing.assert_close(
        weight / weight.norm(dim=1, keepdim=True), direction / direction.norm(dim=1, keepdim=True)
    )
    some = open_adapter(tmp_path, model).tensor(f"{Q}.weight", rows=slice(8, 16))
    assert torch.equal(some, weight[8:16])


def test_whole_tensors_are_replaced(model: Checkpoint, tmp_path: Path) -> None:
    head, norm = torch.randn(33, 32), torch.randn(32)
    made = {**factors(Q, 32, 32), "lm_head.modules_to_save.default.weight": head, "model.norm.weight": norm}
    adapted = open_adapter(write_adapter(tmp_path, made, modules_to_save=["lm_head"]), model)
    assert torch.equal(adapted.tensor("lm_head.weight"), head)
    assert torch.equal(adapted.tensor("model.norm.weight"), norm)


def test_factors_are_those_of_the_change(model: Checkpoint, tmp_path: Path) -> None:
    made = {**factors(Q, 32, 32), **factors(UP, 48, 32), "model.norm.weight": torch.randn(32)}
    adapted = open_adapter(write_adapter(tmp_path / "plain", made), model)
    for module, rank in ((Q, 4), (UP, 4), (f"{Q[:-6]}k_proj", 0)):
        found = adapted.factors(f"{module}.weight", torch.float64)
        assert found is not None
        assert found[0].shape[1] == found[1].shape[0] == rank
        change = adapted.tensor(f"{module}.weight", torch.float64) - model.tensor(f"{module}.weight", torch.float64)
        torch.testing.assert_close(found[0] @ found[1], change)
    assert adapted.factors("model.norm.weight", torch.float32) is None
    dora = {**factors(Q, 32, 32), f"{Q}.lora_magnitude_vector": torch.rand(32) + 0.5}
    assert open_adapter(write_adapter(tmp_path / "dora", dora, use_dora=True), model).factors(
        f"{Q}.weight", torch.float32
    ) is None  # fmt: skip


def test_embeddings_layers_stored_transposed_and_convolutions(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    weights = {"wte.weight": torch.randn(10, 6), "mlp.weight": torch.randn(6, 8), "square.weight": torch.randn(6, 6)}
    weights["conv.weight"] = torch.randn(5, 3, 2, 2)
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text('{"tie_word_embeddings": false}')
    save_file(weights, tmp_path / "model" / "model.safetensors")
    made = {
        "wte.lora_embedding_A": torch.randn(4, 10), "wte.lora_embedding_B": torch.randn(6, 4),
        **factors("mlp", 8, 6), **factors("square", 6, 6),
        "conv.lora_A.weight": torch.randn(4, 3, 2, 2), "conv.lora_B.weight": torch.randn(5, 4, 1, 1),
    }  # fmt: skip
    adapter = write_adapter(tmp_path / "adapter", made, fan_in_fan_out=True)
    adapted = open_adapter(adapter, open_checkpoint(tmp_path / "model"))

    def change(name: str) -> torch.Tensor:
        return (adapted.tensor(name) - weights[name]) / 1.5

    close = {"rtol": 0, "atol": 1e-5}
    torch.testing.assert_close(
        change("wte.weight"), (made["wte.lora_embedding_B"] @ made["wte.lora_embedding_A"]).T, **close
    )
    for module in ("mlp", "square"):
        product = made[f"{module}.lora_B.weight"] @ made[f"{module}.lora_A.weight"]
        torch.testing.assert_close(change(f"{module}.weight"), product.T, **close)
    product = torch.einsum("or,rchw->ochw", made["conv.lora_B.weight"][:, :, 0, 0], made["conv.lora_A.weight"])
    torch.testing.assert_close(change("conv.weight"), product, **close)
    for name in weights:
        torch.testing.assert_close(adapted.tensor(name, rows=slice(1, 4)), adapted.tensor(name)[1:4], **close)
    write_adapter(tmp_path / "adapter", made, fan_in_fan_out=False)
    with pytest.raises(CheckpointError, match=r"square\.weight is square, and fan_in_fan_out is wrong"):
        open_adapter(adapter, open_checkpoint(tmp_path / "model"))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"peft_type": "IA3"}, "peft_type 'IA3' is not supported; only LORA is"),
        ({"init_lora_weights": "pissa_niter_16"}, "init_lora_weights 'pissa_niter_16' trained against a changed base"),
        ({"init_lora_weights": "olora"}, "init_lora_weights 'olora'"),
        ({"lora_bias": True}, "lora_bias is True, which is not supported"),
        ({"layer_replication": [[0, 2]]}, "layer_replication is "),
        ({"megatron_config": {"a": 1}}, "megatron_config is "),
        ({"trainable_token_indices": [3]}, "trainable_token_indices is "),
        ({"target_parameters": ["experts.weight"]}, "target_parameters is "),
        ({"alora_invocation_tokens": [1, 2]}, "alora_invocation_tokens is "),
        ({"use_something_new": True}, "use_something_new is True"),
        ({"r": 0}, "r is 0; it must be a positive number"),
        ({"lora_alpha": None}, "lora_alpha is None"),
        ({"alpha_pattern": {"(": 3}}, "alpha_pattern should map"),
        ({"r": 5}, r"q_proj.lora_A.weight is \[4, 32\]; adapter_config.json gives .* the rank 5"),
        ({"use_dora": True}, "use_dora is true, but model.layers.0.self_attn.q_proj has no magnitude vector"),
    ],
)
def test_what_would_be_computed_wrongly_is_refused_by_name(
    model: Checkpoint, tmp_path: Path, config: dict[str, object], message: str
) -> None:
    with pytest.raises(CheckpointError, match=message):
        open_adapter(write_adapter(tmp_path, factors(Q, 32, 32), **config), model)


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        (
            factors("model.layers.7.self_attn.q_proj", 32, 32),
            "adapts model.layers.7.self_attn.q_proj, of which .* no weight",
        ),
        (factors(Q, 32, 31), r"factors \[4, 31\] and \[32, 4\], which do not give \[32, 32\]"),
        ({f"{Q}.lora_A.weight": torch.zeros(4, 32)}, "one factor only"),
        ({"model.other.weight": torch.zeros(1)}, "replaces model.other.weight, which .* does not have"),
        ({"model.norm.weight": torch.zeros(5)}, r"is \[5\]; .* has model.norm.weight \[32\]"),
        ({f"{Q}.lora_magnitude_vector": torch.ones(32), **factors(Q, 32, 32)}, "has a magnitude vector"),
        ({f"{Q}.lora_B.bias": torch.zeros(32), **factors(Q, 32, 32)}, "not a factor of a plain LoRA"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(
    model: Checkpoint, tmp_path: Path, tensors: dict[str, torch.Tensor], message: str
) -> None:
    with pytest.raises(CheckpointError, match=message):
        open_adapter(write_adapter(tmp_path, tensors), model)


def test_every_misfit_is_told_at_once(model: Checkpoint, tmp_path: Path) -> None:
    tensors = {**factors("model.nothing", 3, 3), **factors(Q, 32, 31), "model.other.weight": torch.zeros(1)}
    with pytest.raises(CheckpointError) as caught:
        open_adapter(write_adapter(tmp_path, tensors), model)
    assert len(caught.value.faults) == 3


def test_a_tied_embedding_is_not_adapted(tmp_path: Path) -> None:
    tied = open_checkpoint(save_tiny(tmp_path / "tied"))
    made = {"model.embed_tokens.lora_embedding_A": torch.zeros(4, 33)}
    made["model.embed_tokens.lora_embedding_B"] = torch.zeros(32, 4)
    with pytest.raises(CheckpointError, match="also uses as output head"):
        open_adapter(write_adapter(tmp_path / "adapter", made), tied)


def test_pickled_adapters_are_refused(model: Checkpoint, tmp_path: Path) -> None:
    write_adapter(tmp_path, factors(Q, 32, 32))
    (tmp_path / "adapter_model.safetensors").rename(tmp_path / "adapter_model.bin")
    with pytest.raises(CheckpointError, match="pickled weights only"):
        open_adapter(tmp_path, model)


def test_factors_that_are_not_finite_are_named(model: Checkpoint, tmp_path: Path) -> None:
    made = factors(Q, 32, 32)
    made[f"{Q}.lora_A.weight"][0, 0] = float("nan")
    adapted = open_adapter(write_adapter(tmp_path, made), model)
    with pytest.raises(CheckpointError, match=rf"{PREFIX}{Q}.lora_A.weight holds 1 NaN"):
        adapted.tensor(f"{Q}.weight")


def test_what_a_tied_model_would_need_is_said(tmp_path: Path) -> None:
    tied = open_checkpoint(save_tiny(tmp_path / "tied"))
    with pytest.raises(CheckpointError, match=r"ties to model\.embed_tokens\.weight: .* or untie the base first"):
        open_adapter(write_adapter(tmp_path / "adapter", {"lm_head.weight": torch.zeros(33, 32)}), tied)


def test_the_advice_to_untie_the_base_works(tmp_path: Path) -> None:
    """The head is stored as a copy of the embedding; what the adapter then changes is the head alone."""
    untied = save_tiny(tmp_path / "untied")
    config = json.loads((untied / "config.json").read_text())
    (untied / "config.json").write_text(json.dumps({**config, "tie_word_embeddings": False}))
    tensors = load_file(untied / "model.safetensors")
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
    save_file(tensors, untied / "model.safetensors")
    adapted = open_adapter(
        write_adapter(tmp_path / "adapter", {"lm_head.weight": torch.ones(33, 32)}), open_checkpoint(untied)
    )
    assert bool((adapted.tensor("lm_head.weight") == 1).all())
    assert torch.equal(adapted.tensor("model.embed_tokens.weight"), tensors["model.embed_tokens.weight"])


def test_copies_of_the_embedding_change_nothing(tmp_path: Path) -> None:
    """PEFT stores them with save_embedding_layers."""
    tied = open_checkpoint(save_tiny(tmp_path / "tied"))
    embedding = tied.tensor("model.embed_tokens.weight")
    made = {"lm_head.weight": embedding.clone(), "model.embed_tokens.weight": embedding.clone(), **factors(Q, 32, 32)}
    adapted = open_adapter(write_adapter(tmp_path / "adapter", made), tied)
    assert set(adapted.adapter.changes) == {f"{Q}.weight"}
    assert not adapted.adapter.replacements
    made["lm_head.weight"][0, 0] += 1
    with pytest.raises(CheckpointError, match="replaces lm_head.weight"):
        open_adapter(write_adapter(tmp_path / "adapter", made), tied)


def test_factors_by_the_usual_adapters_name(model: Checkpoint, tmp_path: Path) -> None:
    """A PeftModel's state_dict has them so."""
    made = factors(Q, 32, 32)
    named = {name.replace(".weight", ".default.weight"): tensor for name, tensor in made.items()}
    expected = open_adapter(write_adapter(tmp_path / "plain", made), model).tensor(f"{Q}.weight")
    assert torch.equal(open_adapter(write_adapter(tmp_path / "named", named), model).tensor(f"{Q}.weight"), expected)
    with pytest.raises(CheckpointError, match="are the same factor: keep one"):
        open_adapter(
            write_adapter(tmp_path / "both", {**made, **{name: tensor.clone() for name, tensor in named.items()}}),
            model,
        )


def test_a_full_checkpoint_with_a_left_over_adapter_config(tmp_path: Path) -> None:
    full = save_tiny(tmp_path / "full")
    (full / "adapter_config.json").write_text("{}")
    assert not is_adapter(full)
    (full / "adapter_model.safetensors").touch()
    assert is_adapter(full)


def test_pickled_adapters_are_converted_by_peft(model: Checkpoint, tmp_path: Path) -> None:
    write_adapter(tmp_path, factors(Q, 32, 32))
    (tmp_path / "adapter_model.safetensors").rename(tmp_path / "adapter_model.bin")
    with pytest.raises(CheckpointError, match="PeftModel.from_pretrained"):
        open_adapter(tmp_path, model)
