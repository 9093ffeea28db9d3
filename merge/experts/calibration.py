"""Calibration data: prompts of a task, each continued by the fine-tune itself, in padded batches.

The fine-tune's own greedy continuation is used even where reference answers exist: it needs no labels, it carries the
separators and end tokens that the fine-tune has learned, and it is what backbone + expert shall reproduce.
"""

import json
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from merge.experts.running import cache_keyword


class CalibrationError(ValueError):
    """A calibration file is missing, malformed or lacks a task. The message is one line."""


@dataclass(frozen=True)
class Batch:
    """Token sequences of similar length, padded on the right.

    In a causal model no token sees what stands to its right, so such a batch needs no attention mask; what the model
    computes at padding is never looked at.

    Attributes:
        ids: [B, T] int64.
        real: [B, T] bool, False at padding.
        predicts: [B, T] bool, positions whose next token belongs to the continuation.
    """

    ids: Tensor
    real: Tensor
    predicts: Tensor


def read_prompts(file: Path, tasks: Collection[str]) -> dict[str, list[str]]:
    """Read a JSON-lines file of {"task", "prompt"} objects ("answer" may be there; see the module's first lines).

    Returns:
        Each task's distinct prompts in the file's order.

    Raises:
        CalibrationError: no such file, a line that is no such object, a task that the recipe does not have, or a task
            of the recipe without a prompt.
    """
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise CalibrationError(f"no readable calibration file at {file}: {error}") from error
    prompts: dict[str, dict[str, None]] = {task: {} for task in tasks}
    for number, line in enumerate(lines, start=1):
        if line.strip():
            task, prompt = _parse(line, f"{file} line {number}")
            if task not in prompts:
                close = get_close_matches(task, list(prompts), n=1)
                hint = f"did you mean {close[0]!r}?" if close else f"the recipe has {', '.join(sorted(prompts))}"
                raise CalibrationError(f"{file} line {number}: no model is called {task!r}; {hint}")
            prompts[task][prompt] = None
    for task, found in prompts.items():
        if not found:
            raise CalibrationError(f'{file} has no prompt of {task}: add lines like {{"task": "{task}", "prompt": …}}')
    return {task: list(found) for task, found in prompts.items()}


def _parse(line: str, place: str) -> tuple[str, str]:
    try:
        item = json.loads(line)
    except json.JSONDecodeError as error:
        raise CalibrationError(f"{place} is no JSON: {error}") from error
    if not isinstance(item, dict) or not all(isinstance(item.get(key), str) for key in ("task", "prompt")):
        raise CalibrationError(f'{place} must be an object with the strings "task" and "prompt"')
    unknown = sorted(set(item) - {"task", "prompt", "answer"})
    if unknown:
        raise CalibrationError(f"{place} has the unknown key {unknown[0]!r}; there are task, prompt and answer")
    if not item["prompt"]:
        raise CalibrationError(f"{place} has an empty prompt")
    return item["task"], item["prompt"]


@torch.inference_mode()
def continue_greedily(
    model: PreTrainedModel, prompts: Sequence[Sequence[int]], limit: int, ends: Collection[int], batch_size: int = 64
) -> list[list[int]]:
    """Continue each prompt by the model's most likely token, again and again.

    Args:
        model: a decoder with its weights assigned.
        prompts: token ids, at least one each.
        limit: most tokens added.
        ends: token ids that end a continuation (and are part of it).
        batch_size: sequences run at once.

    Returns:
        One continuation a prompt, in their order.
    """
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    replies: list[list[int]] = [[] for _ in prompts]
    for start in range(0, len(order), batch_size):
        chosen = order[start : start + batch_size]
        for i, reply in zip(chosen, _continue(model, [prompts[i] for i in chosen], limit, ends), strict=True):
            replies[i] = reply
    return replies


def _continue(
    model: PreTrainedModel, prompts: Sequence[Sequence[int]], limit: int, ends: Collection[int]
) -> list[list[int]]:
    longest = max(len(prompt) for prompt in prompts)
    # Padding on the left lets all rows end at the same column, where the next token goes.
    ids = torch.tensor([[0] * (longest - len(prompt)) + list(prompt) for prompt in prompts])
    real = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    position = (real.cumsum(1) - 1).clamp_min(0)
    cache = {cache_keyword(model): DynamicCache()}
    replies: list[list[int]] = [[] for _ in prompts]
    running = set(range(len(prompts)))
    for _ in range(limit):
        output = model(
            input_ids=ids, attention_mask=real, position_ids=position, use_cache=True, logits_to_keep=1, **cache,
        )  # fmt: skip
        ids = output.logits[:, -1].argmax(-1, keepdim=True)
        for row in sorted(running):
            token = int(ids[row, 0])
            replies[row].append(token)
            if token in ends:
                running.discard(row)
        if not running:
            break
        real = torch.cat([real, torch.ones_like(ids)], 1)
        position = position[:, -1:] + 1
    return replies


def make_batches(
    prompts: Sequence[Sequence[int]], replies: Sequence[Sequence[int]], batch_size: int
) -> tuple[Batch, ...]:
    """Join prompts with their continuations and group them by length.

    Args:
        prompts: token ids, at least one each.
        replies: their continuations.
        batch_size: sequences a batch.
    """
    pairs = sorted(zip(prompts, replies, strict=True), key=lambda pair: len(pair[0]) + len(pair[1]))
    return tuple(_batch(pairs[start : start + batch_size]) for start in range(0, len(pairs), batch_size))


def _batch(pairs: Sequence[tuple[Sequence[int], Sequence[int]]]) -> Batch:
    width = max(len(prompt) + len(reply) for prompt, reply in pairs)
    ids = torch.zeros(len(pairs), width, dtype=torch.int64)
    real = torch.zeros(len(pairs), width, dtype=torch.bool)
    predicts = torch.zeros(len(pairs), width, dtype=torch.bool)
    for row, (prompt, reply) in enumerate(pairs):
        length = len(prompt) + len(reply)
        ids[row, :length] = torch.tensor([*prompt, *reply])
        real[row, :length] = True
        predicts[row, len(prompt) - 1 : length - 1] = True
    return Batch(ids, real, predicts)
