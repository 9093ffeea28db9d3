"""Pools of random models: a base and fine-tunes of it, each a checkpoint on disk."""

import json
from dataclasses import dataclass
from pathlib import Path

import torch

from benchmarks.merge.shape import write_lora
from merge.checkpoint import CheckpointWriter, TensorSpec


@dataclass(frozen=True)
class Size:
    """A Llama's shape."""

    hidden: int
    intermediate: int
    layers: int
    vocabulary: int

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Every tensor's shape, in Hugging Face's names; the head is tied."""
        square, wide = (self.hidden, self.hidden), (self.intermediate, self.hidden)
        layer = {
            **{f"self_attn.{letter}_proj.weight": square for letter in "qkvo"},
            "mlp.gate_proj.weight": wide,
            "mlp.up_proj.weight": wide,
            "mlp.down_proj.weight": wide[::-1],
            "input_layernorm.weight": (self.hidden,),
            "post_attention_layernorm.weight": (self.hidden,),
        }
        blocks = {f"model.layers.{i}.{name}": shape for i in range(self.layers) for name, shape in layer.items()}
        return {
            "model.embed_tokens.weight": (self.vocabulary, self.hidden),
            **blocks,
            "model.norm.weight": (self.hidden,),
        }

    @property
    def parameters(self) -> int:
        """Number of parameters."""
        return sum(torch.Size(shape).numel() for shape in self.shapes().values())


FULL = Size(768, 2048, 12, 32_000)
"""109.5 M parameters."""

QUICK = Size(256, 704, 4, 8_000)
"""5.2 M parameters."""

STEP = 0.1
"""Size of a task vector relative to the base."""


DISTINCT = 8
"""Models of a pool that are generated; further ones are hard links to them, which cost no disk and read alike."""


def write_pool(folder: Path, size: Size, count: int, dtype: torch.dtype) -> None:
    """Write `base` and `model-00`, `model-01` and so on, unless they are there."""
    for number in range(-1, count):
        path = folder / ("base" if number < 0 else model_name(number))
        if (path / "model.safetensors").is_file():
            continue
        if number < DISTINCT:
            _write_model(path, size, number, dtype)
            continue
        path.mkdir(parents=True)
        for file in (folder / model_name(number % DISTINCT)).iterdir():
            (path / file.name).hardlink_to(file)


def write_loras(folder: Path, count: int) -> None:
    """Write LoRAs of a pool's base, unless they are there."""
    config = json.loads((folder / "base" / "config.json").read_bytes())
    for number in range(count):
        write_lora(folder / lora_name(number), config, number)


def model_name(number: int) -> str:
    """The folder of one full fine-tune."""
    return f"model-{number:02}"


def lora_name(number: int) -> str:
    """The folder of one LoRA."""
    return f"lora-{number:02}"


def _write_model(path: Path, size: Size, number: int, dtype: torch.dtype) -> None:
    path.mkdir(parents=True)
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": size.hidden,
        "intermediate_size": size.intermediate,
        "num_hidden_layers": size.layers,
        "num_attention_heads": size.hidden // 64,
        "num_key_value_heads": size.hidden // 64,
        "vocab_size": size.vocabulary,
        "max_position_embeddings": 2048,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10_000.0,
        "tie_word_embeddings": True,
        "torch_dtype": str(dtype).removeprefix("torch."),
    }
    (path / "config.json").write_text(json.dumps(config, indent=2))
    origin, own = torch.Generator().manual_seed(0), torch.Generator().manual_seed(number + 1)
    shapes = size.shapes()
    with CheckpointWriter(path, [TensorSpec(name, dtype, shape) for name, shape in shapes.items()]) as writer:
        for name in writer.order:
            tensor = torch.randn(shapes[name], generator=origin).mul_(0.02)
            if number >= 0:
                tensor.add_(torch.randn(shapes[name], generator=own), alpha=0.02 * STEP)
            writer.write(name, tensor.add_(1) if len(shapes[name]) == 1 else tensor)
