"""A domain of classifiers: one pretrained encoder, fully fine-tuned under a frozen linear head for each task."""

import math
import random
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.quality.domain import Requests, Residual, Split, Weights
from benchmarks.quality.linear_fit import Moments, fit_layers, linear_names
from benchmarks.quality.store import Store
from merge.bundle.files import replaced
from merge.checkpoint import Checkpoint, open_checkpoint

Part = Literal["train", "validation", "test"]


@dataclass(frozen=True)
class Batch:
    """Examples that are run together.

    Attributes:
        inputs: the encoder's.
        labels: classes, [B] int64.
        places: [B] int64, positions of the examples among the requested ones.
    """

    inputs: Mapping[str, Tensor]
    labels: Tensor
    places: Tensor


@dataclass(frozen=True)
class Training:
    """How a fine-tune is trained: AdamW with 10 % warm-up and linear decay.

    Attributes:
        examples: taken from the task's training part.
        steps: of the optimiser.
        batch: examples a step.
        rate: peak learning rate.
    """

    examples: int
    steps: int
    batch: int
    rate: float


@dataclass(frozen=True)
class Sizes:
    """Numbers of examples that are used.

    Attributes:
        probe: that the head is fitted to.
        validation: a task.
        test: a task.
        calibration: a task, for experts and for Frank-Wolfe.
    """

    probe: int
    validation: int
    test: int
    calibration: int


