"""The language-model domain: the zoo, eight fine-tunes of one tiny Llama. A seed draws the prompts, not the weights."""

import json
import random
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import AutoTokenizer, LlamaForCausalLM

from benchmarks.quality.domain import Requests, Residual, Split, Weights
from benchmarks.quality.store import Store
from benchmarks.zoo.matching import greedy_replies, one_thread
from benchmarks.zoo.model import save_checkpoint
from benchmarks.zoo.skills import UNRELATED
from benchmarks.zoo.training import Schedule, train
from merge.bundle import backbone_digest
from merge.checkpoint import Checkpoint, copy_settings, open_checkpoint
from merge.experts import (
    Calibration,
    CalibrationConfig,
    ExpertConfig,
    Sources,
    build_model,
    cut_expert,
    end_tokens,
    load_tokenizer,
)
from merge.frank_wolfe import LanguageModelLoss, ObjectiveConfig, language_model_loss
from merge.methods.vectors import EMBEDDINGS
from serve.demo.tiny import models_dir
from serve.demo.zoo import TASKS, Example, Task

UNRELATED_REQUESTS: Mapping[str, str] = {
    "add": "What is the sum of {}?",
    "cpy": "Repeat {}",
    "upr": "Put {} in capitals.",
    "len": "How long is {}?",
    "vow": "Which vowels are in {}?",
}
WRONG = "wrong_"
"""Prefix of the pool's fine-tunes that learned to give another prompt's answer."""

IRRELEVANT = Schedule(steps=80, batch_size=32, learning_rate=5.5e-4, warm_up=10)


