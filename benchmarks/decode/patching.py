"""What `--patching auto` would find out about this model and machine at start."""

from typing import Any

from merge.bundle import Bundle
from serve.engine.patch_costs import measure_patch_costs
from serve.model import Decoder, ResidualBanks, ResidualShape

_MOST_TOKENS = 2048


def patching(bundle: Bundle, decoder: Decoder) -> dict[str, Any]:
    """Milliseconds of patching an expert in and out, and what a step from patched weights saves, by its tokens.

    Args:
        bundle: whose first expert is timed.
        decoder: of its backbone, without banks; it has one with that expert afterwards.
    """
    name = bundle.expert_names[0]
    banks = ResidualBanks(decoder, ResidualShape.of([bundle.expert_path(name)]), 1)
    banks.load(0, banks.pack(bundle.read_expert(name)))
    costs = measure_patch_costs(decoder, banks, 0, _MOST_TOKENS)
    return {
        "switch_ms": round(1e3 * costs.switch_seconds, 3),
        "saved_ms": {str(size): round(1e3 * saved, 3) for size, saved in zip(costs.tokens, costs.saved, strict=True)},
    }
