"""The engine's settings."""

from dataclasses import dataclass
from typing import Literal, get_args

from serve.config.setting import check_settings, setting

PatchingMode = Literal["off", "auto"]

QUANTIZATIONS = ("int8", "int4")

MAX_LORA_RANK = 256
"""The largest rank that the kernels are tested with."""


@dataclass(frozen=True)
class EngineConfig:
    """What the engine may use. The help of each option describes its field."""

    dtype: str = setting("auto", "Precision: auto (as in the checkpoint), float32, bfloat16 or float16.")
    quantization: str | None = setting(
        None,
        "int8 or int4: round the weights of an unquantised model to 8 or 4 bits at load. "
        "Embeddings and the head get 8 bits.",
        words=QUANTIZATIONS,
    )
    device: str = setting("auto", "Where to compute: auto (a GPU if there is one), cpu, cuda or cuda:N.")
    max_model_len: int | None = setting(
        None, "Longest sequence in tokens, prompt and reply together; the model's limit if not given.", least=1
    )
    max_num_seqs: int = setting(64, "Sequences in one batch.", least=1)
    max_num_batched_tokens: int = setting(2048, "Tokens in one step.", least=1)
    """Longer prompts are computed in chunks."""
    max_num_queued_reqs: int = setting(1024, "Requests that may wait.", least=0)
    """Beyond the `max_num_seqs` that run."""
    max_num_queued_tokens: int | None = setting(None, "Prompt tokens that may wait; no limit if not given.")
    block_size: int = 16
    """Tokens in one KV block; on a GPU rounded up to the multiple of 256 that its attention needs."""
    kv_cache_bytes: int | None = setting(
        None,
        "Memory for keys and values, as in 512MiB. Default: enough for --max-num-seqs sequences of --max-model-len "
        "tokens; on a CPU at most 30 % of free memory, and twice the weights or 1 GiB, whichever is larger; on a GPU "
        "what --gpu-memory-utilization leaves.",
        size=True,
        least=1,
    )
    """The default has room for at least one sequence."""
    gpu_memory_utilization: float = setting(
        0.9, "Largest part of a GPU's memory to use in all, above 0 and at most 1, as in vLLM."
    )
    """By weights, experts, keys and values, and the largest step, and by whatever else is on that GPU at start."""
    max_expert_slots: int | None = setting(
        None, "Experts and adapters on the device at once.", "--expert-slots", "--max-loras", least=1
    )
    """None: all that are there at start, up to 64, and at least 8 with `enable_lora`."""
    enable_lora: bool = setting(
        False,
        "Make room for adapters that are loaded while the server runs; --lora-modules does so, too.",
    )
    max_lora_rank: int | None = setting(
        None,
        "Largest rank of an adapter; 16, or that of the --lora-modules, if not given.",
        least=1,
        show_default=False,
    )
    max_expert_host_bytes: int | None = setting(
        None,
        "Memory for experts kept ready on the host, 0 for none; 30 % of what is free if not given.",
        size=True,
    )
    """None: as much as all of them take, up to that share of what is free once everything else is in place."""
    patching: PatchingMode = setting(
        "off",
        "auto: add an expert that is requested alone to the weights as soon as that saves time. off: never.",
        words=get_args(PatchingMode),
    )
    """The times are measured at start. A patched expert adds no cost while it stays, but rounding differs in the last
    bits."""
    enable_prefix_caching: bool = setting(True, "Reuse keys and values of equal prefixes.")
    """Under equal experts."""
    enforce_eager: bool = setting(False, "On a GPU: never capture decoding steps into CUDA graphs.")
    seed: int = setting(0, "Default seed for requests without one.")

    def __post_init__(self) -> None:
        if self.block_size < 1:
            raise ValueError(f"block_size is {self.block_size}; it must be at least 1")
        check_settings(self)
        if not 0 < self.gpu_memory_utilization <= 1:
            raise ValueError(
                f"gpu_memory_utilization is {self.gpu_memory_utilization}; it must be above 0 and at most 1"
            )
        if self.max_lora_rank is not None and self.max_lora_rank > MAX_LORA_RANK:
            raise ValueError(f"max_lora_rank is {self.max_lora_rank}; it must be at most {MAX_LORA_RANK}")
        if self.max_num_batched_tokens < self.max_num_seqs:
            raise ValueError(
                f"max_num_batched_tokens {self.max_num_batched_tokens} is less than max_num_seqs {self.max_num_seqs}: "
                "a step must hold one token of every running sequence"
            )
