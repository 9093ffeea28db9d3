"""The domain: a ViT pretrained here on upright digits, and fine-tuned on each task."""

import random
from collections.abc import Mapping
from functools import cache
from typing import Self

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import ViTConfig, ViTModel

from benchmarks.quality.classifier import Batch, ClassifierDomain, Part, Sizes, Training, save_weights
from benchmarks.quality.store import Store
from benchmarks.quality.vision.images import POOL, TASKS, TEST_SHARE, digits, task_data
from merge.checkpoint import Checkpoint, open_checkpoint

CONFIG = ViTConfig(
    image_size=8,
    patch_size=2,
    num_channels=1,
    hidden_size=128,
    intermediate_size=512,
    num_hidden_layers=4,
    num_attention_heads=4,
    hidden_dropout_prob=0.0,
    attention_probs_dropout_prob=0.0,
)
TRAINING = Training(examples=1100, steps=120, batch=64, rate=4e-4)
SIZES = Sizes(probe=1000, validation=240, test=450, calibration=128)
PRETRAINING_STEPS = 500


class VisionDomain(ClassifierDomain):
    """A ViT of 0.8 M parameters on images of 8 × 8 pixels; eight tasks, and twelve more in the pool."""

    name = "vision"
    aside = ("embeddings.*",)
    tasks = TASKS
    pool = POOL

    def __init__(
        self, store: Store, training: Training = TRAINING, sizes: Sizes = SIZES, pretraining: int = PRETRAINING_STEPS
    ) -> None:
        """Take the store of the models, and the sizes of the work."""
        super().__init__(store, training, sizes)
        self._pretraining = pretraining
        self._data = cache(task_data)

    @classmethod
    def quick(cls, store: Store) -> Self:
        """Three tasks in sizes for a glance."""
        domain = cls(store, Training(64, 3, 32, 4e-4), Sizes(64, 32, 32, 32), pretraining=5)
        domain.tasks = TASKS[:3]
        return domain

    def base(self) -> Checkpoint:
        """The pretrained ViT; trained on the first call."""
        path = self.store.folder("vision") / f"base-{self._pretraining}"
        if not (path / "model.safetensors").is_file():
            save_weights(path, self._pretrain(), CONFIG.to_json_string())
        return open_checkpoint(path)

    def build(self) -> nn.Module:
        """The ViT."""
        return ViTModel(CONFIG, add_pooling_layer=False)

    def features(self, module: nn.Module, inputs: Mapping[str, Tensor]) -> Tensor:
        """The mean of the last hidden states."""
        hidden: Tensor = module(**inputs).last_hidden_state
        return hidden.mean(1)

    def batches(self, task: str, seed: int, part: Part, count: int, size: int) -> list[Batch]:
        """Images in the order of the seed's shuffle."""
        images, labels = self._data(task)
        rest = [i for i in range(len(labels)) if i % TEST_SHARE]
        if part == "test":
            chosen = list(range(0, len(labels), TEST_SHARE))
        else:
            shuffled = random.Random(seed).sample(rest, len(rest))
            line = self.sizes.validation
            chosen = shuffled[:line] if part == "validation" else shuffled[line:]
        rows = torch.tensor(chosen[:count])
        places = torch.arange(len(rows))
        return [
            Batch({"pixel_values": images[rows[at]]}, labels[rows[at]], at)
            for at in (places[start : start + size] for start in range(0, len(rows), size))
        ]

    def requests(self, seed: int) -> None:
        """None: a router reads text."""

    def _pretrain(self) -> ViTModel:
        torch.manual_seed(0)
        model = ViTModel(CONFIG, add_pooling_layer=False)
        head = nn.Linear(CONFIG.hidden_size, 10)
        images, numbers = digits()
        rest = torch.tensor([i for i in range(len(numbers)) if i % TEST_SHARE])
        optimizer = torch.optim.AdamW([*model.parameters(), *head.parameters()], lr=1e-3, weight_decay=0.05)
        for step in range(self._pretraining):
            rows = rest[torch.randint(len(rest), (64,))]
            shifted = images[rows].roll(int(torch.randint(-1, 2, ())), 2)
            noise = 0.1 * torch.randn(shifted.shape)
            logits = head(self.features(model, {"pixel_values": (shifted + noise)[:, None]}))
            optimizer.zero_grad()
            torch.autograd.backward(functional.cross_entropy(logits, numbers[rows]))
            for group in optimizer.param_groups:
                group["lr"] = 1e-3 * (1 - step / self._pretraining)
            optimizer.step()
        model.train(False)
        model.requires_grad_(False)
        return model
