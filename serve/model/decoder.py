"""The decoder over a flattened batch of tokens."""

import math
from collections.abc import Hashable
from dataclasses import dataclass

import torch
from torch import Tensor

from kernels.decoder import CompiledLayers, not_compiled
from kernels.expert_linear import ExpertBatch
from kernels.expert_linear.dispatch import MOST_TOKENS
from kernels.expert_linear.product import padded
from serve.model.batch import ForwardBatch
from serve.model.config import ModelConfig
from serve.model.layer import DecoderLayer, Made
from serve.model.layers import Embedding, Linear, Placement, RmsNorm, place_linear, place_norm
from serve.model.rope import RotaryTable


@dataclass(frozen=True)
class KvCache:
    """Keys and values of all layers.

    Attributes:
        keys, values: one tensor a layer, [num_blocks, block_size, kv_heads, head_dim].
        with_spare: the same memory with one block more at the end, which no sequence is ever given; None if none
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


class Decoder:
    """A decoder, with memory for its weights but no values yet.

    Attributes:
        config: its shape.
        max_positions: positions that it can be asked for.
        dtype, device: of its weights and activations.
        not_compiled: why steps of few tokens are not computed in one compiled call; None: they are, on the CPU.
        windows: the distinct sliding windows, for each of which a batch needs an attention plan.
        placements: the place of each parameter of a checkpoint, by its Hugging Face name.
    """

    def __init__(self, config: ModelConfig, max_positions: int, dtype: torch.dtype, device: torch.device) -> None:
        self.config, self.max_positions, self.dtype, self.device = config, max_positions, dtype, device
        self.windows = frozenset(config.windows)
        self.embedding = Embedding(config.vocab_size, config.hidden_size, False, dtype, device)
        self.layers = [DecoderLayer(config, layer, dtype, device) for layer in config.layers]
        self.norm = RmsNorm(config.hidden_size, config.rms_norm_eps, dtype, device, config.layers[0].norm_offset)
        self.head: Linear = self.embedding
        if not config.tied:
            self.head = Linear(config.vocab_size, config.hidden_size, False, dtype, device)
        self.not_compiled = not_compiled(self.layers)
        self._compiled = None if self.not_compiled else CompiledLayers(self.layers)
        self._rotary = {
            rope: RotaryTable(rope, config.head_dim, max_positions, device)
            for rope in dict.fromkeys(layer.rope for layer in config.layers)
        }
        # As in transformers and vLLM a factor of the dtype of the weights.
        self._embedding_scale = float(torch.tensor(config.embedding_scale, dtype=dtype))
        self.placements = self._placements()

    def forward(self, batch: ForwardBatch, cache: KvCache) -> Tensor:
        """The residual stream after the last layer, before the final norm: [T, hidden]."""
        x = self.embedding.lookup(batch.tokens, batch.experts)
        if self._embedding_scale != 1:
            x = x * self._embedding_scale
        angles: dict[Hashable, tuple[Tensor, Tensor]] = {
            rope: table.at(batch.positions, self.dtype) for rope, table in self._rotary.items()
        }
        plan = batch.slot_mapping, batch.attention, batch.experts
        if self._compiled is not None and self._compiled(x, angles, cache.keys, cache.values, *plan):
            return x
        made: Made | None = None
        wide = self._wide(len(x))
        for layer, keys, values in zip(self.layers, cache.keys, cache.values, strict=True):
            x, made = layer(x, made, batch, *angles[layer.rotation], keys, values, wide)
        return x if made is None else made.added_to(x)

    def _wide(self, tokens: int) -> Tensor | None:
        """Memory for the widest results of a step's layers, if it is worth sharing.

        A GPU's allocator keeps what is freed, and steps of few tokens take little memory.
        """
        if self.device.type != "cpu" or tokens <= MOST_TOKENS[torch.bfloat16]:
            return None
        if all(layer.routed is not None for layer in self.layers):
            return None
        return torch.empty(padded(tokens), 2 * self.config.intermediate_size, dtype=self.dtype)

    def logits(self, hidden: Tensor, experts: ExpertBatch | None) -> Tensor:
        """Next-token logits [R, vocab] of chosen rows [R, hidden] of `forward`'s result, with those rows' experts."""
        logits = self.head(self.norm(hidden, experts), experts)
        if self.config.logit_divisor != 1:
            logits = logits / self.config.logit_divisor
        cap = self.config.logit_softcap
        return logits if cap is None else cap * torch.tanh(logits / cap)

    def kv_bytes_per_token(self) -> int:
        """Bytes of one token's keys and values in all layers."""
        config = self.config
        return 2 * config.num_layers * config.num_kv_heads * config.head_dim * self.dtype.itemsize

    def weight_bytes(self) -> int:
        """Bytes of all weights, without the experts' residuals."""
        return sum(part.nbytes for part in {placement.part for placement in self.placements.values()})

    def unquantised_bytes(self) -> int:
        """Bytes that all weights would take in the dtype of the activations."""
        return sum(math.prod(placement.shape) for placement in self.placements.values()) * self.dtype.itemsize

    def _placements(self) -> dict[str, Placement]:
        vocab = [self.config.vocab_size]
        found = place_linear(["model.embed_tokens"], vocab, self.embedding)
        for number, layer in enumerate(self.layers):
            found |= layer.placements(f"model.layers.{number}", self.config)
        found |= place_norm("model.norm", self.norm)
        if not self.config.tied:
            found |= place_linear(["lm_head"], vocab, self.head)
        return found
