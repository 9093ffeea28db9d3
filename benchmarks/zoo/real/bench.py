"""Cutting experts of the real zoo's fine-tunes and scoring them, in one model's memory."""

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any, Literal

import torch
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from benchmarks.zoo.real.measure import Loaded, marks
from benchmarks.zoo.real.packing import encode
from merge.bundle import Expert, write_expert
from merge.bundle.expert_header import expert_bytes
from merge.checkpoint import Checkpoint, open_checkpoint
from merge.experts import Calibration, ExpertConfig, Sources, build_model, cut_expert
from merge.experts.added import added
from merge.experts.running import assign
from merge.lora import is_adapter, open_adapter
from merge.quantised_backbone import greedy_replies
from serve.demo.zoo.real.tasks import TASKS, find_task
from serve.demo.zoo.task import Example

Part = Literal["test", "validation", "calibration"]


class Bench:
    """One base, its tokenizer, and the requests of each task.

    Attributes:
        base: θ₀.
        tokenizer: the base's.
        count: held-out requests a task, at most.
        prompts: a task that experts are cut with.
        distill: steps of distillation; None: as many as a recipe has by default.
        seed: of the choice of requests and prompts.
    """

    def __init__(self, base: Path, requests: int, prompts: int, distill: int | None, seed: int) -> None:
        """Load the base from its directory."""
        self.base = open_checkpoint(base)
        self.tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(base, local_files_only=True)
        self._model = build_model(base, torch.bfloat16)
        self.count, self.prompts, self.distill, self.seed = requests, prompts, distill, seed
        self._ends = frozenset({int(self.tokenizer.eos_token_id)})
        self._replies: dict[tuple[str, Path], list[list[int]]] = {}

    def requests(self, task: str, part: Part = "test", count: int | None = None) -> list[Example]:
        """A task's requests: test contents in held-out wordings, or train contents in known ones."""
        if part == "test":
            return find_task(task).examples("test", count or self.count, self.seed, "held_out")
        # Validation takes other contents than calibration does.
        examples = find_task(task).examples("train", None, self.seed + 1, "train")
        if part == "calibration":
            return examples[: count or self.prompts]
        return examples[self.prompts :][: count or self.count]

    def marks(
        self,
        checkpoint: Checkpoint,
        task: str,
        expert: Expert | None = None,
        part: Part = "test",
        count: int | None = None,
    ) -> list[float]:
        """The metric of each request, 0 to 1, of a checkpoint with an expert added; bfloat16."""
        assign(self._model, checkpoint)
        with added(self._model, expert):
            return marks(Loaded(self._model, self.tokenizer), find_task(task), self.requests(task, part, count))

    def score(self, checkpoint: Checkpoint, task: str, expert: Expert | None = None) -> float:
        """The mean of `marks` on the held-out requests."""
        return fmean(self.marks(checkpoint, task, expert))

    def prompt_tokens(self, task: str) -> list[Sequence[int]]:
        """Token ids of the prompts that experts for a task are cut with."""
        return [encode(self.tokenizer, example)[0] for example in self.requests(task, "calibration")]

    def replies(self, task: str, fine_tune: Checkpoint) -> list[list[int]]:
        """A fine-tune's replies to these prompts; generated once, for backbones in 4 bits and experts alike."""
        key = (task, fine_tune.path)
        if key not in self._replies:
            limit = find_task(task).longest
            self._replies[key] = greedy_replies(self.base, fine_tune, self.prompt_tokens(task), limit, self._ends)
        return self._replies[key]

    def cut(
        self,
        task: str,
        fine_tune: Checkpoint,
        backbone: Checkpoint,
        settings: Mapping[str, Any],
        prompts: bool,
        merged: Checkpoint | None = None,
    ) -> tuple[Expert, float, float | None]:
        """Cut an expert; with it its bytes as a fraction of the backbone's, and its divergence.

        `merged` is the backbone before it was rounded to few bits.
        """
        known = {"distill": self.distill} if prompts and self.distill is not None else {}
        config = ExpertConfig.model_validate({**settings, **known}).resolved(prompts)
        calibration = None
        if config.needs_prompts:
            models = build_model(self.base.path), build_model(self.base.path)
            tokens, replies = self.prompt_tokens(task), self.replies(task, fine_tune)
            calibration = Calibration(*models, tokens, self._ends, find_task(task).longest, replies=replies)
        sources = Sources(self.base, backbone, "0" * 64, config, merged)
        cut = cut_expert(task, fine_tune, sources, calibration)
        with tempfile.TemporaryDirectory() as scratch:
            write_expert(Path(scratch, "expert.safetensors"), cut.expert)
            size = expert_bytes(Path(scratch, "expert.safetensors"))
        return cut.expert, size / backbone.nbytes, None if cut.divergence is None else cut.divergence[1]


def fine_tunes(base: Checkpoint, folder: Path, tasks: Sequence[str] | None) -> dict[str, Checkpoint]:
    """The fine-tunes in a folder, by task."""
    found = {}
    for task in TASKS:
        directory = folder / task.name
        if directory.is_dir() and (tasks is None or task.name in tasks):
            found[task.name] = open_adapter(directory, base) if is_adapter(directory) else open_checkpoint(directory)
    return found
