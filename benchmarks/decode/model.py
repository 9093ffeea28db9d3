"""A random-initialised model, its bundle of random experts, and random LoRAs on it for peers.

Speed depends on shapes and bytes, not on what the weights mean, so no trained model is needed.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import Qwen2Config, Qwen2ForCausalLM

from merge.bundle import (
    Bundle,
    BundleWriter,
    Expert,
    LowRankDelta,
    ManifestFields,
    backbone_digest,
    open_bundle,
    write_expert,
)
from merge.experts.storage import Storage, to_sparse

Kind = Literal["sparse", "low_rank8_int8", "lora16"]
"""Experts of a bundle in sparse rows, or of rank 8 in 8 bits; or LoRA adapters of rank 16, which no bundle holds."""

LINEARS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


@dataclass(frozen=True)
class Shape:
    """A Qwen2 model's shape; the defaults have 372 M parameters."""

    hidden: int = 896
    intermediate: int = 4864
    layers: int = 24
    heads: int = 14
    kv_heads: int = 2
    vocabulary: int = 16_000
    positions: int = 8192

    def narrow(self) -> "Shape":
        """The same operations over very few bytes: a step's time on it is that of the operations themselves."""
        return Shape(64, 64, self.layers, 2, 1, self.vocabulary, self.positions)


def write_model(
    path: Path, shape: Shape, experts: int, density: float, storage: Storage = "int8", kind: Kind = "sparse"
) -> Bundle:
    """Write a bundle in bfloat16 with experts `e0`, `e1`, ... on every linear layer; of LoRAs, with none."""
    torch.manual_seed(0)
    config = Qwen2Config(
        hidden_size=shape.hidden,
        intermediate_size=shape.intermediate,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        vocab_size=shape.vocabulary,
        max_position_embeddings=shape.positions,
        tie_word_embeddings=True,
        eos_token_id=None,
        bos_token_id=None,
    )
    with BundleWriter(path) as staging:
        model = Qwen2ForCausalLM(config).bfloat16()
        model.save_pretrained(staging.path / "backbone")
        write_tokenizer(staging.path / "backbone", shape.vocabulary)
        digest = backbone_digest(staging.path / "backbone")
        shapes = {name: tuple(p.shape) for name, p in model.named_parameters() if name.split(".")[-2] in LINEARS}
        for number in range(0 if kind == "lora16" else experts):
            if kind == "sparse":
                expert = random_expert(f"e{number}", digest, shapes, density, number, storage)
            else:
                expert = random_low_rank(f"e{number}", digest, shapes, 8, number)
            write_expert(staging.path / "experts" / f"{expert.name}.safetensors", expert)
        staging.finish(ManifestFields(name="random", created="2026-01-01T00:00:00+00:00"))
    return open_bundle(path)


def write_tokenizer(path: Path, vocabulary: int) -> None:
    """A tokenizer of `vocabulary` words, `w0 w1 w2 ...`: each token is text, and each word one token."""
    tokenizer = Tokenizer(WordLevel({f"w{i}": i for i in range(vocabulary)}, unk_token="w0"))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    tokenizer.save(str(path / "tokenizer.json"))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "unk_token": "w0"}
    (path / "tokenizer_config.json").write_text(json.dumps(settings))


def random_expert(
    name: str, digest: str, shapes: dict[str, tuple[int, ...]], density: float, seed: int, storage: Storage = "int8"
) -> Expert:
    """A residual of `density` on each 2-D weight."""
    generator = torch.Generator().manual_seed(seed)
    sparse = {}
    for parameter, shape in shapes.items():
        if len(shape) == 2:
            kept = max(1, round(density * shape[1]))
            # One column somewhere in each of `kept` stretches of the row: ascending without a sort.
            edges = torch.arange(kept + 1) * shape[1] // kept
            place = torch.rand(shape[0], kept, generator=generator) * edges.diff()
            index = edges[:-1] + place.to(torch.int64)
            value = 0.02 * torch.randn(index.shape, generator=generator)
            sparse[parameter] = to_sparse(index, value, shape[1], storage)
    return Expert(name, digest, density, sparse, {})


def random_low_rank(name: str, digest: str, shapes: dict[str, tuple[int, ...]], rank: int, seed: int) -> Expert:
    """Factors in 8 bits for each 2-D weight."""
    generator = torch.Generator().manual_seed(seed)
    deltas = {}
    for parameter, shape in shapes.items():
        if len(shape) == 2:
            a = torch.randint(-127, 128, (rank, shape[1]), generator=generator, dtype=torch.int8)
            b = torch.randint(-127, 128, (shape[0], rank), generator=generator, dtype=torch.int8)
            deltas[parameter] = LowRankDelta(a, b, torch.full((rank,), 0.02 * 0.02 / 73**2))
    return Expert(name, digest, 0.0, {}, {}, low_rank=deltas)


def write_loras(folder: Path, bundle: Bundle, names: list[str], rank: int) -> None:
    """Write PEFT adapters on the same linear layers, one a name."""
    config = json.loads((bundle.backbone_dir / "config.json").read_text())
    hidden, inner = config["hidden_size"], config["intermediate_size"]
    keys = hidden // config["num_attention_heads"] * config["num_key_value_heads"]
    sizes = {
        "self_attn.q_proj": (hidden, hidden),
        "self_attn.k_proj": (hidden, keys),
        "self_attn.v_proj": (hidden, keys),
        "self_attn.o_proj": (hidden, hidden),
        "mlp.gate_proj": (hidden, inner),
        "mlp.up_proj": (hidden, inner),
        "mlp.down_proj": (inner, hidden),
    }
    for number, name in enumerate(names):
        generator = torch.Generator().manual_seed(number)
        tensors = {}
        for layer in range(config["num_hidden_layers"]):
            for module, (columns, rows) in sizes.items():
                prefix = f"base_model.model.model.layers.{layer}.{module}"
                a = 0.02 * torch.randn(rank, columns, generator=generator)
                b = 0.02 * torch.randn(rows, rank, generator=generator)
                tensors[f"{prefix}.lora_A.weight"] = a.to(torch.bfloat16)
                tensors[f"{prefix}.lora_B.weight"] = b.to(torch.bfloat16)
        target = folder / name
        target.mkdir(parents=True)
        save_file(tensors, target / "adapter_model.safetensors")
        settings = {
            "peft_type": "LORA",
            "task_type": "CAUSAL_LM",
            "r": rank,
            "lora_alpha": rank,
            "target_modules": list(LINEARS),
            "base_model_name_or_path": str(bundle.backbone_dir),
            "bias": "none",
        }
        (target / "adapter_config.json").write_text(json.dumps(settings))