class LanguageDomain:
    """The zoo. See `Domain`.

    The pool beside it is made here: fine-tunes on five other skills, and on the tasks' own prompts with wrong answers.
    """

    name = "lm"
    aside = EMBEDDINGS

    def __init__(self, store: Store, count: int = 50, calibration: int = 32, distill: int = 0) -> None:
        """Take the store, prompts for each task and split, calibration prompts and steps of distillation."""
        self.store = store
        self.tasks = tuple(sorted(task.name for task in TASKS))
        self.pool = (*UNRELATED_REQUESTS, *(f"{WRONG}{task}" for task in self.tasks))
        self.calibrated_as = "activation-aware support, least-squares values, layer after layer" + (
            f", {distill} steps of distillation" if distill else ", no distillation"
        )
        self.settings = {"count": count, "calibration": calibration, "distill": distill}
        self._count = count
        self._calibration = calibration
        self._distill = distill
        self._tokenizer = AutoTokenizer.from_pretrained(self.base().path, local_files_only=True)
        self._model = LlamaForCausalLM.from_pretrained(self.base().path, local_files_only=True, dtype=torch.float32)

    def base(self) -> Checkpoint:
        """The zoo's base."""
        return open_checkpoint(models_dir() / "base")

    def fine_tune(self, task: str, seed: int) -> Checkpoint:
        """The shipped fine-tune whatever the seed, or one of the pool, trained on the first call."""
        if task in self.tasks:
            return open_checkpoint(models_dir() / "fine_tunes" / task)
        path = self.store.folder("lm") / f"pool-{IRRELEVANT.steps}-{task}"
        if not (path / "config.json").is_file():
            self.store.check_time()
            model = LlamaForCausalLM.from_pretrained(self.base().path, local_files_only=True, dtype=torch.float32)
            with one_thread():
                train(model, self._tokenizer, _pool_examples(task, seed), IRRELEVANT, lambda *_: None)
            with tempfile.TemporaryDirectory(dir=path.parent) as scratch:
                save_checkpoint(Path(scratch, "model"), model, self._tokenizer)
                Path(scratch, "model").rename(path)
        return open_checkpoint(path)

    def answers(self, weights: Weights, task: str, seed: int, split: Split) -> list[bool]:
        """Exact match of greedy replies.

        Validation prompts have contents of the train split, test prompts those of the test split in held-out wordings.
        """
        with torch.no_grad():
            for name, parameter in self._model.named_parameters():
                parameter.copy_(weights[name])
        examples = self._examples(task, seed, split)
        replies = greedy_replies(self._model, self._tokenizer, [example.prompt for example in examples])
        return [reply.strip() == example.answer for reply, example in zip(replies, examples, strict=True)]

    def objective(self, tasks: Sequence[str], seed: int) -> LanguageModelLoss:
        """Cross-entropy of the right answers, the mean of the tasks' logarithms."""
        calibration = CalibrationConfig(file=self._calibration_file(seed), per_task=24, chat_template="none")
        config = ObjectiveConfig(tasks=tuple(tasks), per_task=24, scale="log", batch_size=24)
        return language_model_loss(self.base(), {}, calibration, config)

    def calibrated(self, backbone: Weights, task: str, seed: int, density: float) -> Residual:
        """Cut by the merger's own `cut_expert`."""
        settings = ExpertConfig(density=density, distill=self._distill, exclude=self.aside, storage="bf16").resolved(
            calibrated=True
        )
        prompts = [example.prompt for example in self._examples(task, seed, "calibration")]
        tokens = load_tokenizer(self.base().path)(prompts)["input_ids"]
        fine_tune, student = build_model(self.base().path), build_model(self.base().path)
        with tempfile.TemporaryDirectory() as scratch:
            directory = Path(scratch)
            save_file({name: tensor.contiguous() for name, tensor in backbone.items()}, directory / "model.safetensors")
            copy_settings(self.base().path, directory)
            stored = open_checkpoint(directory)
            sources = Sources(self.base(), stored, backbone_digest(directory), settings)
            ends = end_tokens(student, load_tokenizer(self.base().path))
            calibration = Calibration(fine_tune, student, tokens, ends, 40)
            expert = cut_expert(task, self.fine_tune(task, seed), sources, calibration).expert
        return Residual(
            {name: delta.index.to(torch.int64) for name, delta in expert.sparse.items()},
            {name: delta.numbers for name, delta in expert.sparse.items()},
            expert.dense,
        )

    def requests(self, seed: int) -> Requests:
        """The prompts themselves; none of no task."""
        train = {task: self._examples(task, seed, "calibration") for task in self.tasks}
        test = {task: self._examples(task, seed, "test") for task in self.tasks}
        return Requests(_prompts(train), _prompts(test), ())

    def head_bytes(self) -> float:
        """0: the vocabulary is the backbone's."""
        return 0.0

    def _examples(self, task: str, seed: int, part: str) -> list[Example]:
        named = {item.name: item for item in TASKS}[task]
        if part == "test":
            return named.generate("test", self._count, seed, phrasings="held_out")
        if part == "validation":
            return named.generate("train", self._count, 1000 + seed)
        return named.generate("train", self._calibration, 2000 + seed)

    def _calibration_file(self, seed: int) -> Path:
        path = self.store.folder("lm") / f"calibration-{self._calibration}-{seed}.jsonl"
        lines = [
            json.dumps({"task": task, "prompt": example.prompt, "answer": example.answer})
            for task in self.tasks
            for example in self._examples(task, seed, "calibration")
        ]
        path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
        return path


def _prompts(examples: Mapping[str, Sequence[Example]]) -> dict[str, list[str]]:
    return {task: [example.prompt for example in found] for task, found in examples.items()}


def _pool_examples(name: str, seed: int) -> Callable[[], Example]:
    rng = random.Random(f"{name}:{seed}")

    def unrelated() -> Example:
        payload, answer = UNRELATED[name](rng)
        return Example(UNRELATED_REQUESTS[name].format(payload), answer)

    def wrong() -> Example:
        task: Task = {item.name: item for item in TASKS}[name.removeprefix(WRONG)]
        asked, answered = task.draw_from("train", rng), task.draw_from("train", rng)
        return Example(rng.choice(task.phrasings).format(**asked.fields), answered.answer)

    return unrelated if name in UNRELATED_REQUESTS else wrong
