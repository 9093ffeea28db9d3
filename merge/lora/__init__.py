"""Fine-tunes that are PEFT LoRA directories: read as full checkpoints, each tensor made when it is asked for.

`config` reads adapter_config.json and refuses by name what would be computed wrongly, `adapter` finds the base tensor
of each pair of factors, `checkpoint` adds them up.
"""

from merge.lora.checkpoint import AdaptedCheckpoint, is_adapter, open_adapter
from merge.lora.config import AdapterConfig, read_adapter_config

__all__ = ["AdaptedCheckpoint", "AdapterConfig", "is_adapter", "open_adapter", "read_adapter_config"]
