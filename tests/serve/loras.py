"""Tiny models with LoRA adapters, written by PEFT itself."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from tests.serve.conftest import random_model

LINEAR = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")

ADAPTERS: Mapping[str, Mapping[str, Any]] = {
    "all": {"target_modules": LINEAR, "r": 4, "lora_alpha": 8},
    "attention": {"target_modules": ["q_proj", "v_proj"], "r": 8, "lora_alpha": 4, "use_rslora": True},
    "patterns": {
        "target_modules": ["q_proj", "up_proj", "down_proj"],
        "r": 3,
        "lora_alpha": 6,
        "rank_pattern": {"up_proj": 5},
        "alpha_pattern": {"layers.1.self_attn.q_proj": 12},
    },
    "upper": {"target_modules": LINEAR, "r": 2, "lora_alpha": 8, "layers_to_transform": [2]},
}
"""Name → what differs from PEFT's defaults."""


def write_adapter(base: Path, path: Path, seed: int, **config: Any) -> Path:
    """Let PEFT write an adapter with random factors of both kinds."""
    import peft

    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_pretrained(base)
    wrapped = peft.get_peft_model(model, peft.LoraConfig(task_type="CAUSAL_LM", **config))
    with torch.no_grad():
        for parameter in wrapped.parameters():
            if parameter.requires_grad:
                parameter.copy_(0.3 * torch.randn_like(parameter))
    wrapped.save_pretrained(path)
    return path


def write_adapters(base: Path, folder: Path) -> dict[str, Path]:
    """All of `ADAPTERS` for a model directory."""
    return {
        name: write_adapter(base, folder / name, seed, **config) for seed, (name, config) in enumerate(ADAPTERS.items())
    }


def write_model(path: Path, family: str = "llama", **settings: Any) -> PreTrainedModel:
    """Write a random model as an ordinary directory."""
    model = random_model(family, **settings)
    model.save_pretrained(path)
    return model


def peft_model(base: Path, adapters: Mapping[str, Path]) -> Any:
    """The model in PEFT with all adapters loaded."""
    import peft

    model = AutoModelForCausalLM.from_pretrained(base)
    (first, path), *others = adapters.items()
    wrapped = peft.PeftModel.from_pretrained(model, path, adapter_name=first)
    for name, directory in others:
        wrapped.load_adapter(str(directory), adapter_name=name)
    return wrapped.eval()


def peft_logits(model: Any, tokens: Sequence[int], adapter: str | None) -> torch.Tensor:
    """Logits [T, vocab] of a text."""
    ids = torch.tensor([list(tokens)])
    with torch.inference_mode():
        if adapter is None:
            with model.disable_adapter():
                return model(input_ids=ids).logits[0]
        model.set_adapter(adapter)
        return model(input_ids=ids).logits[0]
