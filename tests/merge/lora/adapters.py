"""Adapters as PEFT writes them."""

import json
from pathlib import Path

import torch
from safetensors.torch import save_file

CONFIG = {
    "peft_type": "LORA", "task_type": "CAUSAL_LM", "r": 4, "lora_alpha": 6, "lora_dropout": 0.0, "bias": "none",
    "use_rslora": False, "use_dora": False, "fan_in_fan_out": False, "rank_pattern": {}, "alpha_pattern": {},
    "modules_to_save": None, "init_lora_weights": True, "target_modules": ["q_proj"], "inference_mode": True,
    "base_model_name_or_path": "somewhere", "layer_replication": None, "lora_bias": False, "megatron_config": None,
}  # fmt: skip
"""adapter_config.json, as far as it matters."""

Q = "model.layers.0.self_attn.q_proj"
PREFIX = "base_model.model."


def write_adapter(path: Path, tensors: dict[str, torch.Tensor], **config: object) -> Path:
    path.mkdir(parents=True, exist_ok=True)
    (path / "adapter_config.json").write_text(json.dumps({**CONFIG, **config}))
    save_file({f"{PREFIX}{name}": tensor for name, tensor in tensors.items()}, path / "adapter_model.safetensors")
    return path


def factors(module: str, outputs: int, inputs: int, rank: int = 4, seed: int = 0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        f"{module}.lora_A.weight": torch.randn(rank, inputs, generator=generator),
        f"{module}.lora_B.weight": torch.randn(outputs, rank, generator=generator),
    }
