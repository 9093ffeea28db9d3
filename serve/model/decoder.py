"""The Llama-family decoder over a flattened batch of tokens."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from kernels.attention import AttentionBatch, paged_attention, rotate_into_cache
from kernels.decoder import CompiledLayers
from kernels.expert_linear import ExpertBatch
from kernels.silu_mul import silu_mul
from serve.model.config import ModelConfig
from serve.model.layers import Embedding, Linear, Placement, RmsNorm, place_linear, place_norm
from serve.model.rope import RotaryTable


@dataclass(frozen=True)
class ForwardBatch:
    """One step's tokens, those of each sequence one after another.

    Attributes:
        tokens: [T] int64.
        positions: [T] int64, each token's place in its own sequence.
        slot_mapping: [T] int64, row of the flattened KV cache that takes each token's key and value.
        attention: plan of the attention for each sliding window of the model (None: no window).
        experts: slots and gates of the tokens, or None where no token has an expert.
    """

    tokens: Tensor
    positions: Tensor
    slot_mapping: Tensor
    attention: Mapping[int | None, AttentionBatch]
    experts: ExpertBatch | None = None


@dataclass(frozen=True)
class KvCache:
    """Keys and values of all layers.

    Attributes:
        keys, values: one tensor a layer, [num_blocks, block_size, kv_heads, head_dim].
        with_spare: the same memory with one block more at the end, which no sequence is ever given; None where none
            was asked for.
    """

    keys: tuple[Tensor, ...]
    values: tuple[Tensor, ...]
    with_spare: "KvCache | None" = None

    @classmethod
    def allocate(
        cls,
        config: ModelConfig,
        num_blocks: int,
        block_size: int,
        dtype: torch.dtype,
        device: torch.device,
        spare: bool = False,
    ) -> "KvCache":
        """A cache of zeros: attention multiplies what it masks by 0, so no block may ever hold NaN."""
        shape = (num_blocks + spare, block_size, config.num_kv_heads, config.head_dim)

        def layers() -> tuple[Tensor, ...]:
            return tuple(torch.zeros(shape, dtype=dtype, device=device) for _ in range(config.num_layers))

        whole = cls(layers(), layers())
        if not spare:
            return whole
        keys, values = (tuple(tensor[:num_blocks] for tensor in tensors) for tensors in (whole.keys, whole.values))
        return cls(keys, values, whole)


class DecoderLayer:
    """Attention and gated MLP, each after a norm and added to the residual stream."""

    def __init__(self, config: ModelConfig, window: int | None, dtype: torch.dtype, device: torch.device) -> None:
        hidden, inner, dim = config.hidden_size, config.intermediate_size, config.head_dim
        self.window = window
        self._heads, self._kv_heads, self._head_dim = config.num_heads, config.num_kv_heads, dim
        eps = config.rms_norm_eps
        self.input_norm = RmsNorm(hidden, eps, dtype, device)
        self.qkv = Linear(
            (config.num_heads + 2 * config.num_kv_heads) * dim, hidden, config.attention_bias, dtype, device
        )
        self.q_norm = RmsNorm(dim, eps, dtype, device) if config.qk_norm else None
        self.k_norm = RmsNorm(dim, eps, dtype, device) if config.qk_norm else None
        self.output = Linear(hidden, config.num_heads * dim, config.output_bias, dtype, device)
        self.mlp_norm = RmsNorm(hidden, eps, dtype, device)
        self.gate_up = Linear(2 * inner, hidden, config.mlp_bias, dtype, device)
        self.down = Linear(hidden, inner, config.mlp_bias, dtype, device)

    def __call__(
        self, x: Tensor, batch: ForwardBatch, cos: Tensor, sin: Tensor, keys: Tensor, values: Tensor
    ) -> Tensor:
        """[T, hidden] to the same shape; the step's keys and values are written to the layer's cache."""
        experts = batch.experts
        qkv = self.qkv(self.input_norm(x, experts), experts).view(x.shape[0], -1, self._head_dim)
        query, key, value = torch.split(qkv, [self._heads, self._kv_heads, self._kv_heads], dim=1)
        if self.q_norm is not None and self.k_norm is not None:
            query, key = self.q_norm(query, experts), self.k_norm(key, experts)
        query = rotate_into_cache(query, key, value, cos, sin, keys, values, batch.slot_mapping)
        attended = paged_attention(query, keys, values, batch.attention[self.window])
        x = x + self.output(attended.flatten(1), experts)
        return x + self.down(silu_mul(self.gate_up(self.mlp_norm(x, experts), experts)), experts)

    def placements(self, prefix: str, config: ModelConfig) -> dict[str, Placement]:
        """Placements of the layer's parameters, under their Hugging Face names."""
        q, kv = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
        attention, mlp = f"{prefix}.self_attn", f"{prefix}.mlp"
        found = {
            **place_norm(f"{prefix}.input_layernorm", self.input_norm),
            **place_norm(f"{prefix}.post_attention_layernorm", self.mlp_norm),
            **place_linear([f"{attention}.{p}_proj" for p in "qkv"], [q, kv, kv], self.qkv),
            **place_linear([f"{attention}.o_proj"], [config.hidden_size], self.output),
            **place_linear([f"{mlp}.gate_proj", f"{mlp}.up_proj"], [config.intermediate_size] * 2, self.gate_up),
            **place_linear([f"{mlp}.down_proj"], [config.hidden_size], self.down),
        }
        if self.q_norm is not None and self.k_norm is not None:
            found |= place_norm(f"{attention}.q_norm", self.q_norm) | place_norm(f"{attention}.k_norm", self.k_norm)
        return found


