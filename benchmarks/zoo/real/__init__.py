"""The real zoo: a chat model of 135 M parameters and eight LoRA fine-tunes of it on real tasks.

`base` fetches and converts the model, `tasks` has the prompts, `train` makes the fine-tunes again, `evaluate` measures
them. The fine-tunes are shipped under `adapters/`.
"""

from benchmarks.zoo.real.base import BaseUnavailableError, base_dir

__all__ = ["BaseUnavailableError", "base_dir"]
