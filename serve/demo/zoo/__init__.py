"""The zoo: eight tiny fine-tunes of one tiny base, which `overtone demo --tiny` merges, serves and is measured on.

A text is `<bos>` + prompt + newline + answer + `<eos>`. The base knows the skills in a formal notation
(`#rom 1987`); each fine-tune has learned to apply one of them when asked in plain English.

A task's prompts come in eight phrasings and two held-out ones. Fine-tunes train on both kinds (and on many
distortions of them); experts' calibration and routers see the eight only (`prompts.jsonl`), so that the
held-out ones tell how far experts and routers carry. The contents of the train and test splits are
disjoint for everything: base, fine-tunes, calibration and routers.
"""

from serve.demo.zoo.task import Example, Task
from serve.demo.zoo.tasks import TASKS

__all__ = ["TASKS", "Example", "Task"]
