"""The real zoo: a chat model of 135 M parameters and eight LoRA fine-tunes of it on real tasks.

`base` fetches and converts the model, `tasks` has the prompts, `shipped` the fine-tunes that the repository has,
`train` makes them again in the cache directory, and `evaluate` measures them. `encoder` fetches what their router reads
prompts with.
"""

from benchmarks.zoo.real.base import base_dir
from benchmarks.zoo.real.packages import BaseUnavailableError

__all__ = ["BaseUnavailableError", "base_dir"]