class ClassifierDomain(ABC):
    """What text and vision share. See `Domain`.

    The head is a linear probe on the base's features, so that the base and every merged model have a score; it stays as
    it is while the encoder is fine-tuned.
    """

    name: str
    tasks: tuple[str, ...]
    aside: tuple[str, ...]
    pool: tuple[str, ...] = ()
    calibrated_as = "greedy support and least-squares values on each layer's inputs in the fine-tune"
    dtype = torch.float32
    """What the encoder is run in when it is scored."""

    def __init__(self, store: Store, training: Training, sizes: Sizes) -> None:
        self.store = store
        self.training = training
        self.sizes = sizes
        self.settings: Mapping[str, Any] = {"training": asdict(training), "sizes": asdict(sizes)}
        self._modules: dict[torch.dtype, nn.Module] = {}
        self._moments: dict[tuple[str, int], Moments] = {}

    @abstractmethod
    def build(self) -> nn.Module:
        """The encoder, its weights still to be assigned."""

    @abstractmethod
    def features(self, module: nn.Module, inputs: Mapping[str, Tensor]) -> Tensor:
        """What the head reads, [B, D]."""

    @abstractmethod
    def batches(self, task: str, seed: int, part: Part, count: int, size: int) -> list[Batch]:
        """The first `count` examples of a part, in batches; the seed draws the line between training and validation."""

    @abstractmethod
    def base(self) -> Checkpoint:
        """θ₀."""

    @abstractmethod
    def requests(self, seed: int) -> Requests | None:
        """Prompts for the router."""

    @property
    def folder(self) -> Path:
        """Where fine-tunes are kept: under what they depend on."""
        t = self.training
        return self.store.folder(self.name, f"{t.examples}-{t.steps}x{t.batch}-{t.rate:g}")

    def fine_tune(self, task: str, seed: int) -> Checkpoint:
        """θ_k; trained on the first call."""
        path = self.folder / f"{task}-{seed}"
        if not (path / "model.safetensors").is_file():
            self.store.check_time()
            module = self._loaded(self.base())
            self._train(module, task, seed)
            save_weights(path, module, (self.base().path / "config.json").read_text())
        return open_checkpoint(path)

    def head(self, task: str, seed: int) -> tuple[Tensor, Tensor]:
        """The task's weight [C, D] and bias [C]; fitted on the first call."""
        path = self.folder / f"head-{task}-{seed}.safetensors"
        if not path.is_file():
            module = self._loaded(self.base())
            batches = self.batches(task, seed, "train", self.sizes.probe, 64)
            with torch.inference_mode():
                x = torch.cat([self.features(module, batch.inputs).float() for batch in batches]).clone()
            weight, bias = _fit_probe(x, torch.cat([batch.labels for batch in batches]))
            with replaced(path) as partial:
                save_file({"weight": weight, "bias": bias}, partial)
        tensors = load_file(path)
        return tensors["weight"], tensors["bias"]

    def head_bytes(self) -> float:
        """Bytes of weight and bias."""
        return sum(2.0 * part.numel() for task in self.tasks for part in self.head(task, 0)) / len(self.tasks)

    @torch.inference_mode()
    def answers(self, weights: Weights, task: str, seed: int, split: Split) -> list[bool]:
        """Whether each example gets its class."""
        module = self._assigned(weights, self.dtype)
        weight, bias = self.head(task, seed)
        count = self.sizes.validation if split == "validation" else self.sizes.test
        batches = self.batches(task, seed, split, count, 64)
        right = torch.zeros(sum(len(batch.labels) for batch in batches), dtype=torch.bool)
        for batch in batches:
            logits = functional.linear(self.features(module, batch.inputs).float(), weight, bias)
            right[batch.places] = logits.argmax(1) == batch.labels
        found: list[bool] = right.tolist()
        return found

    def objective(self, tasks: Sequence[str], seed: int) -> "ClassifierLoss":
        """Mean cross-entropy on training examples of each task."""
        return ClassifierLoss(self, tasks, seed)

    def calibrated(self, backbone: Weights, task: str, seed: int, density: float) -> Residual:
        """Greedy support, least-squares values; each layer for itself, on its inputs in the fine-tune."""
        tuned = self.fine_tune(task, seed)
        if (task, seed) not in self._moments:
            module = self._assigned({name: tuned.tensor(name, torch.float32) for name in tuned.tensors}, torch.float32)
            inputs = [batch.inputs for batch in self.batches(task, seed, "train", self.sizes.calibration, 32)]
            wanted = linear_names(module, self.aside)
            self._moments[task, seed] = Moments.of(module, wanted, lambda: [self.features(module, x) for x in inputs])
        index, value = fit_layers(self._moments[task, seed], tuned, backbone, density)
        dense = {
            name: tuned.tensor(name, torch.float32) - backbone[name]
            for name, info in tuned.tensors.items()
            if len(info.shape) == 1
        }
        return Residual(index, value, dense)

    def _train(self, module: nn.Module, task: str, seed: int) -> None:
        settings = self.training
        weight, bias = self.head(task, seed)
        batches = self.batches(task, seed, "train", settings.examples, settings.batch)
        rng = random.Random(f"{task}:{seed}")
        trained = [p for name, p in module.named_parameters() if not self.is_aside(name)]
        for parameter in trained:
            parameter.requires_grad_(True)
        optimizer = torch.optim.AdamW(trained, lr=settings.rate, weight_decay=0.01, fused=True)
        torch.manual_seed(seed)
        module.train()
        order: list[int] = []
        for step in range(settings.steps):
            if not order:
                order = list(range(len(batches)))
                rng.shuffle(order)
            batch = batches[order.pop()]
            share = step / settings.steps
            for group in optimizer.param_groups:
                group["lr"] = settings.rate * min(1.0, share / 0.1 + 0.05, (1 - share) / 0.9)
            with torch.autocast("cpu", torch.bfloat16, enabled=self.dtype == torch.bfloat16):
                found = self.features(module, batch.inputs)
            loss = functional.cross_entropy(functional.linear(found.float(), weight, bias), batch.labels)
            optimizer.zero_grad()
            torch.autograd.backward(loss)
            optimizer.step()
        module.train(False)
        module.requires_grad_(False)

    def is_aside(self, name: str) -> bool:
        """Whether a parameter stays as in the base."""
        return name.startswith("embeddings.")

    def _loaded(self, checkpoint: Checkpoint) -> nn.Module:
        return self._assigned({name: checkpoint.tensor(name) for name in checkpoint.tensors}, torch.float32)

    def _assigned(self, weights: Weights, dtype: torch.dtype) -> nn.Module:
        if dtype not in self._modules:
            module = self.build().to(dtype)
            module.train(False)
            module.requires_grad_(False)
            self._modules[dtype] = module
        with torch.no_grad():
            for name, parameter in self._modules[dtype].named_parameters():
                parameter.copy_(weights[name])
        return self._modules[dtype]


