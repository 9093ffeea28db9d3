"""The domain: the encoder, its features, and texts as batches."""

import random
from collections.abc import Mapping
from functools import cache
from typing import Self

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, AutoTokenizer, BertModel

from benchmarks.quality.classifier import Batch, ClassifierDomain, Part, Sizes, Training
from benchmarks.quality.domain import Requests
from benchmarks.quality.store import Store
from benchmarks.quality.text.sources import encoder_directory
from benchmarks.quality.text.tasks import TASKS, Labelled, foreign_texts, load_task
from merge.checkpoint import Checkpoint, open_checkpoint

LENGTH = 32
"""Tokens of a text that are read; glosses and descriptions have 12 on average."""

TRAINING = Training(examples=3200, steps=100, batch=40, rate=1.5e-4)
SIZES = Sizes(probe=1600, validation=240, test=400, calibration=64)
ROUTED_PER_TASK = 64
HELD_OUT = 2
"""Wordings of a request, of each task's, that the router is tested with and never trained on."""


class TextDomain(ClassifierDomain):
    """MiniLM (6 layers of 384, 22.6 M parameters, 11.9 M of them embeddings, which are not trained)."""

    name = "text"
    aside = ("embeddings.*",)
    dtype = torch.bfloat16

    def __init__(self, store: Store, training: Training = TRAINING, sizes: Sizes = SIZES) -> None:
        """Take the store of data and fine-tunes, and the sizes of the work."""
        super().__init__(store, training, sizes)
        self.tasks = tuple(task.name for task in TASKS)
        self._source = encoder_directory(store.folder("text"))
        self._tokenizer = AutoTokenizer.from_pretrained(self._source, local_files_only=True)
        self._texts = cache(lambda task: load_task(task, store.folder("text"))[:2])

    @classmethod
    def quick(cls, store: Store) -> Self:
        """Sizes for a glance."""
        return cls(store, Training(64, 2, 16, 1.5e-4), Sizes(64, 16, 16, 16))

    def base(self) -> Checkpoint:
        """The encoder without its pooler, which nothing uses."""
        path = self.store.folder("text") / "base"
        if not (path / "model.safetensors").is_file():
            AutoModel.from_pretrained(self._source, add_pooling_layer=False, local_files_only=True).save_pretrained(
                path
            )
        return open_checkpoint(path)

    def build(self) -> nn.Module:
        """The encoder."""
        return BertModel(AutoConfig.from_pretrained(self.base().path, local_files_only=True), add_pooling_layer=False)

    def features(self, module: nn.Module, inputs: Mapping[str, Tensor]) -> Tensor:
        """The mean of the last hidden states over real tokens."""
        hidden: Tensor = module(**inputs).last_hidden_state
        real = inputs["attention_mask"][:, :, None].to(hidden.dtype)
        return (hidden * real).sum(1) / real.sum(1)

    def batches(self, task: str, seed: int, part: Part, count: int, size: int) -> list[Batch]:
        """Texts of similar length together."""
        chosen = self._examples(task, seed, part)[:count]
        encoded = self._tokenizer([item.text for item in chosen], truncation=True, max_length=LENGTH)["input_ids"]
        order = sorted(range(len(chosen)), key=lambda i: len(encoded[i]))
        found = []
        for start in range(0, len(order), size):
            rows = order[start : start + size]
            ids = self._tokenizer.pad({"input_ids": [encoded[i] for i in rows]}, return_tensors="pt")
            inputs = {"input_ids": ids["input_ids"], "attention_mask": ids["attention_mask"]}
            found.append(Batch(inputs, torch.tensor([chosen[i].label for i in rows]), torch.tensor(rows)))
        return found

    def requests(self, seed: int) -> Requests:
        """The tasks' texts inside requests, the last wordings for testing only; sayings as foreign ones."""
        rng = random.Random(seed)
        train, test = {}, {}
        for task in TASKS:
            known = self._examples(task.name, seed, "train")[:ROUTED_PER_TASK]
            unseen = self._examples(task.name, seed, "test")[: self.sizes.test]
            train[task.name] = [rng.choice(task.request[:-HELD_OUT]).format(item.text) for item in known]
            test[task.name] = [rng.choice(task.request[-HELD_OUT:]).format(item.text) for item in unseen]
        return Requests(train, test, foreign_texts(self.sizes.test, self.store.folder("text")))

    def _examples(self, task: str, seed: int, part: Part) -> list[Labelled]:
        rest, test = self._texts(task)
        if part == "test":
            return test
        shuffled = random.Random(f"{task}:{seed}").sample(rest, len(rest))
        line = self.sizes.validation
        return shuffled[:line] if part == "validation" else shuffled[line:]
