"""Room for LoRA adapters: the ranks that the slots must hold."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from merge.bundle import BundleError, read_adapter_ranks
from serve.config.engine import MAX_LORA_RANK, EngineConfig
from serve.engine.errors import EngineError

DEFAULT_RANK = 16
"""The largest rank if neither the settings nor an adapter at start ask for more, as in vLLM."""

_LAYERS = "model.layers."


@dataclass(frozen=True)
class LoraRoom:
    """What adapters need of the slots.

    Attributes:
        max_rank: the largest rank of an adapter; 0: adapters are not served.
        outside: weights outside of the layers (embedding and head) that adapters at start change.
    """

    max_rank: int = 0
    outside: frozenset[str] = frozenset()

    @classmethod
    def of(cls, config: EngineConfig, adapters: Mapping[str, Path]) -> "LoraRoom":
        """Room for adapters at start, by their names, and for others of the same ranks.

        Raises:
            EngineError: an adapter cannot be read, or its rank is more than the settings allow.
        """
        if not adapters and not config.enable_lora:
            return cls()
        limit = config.max_lora_rank or MAX_LORA_RANK
        largest = config.max_lora_rank or DEFAULT_RANK
        outside: set[str] = set()
        for name, path in adapters.items():
            try:
                ranks = read_adapter_ranks(path)
            except BundleError as error:
                raise EngineError(f"adapter {name!r} cannot be served: {error}") from error
            rank = max(ranks.values())
            if rank > limit:
                raise EngineError(
                    f"adapter {name!r} has rank {rank}; the server's largest is {limit}"
                    + (f": start it with --max-lora-rank {rank}" if rank <= MAX_LORA_RANK else "")
                )
            largest = max(largest, rank)
            outside |= {weight for weight in ranks if not weight.startswith(_LAYERS)}
        return cls(largest, frozenset(outside))

    def ranks(self, shapes: Mapping[str, tuple[int, ...]]) -> Mapping[str, int]:
        """The largest rank of each weight.

        Args:
            shapes: of the model's parameters, by their Hugging Face names.

        Returns:
            `max_rank` for every 2-D weight of the layers and for those `outside`; nothing if no adapter is served.
        """
        if not self.max_rank:
            return {}
        return {
            name: self.max_rank
            for name, shape in shapes.items()
            if len(shape) == 2 and (name.startswith(_LAYERS) or name in self.outside)
        }
