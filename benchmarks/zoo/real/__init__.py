"""The real zoo: a chat model of 135 M parameters and eight LoRA fine-tunes of it on real tasks.

`base` fetches and converts the model, `tasks` has the prompts, `train` makes the fine-tunes in the cache directory, and
`evaluate` measures them.
"""

from benchmarks.zoo.real.base import BaseUnavailableError, base_dir

__all__ = ["BaseUnavailableError", "base_dir"]
