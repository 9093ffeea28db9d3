"""Fine-tunes that are PEFT LoRA directories: read as full checkpoints, each tensor made when it is asked for.

`config` reads adapter_config.json, `adapter` finds the base tensor of each pair of factors, `checkpoint` adds them up.
What a config and names of tensors mean stands in `merge.bundle`, for serving reads them too.
"""

from merge.lora.checkpoint import AdaptedCheckpoint, is_adapter, open_adapter
from merge.lora.config import read_adapter_config

__all__ = ["AdaptedCheckpoint", "is_adapter", "open_adapter", "read_adapter_config"]
