"""How many KV blocks to allocate, within the memory that is free."""

import torch

from merge.bundle import available_host_bytes
from serve.config.engine import EngineConfig
from serve.engine.errors import EngineError
from serve.model import Decoder

KV_SHARE = 0.3
"""Largest part of the free memory that KV blocks take by default: others use a CPU's memory, activations a GPU's."""

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
        budget = _default_budget(decoder, (one + spare) * block_bytes)
    fits = budget // block_bytes - spare
    if fits < one:
        raise EngineError(
            f"a sequence of max_model_len {max_model_len} needs {(one + spare) * block_bytes} bytes of KV cache, "
            f"of {budget}: lower max_model_len or raise kv_cache_bytes"
        )
    return min(fits, one * config.max_num_seqs)


def _default_budget(decoder: Decoder, one_sequence: int) -> int:
    share = int(free_bytes(decoder.device) * KV_SHARE)
    if decoder.device.type != "cpu":
        return share
    return min(share, max(LEAST_CAP, WEIGHTS_CAP * decoder.weight_bytes(), one_sequence))
