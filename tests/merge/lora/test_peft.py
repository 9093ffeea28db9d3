"""The same adapters merged by PEFT itself, if it is installed."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel, LlamaForCausalLM, PreTrainedModel

from merge.checkpoint import open_checkpoint
from merge.lora import open_adapter
from tests.merge.tiny import save_tiny

peft = pytest.importorskip("peft")
# PEFT's own use of what transformers deprecates is not this project's to mend.
pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning", "ignore::DeprecationWarning")

LINEAR = ["q_proj", "v_proj", "up_proj"]


def compare(model: PreTrainedModel, folder: Path, config: dict[str, Any]) -> None:
    """Save a random adapter on a saved model, let PEFT merge it, and hold the tensors against ours."""
    torch.manual_seed(3)
    wrapped = peft.get_peft_model(model, peft.LoraConfig(**{"r": 4, "lora_alpha": 6, **config}))
    with torch.no_grad():
        for name, parameter in wrapped.named_parameters():
            if parameter.requires_grad:
                parameter.add_(0.3 * torch.randn_like(parameter))
            assert name
    wrapped.save_pretrained(folder / "adapter")
    merged = wrapped.merge_and_unload().state_dict()
    adapted = open_adapter(folder / "adapter", open_checkpoint(folder / "model"))
    changed = 0
    for name in adapted.tensors:
        torch.testing.assert_close(adapted.tensor(name), merged[name], rtol=1e-5, atol=2e-6)
        changed += not torch.equal(adapted.model.tensor(name), merged[name])
    assert changed


@pytest.mark.parametrize(
    "config",
    [
        {"target_modules": LINEAR},
        {"target_modules": LINEAR, "use_rslora": True},
        {"target_modules": LINEAR, "rank_pattern": {"up_proj": 2}, "alpha_pattern": {"layers.1.self_attn.q_proj": 9}},
        {"target_modules": LINEAR, "use_dora": True},
        {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]},
        {"target_modules": ["embed_tokens", "q_proj"]},
        {"target_modules": "all-linear", "init_lora_weights": "gaussian"},
    ],
    ids=["plain", "rslora", "patterns", "dora", "modules_to_save", "embedding", "all"],
)
def test_llama(tmp_path: Path, config: dict[str, Any]) -> None:
    save_tiny(tmp_path / "model", tied=False)
    compare(LlamaForCausalLM.from_pretrained(tmp_path / "model"), tmp_path, config)


@pytest.mark.parametrize("bias", ["all", "lora_only"])
def test_layers_stored_transposed_and_biases(tmp_path: Path, bias: str) -> None:
    config = GPT2Config(
        vocab_size=31, n_embd=16, n_layer=2, n_head=2, n_positions=32, tie_word_embeddings=False, initializer_range=0.2,
        bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    GPT2LMHeadModel(config).save_pretrained(tmp_path / "model")
    model = GPT2LMHeadModel.from_pretrained(tmp_path / "model")
    compare(model, tmp_path, {"target_modules": ["c_attn", "c_proj"], "bias": bias, "fan_in_fan_out": True})
