"""How much memory is free, and how many KV blocks of it to take."""

import os
from pathlib import Path

import torch

from serve.engine.config import EngineConfig
from serve.engine.errors import EngineError
from serve.model import Decoder

KV_SHARE = 0.3
"""Part of the free memory that KV blocks take by default: others use a CPU's memory, activations a GPU's."""


def free_bytes(device: torch.device) -> int:
    """Memory that could be taken now: of the GPU, or of the host within the limit of its control group."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return min(_available_on_host(), _left_in_group(Path("/sys/fs/cgroup")))


def num_blocks(decoder: Decoder, config: EngineConfig, max_model_len: int, spare: bool = False) -> int:
    """KV blocks to allocate: within the budget, no more than all sequences at their longest need, no less than one.

    With `spare`, one more that is not counted fits the budget too.

    Raises:
        EngineError: the budget does not hold one sequence.
    """
    block_bytes = decoder.kv_bytes_per_token() * config.block_size
    budget = config.kv_cache_bytes
    if budget is None:
        budget = int(free_bytes(decoder.device) * KV_SHARE)
    one = -(-max_model_len // config.block_size)
    fits = budget // block_bytes - spare
    if fits < one:
        raise EngineError(
            f"a sequence of max_model_len {max_model_len} needs {(one + spare) * block_bytes} bytes of KV cache, "
            f"of {budget}: lower max_model_len or raise kv_cache_bytes"
        )
    return min(fits, one * config.max_num_seqs)


def _available_on_host() -> int:
    meminfo = Path("/proc/meminfo")
    if meminfo.is_file():
        for line in meminfo.read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    # Where the system does not say what is available, half of what is installed is a guess on the safe side.
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2


def _left_in_group(group: Path) -> int:
    try:
        limit, used = (group / "memory.max").read_text().strip(), int((group / "memory.current").read_text())
    except (OSError, ValueError):
        return 1 << 62
    return 1 << 62 if limit == "max" else max(0, int(limit) - used)
