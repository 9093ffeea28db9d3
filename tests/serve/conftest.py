"""Tiny random models and experts, and bundles made of them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    MistralConfig,
    PretrainedConfig,
    PreTrainedModel,
    Qwen2Config,
    Qwen3Config,
)

from merge.bundle import (
    Bundle,
    BundleWriter,
    Expert,
    ManifestFields,
    SparseDelta,
    backbone_digest,
    open_bundle,
    write_expert,
)

SIZES: dict[str, Any] = {
    "vocab_size": 97,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 256,
    "rms_norm_eps": 1e-5,
    "eos_token_id": 1,
    "bos_token_id": None,
    "pad_token_id": None,
    "dtype": "float32",
}
FAMILIES: dict[str, type[PretrainedConfig]] = {
    "llama": LlamaConfig,
    "mistral": MistralConfig,
    "qwen2": Qwen2Config,
    "qwen3": Qwen3Config,
}


def random_model(family: str = "llama", seed: int = 0, **settings: Any) -> PreTrainedModel:
    """A model whose next-token distribution is decided enough for greedy choices to survive rounding."""
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(FAMILIES[family](**{**SIZES, **settings}))
    with torch.no_grad():
        for parameter in model.parameters():
            scale = parameter.shape[-1] ** -0.5 * 1.5 if parameter.dim() == 2 else 0.2
            offset = 1.0 if parameter.dim() == 1 else 0.0
            parameter.copy_(offset + scale * torch.randn(parameter.shape))
    return model.eval()


def random_expert(
    model: PreTrainedModel, digest: str, name: str, seed: int, entries: int = 3, scale: float = 0.5
) -> Expert:
    """A residual for every parameter but the embeddings, `entries` a row, large enough to change what is generated."""
    generator = torch.Generator().manual_seed(seed)
    sparse: dict[str, SparseDelta] = {}
    dense: dict[str, Tensor] = {}
    for parameter, tensor in model.named_parameters():
        if tensor.dim() == 1:
            dense[parameter] = 0.3 * torch.randn(tensor.shape, generator=generator)
        elif "embed_tokens" not in parameter and "lm_head" not in parameter:
            sparse[parameter] = random_delta(tensor.shape, entries, generator, scale)
    return Expert(name, digest, entries / 48, sparse, dense)


def random_delta(shape: Sequence[int], entries: int, generator: torch.Generator, scale: float = 0.5) -> SparseDelta:
    """A residual of a [N, K] weight with `entries` a row."""
    index = torch.rand(tuple(shape), generator=generator).topk(entries, dim=1).indices.sort(dim=1).values
    value = scale * torch.randn(index.shape, generator=generator)
    return SparseDelta(index.to(torch.uint16), value.to(torch.bfloat16))


def with_expert(model: PreTrainedModel, experts: Sequence[tuple[Expert, float]]) -> PreTrainedModel:
    """A dense copy of the model whose weights are backbone + Σ gate * residual."""
    copy: PreTrainedModel = type(model)(model.config)
    copy.load_state_dict(model.state_dict())
    parameters = dict(copy.named_parameters())
    with torch.no_grad():
        for expert, gate in experts:
            for name, residual in expert.sparse.items():
                parameters[name] += gate * residual.dense(parameters[name].shape[1])
            for name, delta in expert.dense.items():
                parameters[name] += gate * delta
    return copy.eval()


@dataclass
class TinyBundle:
    """A bundle with what it was made of."""

    bundle: Bundle
    model: PreTrainedModel
    experts: dict[str, Expert] = field(default_factory=dict)

    def dense(self, *experts: tuple[str, float]) -> PreTrainedModel:
        """The model with some of the experts added into its weights."""
        return with_expert(self.model, [(self.experts[name], gate) for name, gate in experts])

    def greedy(self, prompt: Sequence[int], tokens: int, *experts: tuple[str, float]) -> list[int]:
        """What transformers generates greedily with dense weights, never stopping early."""
        model, sequence = self.dense(*experts), list(prompt)
        with torch.inference_mode():
            for _ in range(tokens):
                sequence.append(int(model(torch.tensor([sequence])).logits[0, -1].argmax()))
        return sequence[len(prompt) :]


def write_bundle(
    path: Path, model: PreTrainedModel, make: Callable[[str], Sequence[Expert]] = lambda _: ()
) -> TinyBundle:
    """Write a bundle of a model and the experts that `make` cuts against its digest."""
    with BundleWriter(path) as staging:
        model.save_pretrained(staging.path / "backbone")
        experts = make(backbone_digest(staging.path / "backbone"))
        for expert in experts:
            write_expert(staging.path / "experts" / f"{expert.name}.safetensors", expert)
        staging.finish(ManifestFields(name="tiny", created="2026-01-01T00:00:00Z"))
    return TinyBundle(open_bundle(path), model, {expert.name: expert for expert in experts})


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> TinyBundle:
    """A Llama with four experts, `a` to `d`."""
    model = random_model()
    return write_bundle(
        tmp_path_factory.mktemp("tiny") / "bundle",
        model,
        lambda digest: [random_expert(model, digest, name, seed) for seed, name in enumerate("abcd")],
    )
