"""Random models of the shape of a published one, with LoRAs: what a merge of its size needs, without its weights."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from merge.checkpoint import Checkpoint, CheckpointWriter, TensorInfo, TensorSpec
from merge.experts import job_bytes

SHAPES: Mapping[str, Mapping[str, Any]] = {
    "llama-3.1-8b": {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "vocab_size": 128256,
        "max_position_embeddings": 131072,
        "rms_norm_eps": 1e-5,
        "rope_theta": 500000.0,
        "rope_scaling": {
            "factor": 8.0,
            "high_freq_factor": 4.0,
            "low_freq_factor": 1.0,
            "original_max_position_embeddings": 8192,
            "rope_type": "llama3",
        },
        "bos_token_id": 0,
        "eos_token_id": 1,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
    }
}
"""Configurations by name. The special tokens are those of `write_tokenizer`."""

RANK = 16
DRAWN = (1 << 22) + 15
"""Random numbers that a tensor's entries are repeated from. An odd number, so that no two rows are equal."""

TASKS = ("one", "two", "three", "four")


def write_base(path: Path, config: Mapping[str, Any]) -> None:
    """Write a random model in bfloat16, tensor by tensor, unless it is there.

    Args:
        path: the directory.
        config: its config.json.
    """
    if (path / "config.json").is_file():
        return
    path.mkdir(parents=True, exist_ok=True)
    shapes = parameter_shapes(config)
    numbers = torch.randn(DRAWN, generator=torch.Generator().manual_seed(0)).mul_(0.02).to(torch.bfloat16)
    specs = [TensorSpec(name, torch.bfloat16, shape) for name, shape in shapes.items()]
    with CheckpointWriter(path, specs, flush=False) as writer:
        for number, name in enumerate(writer.order):
            size = torch.Size(shapes[name]).numel()
            drawn = numbers.roll(number).repeat(-(-size // DRAWN))[:size].view(shapes[name])
            writer.write(name, drawn + 1 if len(shapes[name]) == 1 else drawn)
    write_tokenizer(path)
    (path / "config.json").write_text(json.dumps(dict(config), indent=2))


def write_lora(path: Path, config: Mapping[str, Any], seed: int) -> None:
    """Write a PEFT LoRA on all linear weights of the decoder layers, unless it is there."""
    if (path / "adapter_model.safetensors").is_file():
        return
    path.mkdir(parents=True, exist_ok=True)
    generator = torch.Generator().manual_seed(seed + 1)
    tensors = {}
    for name, shape in parameter_shapes(config).items():
        if len(shape) == 2 and ".layers." in name:
            module = f"base_model.model.{name.removesuffix('.weight')}"
            for factor, size in (("A", (RANK, shape[1])), ("B", (shape[0], RANK))):
                drawn = torch.randn(size, generator=generator).mul_(size[1] ** -0.5 if factor == "A" else 0.01)
                tensors[f"{module}.lora_{factor}.weight"] = drawn.to(torch.bfloat16)
    settings = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": RANK, "lora_alpha": RANK}
    targets = sorted({name.split(".")[-3] for name in tensors})
    (path / "adapter_config.json").write_text(json.dumps({**settings, "target_modules": targets}))
    save_file(tensors, path / "adapter_model.safetensors")


def parameter_shapes(config: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """The shape of every parameter of the model that a config.json describes, by name."""
    with torch.device("meta"):
        build: Callable[..., PreTrainedModel] = AutoModelForCausalLM.from_config
        model = build(AutoConfig.for_model(**config))
    return {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}


def estimates(config: Mapping[str, Any]) -> dict[str, float]:
    """What cutting an expert of one of the LoRAs takes at most by `job_bytes`, and the model's files, in MB."""
    tensors = {
        name: TensorInfo(name, torch.bfloat16, shape, Path()) for name, shape in parameter_shapes(config).items()
    }
    base = Checkpoint(Path(), config, tensors)
    changed = {name for name in tensors if ".layers." in name}
    return {
        "data_free_mb": job_bytes(base, False, changed=changed) / 1e6,
        "data_free_full_fine_tunes_mb": job_bytes(base, False) / 1e6,
        "calibrated_mb": job_bytes(base, True, changed=changed) / 1e6,
        "model_mb": base.nbytes / 1e6,
    }


def write_tokenizer(path: Path) -> None:
    """Write a tokenizer of a few words: the model's weights are random, and so is what it says."""
    words = ("<s>", "</s>", *(f"word{number}" for number in range(98)))
    tokenizer = Tokenizer(WordLevel({word: number for number, word in enumerate(words)}, unk_token="</s>"))
    tokenizer.pre_tokenizer = Whitespace()
    tokenizer.save(str(path / "tokenizer.json"))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": "</s>"}
    (path / "tokenizer_config.json").write_text(json.dumps(settings))


def write_recipe(
    folder: Path, config: Mapping[str, Any], method: str, prompts: int, experts: Mapping[str, Any]
) -> Path:
    """Write what is not there of a base, LoRAs and prompts, and a recipe for them.

    Args:
        folder: for all of it.
        config: the base's config.json.
        method: the recipe's merge_method.
        prompts: calibration prompts of each task; 0: the merge is data-free.
        experts: the recipe's experts block.

    Returns:
        The recipe's file.
    """
    write_base(folder / "base", config)
    for seed, task in enumerate(TASKS):
        write_lora(folder / task, config, seed)
    # task_arithmetic with a weight chooses no λ, which needs runs of the whole model.
    parameters = {"task_arithmetic": {"weight": 0.25}, "linear": {}, "base": {}}.get(method, {"lambda": 1.0})
    document = {
        "base_model": "base",
        "merge_method": method,
        "parameters": parameters,
        "models": [{"model": task} for task in TASKS],
        "experts": dict(experts),
    }
    if prompts:
        lines = [
            {"task": task, "prompt": " ".join(f"word{(7 * turn + 3 * place + len(task)) % 98}" for place in range(24))}
            for task in TASKS
            for turn in range(prompts)
        ]
        (folder / "prompts.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        document["calibration"] = {"file": "prompts.jsonl", "chat_template": "none", "answer_tokens": 16}
        document["router"] = {"features": "ngram"}
    recipe = folder / "recipe.yml"
    recipe.write_text(json.dumps(document, indent=2))  # JSON is YAML
    return recipe
