"""What this machine's processor multiplies fast."""

import torch


def fast_bfloat16() -> bool:
    """Whether the processor has instructions that multiply bfloat16."""
    found = torch.cpu.get_capabilities()
    return any(bool(found.get(name)) for name in ("avx512_bf16", "amx_bf16", "bf16"))
