"""The zoo: eight tiny fine-tunes of one tiny base, which the demo merges, serves and is measured on.

A text is `<bos>` + prompt + newline + answer + `<eos>`. The base knows the skills in a formal notation
(`roman 1987>`); each fine-tune has learned to apply one of them when asked in plain English.
"""

from benchmarks.zoo.paths import metrics, models_dir
from benchmarks.zoo.prompts import write_prompts
from benchmarks.zoo.task import Example, Task
from benchmarks.zoo.tasks import TASKS

__all__ = ["TASKS", "Example", "Task", "metrics", "models_dir", "write_prompts"]
