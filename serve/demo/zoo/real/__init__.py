"""The real zoo: a chat model of 135 M parameters and eight LoRA fine-tunes of it on real tasks.

`base` fetches and converts the model, and fetches the encoder that the router reads prompts with. `tasks` has the
prompts, and the fine-tunes that the repository has; `benchmarks.zoo.real` trains and measures them.
"""

from serve.demo.zoo.real.base import base_dir
from serve.demo.zoo.real.packages import BaseUnavailableError

__all__ = ["BaseUnavailableError", "base_dir"]