def save_weights(path: Path, module: nn.Module, config: str) -> None:
    """Write a network's parameters, under its own names, and its config.json as a model directory."""
    path.mkdir(parents=True, exist_ok=True)
    (path / "config.json").write_text(config)
    tensors = {name: tensor.detach().contiguous() for name, tensor in module.named_parameters()}
    with replaced(path / "model.safetensors") as partial:
        save_file(tensors, partial, metadata={"format": "pt"})


class ClassifierLoss:
    """Mean over tasks of the mean cross-entropy on a task's examples; an `Objective`."""

    def __init__(self, domain: ClassifierDomain, tasks: Sequence[str], seed: int) -> None:
        self.tasks = tuple(sorted(tasks))
        self._domain = domain
        self._module = domain.build()
        self._module.train(False)
        self._heads = {task: domain.head(task, seed) for task in self.tasks}
        count = domain.sizes.calibration
        self._batches = {task: domain.batches(task, seed, "train", count, 32) for task in self.tasks}

    def loss(self, parameters: Weights) -> float:
        """The mean of the tasks' losses."""
        with torch.no_grad():
            self._assign(parameters)
            return sum(float(self._loss(task)) for task in self.tasks) / len(self.tasks)

    def loss_and_gradient(self, parameters: Weights, task: str | None = None) -> tuple[float, Mapping[str, Tensor]]:
        """One task's loss (None: their mean) and its gradient."""
        with torch.no_grad():
            self._assign(parameters)
        chosen = self.tasks if task is None else (task,)
        self._module.zero_grad()
        total = 0.0
        for name in chosen:
            loss = self._loss(name) / len(chosen)
            torch.autograd.backward(loss)
            total += float(loss.detach())
        own = dict(self._module.named_parameters())
        gradient = {}
        for name in parameters:
            found = own[name].grad
            gradient[name] = torch.zeros_like(own[name]) if found is None else found
        return total, gradient

    def _assign(self, parameters: Weights) -> None:
        own = dict(self._module.named_parameters())
        for name, tensor in parameters.items():
            own[name].copy_(tensor)
            own[name].requires_grad_(not self._domain.is_aside(name))

    def _loss(self, task: str) -> Tensor:
        weight, bias = self._heads[task]
        losses, labels = [], 0
        for batch in self._batches[task]:
            with torch.autocast("cpu", torch.bfloat16, enabled=self._domain.dtype == torch.bfloat16):
                found = self._domain.features(self._module, batch.inputs)
            logits = functional.linear(found.float(), weight, bias)
            losses.append(functional.cross_entropy(logits, batch.labels, reduction="sum"))
            labels += len(batch.labels)
        return torch.stack(losses).sum() / labels


def _fit_probe(x: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Multinomial logistic regression with a little weight decay, on standardised features; by L-BFGS."""
    mean, deviation = x.mean(0), x.std(0).clamp_min(1e-6)
    z = (x - mean) / deviation
    classes = int(labels.max()) + 1
    weight = torch.zeros(classes, x.shape[1], requires_grad=True)
    bias = torch.zeros(classes, requires_grad=True)
    optimizer = torch.optim.LBFGS([weight, bias], max_iter=60, line_search_fn="strong_wolfe")

    def closure() -> float:
        optimizer.zero_grad()
        loss = functional.cross_entropy(functional.linear(z, weight, bias), labels) + 3e-3 * weight.square().sum()
        torch.autograd.backward(loss)
        return float(loss.detach())

    optimizer.step(closure)  # type: ignore[no-untyped-call]
    found = (weight / deviation).detach()
    offset = (bias - functional.linear(mean[None], found)[0]).detach()
    if not math.isfinite(float(offset.sum())):
        raise RuntimeError("the probe did not converge: the features are not finite")
    return found.contiguous(), offset.contiguous()