class Decoder:
    """A decoder of the Llama family, with memory for its weights but no values yet.

    Attributes:
        config: its shape.
        dtype, device: of its weights and activations.
        windows: the distinct sliding windows, for each of which a batch needs an attention plan.
        placements: where each parameter of a checkpoint goes, by its Hugging Face name.
    """

    def __init__(self, config: ModelConfig, max_positions: int, dtype: torch.dtype, device: torch.device) -> None:
        self.config, self.dtype, self.device = config, dtype, device
        self.windows = frozenset(config.windows)
        self.embedding = Embedding(config.vocab_size, config.hidden_size, False, dtype, device)
        self.layers = [DecoderLayer(config, window, dtype, device) for window in config.windows]
        self.norm = RmsNorm(config.hidden_size, config.rms_norm_eps, dtype, device)
        self.head: Linear = self.embedding
        if not config.tied:
            self.head = Linear(config.vocab_size, config.hidden_size, False, dtype, device)
        self._compiled = CompiledLayers(
            self.layers, config.num_heads, config.num_kv_heads, config.head_dim, config.rms_norm_eps
        )
        self._rotary = RotaryTable(config.rope, config.head_dim, max_positions, device)
        self.placements = self._placements()

    def forward(self, batch: ForwardBatch, cache: KvCache) -> Tensor:
        """The residual stream after the last layer, before the final norm: [T, hidden]."""
        x = self.embedding.lookup(batch.tokens, batch.experts)
        cos, sin = self._rotary.at(batch.positions, self.dtype)
        plan = batch.slot_mapping, batch.attention, batch.experts
        if self._compiled(x, cos, sin, cache.keys, cache.values, *plan):
            return x
        for layer, keys, values in zip(self.layers, cache.keys, cache.values, strict=True):
            x = layer(x, batch, cos, sin, keys, values)
        return x

    def logits(self, hidden: Tensor, experts: ExpertBatch | None) -> Tensor:
        """Next-token logits [R, vocab] of chosen rows [R, hidden] of `forward`'s result, with those rows' experts."""
        return self.head(self.norm(hidden, experts), experts)

    def kv_bytes_per_token(self) -> int:
        """Bytes of one token's keys and values in all layers."""
        config = self.config
        return 2 * config.num_layers * config.num_kv_heads * config.head_dim * self.dtype.itemsize

    def weight_bytes(self) -> int:
        """Bytes of all weights, without the experts' residuals."""
        return sum(placement.target.nbytes for placement in self.placements.values())

    def _placements(self) -> dict[str, Placement]:
        vocab = [self.config.vocab_size]
        found = place_linear(["model.embed_tokens"], vocab, self.embedding)
        for number, layer in enumerate(self.layers):
            found |= layer.placements(f"model.layers.{number}", self.config)
        found |= place_norm("model.norm", self.norm)
        if not self.config.tied:
            found |= place_linear(["lm_head"], vocab, self.head)
        return found
