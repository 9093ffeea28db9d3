"""How many KV blocks to allocate, within the memory that is free."""

import torch

from kernels.attention import AttentionBatch
from merge.bundle import available_host_bytes
from serve.config.engine import EngineConfig
from serve.engine.errors import EngineError
from serve.model import Decoder, ForwardBatch, KvCache

KV_SHARE = 0.3
"""Largest part of a host's free memory that KV blocks take by default: others use it, too."""

LEAST_CAP = 1 << 30
WEIGHTS_CAP = 2
"""On a CPU, KV blocks take by default no more than this many times the weights' bytes, or `LEAST_CAP` if more."""


def free_bytes(device: torch.device) -> int:
    """Memory that could be taken now: of the GPU, or of the host within the limits of its control groups."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return available_host_bytes()


def num_blocks(decoder: Decoder, config: EngineConfig, max_model_len: int, spare: bool = False) -> int:
    """KV blocks to allocate: within the budget, no more than all sequences at their longest need, no less than one.

    With `spare`, one more that is not counted fits the budget too.

    Raises:
        EngineError: the budget does not hold one sequence.
    """
    block_bytes = decoder.kv_bytes_per_token() * config.block_size
    one = -(-max_model_len // config.block_size)
    budget = config.kv_cache_bytes
    if budget is None:
        budget = _default_budget(decoder, config, (one + spare) * block_bytes)
    fits = budget // block_bytes - spare
    if fits < one:
        raise EngineError(
            f"a sequence of max_model_len {max_model_len} needs {(one + spare) * block_bytes} bytes of KV cache, "
            f"of {budget}: lower max_model_len or raise {_setting(config, decoder.device)}"
        )
    return min(fits, one * config.max_num_seqs)


def _setting(config: EngineConfig, device: torch.device) -> str:
    """The setting that decides how much memory there is."""
    return "gpu_memory_utilization" if device.type == "cuda" and config.kv_cache_bytes is None else "kv_cache_bytes"


def _default_budget(decoder: Decoder, config: EngineConfig, one_sequence: int) -> int:
    if decoder.device.type == "cpu":
        share = int(free_bytes(decoder.device) * KV_SHARE)
        return min(share, max(LEAST_CAP, WEIGHTS_CAP * decoder.weight_bytes(), one_sequence))
    step = step_bytes(decoder, config)
    free, total = torch.cuda.mem_get_info(decoder.device)
    return max(0, int(total * config.gpu_memory_utilization) - (total - free) - step)


def step_bytes(decoder: Decoder, config: EngineConfig) -> int:
    """The most memory of a GPU that a step takes beside weights, experts and cache: that of the largest one, computed.

    It is one prompt of as many tokens as a step may have, and logits for as many sequences.
    """
    device, tokens = decoder.device, config.max_num_batched_tokens
    blocks = -(-tokens // config.block_size)
    cache = KvCache.allocate(decoder.config, blocks, config.block_size, decoder.dtype, device)
    number = torch.arange(tokens, device=device)
    table = torch.arange(blocks, dtype=torch.int32, device=device)[None]
    batch = ForwardBatch(
        tokens=number.remainder(decoder.config.vocab_size),
        positions=number.clamp(max=decoder.max_positions - 1),
        slot_mapping=number,
        attention={
            window: AttentionBatch.build(table, [tokens], [tokens], config.block_size, window)
            for window in decoder.windows
        },
    )
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    with torch.inference_mode():
        hidden = decoder.forward(batch, cache)
        decoder.logits(hidden[: config.max_num_seqs], None).to(torch.float32)
    torch.cuda.synchronize(device)
    taken = torch.cuda.max_memory_allocated(device) - before
    del cache, hidden
    torch.cuda.empty_cache()  # mem_get_info counts what torch's allocator keeps as used
    return int(taken)
