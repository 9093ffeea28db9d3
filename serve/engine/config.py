"""The engine's settings."""

from dataclasses import dataclass
from typing import Literal, get_args

PatchingMode = Literal["off", "auto"]

QUANTIZATIONS = ("int8", "int4")

MAX_LORA_RANK = 256
"""The largest rank that the kernels are tested with."""


@dataclass(frozen=True)
class EngineConfig:
    """What the engine may use.

    Attributes:
        dtype: "auto" (as the checkpoint is stored), "float32", "bfloat16" or "float16".
        quantization: "int8" or "int4": round the weights of an unquantised model to so many bits at load, on a CPU.
            None: as the checkpoint is stored.
        device: "auto" (a GPU where there is one), "cpu", "cuda" or "cuda:N".
        max_model_len: longest sequence, prompt and generated tokens together; None: what the model was made for.
        max_num_seqs: sequences in one batch.
        max_num_batched_tokens: tokens in one step; longer prompts are computed in chunks.
        block_size: tokens in one KV block.
        kv_cache_bytes: memory for KV blocks. None: what all sequences can need at most, but no more than 30 % of the
            memory that is free once weights and experts are in place and, on a CPU, than twice the weights or 1 GiB,
            whichever is larger, or one sequence.
        max_expert_slots: experts resident on the device at once; None: all that are there at start, up to 64, and at
            least 8 with `enable_lora`.
        enable_lora: make room for LoRA adapters in every linear layer, so that they can be loaded while the server
            runs; adapters that are given at start ask for it by themselves.
        max_lora_rank: the largest rank of an adapter, 1 to 256; None: 16, or that of the adapters given at start.
        max_expert_host_bytes: memory for experts kept ready on the host; None: as much as all of them take, up to a
            share of what is free once everything else is in place. 0: none are kept.
        max_num_queued_reqs: requests that may wait beyond the `max_num_seqs` that run.
        max_num_queued_tokens: prompt tokens that may wait; None: no limit.
        enable_prefix_caching: reuse KV blocks of equal prefixes under equal experts.
        patching: "auto": an expert that is asked for alone is added into the weights, where it costs nothing while it
            stays, as soon as that pays by what is timed at start; rounding then differs in the last bits. "off": never.
        enforce_eager: never capture decoding steps into CUDA graphs; without a GPU they never are.
        seed: seeds the requests that bring none.
    """

    dtype: str = "auto"
    quantization: str | None = None
    device: str = "auto"
    max_model_len: int | None = None
    max_num_seqs: int = 64
    max_num_batched_tokens: int = 2048
    block_size: int = 16
    kv_cache_bytes: int | None = None
    max_expert_slots: int | None = None
    enable_lora: bool = False
    max_lora_rank: int | None = None
    max_expert_host_bytes: int | None = None
    max_num_queued_reqs: int = 1024
    max_num_queued_tokens: int | None = None
    enable_prefix_caching: bool = True
    patching: PatchingMode = "off"
    enforce_eager: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("max_num_seqs", "max_num_batched_tokens", "block_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 1")
        for name in ("max_model_len", "kv_cache_bytes", "max_expert_slots", "max_lora_rank"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise ValueError(f"{name} is {value}; it must be at least 1, or unset")
        if self.max_lora_rank is not None and self.max_lora_rank > MAX_LORA_RANK:
            raise ValueError(f"max_lora_rank is {self.max_lora_rank}; it must be at most {MAX_LORA_RANK}")
        if self.quantization not in {None, *QUANTIZATIONS}:
            raise ValueError(f"quantization is {self.quantization!r}; it must be one of {', '.join(QUANTIZATIONS)}")
        if self.patching not in get_args(PatchingMode):
            raise ValueError(f"patching is {self.patching!r}; it must be one of {', '.join(get_args(PatchingMode))}")
        if self.max_num_queued_reqs < 0:
            raise ValueError(f"max_num_queued_reqs is {self.max_num_queued_reqs}; it must be at least 0")
        if self.max_num_batched_tokens < self.max_num_seqs:
            raise ValueError(
                f"max_num_batched_tokens {self.max_num_batched_tokens} is less than max_num_seqs {self.max_num_seqs}: "
                "a step must hold one token of every running sequence"
            )
